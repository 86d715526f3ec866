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
		p := &drawing{world: newWorld(t, filepath.Join(folder, fmt.Sprint(n, ".db"))), r: r, proofs: shown{}, keys: map[proof.KeyThumbprint]ccm.ClientID{}, entra: map[proof.KeyThumbprint]string{},
			owns: map[proof.KeyThumbprint]string{}, decided: map[ccm.ClientID]bool{}}
		defer p.store.Close()
		p.company(r)
		p.tokens = []site.BulkToken{p.bulk(t, 0), p.bulk(t, 0)}
		for range rapid.IntRange(1, 14).Draw(r, "steps") {
			p.clock.advance(time.Duration(rapid.SampledFrom([]int{0, 0, 1, 2, 30}).Draw(r, "hours")) * time.Hour)
			switch rapid.IntRange(0, 11).Draw(r, "act") {
			case 0:
				p.setting()
			case 1:
				p.decide()
			case 2:
				p.refuse()
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

	owns    map[proof.KeyThumbprint]string // what a key has last proved to be, under the names of just that computer
	decided map[ccm.ClientID]bool          // devices of which a person has decided something
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
	p.decided[c.Newcomer], p.decided[c.Existing] = true, true
	if _, err := p.DecideConflict(context.Background(), c.ID, verdict, "bert", "drawn"); err != nil {
		p.compare(before, p.all(), nil)
		return
	}
	p.compare(before, p.all(), map[ccm.ClientID]bool{c.Newcomer: true, c.Existing: true})
	p.check()
}

// refuse lets a person block or reject a device, or take that back.
func (p *drawing) refuse() {
	before := p.all()
	if len(before) == 0 {
		return
	}
	d := rapid.SampledFrom(before).Draw(p.r, "refused")
	act := site.Act{Verb: rapid.SampledFrom([]string{site.ActBlock, site.ActReject, site.ActUnblock}).Draw(p.r, "verb")}
	if _, err := p.Act(context.Background(), []ccm.ClientID{d.ClientID}, act, "anna", "drawn"); err != nil {
		p.r.Fatal(err)
	}
	p.compare(before, p.all(), map[ccm.ClientID]bool{d.ClientID: true})
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
	name := rapid.IntRange(0, 2).Draw(p.r, "name")
	edits := []func(*ccm.RegistrationRequest){named(name), p.sent}
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
	if identity := ownIdentity(caller, name); identity != "" && out.Device.Proved == identity {
		p.owns[a.thumbprint] = identity
	}
	p.check()
	p.notRefused(before, out)
}

// ownIdentity is what a caller proves to be when that is the computer with the n-th name, else "".
func ownIdentity(caller site.Caller, name int) string {
	switch {
	case caller.Ticket != nil && caller.Ticket.Account == account(name) && caller.Ticket.Realm == realm:
		return account(name) + "@" + realm
	case caller.Cloud != nil && caller.Cloud.Kind == proof.CloudDevice:
		return "entra:" + caller.Cloud.Device + "@" + caller.Cloud.Tenant
	case caller.Method == proof.PKICertificate:
		return "certificate:" + fmt.Sprintf("wk%d.corp.example", name) + "@" + companyPin()
	}
	return ""
}

// notRefused checks that no new key is approved that is the computer of a refused device by its identity, or by a hardware id that no setting excepts.
func (p *drawing) notRefused(before []site.Device, out site.Registration) {
	d := out.Device
	if !out.New || d.Approval.Level < proof.LevelManaged {
		return
	}
	for _, x := range before {
		refused := x.Block.Blocked || x.Rejected() && !x.Superseded()
		sameHardware := d.Record.HardwareID1 != "" && x.Record.HardwareID1 == d.Record.HardwareID1 && len(p.Settings().SharedHardware) == 0
		sameIdentity := x.Proved != "" && x.Proved == d.Proved
		if refused && (sameHardware || sameIdentity) {
			p.r.Fatalf("%s is approved by %q in spite of %s", d.ClientID, d.Approval.Rule, x.ClientID)
		}
	}
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
	live := map[string]ccm.ClientID{} // the approved device of an identity
	for _, d := range p.all() {
		if owners[d.Key] {
			p.r.Fatalf("key %s is two devices", d.Key)
		}
		owners[d.Key] = true
		if own := p.owns[d.Key]; own != "" && own == d.Proved && !d.Blocked() && d.Approval.By == "site" && d.Approval.Level >= proof.LevelManaged && !p.decided[d.ClientID] {
			if live[own] != "" {
				p.r.Fatalf("%s is two approved devices, %s and %s", own, live[own], d.ClientID)
			}
			live[own] = d.ClientID
		}
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
