package site_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

func registerStories() []story {
	return []story{
		{"C76 the same request twice is one device and writes nothing", sameRequestTwice},
		{"C76 one key with a thousand ids is one device", oneKeyManyIDs},
		{"C61 an id of another key is never given away", takenID},
		{"C61 an id reserved for another key is never given away", reservedForAnother},
		{"C62 one wanted id and 500 keys on two nodes have one owner", contestedID},
		{"C64 a hundred clones with keys of their own are a hundred devices", clones},
		{"C65 hardware ids merge nothing", hardwareMergesNothing},
		{"C41 the hardware id of a blocked device waits for a person", blockedTwin},
		{"C41 a blocked device is refused", blockedDevice},
		{"C44 a token of another key does not help", tokenOfAnotherKey},
		{"C68 names that lie to the reader are refused", lyingNames},
		{"C72 a stronger proof raises and a weaker never lowers", proofsRaise},
		{"C36 the route's ceiling holds", ceilings},
		{"C75 weak keys need the legacy setting and stay at known", weakKeys},
		{"C75 certificates outside their time are refused", certificateTimes},
		{"a wrong signature is refused", wrongSignature},
		{"a person's decision is never overridden", personsDecision},
		{"every field is stored", everyField},
		{"a changed attribute is written once", changedAttribute},
		{"C45 neither a missing nor an old encryption certificate takes the newest away", keepsEncryption},
		{"the reserved id is honoured", reservedID},
		{"manual mode leaves all but PKI to a person", manualMode},
		{"confirmations", confirmations},
		{"devices are found by any of their names", findDevice},
	}
}

func sameRequestTwice(t *testing.T, w *world) {
	a, bulk := device(1), w.bulk(t, 0)
	request := a.request(property("HardwareID1", "2:AA"))
	first := w.registered(t, with(bulk, a.thumbprint), request)
	if !first.New || !first.Changed || first.Device.Approval.Status != ccm.ApprovalApproved {
		t.Fatalf("got %+v", first)
	}
	w.Flush(t.Context())
	before, entries := w.dump(t), len(w.entries(t))
	w.clock.advance(time.Minute)
	for _, caller := range []site.Caller{with(bulk, a.thumbprint), signed()} {
		again := w.registered(t, caller, request)
		if again.New || again.Changed || !reflect.DeepEqual(again.Device, first.Device) {
			t.Errorf("by %s: got %+v, want the same device", caller.Method, again)
		}
	}
	if !bytes.Equal(w.dump(t), before) {
		t.Error("the second registration wrote to the database")
	}
	if got := len(w.entries(t)); got != entries {
		t.Errorf("%d trust entries, want %d", got, entries)
	}
}

func oneKeyManyIDs(t *testing.T, w *world) {
	a := device(1)
	first := w.registered(t, signed(), a.request(wanting(clientID(0))))
	other := w.registered(t, signed(), device(2).request(wanting(clientID(9000))))
	entries := w.during(t, func() {
		var all sync.WaitGroup
		for _, request := range thousandIDs() {
			all.Go(func() {
				again, err := w.Register(t.Context(), signed(), request)
				if err != nil || again.New || again.Changed || again.Device.ClientID != first.Device.ClientID {
					t.Errorf("%s: got %+v, %v", request.SMSID, again, err)
				}
			})
		}
		all.Wait()
	})
	if len(entries) != 0 {
		t.Errorf("trust entries: %s", actions(entries))
	}
	if list, err := w.Devices(t.Context(), site.DeviceFilter{}); err != nil || len(list) != 2 {
		t.Errorf("%d devices, %v, want 2", len(list), err)
	}
	if taken := w.takenEvents(t); len(taken) != 0 {
		t.Errorf("%d events say that a free id belongs to another key: %s", len(taken), taken[0].Detail)
	}
	w.registered(t, signed(), a.request(wanting(other.Device.ClientID)))
	if taken := w.takenEvents(t); len(taken) != 1 {
		t.Errorf("%d events for the id of another key, want 1", len(taken))
	}
}

