package site

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// DeviceFacts is all that is known of why a device can or cannot talk: what the site keeps of it, and what whoever asks adds of the role that serves it. It
// travels as JSON through the administration door, and holds no secret.
type DeviceFacts struct {
	Asked string    `json:"asked"` // as the person named it
	At    time.Time `json:"at"`    // when the facts were gathered, by the site's clock

	Device    *Device      `json:"device"`             // nil: nothing that is asked for is registered
	Successor string       `json:"successor"`          // name of the record that replaced it
	Events    []Event      `json:"events"`             // that name it, the newest first
	Trust     []TrustEntry `json:"trust"`              // about it, the newest first
	Conflicts []Conflict   `json:"conflicts"`          // the newest first
	Bulk      *BulkToken   `json:"bulk,omitempty"`     // by which it came
	Uses      []TokenUse   `json:"uses,omitempty"`     // of bulk tokens by its key, id or address, where no such device is registered
	Reserved  *Reservation `json:"reserved,omitempty"` // a client id that waits for its registration
	Tenant    *TenantFact  `json:"tenant,omitempty"`   // on whose word alone it is approved

	SelfProveLife time.Duration `json:"self_prove_life"`
	Gateways      []GatewayFact `json:"gateways"`
	Connectors    []Connector   `json:"connectors"`
	Epoch         uint64        `json:"epoch"`
	ClockBehind   string        `json:"clock_behind,omitempty"`
	Cut           []string      `json:"cut,omitempty"` // what was not looked at whole

	Running  bool                  `json:"running"`            // the management point answers
	Problems []string              `json:"problems,omitempty"` // of its health
	Waiting  []WaitingRegistration `json:"waiting,omitempty"`  // of this device in the inbox
	Logs     *LogFinding           `json:"logs,omitempty"`     // what its logs say of the device
}

// GatewayFact is how a gateway stands.
type GatewayFact struct {
	Name   string    `json:"name"`
	Heard  time.Time `json:"heard,omitzero"`
	Behind bool      `json:"behind"` // it has not confirmed the newest site state
}

// TenantFact is how a tenant stands.
type TenantFact struct {
	ID       string `json:"id"`
	Listed   bool   `json:"listed"`
	Disabled bool   `json:"disabled"`
}

// WaitingRegistration is a registration in the inbox.
type WaitingRegistration struct {
	ClientID ccm.ClientID        `json:"client_id"`
	Key      proof.KeyThumbprint `json:"key"`
	Name     string              `json:"name"`
	Address  string              `json:"address"`
	Received time.Time           `json:"received"`
}

// LogFinding is the verdict of the logs.
type LogFinding struct {
	Code  catalog.Code `json:"code"`
	Sure  string       `json:"sure"`  // certain or likely
	Lines []string     `json:"lines"` // that show it
}

// Budgets of a diagnosis.
const (
	whyEvents  = 200    // that name the device
	whyScanned = 20_000 // events that are looked through for one that does
	whyTrust   = 50_000 // entries of the trust log that are looked through
	whyKept    = 100    // of those about the device
	whyTokens  = 500    // bulk tokens whose uses are looked through
)

// DeviceFacts gathers what the site knows of the device that who names: a client id, a name, the thumbprint of its key, or, of one that never registered, the
// address that it came from. That nothing is known is no error. Code: DeviceAmbiguous.
func (s *Site) DeviceFacts(ctx context.Context, who string) (f DeviceFacts, err error) {
	if strings.TrimSpace(who) == "" || len(who) > maxShown {
		return f, catalog.Errorf(catalog.DeviceUnknown, "name a device by client id, name, key or address")
	}
	s.Flush(ctx)
	f = DeviceFacts{Asked: who, At: s.time(), SelfProveLife: s.Settings().SelfProveLife(), Connectors: s.Connectors(), Epoch: s.Epoch(), Events: []Event{}, Trust: []TrustEntry{}, Gateways: []GatewayFact{}}
	for _, g := range s.Gateways() {
		f.Gateways = append(f.Gateways, GatewayFact{g.Name, g.Heard, g.Acknowledged < f.Epoch})
	}
	if behind := s.ClockBehind(); behind != nil {
		f.ClockBehind = catalog.Public(behind)
	}
	if f.Device, err = s.named(ctx, who); err != nil {
		return f, err
	}
	for _, gather := range []func(context.Context, *DeviceFacts) error{s.whyEvents, s.whyTrust, s.whyRecords, s.whyNewcomer} {
		if err := gather(ctx, &f); err != nil {
			return f, fmt.Errorf("gather what is known of %s: %w", shown(who), err)
		}
	}
	return f, nil
}

