package site_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// known is what is known of a device that is approved, and whose last request was accepted an hour ago. Each change makes another case of it.
func known(changes ...func(*site.DeviceFacts)) site.DeviceFacts {
	f := site.DeviceFacts{Asked: "wk1", At: begin, Running: true, SelfProveLife: 90 * 24 * time.Hour, Device: &site.Device{
		ClientID: clientID(1), Key: "key-of-wk1", Record: site.Record{NetbiosName: "WK1", FQDName: "wk1.example.com"}, LastSeen: begin.Add(-time.Hour),
		Approval: site.Approval{Status: ccm.ApprovalStatus(1), Level: proof.LevelManaged, Method: proof.BulkToken, Rule: "bulk registration token", By: "site"},
	}}
	for _, change := range changes {
		change(&f)
	}
	return f
}

func unregistered(f *site.DeviceFacts) { f.Device = nil }

// event is one of the device's, so long ago.
func event(code catalog.Code, kind string, ago time.Duration) func(*site.DeviceFacts) {
	return func(f *site.DeviceFacts) {
		e := site.Event{At: f.At.Add(-ago), Code: string(code), Kind: kind, Address: "192.0.2.7", Detail: "so it was"}
		if f.Device != nil {
			e.Subject = string(f.Device.ClientID)
		}
		f.Events = append(f.Events, e)
	}
}

func unapproved(f *site.DeviceFacts) {
	f.Device.Approval = site.Approval{Status: ccm.ApprovalNone, Level: proof.LevelKnown, Method: proof.MessageSignature, Rule: "self-signed key only", By: "site"}
}

func notHeardFor(ago time.Duration) func(*site.DeviceFacts) {
	return func(f *site.DeviceFacts) { f.Device.LastSeen = f.At.Add(-ago) }
}

func gatewayHeard(ago time.Duration) func(*site.DeviceFacts) {
	return func(f *site.DeviceFacts) {
		f.Gateways = append(f.Gateways, site.GatewayFact{Name: "gw.example.com", Heard: f.At.Add(-ago)})
	}
}

// gatewayRefused is a minute ago; a key that the request proved, or "".
func gatewayRefused(code catalog.Code, key proof.KeyThumbprint) func(*site.DeviceFacts) {
	return func(f *site.DeviceFacts) {
		f.Events = append(f.Events, site.Event{
			At: f.At.Add(-time.Minute), Code: string(code), Kind: "gateway", Subject: string(key), Address: "192.0.2.7", Detail: "gateway gw.example.com at ccm_sts: so it was",
		})
	}
}