// thousandIDs are requests by one key, each for another id; made once for both databases.
var thousandIDs = sync.OnceValue(func() (requests []*ccm.RegistrationRequest) {
	for n := 1; n <= 1000; n++ {
		requests = append(requests, device(1).request(wanting(clientID(n))))
	}
	return requests
})

// takenEvents are the events of ids that belong to another key.
func (w *world) takenEvents(t *testing.T) []site.Event {
	t.Helper()
	events, err := w.Events(t.Context(), site.EventFilter{Code: string(catalog.RegistrationIDTaken)})
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func takenID(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	victim := w.registered(t, signed(), device(1).request(wanting(clientID(7)))).Device
	if victim.ClientID != clientID(7) {
		t.Fatalf("a free id is not given: got %s", victim.ClientID)
	}
	w.Flush(t.Context())
	before, err := w.Device(t.Context(), victim.ClientID)
	if err != nil {
		t.Fatal(err)
	}
	callers := map[int]site.Caller{2: signed(), 3: with(bulk, device(3).thumbprint), 4: withMethod(proof.Kerberos, 4), 5: withMethod(proof.PKICertificate, 5), 6: withMethod(proof.Entra, 6), 7: with(bulk, device(7).thumbprint)}
	_ = exchange(t, w, bulk, 7) // this one has an id reserved
	for n, caller := range callers {
		out := w.registered(t, caller, device(n).request(wanting(victim.ClientID)))
		if !out.New || out.Device.ClientID == victim.ClientID || out.Device.Approval.Evidence["wanted-but-taken"] != string(victim.ClientID) {
			t.Errorf("by %s: got %+v", caller.Method, out)
		}
		events, err := w.Events(t.Context(), site.EventFilter{Subject: string(out.Device.ClientID), Code: string(catalog.RegistrationIDTaken)})
		if err != nil || len(events) != 1 || !strings.Contains(events[0].Detail, string(victim.ClientID)) || events[0].Address != caller.Address {
			t.Errorf("by %s: events %+v, %v, want one that names %s", caller.Method, events, err, victim.ClientID)
		}
	}
	after, err := w.Device(t.Context(), victim.ClientID)
	if err != nil || !reflect.DeepEqual(after, before) {
		t.Errorf("the victim's record changed:\n got %+v\nwant %+v", after, before)
	}
}

// withMethod is the caller who proved the n-th device's key by that method.
func withMethod(method proof.Method, n int) site.Caller {
	c := site.Caller{Proof: proof.Proof{Method: method, Key: device(n).thumbprint, Address: "192.0.2.8"}, Ceiling: proof.LevelManaged}
	switch method {
	case proof.Entra:
		c.Cloud = entraDevice(n)
	case proof.PKICertificate:
		c.Certificate = certificateFor(n, fmt.Sprintf("pki%d.example.com", n))
	}
	return c
}

// exchange gets a CCM token for the n-th device by the bulk token.
func exchange(t testing.TB, w *world, bulk site.BulkToken, n int) site.Issued {
	t.Helper()
	issued, err := w.IssueToken(t.Context(), site.Exchange{Caller: with(bulk, device(n).thumbprint), Want: token.KindCCM})
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

func reservedForAnother(t *testing.T, w *world) {
	promised := exchange(t, w, w.bulk(t, 0), 1).Claims.Client
	thief := w.registered(t, signed(), device(2).request(wanting(promised)))
	if thief.Device.ClientID == promised {
		t.Fatal("the reserved id went to another key")
	}
	owner := w.registered(t, signed(), device(1).request())
	if owner.Device.ClientID != promised {
		t.Errorf("got %s, want the reserved %s", owner.Device.ClientID, promised)
	}
}

func contestedID(t *testing.T, w *world) {
	wanted, requests := clientID(1), contested()
	n := len(requests)
	nodes := []*site.Site{w.Site, w.node(t)}
	var owners, others atomic.Int64
	var all sync.WaitGroup
	for i, request := range requests {
		all.Go(func() {
			out, err := nodes[i%2].Register(t.Context(), signed(), request)
			switch {
			case err != nil:
				t.Error(err)
			case out.Device.ClientID == wanted:
				owners.Add(1)
			default:
				others.Add(1)
			}
		})
	}
	all.Wait()
	if owners.Load() != 1 || others.Load() != int64(n-1) {
		t.Errorf("%d owners and %d others, want 1 and %d", owners.Load(), others.Load(), n-1)
	}
	nodes[1].Flush(t.Context())
	if taken := w.takenEvents(t); len(taken) != n-1 {
		t.Errorf("%d events, want %d", len(taken), n-1)
	}
	if list, err := w.Devices(t.Context(), site.DeviceFilter{}); err != nil || len(list) != n {
		t.Errorf("%d devices, %v, want %d", len(list), err, n)
	}
	conflicts := w.conflicts(t, site.ConflictFilter{Kind: site.ConflictClientID, Device: wanted})
	if len(conflicts) != n-1 || conflicts[0].State != site.ConflictNew {
		t.Errorf("%d conflicts, want %d", len(conflicts), n-1)
	}
	if _, err := w.VerifyTrustLog(t.Context()); err != nil {
		t.Error(err)
	}
}

// contested are requests by many keys for one id; made once for both databases.
var contested = sync.OnceValue(func() (requests []*ccm.RegistrationRequest) {
	n := 500
	if testing.Short() {
		n = 60
	}
	for i := range n {
		requests = append(requests, device(i).request(wanting(clientID(1))))
	}
	return requests
})

func clones(t *testing.T, w *world) {
	ids := map[ccm.ClientID]bool{}
	for n := range 100 {
		ids[w.registered(t, signed(), device(n).request(wanting(clientID(1)), property("HardwareID1", "2:AA"), property("SMBIOSID", "S"))).Device.ClientID] = true
	}
	if len(ids) != 100 {
		t.Errorf("%d devices, want 100", len(ids))
	}
}

func hardwareMergesNothing(t *testing.T, w *world) {
	same := []func(*ccm.RegistrationRequest){property("HardwareID1", "2:AA"), property("SMBIOSID", "S"), property("MACAddress", "00:15:5D:01:02:03"), property("DeviceID", "D")}
	victim := w.registered(t, signed(), device(1).request(same...)).Device
	other := w.registered(t, signed(), device(2).request(same...))
	if !other.New || other.Device.ClientID == victim.ClientID {
		t.Errorf("got %+v", other)
	}
}

func blockedTwin(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	victim := w.registered(t, with(bulk, device(1).thumbprint), device(1).request(property("HardwareID1", "2:AA"))).Device
	if _, err := w.Block(t.Context(), victim.ClientID, "anna", "stolen"); err != nil {
		t.Fatal(err)
	}
	for n, method := range map[int]proof.Method{2: proof.BulkToken, 3: proof.PKICertificate, 4: proof.Entra} {
		caller := withMethod(method, n)
		caller.BulkID = bulk.ID
		out := w.registered(t, caller, device(n).request(property("HardwareID1", "2:AA")))
		approval := out.Device.Approval
		if approval.Status != ccm.ApprovalNone || approval.Level != proof.LevelKnown || approval.Evidence["blocked-twin"] != string(victim.ClientID) {
			t.Errorf("by %s: got %+v", method, approval)
		}
	}
	if out := w.registered(t, withMethod(proof.Entra, 5), device(5).request(property("HardwareID1", "2:BB"))); out.Device.Approval.Status != ccm.ApprovalEntra {
		t.Errorf("other hardware: got %+v", out.Device.Approval)
	}
}

func blockedDevice(t *testing.T, w *world) {
	a := device(1)
	id := w.registered(t, signed(), a.request()).Device.ClientID
	if _, err := w.Block(t.Context(), id, "anna", "stolen"); err != nil {
		t.Fatal(err)
	}
	_, err := w.Register(t.Context(), signed(), a.request(property("FQ Name", "new.example.com")))
	refused(t, "registration", err, catalog.DeviceBlocked)
	_, err = w.Confirm(t.Context(), signed(), a.confirmation(id))
	refused(t, "confirmation", err, catalog.DeviceBlocked)
	refused(t, "its key", w.Revoked(token.Claims{Key: a.thumbprint}), catalog.KeyBlocked)
	stored, err := w.Device(t.Context(), id)
	if err != nil || stored.Record.FQDName != "wk1.example.com" {
		t.Errorf("the record changed: %q, %v", stored.Record.FQDName, err)
	}
	if _, err := w.Unblock(t.Context(), id, "anna", "found"); err != nil {
		t.Fatal(err)
	}
	if err := w.Revoked(token.Claims{Key: a.thumbprint}); err != nil {
		t.Error(err)
	}
	w.registered(t, signed(), a.request())
}

func tokenOfAnotherKey(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	entries := w.during(t, func() {
		_, err := w.Register(t.Context(), with(bulk, device(2).thumbprint), device(1).request())
		refused(t, "registration", err, catalog.RegistrationOtherKey)
	})
	if len(entries) != 0 {
		t.Errorf("trust entries: %s", actions(entries))
	}
	id := w.registered(t, signed(), device(1).request()).Device.ClientID
	_, err := w.Confirm(t.Context(), with(bulk, device(2).thumbprint), device(1).confirmation(id))
	refused(t, "confirmation", err, catalog.RegistrationOtherKey)
}

func lyingNames(t *testing.T, w *world) {
	lies := map[string]string{
		"escape sequence": "WK\x1b[2J", "newline": "WK\n1", "NUL": "WK\x001", "delete": "WK\x7f", "C1 control": "WK\u009b", "no-break space": "WK\u00a0",
		"right-to-left override": "WK\u202egpj.exe", "isolate": "WK\u2066x", "left-to-right mark": "WK\u200e", "zero width space": "WK\u200b", "zero width joiner": "WK\u200d",
		"byte order mark": "WK\ufeff", "soft hyphen": "WK\u00ad", "tag characters": "WK\U000e0041", "variation selector": "WK\ufe0f", "Hangul filler": "WK\u3164",
		"halfwidth filler": "WK\uffa0", "combining grapheme joiner": "WK\u034f", "line separator": "WK\u2028", "private use": "WK\ue000", "overlong": strings.Repeat("A", 257),
	}
	fields := []string{"Netbios Name", "FQ Name", "DeviceID", "SMBIOSID", "MACAddress", "HardwareID1"}
	i := 0
	for name, lie := range lies {
		field := fields[i%len(fields)]
		i++
		request := device(1).request()
		request.Properties[strings.ToLower(field)] = lie // as ccm would read it; a signature over it is not the point
		_, err := w.Register(t.Context(), signed(), request)
		refused(t, name+" in "+field, err, catalog.RegistrationAttribute)
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\n\u202e") {
			t.Errorf("%s: the error repeats the characters", name)
		}
	}
	version := device(1).request()
	version.Agent.Version = "5.00\x1b[2J"
	_, err := w.Register(t.Context(), signed(), version)
	refused(t, "agent version", err, catalog.RegistrationAttribute)
	honest := device(1).request(property("Netbios Name", "BÜRO-東京 1"), property("FQ Name", strings.Repeat("A", 256)))
	w.registered(t, signed(), honest)
}

func proofsRaise(t *testing.T, w *world) {
	a, bulk := device(1), w.bulk(t, 0)
	steps := []struct {
		caller site.Caller
		status ccm.ApprovalStatus
		level  proof.Level
		rule   string
		wrote  string
	}{
		{signed(), ccm.ApprovalNone, proof.LevelKnown, "self-signed key only", "device.register"},
		{withMethod(proof.CCMToken, 1), ccm.ApprovalNone, proof.LevelKnown, "self-signed key only", ""},
		{with(bulk, a.thumbprint), ccm.ApprovalApproved, proof.LevelManaged, "bulk registration token", "device.update"},
		{signed(), ccm.ApprovalApproved, proof.LevelManaged, "bulk registration token", ""},
		{withMethod(proof.Entra, 1), ccm.ApprovalApproved, proof.LevelManaged, "bulk registration token", "device.update"}, // its identity
		{withMethod(proof.Entra, 1), ccm.ApprovalApproved, proof.LevelManaged, "bulk registration token", ""},
		{withMethod(proof.PKICertificate, 1), ccm.ApprovalApproved, proof.LevelManaged, "bulk registration token", "device.update"}, // its key type
	}
	for i, step := range steps {
		entries := w.during(t, func() {
			got := w.registered(t, step.caller, a.request()).Device.Approval
			if got.Status != step.status || got.Level != step.level || got.Rule != step.rule {
				t.Errorf("step %d, %s: got %+v", i+1, step.caller.Method, got)
			}
		})
		if got := actions(entries); got != step.wrote {
			t.Errorf("step %d, %s: trust entries %q, want %q", i+1, step.caller.Method, got, step.wrote)
		}
	}
	fromBulk := withMethod(proof.CCMToken, 2)
	fromBulk.BulkID = bulk.ID
	if got := w.registered(t, fromBulk, device(2).request()).Device.Approval; got.Method != proof.BulkToken || got.Status != ccm.ApprovalApproved || got.Evidence["bulk-token"] != bulk.ID {
		t.Errorf("a token got with a bulk token: %+v", got)
	}
}

func ceilings(t *testing.T, w *world) {
	for n, ceiling := range []proof.Level{proof.LevelNone, proof.LevelKnown} {
		caller := withMethod(proof.PKICertificate, n)
		caller.Ceiling = ceiling
		got := w.registered(t, caller, device(n).request()).Device.Approval
		if got.Status != ccm.ApprovalNone || got.Level != ceiling {
			t.Errorf("ceiling %s: got %+v", ceiling, got)
		}
	}
}

func weakKeys(t *testing.T, w *world) {
	small := newAgent(must(rsa.GenerateKey(rand.Reader, 1024)), begin)
	mixed := func(r *ccm.RegistrationRequest) { r.Encryption = small.signing }
	bulk := w.bulk(t, 0)
	weak := map[string]struct {
		by      *agent
		request *ccm.RegistrationRequest
	}{
		"RSA 1024":                   {small, small.request()},
		"SHA-1 by its usual id":      {device(1), device(1).sha1("1.2.840.113549.1.1.5")},
		"SHA-1 by its hash id":       {device(2), device(2).sha1("1.3.14.3.2.26")},
		"SHA-1 by the old id":        {device(3), device(3).sha1("1.3.14.3.2.29")},
		"SHA-1 with spaces":          {device(4), device(4).sha1(" 1.2.840.113549.1.1.5")},
		"no algorithm":               {device(5), device(5).sha1("")},
		"encryption key of RSA 1024": {device(6), device(6).request(mixed)},
	}
	for name, c := range weak {
		_, err := w.Register(t.Context(), with(bulk, c.by.thumbprint), c.request)
		refused(t, name, err, catalog.RegistrationWeakKey)
	}
	if err := w.Set(t.Context(), "registration.legacy-keys", "true", "anna"); err != nil {
		t.Fatal(err)
	}
	for name, c := range weak {
		got := w.registered(t, with(bulk, c.by.thumbprint), c.request).Device.Approval
		if got.Level != proof.LevelKnown || got.Status != ccm.ApprovalNone || got.Rule != "weak key" {
			t.Errorf("%s with the setting: got %+v", name, got)
		}
	}
	if got := w.registered(t, with(bulk, device(1).thumbprint), device(1).request()).Device.Approval; got.Level != proof.LevelManaged {
		t.Errorf("the same key with SHA-256: got %+v", got)
	}
}

func certificateTimes(t *testing.T, w *world) {
	short := newAgent(device(1).key, begin)
	from, leeway := begin.Add(time.Hour), token.Leeway // the site's clock does not go back behind where it was
	short.signing = shortCertificate(t, short.key, from, from.Add(time.Hour))
	for _, test := range []struct {
		at   time.Time
		name string
		want catalog.Code
	}{
		{from.Add(-leeway - time.Second), "not yet valid", catalog.RegistrationCertificateExpired},
		{from.Add(-leeway + time.Second), "within the leeway before", ""},
		{from.Add(time.Hour + leeway - time.Second), "within the leeway after", ""},
		{from.Add(time.Hour + leeway + time.Second), "expired", catalog.RegistrationCertificateExpired},
	} {
		w.clock.set(test.at)
		_, err := w.Register(t.Context(), signed(), short.request())
		if got := catalog.CodeOf(err); got != test.want {
			t.Errorf("%s: got %v, want code %q", test.name, err, test.want)
		}
	}
}

func wrongSignature(t *testing.T, w *world) {
	forged := device(1).request()
	forged.Signing, forged.Encryption = device(2).signing, nil
	flipped := device(1).request()
	flipped.Signature[5] ^= 1
	edited := device(1).request()
	edited.SignedBytes = bytes.Replace(edited.SignedBytes, utf16("WK1"), utf16("WK2"), 1)
	bare := device(1).request()
	bare.Signing = nil
	entries := w.during(t, func() {
		for name, request := range map[string]*ccm.RegistrationRequest{"another certificate": forged, "another signature": flipped, "other bytes": edited} {
			_, err := w.Register(t.Context(), signed(), request)
			refused(t, name, err, catalog.RegistrationSignature)
		}
		_, err := w.Register(t.Context(), signed(), bare)
		refused(t, "no certificate", err, catalog.RegistrationNoCertificate)
	})
	if list, _ := w.Devices(t.Context(), site.DeviceFilter{}); len(list) != 0 || len(entries) != 0 {
		t.Errorf("%d devices, trust entries %q", len(list), actions(entries))
	}
}

func personsDecision(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	rejected := w.registered(t, signed(), device(1).request()).Device.ClientID
	secrets := w.registered(t, signed(), device(2).request()).Device.ClientID
	if _, err := w.Reject(t.Context(), rejected, "anna", "unknown"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Approve(t.Context(), secrets, proof.LevelSecrets, "anna", "server"); err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]proof.Level{1: proof.LevelKnown, 2: proof.LevelSecrets} {
		for _, caller := range []site.Caller{with(bulk, device(n).thumbprint), withMethod(proof.PKICertificate, n), signed()} {
			out := w.registered(t, caller, device(n).request(property("FQ Name", string(caller.Method)+".example.com")))
			if got := out.Device.Approval; got.Level != want || got.By != "anna" || !out.Changed {
				t.Errorf("device %d by %s: got %+v", n, caller.Method, got)
			}
		}
	}
	for _, level := range []proof.Level{proof.LevelNone, proof.LevelKnown} {
		_, err := w.Approve(t.Context(), secrets, level, "anna", "seen")
		refused(t, "approval for "+level.String(), err, catalog.DeviceLevel)
	}
	_, err := w.Approve(t.Context(), clientID(404), proof.LevelManaged, "anna", "seen")
	refused(t, "approval of nobody", err, catalog.DeviceUnknown)
}

func everyField(t *testing.T, w *world) {
	a := device(1)
	proxy := clientID(8)
	request := a.request(func(r *ccm.RegistrationRequest) {
		r.SMSID, r.SignatureSMSID, r.KeyType, r.Agent.Type = clientID(1), string(proxy), 2, 8
		r.Properties = map[string]string{
			"NetBIOS Name": "WK1", "FQ Name": "wk1.example.com", "InternetFlag": "2", "DeviceID": "phone-7", "HardwareID1": "2:AA", "MACAddress": "00:15:5D:01:02:03", "SMBIOSID": "4C4C",
		}
	})
	caller := withMethod(proof.Kerberos, 1)
	caller.Account, caller.Realm, caller.RequestID = `CHILD\WK1$`, "CHILD.EXAMPLE.COM", "trace-1"
	out := w.registered(t, caller, request)
	blob := ccm.MarshalPublicKeyBlob(&a.key.PublicKey)
	want := site.Device{
		ClientID: clientID(1), Key: a.thumbprint,
		Record: site.Record{
			SiteCode: "LAB", SMSID: clientID(1), Identity: `CHILD\WK1$`, DeviceID: "phone-7", Certificate: a.signing.DER, Thumbprint: a.signing.Thumbprint(),
			EncKey: a.encryption.DER, EncThumbprint: a.encryption.Thumbprint(), KeyType: 2, PublicKey: blob, ValidFrom: a.signing.NotBefore, ValidTo: a.signing.NotAfter,
			AgentType: 8, SMBIOSID: "4C4C", MACAddress: "00:15:5D:01:02:03", HardwareID1: "2:AA", ISVProxyID: string(proxy), AlwaysInternet: true, InternetEnabled: true,
			ApprovalMethod: 1, IsIntegratedAuth: true, Version: "5.00.9128.1000", NetbiosName: "WK1", FQDName: "wk1.example.com",
		},
		Approval: site.Approval{Level: proof.LevelKnown, Method: proof.Kerberos, Rule: "self-signed key only", By: "site", At: begin,
			Evidence: map[string]string{"key": string(a.thumbprint), "account": `CHILD\WK1$`, "realm": "CHILD.EXAMPLE.COM", "address": "192.0.2.8"}},
		Created: begin, Updated: begin, LastSeen: begin,
	}
	for i := range 2 {
		want := want
		want.Approval.At, want.Created, want.Updated, want.LastSeen = truncated(begin), truncated(begin), truncated(begin), truncated(begin)
		got := out.Device
		if i == 1 {
			var err error
			if got, err = w.node(t).Device(t.Context(), clientID(1)); err != nil {
				t.Fatal(err)
			}
			got.Block = site.Block{}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", []string{"answered", "stored"}[i], got, want)
		}
	}
}

func truncated(at time.Time) time.Time { return at.Truncate(time.Microsecond) }

func changedAttribute(t *testing.T, w *world) {
	a := device(1)
	first := w.registered(t, signed(), a.request()).Device
	w.clock.advance(time.Hour)
	renamed := a.request(property("Netbios Name", "WK2"))
	entries := w.during(t, func() {
		for i := range 2 {
			out := w.registered(t, signed(), renamed)
			if out.New || out.Changed != (i == 0) || out.Device.Record.NetbiosName != "WK2" || out.Device.ClientID != first.ClientID {
				t.Errorf("time %d: got %+v", i+1, out)
			}
			if !out.Device.Created.Equal(first.Created) || !out.Device.Updated.After(first.Updated) {
				t.Errorf("created %s, updated %s", out.Device.Created, out.Device.Updated)
			}
			w.clock.advance(time.Hour)
		}
	})
	if got := actions(entries); got != "device.update" {
		t.Errorf("trust entries: %q", got)
	}
}

func keepsEncryption(t *testing.T, w *world) {
	a := device(1)
	first := w.registered(t, signed(), a.request()).Device
	out := w.registered(t, signed(), a.request(func(r *ccm.RegistrationRequest) { r.Encryption = nil }))
	if out.Changed || !bytes.Equal(out.Device.Record.EncKey, first.Record.EncKey) || out.Device.Record.EncThumbprint == "" {
		t.Errorf("got %+v", out)
	}
	fresh := newAgent(device(2).key, begin.Add(time.Hour)).signing
	out = w.registered(t, signed(), a.request(func(r *ccm.RegistrationRequest) { r.Encryption = fresh }))
	if !out.Changed || out.Device.Record.EncThumbprint != fresh.Thumbprint() {
		t.Errorf("a new encryption certificate: got %+v", out)
	}
	out = w.registered(t, signed(), a.request()) // recorded before the change, sent again by anybody
	if out.Changed || out.Device.Record.EncThumbprint != fresh.Thumbprint() {
		t.Errorf("an old registration sent again brought the old encryption certificate back: %+v", out)
	}
}

func reservedID(t *testing.T, w *world) {
	bulk := w.bulk(t, 0)
	issued := exchange(t, w, bulk, 1)
	caller := withMethod(proof.CCMToken, 1)
	caller.BulkID, caller.Client, caller.Scope = bulk.ID, issued.Claims.Client, token.ScopeRegister
	out := w.registered(t, caller, device(1).request(wanting(clientID(5))))
	if out.Device.ClientID != issued.Claims.Client {
		t.Errorf("got %s, want the reserved %s", out.Device.ClientID, issued.Claims.Client)
	}
	if taken := w.takenEvents(t); len(taken) != 0 {
		t.Errorf("events: %+v", taken)
	}
	if w.reserved(t, device(1).thumbprint) {
		t.Error("the reservation outlives the registration")
	}
}

// reserved reports whether an id is promised to the key.
func (w *world) reserved(t *testing.T, key proof.KeyThumbprint) bool {
	t.Helper()
	err := w.store.View(t.Context(), func(tx site.Tx) error {
		_, err := tx.Reservation(key)
		return err
	})
	if err != nil && !errors.Is(err, site.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

func manualMode(t *testing.T, w *world) {
	if err := w.Set(t.Context(), "approval.mode", "manual", "anna"); err != nil {
		t.Fatal(err)
	}
	bulk := w.bulk(t, 0)
	if got := w.registered(t, with(bulk, device(1).thumbprint), device(1).request()).Device.Approval; got.Status != ccm.ApprovalNone || got.Level != proof.LevelKnown {
		t.Errorf("bulk token: got %+v", got)
	}
	if got := w.registered(t, withMethod(proof.PKICertificate, 2), device(2).request()).Device.Approval; got.Status != ccm.ApprovalNotApplicable || got.Level != proof.LevelManaged {
		t.Errorf("PKI: got %+v", got)
	}
	for _, test := range [][2]string{{"approval.mode", "always"}, {"registration.legacy-keys", "perhaps"}, {"site.code", "XYZ"}, {"", ""}} {
		refused(t, "setting "+test[0], w.Set(t.Context(), test[0], test[1], "anna"), catalog.InvalidArgument)
	}
}

func confirmations(t *testing.T, w *world) {
	a := device(1)
	id := w.registered(t, signed(), a.request()).Device.ClientID
	entries := w.during(t, func() {
		out, err := w.Confirm(t.Context(), signed(), a.confirmation(id))
		if err != nil || out.New || out.Changed || out.Device.ClientID != id {
			t.Errorf("got %+v, %v", out, err)
		}
	})
	if len(entries) != 0 {
		t.Errorf("trust entries: %s", actions(entries))
	}
	_, err := w.Confirm(t.Context(), signed(), device(2).confirmation(id))
	refused(t, "signed by another key", err, catalog.RegistrationSignature)
	_, err = w.Confirm(t.Context(), signed(), a.confirmation(clientID(404)))
	refused(t, "an id that nobody has", err, catalog.DeviceUnknown)
	nameless := a.confirmation(id)
	nameless.SMSID = ""
	_, err = w.Confirm(t.Context(), signed(), nameless)
	refused(t, "no id", err, catalog.ConfirmationNoID)
	old := a.sha1("1.2.840.113549.1.1.5", func(r *ccm.RegistrationRequest) { r.Type, r.SMSID = ccm.RegistrationTypeConfirmation, id })
	_, err = w.Confirm(t.Context(), signed(), old)
	refused(t, "C75 signed with SHA-1", err, catalog.RegistrationWeakKey)
	if err := w.Set(t.Context(), "registration.legacy-keys", "true", "anna"); err != nil {
		t.Fatal(err)
	}
	if _, err = w.Confirm(t.Context(), signed(), old); err != nil {
		t.Errorf("SHA-1 with the legacy setting: %v", err)
	}
}

func findDevice(t *testing.T, w *world) {
	first := w.registered(t, signed(), device(1).request(property("Netbios Name", "WK1"), property("FQ Name", "wk1.example.com"))).Device
	second := w.registered(t, signed(), device(2).request(property("Netbios Name", "WK1"), property("FQ Name", "wk1.example.org"))).Device
	uuid := first.ClientID.UUID()
	for who, want := range map[string]ccm.ClientID{
		string(first.ClientID): first.ClientID, uuid: first.ClientID, strings.ToLower(uuid): first.ClientID, "WK1.example.COM": first.ClientID, "wk1.example.org": second.ClientID,
	} {
		if got, err := w.FindDevice(t.Context(), who); err != nil || got.ClientID != want {
			t.Errorf("%q: got %s, %v", who, got.ClientID, err)
		}
	}
	for who, want := range map[string]catalog.Code{"wk1": catalog.DeviceAmbiguous, "wk9": catalog.DeviceUnknown, string(clientID(404)): catalog.DeviceUnknown, "": catalog.DeviceUnknown, "' or 1=1 --": catalog.DeviceUnknown} {
		_, err := w.FindDevice(t.Context(), who)
		refused(t, fmt.Sprintf("%q", who), err, want)
	}
	if got, err := w.DeviceByKey(t.Context(), device(2).thumbprint); err != nil || got.ClientID != second.ClientID {
		t.Errorf("by key: %s, %v", got.ClientID, err)
	}
}