// named is the device that who names, or nil.
func (s *Site) named(ctx context.Context, who string) (*Device, error) {
	device, err := s.FindDevice(ctx, who)
	if catalog.CodeOf(err) == catalog.DeviceUnknown {
		device, err = s.DeviceByKey(ctx, proof.KeyThumbprint(who))
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return s.formerly(ctx, proof.KeyThumbprint(who))
	case err != nil:
		return nil, err
	}
	return &device, nil
}

// formerly is the device that had the key before it got another, or nil.
func (s *Site) formerly(ctx context.Context, key proof.KeyThumbprint) (found *Device, err error) {
	err = s.store.View(ctx, func(tx Tx) error {
		id, err := tx.FormerKey(key)
		if err != nil {
			return err
		}
		device, err := tx.Device(id)
		if err == nil {
			found = &device
		}
		return err
	})
	if errors.Is(err, ErrNotFound) {
		err = nil
	}
	return found, err
}

// names is what a device is called in events, the trust log and logs.
func (f DeviceFacts) names() []string {
	names := []string{f.Asked}
	if id, err := ccm.ParseClientID("GUID:" + strings.TrimPrefix(strings.ToUpper(f.Asked), "GUID:")); err == nil {
		names = append(names, string(id), id.UUID())
	}
	if d := f.Device; d != nil {
		names = append(names, string(d.ClientID), d.ClientID.UUID(), string(d.Key), d.Record.NetbiosName, d.Record.FQDName)
	}
	for _, w := range f.Waiting {
		names = append(names, string(w.ClientID), w.ClientID.UUID())
	}
	if f.Reserved != nil {
		names = append(names, string(f.Reserved.ClientID), f.Reserved.ClientID.UUID(), string(f.Reserved.Key))
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return len(name) < 2 })
}

// Words are the words by which lines about the device are found in logs: its ids, key and names, and the trace ids of its requests.
func (f DeviceFacts) Words() []string {
	words := f.names()
	for _, e := range f.Events {
		if len(e.TraceID) >= 16 && len(words) < 500 {
			words = append(words, e.TraceID)
		}
	}
	slices.Sort(words)
	return slices.Compact(words)
}

// concerns reports whether an event is about the device. An address alone says so only where an address was asked for: others share it.
func (f DeviceFacts) concerns(e Event, names []string) bool {
	if address, err := netip.ParseAddr(f.Asked); err == nil && f.Device == nil {
		if from, err := netip.ParseAddr(e.Address); err == nil && from.Unmap() == address.Unmap() {
			return true
		}
	}
	for _, name := range names {
		if strings.EqualFold(e.Subject, name) || Mentions(e.Detail, name) {
			return true
		}
	}
	return false
}

// Mentions reports whether a text holds a word, whole: WK1 is not in WK10, nor in OLD-WK1. Case does not count.
func Mentions(text, word string) bool {
	if word == "" || len(text) < len(word) {
		return false
	}
	text, word = strings.ToLower(text), strings.ToLower(word)
	for from := 0; ; {
		at := strings.Index(text[from:], word)
		if at < 0 {
			return false
		}
		begin, end := from+at, from+at+len(word)
		if !nameByte(text, begin-1) && !nameByte(text, end) {
			return true
		}
		from = begin + 1
	}
}

// nameByte reports whether the byte there goes on with a name. A dot ends one: WK1 is in wk1.corp.example and ends a sentence.
func nameByte(text string, at int) bool {
	if at < 0 || at >= len(text) {
		return false
	}
	c := text[at]
	return c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || c >= 0x80
}

func (s *Site) whyEvents(ctx context.Context, f *DeviceFacts) error {
	names := f.names()
	return s.store.View(ctx, func(tx Tx) error {
		scanned, err := tx.Events(EventFilter{Limit: whyScanned})
		if err != nil {
			return err
		}
		if len(scanned) == whyScanned {
			f.Cut = append(f.Cut, fmt.Sprintf("of the events, the newest %d: back to %s", whyScanned, scanned[len(scanned)-1].At.Format(time.RFC3339)))
		}
		if f.Device != nil { // its own are found however many there are of others
			for _, subject := range []string{string(f.Device.ClientID), string(f.Device.Key)} {
				own, err := tx.Events(EventFilter{Subject: subject, Limit: whyEvents})
				if err != nil {
					return err
				}
				f.Events = append(f.Events, own...)
			}
		}
		for _, e := range scanned {
			own := f.Device != nil && (e.Subject == string(f.Device.ClientID) || e.Subject == string(f.Device.Key))
			if !own && len(f.Events) < 3*whyEvents && f.concerns(e, names) {
				f.Events = append(f.Events, e)
			}
		}
		slices.SortStableFunc(f.Events, func(a, b Event) int { return cmp.Or(b.At.Compare(a.At), cmp.Compare(b.ID, a.ID)) })
		return nil
	})
}

