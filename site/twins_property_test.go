package site_test

import (
	"context"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// shown is what a key has shown in the course of a test: the proofs that may stand in the evidence of its device, and no others.
type shown map[string]map[string]bool

// TestC61_NoTwinInherits registers keys in every order, with client ids, hardware ids, names, hints and proofs that are each other's, under every
// setting, lets a person decide, and checks after each step that nobody has what its own key did not prove.
func TestC61_NoTwinInherits(t *testing.T) {
	t.Parallel()
	folder, n := t.TempDir(), 0
	rapid.Check(t, func(r *rapid.T) {
		n++
		p := &drawing{world: newWorld(t, filepath.Join(folder, fmt.Sprint(n, ".db"))), r: r, proofs: shown{}, keys: map[proof.KeyThumbprint]ccm.ClientID{}, entra: map[proof.KeyThumbprint]string{}}
		defer p.store.Close()
		p.company(r)
		p.tokens = []site.BulkToken{p.bulk(t, 0), p.bulk(t, 0)}
		for range rapid.IntRange(1, 14).Draw(r, "steps") {
			p.clock.advance(time.Duration(rapid.IntRange(0, 30).Draw(r, "hours")) * time.Hour)
			switch rapid.IntRange(0, 9).Draw(r, "act") {
			case 0:
				p.setting()
			case 1:
				p.decide()
			default:
				p.register()
			}
		}
	})
}

type drawing struct {
	*world
	r      *rapid.T
	tokens []site.BulkToken
	proofs shown
	keys   map[proof.KeyThumbprint]ccm.ClientID
	entra  map[proof.KeyThumbprint]string // the Entra device that a key has proved to be
}

func (p *drawing) setting() {
	settings := map[string][]string{
		"approval.mode": {"manual", "trusted-domains", "everyone:2h"}, "conflict.resolution": {"automatic", "manual"}, "conflict.shared-hardware-ids": {"", "2:0"},
	}
	name := rapid.SampledFrom([]string{"approval.mode", "conflict.resolution", "conflict.shared-hardware-ids"}).Draw(p.r, "setting")
	value := rapid.SampledFrom(settings[name]).Draw(p.r, "value")
	if err := p.Set(context.Background(), name, value, "anna"); err != nil {
		p.r.Fatal(err)
	}
}

func (p *drawing) decide() {
	conflicts, err := p.Conflicts(context.Background(), site.ConflictFilter{})
	if err != nil {
		p.r.Fatal(err)
	}
	if len(conflicts) == 0 {
		return
	}
	c := rapid.SampledFrom(conflicts).Draw(p.r, "conflict")
	verdict := rapid.SampledFrom([]site.ConflictState{site.ConflictMerged, site.ConflictNew, site.ConflictBlocked}).Draw(p.r, "verdict")
	before := p.all()
	if _, err := p.DecideConflict(context.Background(), c.ID, verdict, "bert", "drawn"); err != nil {
		p.compare(before, p.all(), nil)
		return
	}
	p.compare(before, p.all(), map[ccm.ClientID]bool{c.Newcomer: true, c.Existing: true})
	p.check()
}

// caller draws a proof and remembers that the key has shown it.
func (p *drawing) caller(a *agent) site.Caller {
	switch proved := rapid.SampledFrom([]string{"none", "bulk", "bulk", "kerberos", "kerberos", "entra", "pki"}).Draw(p.r, "proof"); proved {
	case "bulk":
		token := rapid.SampledFrom(p.tokens).Draw(p.r, "token")
		p.show(a, "bulk-token="+token.ID)
		return with(token, a.thumbprint)
	case "kerberos":
		c := computer(account(rapid.IntRange(0, 2).Draw(p.r, "account")), rapid.SampledFrom([]string{realm, "OTHER.EXAMPLE"}).Draw(p.r, "realm"))
		p.show(a, "account="+c.Ticket.Account)
		p.show(a, "realm="+c.Ticket.Realm)
		p.show(a, "proved="+c.Ticket.Account+"@"+c.Ticket.Realm)
		return c
	case "entra":
		cloud := entraDevice(rapid.IntRange(0, 2).Draw(p.r, "entra device"))
		if rapid.IntRange(0, 3).Draw(p.r, "user") == 0 {
			cloud.Kind, cloud.User = proof.CloudUser, "11111111-0000-4000-8000-000000000001"
		} else {
			p.show(a, "proved=entra:"+cloud.Device+"@"+cloud.Tenant)
		}
		p.show(a, "method="+string(proof.Entra))
		p.show(a, "entra-device="+cloud.Device)
		method := rapid.SampledFrom([]proof.Method{proof.Entra, proof.CCMToken}).Draw(p.r, "by")
		return site.Caller{Proof: proof.Proof{Method: method, Key: a.thumbprint, Cloud: cloud}, Ceiling: proof.LevelManaged}
	case "pki":
		name := fmt.Sprintf("wk%d.corp.example", rapid.IntRange(0, 2).Draw(p.r, "certificate for"))
		p.show(a, "method="+string(proof.PKICertificate))
		p.show(a, "proved=certificate:"+name+"@"+companyPin())
		p.show(a, "certificate-names="+name)
		return site.Caller{Proof: proof.Proof{Method: proof.PKICertificate, Key: a.thumbprint, Certificate: certificateOf(a.key, name)}, Ceiling: proof.LevelManaged}
	}
	return signed()
}

func (p *drawing) show(a *agent, fact string) {
	if p.proofs[string(a.thumbprint)] == nil {
		p.proofs[string(a.thumbprint)] = map[string]bool{}
	}
	p.proofs[string(a.thumbprint)][fact] = true
}

func (p *drawing) register() {
	n := rapid.IntRange(0, 5).Draw(p.r, "key")
	a := device(n)
	caller := p.caller(a)
	edits := []func(*ccm.RegistrationRequest){named(rapid.IntRange(0, 2).Draw(p.r, "name")), p.sent}
	if h := rapid.IntRange(-1, 2).Draw(p.r, "hardware"); h >= 0 {
		edits = append(edits, hardware(fmt.Sprint("2:", h)))
	}
	before := p.all()
	if len(before) > 0 && rapid.Bool().Draw(p.r, "wants another's id") {
		edits = append(edits, wanting(rapid.SampledFrom(before).Draw(p.r, "wanted").ClientID))
	}
	if len(before) > 0 && rapid.IntRange(0, 3).Draw(p.r, "hint") == 0 {
		edits = append(edits, hinting(rapid.SampledFrom(before).Draw(p.r, "hinted").ClientID, rapid.IntRange(0, 5).Draw(p.r, "hint by")))
	}
	out, err := p.Register(context.Background(), caller, a.request(edits...))
	if err != nil {
		p.compare(before, p.all(), nil)
		return
	}
	p.compare(before, p.all(), map[ccm.ClientID]bool{out.Device.ClientID: true})
	if id, known := p.keys[a.thumbprint]; known && id != out.Device.ClientID {
		p.r.Fatalf("key %d was device %s and is %s", n, id, out.Device.ClientID)
	}
	p.keys[a.thumbprint] = out.Device.ClientID
	p.check()
}

func (p *drawing) all() []site.Device {
	devices, err := p.Devices(context.Background(), site.DeviceFilter{})
	if err != nil {
		p.r.Fatal(err)
	}
	return devices
}

// compare checks that no record but the named ones changed, except that it became obsolete.
func (p *drawing) compare(before, after []site.Device, may map[ccm.ClientID]bool) {
	now := map[ccm.ClientID]site.Device{}
	for _, d := range after {
		now[d.ClientID] = d
	}
	for _, old := range before {
		d := now[old.ClientID]
		if may[old.ClientID] {
			continue
		}
		if d.Superseded() && !old.Superseded() {
			d.Obsolete, d.Updated = old.Obsolete, old.Updated
		}
		d.LastSeen = old.LastSeen
		if !reflect.DeepEqual(d, old) {
			p.r.Fatalf("another's act changed %s:\n got %+v\nwant %+v", old.ClientID, d, old)
		}
	}
}

// check looks at every device: its approval rests on what its own key has shown, and a key that was replaced opens nothing.
func (p *drawing) check() {
	owners := map[proof.KeyThumbprint]bool{}
	for _, d := range p.all() {
		if owners[d.Key] {
			p.r.Fatalf("key %s is two devices", d.Key)
		}
		owners[d.Key] = true
		proofs := p.proofs[string(d.Key)]
		if d.Approval.Evidence["key"] != string(d.Key) {
			p.r.Fatalf("%s has the key %s and the evidence of %s", d.ClientID, d.Key, d.Approval.Evidence["key"])
		}
		for _, fact := range []string{"bulk-token", "account", "realm", "entra-device", "certificate-names"} {
			if value := d.Approval.Evidence[fact]; value != "" && !proofs[fact+"="+value] {
				p.r.Fatalf("%s rests on %s %s, which its key has not shown", d.ClientID, fact, value)
			}
		}
		if m := d.Approval.Method; (m == proof.Entra || m == proof.PKICertificate) && !proofs["method="+string(m)] {
			p.r.Fatalf("%s rests on %s, which its key has not shown", d.ClientID, m)
		}
		if d.Proved != "" && !proofs["proved="+d.Proved] {
			p.r.Fatalf("%s has proved %s, which its key has not shown", d.ClientID, d.Proved)
		}
		if before := p.entra[d.Key]; before != "" && d.Proved != before {
			p.r.Fatalf("%s was %s and is %q", d.ClientID, before, d.Proved)
		}
		if strings.HasPrefix(d.Proved, "entra:") {
			p.entra[d.Key] = d.Proved
		}
		if d.Conflict != "" && (d.Approval.Level > proof.LevelKnown || d.Approval.Status != ccm.ApprovalNone) {
			p.r.Fatalf("%s is held and has %+v", d.ClientID, d.Approval)
		}
		if d.Approval.Level > proof.LevelManaged {
			p.r.Fatalf("%s has level %s, which nobody gave", d.ClientID, d.Approval.Level)
		}
		if d.Superseded() && p.Revoked(tokenOf(d)) == nil {
			p.r.Fatalf("a token of the obsolete device %s is accepted", d.ClientID)
		}
	}
	for key, id := range p.keys {
		if !owners[key] && p.Revoked(tokenOf(site.Device{ClientID: id, Key: key})) == nil {
			p.r.Fatalf("a token of the former key of %s is accepted", id)
		}
	}
}

func tokenOf(d site.Device) token.Claims { return token.Claims{Client: d.ClientID, Key: d.Key} }
