package mp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/inbox"
	"postern/logfile"
	"postern/proof"
	"postern/site"
)

// keep makes a registration durable while the database is away (design decision 8).
func (v *visit) keep(m *ccm.Message, id ccm.ClientID) error {
	if v.mp.config.Inbox == nil {
		return errors.New("this management point has no inbox")
	}
	return v.mp.config.Inbox.Append(v.r.Context(), inbox.Record{
		ID: m.Header.ID, ReceivedAt: v.began, Proof: v.proof, Ceiling: v.ceiling(), Direct: v.hop.direct(), ContentType: v.r.Header.Get("Content-Type"), Message: v.raw,
		ClientID: id, TraceID: v.trace.ID,
	})
}

// waiting reports whether registrations wait in the inbox.
func (m *ManagementPoint) waiting() bool {
	return m.config.Inbox != nil && m.config.Inbox.Pending() > 0
}

// Replay applies the registrations that wait in the inbox, in their order, until none is left or the database goes away again. A registration
// that a rule refuses is noted and dropped: its device is told when it asks again.
func (m *ManagementPoint) Replay(ctx context.Context) error {
	if !m.waiting() {
		return nil
	}
	n, err := m.config.Inbox.Replay(ctx, m.apply)
	if n > 0 {
		m.log.InfoContext(ctx, "registrations of the inbox applied", "count", n)
	}
	return err
}

func (m *ManagementPoint) apply(ctx context.Context, record inbox.Record) error {
	ctx = logfile.WithTrace(ctx, logfile.Trace{ID: record.TraceID, Message: record.ID})
	out, err := m.registerRecord(ctx, record)
	switch {
	case err == nil:
		m.renamed.put(record.ClientID, out.Device.ClientID)
		if out.Changed {
			m.writeCopy(ctx, out.Device)
		}
		return nil
	case errors.Is(err, site.ErrUnavailable), ctx.Err() != nil:
		return err
	}
	m.logs.registrationFailed()
	m.log.WarnContext(ctx, "registration of the inbox refused", "code", string(catalog.CodeOf(err)), "client", string(record.ClientID), "error", err)
	m.site.Note(site.Event{Code: string(catalog.InboxRegistrationRefused), Kind: "registration", Subject: string(record.ClientID), Address: record.Proof.Address,
		TraceID: record.TraceID, Detail: strings.TrimSpace(string(catalog.CodeOf(err)) + " " + catalog.DetailOf(err))})
	return nil
}

// registerRecord registers as the message would have been, with the id that its device was told when nobody else has it.
func (m *ManagementPoint) registerRecord(ctx context.Context, record inbox.Record) (site.Registration, error) {
	message, err := ccm.ReadMessage(record.ContentType, bytes.NewReader(record.Message), ccm.DefaultLimits())
	if err != nil {
		return site.Registration{}, err
	}
	request, err := ccm.ParseRegistration(message)
	if err != nil {
		return site.Registration{}, err
	}
	if request.SMSID == "" {
		request.SMSID = record.ClientID
	}
	bindCertificate(&record.Proof, request)
	m.stillUsed(&record.Proof)
	return m.site.Register(ctx, site.Caller{Proof: record.Proof, Ceiling: record.Ceiling, Direct: record.Direct}, request)
}

// usedFor is how long the use of a ticket is remembered from when the inbox applies its registration: as long as from when it was made.
const usedFor = 11 * time.Minute

// stillUsed makes the use of a ticket count from now. The database may have been away for longer than uses are remembered; the inbox of another
// node may hold a registration under the same authenticator, and applies it about now too.
func (m *ManagementPoint) stillUsed(p *proof.Proof) {
	until := m.now().Add(usedFor)
	if p.Ticket == nil || p.Ticket.UseUntil.After(until) {
		return
	}
	ticket := *p.Ticket
	ticket.UseUntil = until
	p.Ticket = &ticket
}

// provisionalID is the client id of a registration that waits: the one reserved for its token, the one that the device wants, or one made
// from its key, so that the same device asking again is told the same. It becomes final when the site has it.
func (m *ManagementPoint) provisionalID(p proof.Proof, request *ccm.RegistrationRequest) (ccm.ClientID, error) {
	switch {
	case p.Client != "":
		return p.Client, nil
	case request.SMSID != "":
		return request.SMSID, nil
	}
	key, err := proof.Thumbprint(request.Signing.PublicKey)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte("provisional:" + m.site.Hierarchy() + ":" + string(key)))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // RFC 9562: version 8
	return ccm.ParseClientID("GUID:" + asUUID(sum[:16]))
}

// renames remembers, for a while, the devices whose final id is not the provisional one, so that their confirmation finds them.
type renames struct {
	mu  sync.Mutex
	ids map[ccm.ClientID]ccm.ClientID
}

// maxRenames bounds the memory. A device that is forgotten registers again and gets the same id.
const maxRenames = 10_000

func newRenames() *renames { return &renames{ids: map[ccm.ClientID]ccm.ClientID{}} }

func (r *renames) put(provisional, final ccm.ClientID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if provisional == final {
		return
	}
	if len(r.ids) >= maxRenames {
		clear(r.ids)
	}
	r.ids[provisional] = final
}

func (r *renames) final(provisional ccm.ClientID) (ccm.ClientID, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id, ok := r.ids[provisional]
	return id, ok
}

// writeCopy writes the readable copy of a registration that the database holds, where the documents put it (S0). It is for people: a failure
// takes nothing back.
func (m *ManagementPoint) writeCopy(ctx context.Context, device site.Device) {
	if m.copies == nil {
		return
	}
	path, err := m.copies.Write(device)
	if err == nil {
		m.logs.copyWritten(path)
		return
	}
	m.log.WarnContext(ctx, "registration copy", "code", string(catalog.RegistrationCopyFailed), "client", string(device.ClientID), "error", err)
	m.site.Note(site.Event{Code: string(catalog.RegistrationCopyFailed), Kind: "registration", Subject: string(device.ClientID), Detail: "folder " + m.config.InboxDir})
}