// whyTrust reads the trust log from its end.
func (s *Site) whyTrust(ctx context.Context, f *DeviceFacts) error {
	head, err := s.TrustHead(ctx)
	if err != nil {
		return err
	}
	names := f.names()
	lowest := head.Sequence - min(head.Sequence, whyTrust)
	for to := head.Sequence; to > lowest; {
		from := max(to-min(to, auditPage), lowest)
		entries, err := s.TrustLog(ctx, from, int(to-from))
		if err != nil {
			return err
		}
		for _, e := range slices.Backward(entries) {
			if len(f.Trust) < whyKept && about(e, names) {
				f.Trust = append(f.Trust, e)
			}
		}
		to = from
	}
	if lowest > 0 {
		f.Cut = append(f.Cut, fmt.Sprintf("of the trust log, the newest %d of %d entries", whyTrust, head.Sequence))
	}
	return nil
}

// about reports whether an entry is about the device: it is the subject, or one of the facts is its id, key or name.
func about(e TrustEntry, names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		return strings.EqualFold(e.Subject, name) || strings.Contains(strings.ToLower(e.Detail), `:"`+strings.ToLower(name)+`"`)
	})
}

// whyRecords reads what belongs to a registered device.
func (s *Site) whyRecords(ctx context.Context, f *DeviceFacts) error {
	d := f.Device
	if d == nil {
		return nil
	}
	return s.store.View(ctx, func(tx Tx) (err error) {
		if f.Conflicts, err = tx.Conflicts(ConflictFilter{Device: d.ClientID, Limit: 20}); err != nil {
			return err
		}
		if d.Superseded() {
			if by, err := tx.Device(d.Obsolete.By); err == nil {
				f.Successor = by.Name()
			}
		}
		if id := d.Approval.Evidence["bulk-token"]; id != "" {
			bulk, err := tx.BulkToken(id)
			if err == nil {
				f.Bulk = &bulk
			} else if !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		if cloud := d.cameBy(); cloud != nil {
			f.Tenant = &TenantFact{ID: cloud.Tenant}
			for _, t := range s.Onboarded() {
				if t.ID == cloud.Tenant {
					f.Tenant.Listed, f.Tenant.Disabled = true, t.Disabled
				}
			}
		}
		return nil
	})
}

// whyNewcomer looks for what came before a registration, where there is none.
func (s *Site) whyNewcomer(ctx context.Context, f *DeviceFacts) error {
	if f.Device != nil {
		return nil
	}
	return s.store.View(ctx, func(tx Tx) error {
		reserved, err := tx.Reservation(proof.KeyThumbprint(f.Asked))
		if id, bad := ccm.ParseClientID("GUID:" + strings.TrimPrefix(strings.ToUpper(f.Asked), "GUID:")); errors.Is(err, ErrNotFound) && bad == nil {
			reserved, err = tx.ReservationByClient(id)
		}
		switch {
		case err == nil:
			f.Reserved = &reserved
		case !errors.Is(err, ErrNotFound):
			return err
		}
		return unregisteredUses(tx, f)
	})
}

// unregisteredUses finds uses of bulk tokens that the device may have made, and whose key never registered.
func unregisteredUses(tx Tx, f *DeviceFacts) error {
	tokens, err := tx.BulkTokens()
	if err != nil {
		return err
	}
	slices.Reverse(tokens) // the newest first
	if len(tokens) > whyTokens {
		f.Cut = append(f.Cut, fmt.Sprintf("of the bulk registration tokens, the uses of the newest %d of %d", whyTokens, len(tokens)))
		tokens = tokens[:whyTokens]
	}
	for _, t := range tokens {
		uses, err := tx.TokenUses(t.ID, whyEvents)
		if err != nil {
			return err
		}
		for _, use := range uses {
			if !f.made(use) {
				continue
			}
			switch _, err := tx.DeviceByKey(use.Key); {
			case errors.Is(err, ErrNotFound):
				f.Uses, f.Bulk = append(f.Uses, use), &t
			case err != nil:
				return err
			}
		}
	}
	return nil
}

func (f DeviceFacts) made(use TokenUse) bool {
	if address, err := netip.ParseAddr(f.Asked); err == nil {
		from, err := netip.ParseAddr(use.Address)
		return err == nil && from.Unmap() == address.Unmap()
	}
	return slices.ContainsFunc(f.names(), func(name string) bool {
		return strings.EqualFold(name, string(use.ClientID)) || name == string(use.Key)
	})
}

// facts of a trust entry's detail.
func (e TrustEntry) facts() map[string]string {
	facts := map[string]string{}
	if json.Unmarshal([]byte(e.Detail), &facts) != nil {
		return nil
	}
	return facts
}