func TestWhy(t *testing.T) {
	blocked := func(f *site.DeviceFacts) {
		f.Device.Block = site.Block{Blocked: true, By: "anna", Why: "stolen", At: f.At.Add(-time.Hour)}
	}
	obsolete := func(f *site.DeviceFacts) { f.Device.Obsolete = site.Obsolete{By: clientID(2), Why: "merged"} }
	rekeyed := func(f *site.DeviceFacts) {
		f.Device.Obsolete = site.Obsolete{By: f.Device.ClientID, Why: "the device has another key"}
	}
	quarantined := func(f *site.DeviceFacts) {
		f.Device.Quarantine = site.Quarantine{Since: f.At.Add(-time.Hour), Why: "not heard for long"}
	}
	clock := func(f *site.DeviceFacts) { f.ClockBehind = "the clock jumped" }
	logs := func(code catalog.Code) func(*site.DeviceFacts) {
		return func(f *site.DeviceFacts) {
			f.Logs = &site.LogFinding{Code: code, Sure: "certain", Lines: []string{"CCM_STS.log:3"}}
		}
	}
	tenant := func(listed, disabled bool) func(*site.DeviceFacts) {
		return func(f *site.DeviceFacts) { f.Tenant = &site.TenantFact{ID: "t1", Listed: listed, Disabled: disabled} }
	}
	tests := []struct {
		name    string
		facts   site.DeviceFacts
		code    catalog.Code // "": don't know
		sure    string
		stopped string
		says    string // somewhere in what it rests on, needs and leaves open
	}{
		{"it talks", known(), catalog.DeviceTalks, "certain", "", "accepted at 2026-11-21T19:49:08Z"},
		{"a refusal before the last accepted request is history", known(event(catalog.TokenExpired, "token", 2*time.Hour)), catalog.DeviceTalks, "certain", "", ""},
		{"a refusal after it is what stops it", known(event(catalog.TokenExpired, "token", time.Minute)), catalog.TokenExpired, "certain", "token service", "client renew"},
		{"the newest refusal counts", known(event(catalog.TokenBlocked, "token", time.Minute), event(catalog.TokenExpired, "token", 2*time.Minute)), catalog.TokenBlocked, "certain", "token service", ""},
		{"anybody can claim an id in a registration", known(event(catalog.RegistrationWeakKey, "registration", time.Minute)), catalog.RegistrationWeakKey, "likely", "registration", "not proved"},
		{"what refuses nothing is no refusal", known(event(catalog.RegistrationIDTaken, "registration", time.Minute)), catalog.DeviceTalks, "certain", "", ""},
		{"blocked comes before the refusal that follows from it", known(blocked, event(catalog.DeviceBlocked, "token", time.Minute)), catalog.DeviceBlocked, "certain", "every door of the site", "postern device unblock wk1.example.com"},
		{"blocked comes before all else", known(blocked, unapproved, quarantined, clock, func(f *site.DeviceFacts) { f.Running = false }), catalog.DeviceBlocked, "certain", "every door of the site", "stolen"},
		{"its key was changed after the backup that was restored", known(rekeyed), catalog.DeviceObsolete, "certain", "every door of the site", "postern token new"},
		{"obsolete", known(obsolete), catalog.DeviceObsolete, "certain", "every door of the site", "postern device why " + string(clientID(2))},
		{"the management point does not run", known(func(f *site.DeviceFacts) { f.Running = false }), catalog.SiteNotRunning, "certain", "before the site", "postern serve mp"},
		{"its tenant is switched off", known(tenant(true, true)), catalog.EntraTenantDisabled, "certain", "token service", "t1"},
		{"its tenant was removed", known(tenant(false, false)), catalog.EntraTenantUnknown, "certain", "token service", "t1"},
		{"its tenant is well", known(tenant(true, false)), catalog.DeviceTalks, "certain", "", ""},
		{"the clock, when a refusal is by the time", known(clock, event(catalog.TokenNotYetValid, "token", time.Minute)), catalog.ClockBehind, "certain", "token service", ""},
		{"not the clock, when it is not", known(clock, event(catalog.TokenBlocked, "token", time.Minute)), catalog.TokenBlocked, "certain", "token service", ""},
		{"a conflict holds it", known(func(f *site.DeviceFacts) { f.Device.Conflict = "c1" }), catalog.DeviceHeld, "certain", "approval", "conflict show c1"},
		{"in quarantine", known(quarantined), catalog.DeviceQuarantined, "certain", "approval", "device release wk1.example.com"},
		{"not approved", known(unapproved), catalog.SymptomNotApproved, "certain", "approval", "self-signed key only"},
		{"rejected by a person", known(unapproved, func(f *site.DeviceFacts) { f.Device.Approval.By, f.Device.Approval.Why = "anna", "not ours" }), catalog.SymptomNotApproved, "certain", "approval", "anna rejected it"},
		{"not approved is why policy is refused", known(unapproved, event(catalog.PolicyLevel, "policy", time.Minute)), catalog.SymptomNotApproved, "certain", "approval", string(catalog.PolicyLevel)},
		{"a token is refused before an approval matters", known(unapproved, event(catalog.TokenExpired, "token", time.Minute)), catalog.TokenExpired, "certain", "token service", ""},
		{"gateways are silent since it was heard", known(notHeardFor(3*time.Hour), gatewayHeard(3*time.Hour), gatewayHeard(5*time.Hour)), catalog.GatewaysSilent, "likely", "before the site", "gw.example.com"},
		{"no connector is left", known(notHeardFor(3*time.Hour), gatewayHeard(3*time.Hour), func(f *site.DeviceFacts) {
			f.Connectors = []site.Connector{{Blocked: true, Expires: begin.Add(time.Hour)}, {Expires: begin}}
		}), catalog.GatewaysSilent, "likely", "before the site", "every connector"},
		{"a clock that decides nothing is told", known(clock), catalog.DeviceTalks, "certain", "", "the clock jumped"},
		{"a gateway that was never heard", known(notHeardFor(30*time.Hour), func(f *site.DeviceFacts) { f.Gateways = []site.GatewayFact{{Name: "gw", Heard: time.Unix(0, 0)}} }), "", "", "", "whether it is switched off"},
		{"one gateway of two is heard", known(notHeardFor(3*time.Hour), gatewayHeard(time.Second), gatewayHeard(3*time.Hour)), catalog.DeviceTalks, "certain", "", ""},
		{"heard from inside since", known(gatewayHeard(3 * time.Hour)), catalog.DeviceTalks, "certain", "", ""},
		{"silent for days, and nothing refuses it", known(notHeardFor(72 * time.Hour)), "", "", "", "switched off"},
		{"away for longer than its token lives", known(notHeardFor(100 * 24 * time.Hour)), "", "", "", "into quarantine"},
		{"the logs know more", known(notHeardFor(72*time.Hour), logs(catalog.SymptomLogTooQuiet)), catalog.SymptomLogTooQuiet, "likely", "", "CCM_STS.log:3"},
		{"healthy logs decide nothing", known(notHeardFor(72*time.Hour), logs(catalog.Healthy)), "", "", "", ""},

		{"nothing of it ever came", known(unregistered), "", "", "", "no device with that id"},
		{"a gateway tells little of what proves no key", known(unregistered, gatewayHeard(time.Second)), "", "", "", "postern explain FOLDER there"},
		{"a gateway refused what proved its key", known(gatewayRefused(catalog.TokenExpired, "key-of-wk1")), catalog.TokenExpired, "certain", "the gateway", "gateway gw.example.com"},
		{"a gateway refused its address", known(unregistered, gatewayRefused(catalog.TokenMissing, "")), catalog.TokenMissing, "likely", "the gateway", "not proved"},
		{"a gateway refused the key that is asked for", known(unregistered, gatewayRefused(catalog.ProofOtherKey, device(1).thumbprint), func(f *site.DeviceFacts) { f.Asked = string(device(1).thumbprint) }), catalog.ProofOtherKey, "certain", "the gateway", ""},
		{"whoever has seen a proof can send it again", known(gatewayRefused(catalog.ProofReplayed, "key-of-wk1")), catalog.ProofReplayed, "likely", "the gateway", ""},
		{"refused before it registered", known(unregistered, event(catalog.BulkTokenUsedUp, "token", time.Minute)), catalog.BulkTokenUsedUp, "likely", "token service", "token new"},
		{"its registration waits", known(unregistered, func(f *site.DeviceFacts) {
			f.Waiting = []site.WaitingRegistration{{Name: "wk1", ClientID: clientID(3), Received: begin}}
		}), catalog.RegistrationWaits, "certain", "registration", "database"},
		{"it got a token and stopped", known(unregistered, func(f *site.DeviceFacts) {
			f.Reserved = &site.Reservation{ClientID: clientID(3), Created: begin, Expires: begin.Add(time.Hour)}
		}), catalog.DeviceStoppedAfterToken, "certain", "between token service and registration", string(clientID(3))},
		{"somebody with its address did", known(unregistered, func(f *site.DeviceFacts) { f.Uses = []site.TokenUse{{Address: "192.0.2.7", At: begin}} }), catalog.DeviceStoppedAfterToken, "likely", "between token service and registration", "192.0.2.7"},
		{"it was removed", known(unregistered, func(f *site.DeviceFacts) {
			f.Trust = []site.TrustEntry{{Sequence: 9, Action: "device.remove", Detail: `{"replaced-by":"GUID:X"}`}}
		}), catalog.DeviceRemoved, "certain", "registration", "GUID:X"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			d := site.Why(test.facts)
			var code catalog.Code
			var sure string
			if d.Verdict != nil {
				code, sure = d.Verdict.Code, d.Verdict.Sure
			}
			if code != test.code || sure != test.sure || d.Stopped != test.stopped {
				t.Errorf("got %q %s at %q, want %q %s at %q", code, sure, d.Stopped, test.code, test.sure, test.stopped)
			}
			if text := strings.Join(slices.Concat(d.Because, d.Needs, d.Undecided), "\n"); !strings.Contains(text, test.says) {
				t.Errorf("%q is not in\n%s", test.says, text)
			}
			if (d.Verdict == nil) != (len(d.Remedy) == 0) || len(d.Undecided) == 0 && d.Verdict == nil {
				t.Errorf("remedy %q, undecided %q", d.Remedy, d.Undecided)
			}
		})
	}
}

func TestMentions(t *testing.T) {
	for _, test := range []struct {
		text, word string
		want       bool
	}{
		{"device WK1 is refused", "wk1", true}, {"wk1.corp.example.", "WK1", true}, {"WK10", "wk1", false}, {"OLD-WK1", "wk1", false}, {"WK1", "", false}, {"", "wk1", false}, {"WK10, WK1", "wk1", true},
	} {
		if got := site.Mentions(test.text, test.word); got != test.want {
			t.Errorf("%q in %q: got %v", test.word, test.text, got)
		}
	}
}

// TestDeviceFacts gathers from a real store, for each way of naming a device, and the facts survive their way through the door.
func TestDeviceFacts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir()+"/site.db")
	bulk := w.bulk(t, 1)
	out := w.registered(t, with(bulk, device(1).thumbprint), device(1).request())
	w.Note(site.Event{Code: string(catalog.TokenExpired), Kind: "token", Address: "192.0.2.7", Detail: "the token of WK1 ended"})
	w.Note(site.Event{Code: string(catalog.TokenExpired), Kind: "token", Address: "192.0.2.8", Detail: "the token of WK10 ended"})
	if _, err := w.Block(t.Context(), out.Device.ClientID, "anna", "stolen"); err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{string(out.Device.ClientID), out.Device.ClientID.UUID(), "wk1", "WK1.example.com", string(device(1).thumbprint)} {
		f, err := w.DeviceFacts(t.Context(), who)
		if err != nil || f.Device == nil || f.Device.ClientID != out.Device.ClientID {
			t.Fatalf("%s: %+v, %v", who, f.Device, err)
		}
		if len(f.Events) != 2 || f.Events[0].Detail != "the token of WK1 ended" && f.Events[1].Detail != "the token of WK1 ended" {
			t.Errorf("%s: events %+v", who, f.Events)
		}
		if len(f.Trust) != 2 || f.Trust[0].Action != "device.block" || f.Bulk == nil || f.Bulk.ID != bulk.ID {
			t.Errorf("%s: trust log %+v, bulk token %+v", who, f.Trust, f.Bulk)
		}
		text, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		var back site.DeviceFacts
		if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(site.Why(back), site.Why(f)) {
			t.Errorf("%s: the way through the door changes the facts: %v", who, err)
		}
	}
	f, err := w.DeviceFacts(t.Context(), "192.0.2.8")
	if err != nil || f.Device != nil || len(f.Events) != 1 {
		t.Errorf("by address: %+v, %v", f, err)
	}
	f.Running = true
	if d := site.Why(f); d.Verdict == nil || d.Verdict.Code != catalog.TokenExpired || d.Verdict.Sure != "likely" {
		t.Errorf("by address: %+v", d.Verdict)
	}
	_, err = w.DeviceFacts(t.Context(), " ")
	refused(t, "nobody", err, catalog.DeviceUnknown)
	w.registered(t, signed(), device(2).request())
	_, err = w.DeviceFacts(t.Context(), "wk1")
	refused(t, "two of one name", err, catalog.DeviceAmbiguous)
	for _, d := range must(w.Devices(t.Context(), site.DeviceFilter{})) {
		if !strings.Contains(err.Error(), string(d.ClientID)) {
			t.Errorf("two of one name: %s is not among those to choose from: %v", d.ClientID, err)
		}
	}
}

// TestWhyOfALife asks about one real device from its first day on, by id and by name, and about the verdict alone: the facts are the store's.
func TestWhyOfALife(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir()+"/site.db")
	id := clientID(0)
	asked := func(step string, want catalog.Code, says string) {
		t.Helper()
		for _, who := range []string{string(id), "wk1"} {
			f := must(w.DeviceFacts(t.Context(), who))
			f.Running = true
			d := site.Why(f)
			var code catalog.Code
			if d.Verdict != nil {
				code = d.Verdict.Code
			}
			if text := strings.Join(slices.Concat(d.Because, d.Needs, d.Undecided), "\n"); code != want || !strings.Contains(text, says) {
				t.Errorf("%s, asked by %s: got %q, want %q with %q in\n%s", step, who, code, want, says, text)
			}
		}
	}
	id = w.registered(t, signed(), device(1).request()).Device.ClientID
	asked("registered by its key alone", catalog.SymptomNotApproved, "postern device approve")
	must(w.Approve(t.Context(), id, proof.LevelManaged, "anna", "seen"))
	w.Seen(id)
	asked("approved", catalog.DeviceTalks, "was accepted at")
	w.clock.advance(365 * 24 * time.Hour)
	asked("a year asleep", "", "longer than a self-prove token lives")
	must(w.comeBack(t, 1, id))
	asked("back by its key alone", catalog.DeviceQuarantined, "postern device release")
	must(w.Block(t.Context(), id, "anna", "stolen"))
	if _, err := w.comeBack(t, 1, id); err == nil {
		t.Error("a blocked device came back")
	}
	asked("blocked", catalog.DeviceBlocked, "stolen")
}
