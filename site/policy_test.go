package site_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"postern/catalog"
	"postern/ccm"
	"postern/keyfile"
	"postern/proof"
	"postern/site"
)

func policyStories() []story {
	return []story{
		{"CRED a secret is only for level secrets", secretPolicies},
		{"C57 a policy's own level holds", levelPolicies},
		{"CRED a secret is sealed at rest and for one device's key", secretsSealed},
		{"a policy with requires-auth needs a proved device", requiresAuth},
		{"a policy reaches its targets and nobody else", policyTargets},
		{"the same id again is the next version", policyVersions},
		{"a removed policy is gone", policyRemoved},
		{"policies that clients could not read are refused", badPolicies},
		{"a device without an encryption certificate gets no secret", noEncryptionCertificate},
		{"a blocked device gets no policy", blockedPolicies},
	}
}

const (
	secretText = "hunter2-is-the-password"
	secretBody = "<Policy><Account>" + secretText + "</Account></Policy>"
	plainBody  = "<Policy><Setting>grün</Setting></Policy>"
)

func (w *world) add(t testing.TB, ask site.NewPolicy) site.Policy {
	t.Helper()
	if ask.Body == nil {
		ask.Body = []byte(plainBody)
	}
	ask.By = "anna"
	p, err := w.AddPolicy(t.Context(), ask)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// at registers the n-th device and gives it that level.
func (w *world) at(t testing.TB, n int, level proof.Level) site.Device {
	t.Helper()
	d := w.registered(t, signed(), device(n).request()).Device
	if level < proof.LevelManaged {
		return d
	}
	d, err := w.Approve(t.Context(), d.ClientID, level, "anna", "seen")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// assigned names the policies that the device is assigned.
func (w *world) assigned(t testing.TB, d site.Device) string {
	t.Helper()
	policies, err := w.Assignments(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, p := range policies {
		ids = append(ids, p.ID+" "+p.Version)
		if len(p.Body) != 0 {
			t.Errorf("the list holds the body of %s", p.ID)
		}
	}
	return strings.Join(ids, ", ")
}

func secretPolicies(t *testing.T, w *world) {
	for _, flags := range []ccm.PolicyFlags{ccm.PolicySecret, ccm.PolicySecret | ccm.PolicyRequiresAuth} {
		for _, asked := range []proof.Level{proof.LevelNone, proof.LevelKnown, proof.LevelManaged} {
			p := w.add(t, site.NewPolicy{ID: fmt.Sprintf("S%d-%s", flags, asked), Flags: flags, Level: asked, Body: []byte(secretBody), All: true})
			if p.Level != proof.LevelSecrets || !p.Sealed || p.Body != nil {
				t.Errorf("got %+v", p)
			}
		}
	}
	for n, level := range []proof.Level{proof.LevelKnown, proof.LevelManaged} {
		d := w.at(t, n, level)
		if got := w.assigned(t, d); got != "" {
			t.Errorf("a device at %s is assigned %s", level, got)
		}
		body, err := w.PolicyBody(t.Context(), &d, "S4-none", "1.00")
		refused(t, "the body at "+level.String(), err, catalog.PolicyLevel)
		if body != nil {
			t.Error("a body came with the error")
		}
	}
	_, err := w.PolicyBody(t.Context(), nil, "S4-none", "1.00")
	refused(t, "the body without a device", err, catalog.PolicyNeedsProof)
	d := w.at(t, 9, proof.LevelSecrets)
	if got := strings.Count(w.assigned(t, d), "S"); got != 6 {
		t.Errorf("a device at secrets is assigned %d, want 6", got)
	}
	if _, err := w.PolicyBody(t.Context(), &d, "S4-none", "1.00"); err != nil {
		t.Error(err)
	}
}

func levelPolicies(t *testing.T, w *world) {
	for _, level := range []proof.Level{proof.LevelKnown, proof.LevelManaged, proof.LevelSecrets} {
		w.add(t, site.NewPolicy{ID: "for-" + level.String(), Level: level, All: true})
	}
	for n, test := range []struct {
		level proof.Level
		want  string
	}{
		{proof.LevelKnown, "for-known 1.00"}, {proof.LevelManaged, "for-known 1.00, for-managed 1.00"}, {proof.LevelSecrets, "for-known 1.00, for-managed 1.00, for-secrets 1.00"},
	} {
		d := w.at(t, n, test.level)
		if got := w.assigned(t, d); got != test.want {
			t.Errorf("at %s: assigned %q, want %q", test.level, got, test.want)
		}
		for _, needs := range []proof.Level{proof.LevelKnown, proof.LevelManaged, proof.LevelSecrets} {
			_, err := w.PolicyBody(t.Context(), &d, "for-"+needs.String(), "")
			if (err == nil) != (test.level >= needs) {
				t.Errorf("at %s, the body for %s: got %v", test.level, needs, err)
			}
		}
	}
	if _, err := w.PolicyBody(t.Context(), nil, "for-known", "1.00"); err != nil {
		t.Errorf("anyone, open policy: %v", err)
	}
	_, err := w.PolicyBody(t.Context(), nil, "for-managed", "1.00")
	refused(t, "anyone, managed policy", err, catalog.PolicyNeedsProof)
}

func secretsSealed(t *testing.T, w *world) {
	p := w.add(t, site.NewPolicy{ID: "NAA", Category: "NAAConfig", Flags: ccm.PolicySecret, Body: []byte(secretBody), All: true})
	d := w.at(t, 1, proof.LevelSecrets)
	dump := w.dump(t)
	if !bytes.Contains(dump, []byte("NAAConfig")) {
		t.Fatal("the search does not see what is there")
	}
	for name, form := range map[string][]byte{"UTF-8": []byte(secretText), "UTF-16": utf16(secretText), "hexadecimal": []byte(hex.EncodeToString([]byte(secretText)))} {
		if bytes.Contains(dump, form) {
			t.Errorf("the secret is in the database as %s", name)
		}
	}
	for _, aes := range []string{"false", "true"} {
		if err := w.Set(t.Context(), "policy.aes256", aes, "anna"); err != nil {
			t.Fatal(err)
		}
		sealed, err := w.PolicyBody(t.Context(), &d, p.ID, p.Version)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(sealed, utf16(secretText)) || bytes.Contains(sealed, []byte(secretText)) {
			t.Error("the secret travels in clear")
		}
		opened, err := ccm.OpenPolicy(sealed, device(1).encryption, device(1).encryptionKey)
		if err != nil || ccm.DecodePolicyBody(opened) != secretBody {
			t.Errorf("AES %s: got %q, %v", aes, opened, err)
		}
		if _, err := ccm.OpenPolicy(sealed, device(2).encryption, device(2).encryptionKey); err == nil {
			t.Error("another device opens it")
		}
	}
	other, err := keyfile.Open(t.TempDir(), keyfile.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	stored := w.policy(t, p.ID)
	if _, err := other.Open("policy:"+p.ID+":"+p.Version, stored.Body); err == nil {
		t.Error("another site.key opens the body")
	}
	if _, err := w.sealer.Open("policy:other:1.00", stored.Body); err == nil {
		t.Error("a sealed body can be moved to another policy")
	}
}

// policy reads the newest version as it is stored.
func (w *world) policy(t testing.TB, id string) (p site.Policy) {
	t.Helper()
	err := w.store.View(t.Context(), func(tx site.Tx) (err error) {
		p, err = tx.Policy(id, "")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func requiresAuth(t *testing.T, w *world) {
	w.add(t, site.NewPolicy{ID: "open", All: true})
	w.add(t, site.NewPolicy{ID: "auth", Flags: ccm.PolicyRequiresAuth, All: true})
	d := w.at(t, 1, proof.LevelKnown)
	body, err := w.PolicyBody(t.Context(), nil, "open", "1.00")
	if err != nil || ccm.DecodePolicyBody(body) != plainBody || !bytes.HasPrefix(body, []byte{0xFF, 0xFE}) {
		t.Errorf("open: got %q, %v", body, err)
	}
	_, err = w.PolicyBody(t.Context(), nil, "auth", "1.00")
	refused(t, "without a device", err, catalog.PolicyNeedsProof)
	if body, err = w.PolicyBody(t.Context(), &d, "auth", "1.00"); err != nil || ccm.DecodePolicyBody(body) != plainBody {
		t.Errorf("with a device: got %q, %v", body, err)
	}
}

func policyTargets(t *testing.T, w *world) {
	one, two := w.at(t, 1, proof.LevelManaged), w.at(t, 2, proof.LevelManaged)
	w.add(t, site.NewPolicy{ID: "one", Targets: []ccm.ClientID{one.ClientID, one.ClientID}})
	w.add(t, site.NewPolicy{ID: "both", Targets: []ccm.ClientID{two.ClientID, one.ClientID}})
	w.add(t, site.NewPolicy{ID: "everyone", All: true})
	if got, want := w.assigned(t, one), "both 1.00, everyone 1.00, one 1.00"; got != want {
		t.Errorf("first device: %q, want %q", got, want)
	}
	if got, want := w.assigned(t, two), "both 1.00, everyone 1.00"; got != want {
		t.Errorf("second device: %q, want %q", got, want)
	}
	_, err := w.PolicyBody(t.Context(), &two, "one", "")
	refused(t, "another device's policy", err, catalog.PolicyOtherDevice)
	_, err = w.PolicyBody(t.Context(), nil, "one", "")
	refused(t, "nobody", err, catalog.PolicyNeedsProof)
	if _, err := w.PolicyBody(t.Context(), &one, "one", ""); err != nil {
		t.Error(err)
	}
}

func policyVersions(t *testing.T, w *world) {
	d := w.at(t, 1, proof.LevelManaged)
	for n := 1; n <= 11; n++ {
		body := fmt.Sprintf("<Policy>%d</Policy>", n)
		var p site.Policy
		entries := w.during(t, func() { p = w.add(t, site.NewPolicy{ID: "P1", Body: []byte(body), All: true}) })
		sum := sha256.Sum256([]byte(body))
		if want := fmt.Sprintf("%d.00", n); p.Version != want || p.Type != "Machine" || p.Hash != "SHA256:"+strings.ToUpper(hex.EncodeToString(sum[:])) {
			t.Errorf("got %+v, want version %s", p, want)
		}
		if actions(entries) != "policy.add" || entries[0].Actor != "anna" || !strings.Contains(entries[0].Detail, p.Hash) {
			t.Errorf("trust entries: %+v", entries)
		}
	}
	if got := w.assigned(t, d); got != "P1 11.00" {
		t.Errorf("assigned %q", got)
	}
	for version, want := range map[string]string{"": "11", "11.00": "11", "2.00": "2"} {
		if body, err := w.PolicyBody(t.Context(), &d, "P1", version); err != nil || ccm.DecodePolicyBody(body) != "<Policy>"+want+"</Policy>" {
			t.Errorf("version %q: got %q, %v", version, body, err)
		}
	}
	_, err := w.PolicyBody(t.Context(), &d, "P1", "12.00")
	refused(t, "a version to come", err, catalog.PolicyUnknown)
}

func policyRemoved(t *testing.T, w *world) {
	d := w.at(t, 1, proof.LevelManaged)
	w.add(t, site.NewPolicy{ID: "P1", All: true})
	w.add(t, site.NewPolicy{ID: "P1", All: true})
	entries := w.during(t, func() {
		if err := w.RemovePolicy(t.Context(), "P1", "anna"); err != nil {
			t.Fatal(err)
		}
		refused(t, "again", w.RemovePolicy(t.Context(), "P1", "anna"), catalog.PolicyUnknown)
	})
	if actions(entries) != "policy.remove" {
		t.Errorf("trust entries: %s", actions(entries))
	}
	_, err := w.PolicyBody(t.Context(), &d, "P1", "1.00")
	refused(t, "the body", err, catalog.PolicyUnknown)
	if list, err := w.Policies(t.Context()); err != nil || len(list) != 0 || w.assigned(t, d) != "" {
		t.Errorf("got %+v, %v", list, err)
	}
}

func badPolicies(t *testing.T, w *world) {
	ok := []byte("<Policy/>")
	bad := map[string]site.NewPolicy{
		"id with a query":       {ID: "P1?x", Body: ok, All: true},
		"id with a slash":       {ID: "../P1", Body: ok, All: true},
		"id with a space":       {ID: "P 1", Body: ok, All: true},
		"id with a quote":       {ID: "P'1", Body: ok, All: true},
		"overlong id":           {ID: strings.Repeat("P", 129), Body: ok, All: true},
		"half a GUID":           {ID: "{5B3D8C44-3B5A}", Body: ok, All: true},
		"id with a newline":     {ID: "P1\n", Body: ok, All: true},
		"category with a quote": {ID: "P1", Category: `a"b`, Body: ok, All: true},
		"overlong category":     {ID: "P1", Category: strings.Repeat("c", 65), Body: ok, All: true},
		"no document":           {ID: "P1", All: true},
		"overlong document":     {ID: "P1", Body: make([]byte, 32<<20+1), All: true},
		"not XML":               {ID: "P1", Body: []byte("hello"), All: true},
		"broken XML":            {ID: "P1", Body: []byte("<Policy>"), All: true},
		"entities":              {ID: "P1", Body: []byte(`<!DOCTYPE p [<!ENTITY a "b">]><Policy>&a;</Policy>`), All: true},
		"not UTF-8":             {ID: "P1", Body: []byte("<Policy>\xff</Policy>"), All: true},
		"for nobody":            {ID: "P1", Body: ok},
		"for all and for some":  {ID: "P1", Body: ok, All: true, Targets: []ccm.ClientID{clientID(1)}},
		"for an unknown device": {ID: "P1", Body: ok, Targets: []ccm.ClientID{clientID(404)}},
	}
	entries := w.during(t, func() {
		for name, ask := range bad {
			_, err := w.AddPolicy(t.Context(), ask)
			refused(t, name, err, catalog.PolicyInvalid)
		}
	})
	if list, _ := w.Policies(t.Context()); len(list) != 0 || len(entries) != 0 {
		t.Errorf("%d policies, trust entries %q", len(list), actions(entries))
	}
	if p := w.add(t, site.NewPolicy{All: true}); len(p.ID) != 38 || p.ID[0] != '{' {
		t.Errorf("a made-up id is %q", p.ID)
	}
	w.add(t, site.NewPolicy{ID: "{5b3d8c44-3b5a-4d5d-9e0e-0b0c2b8c6b11}", Category: "NAAConfig", All: true})
	if got := w.policy(t, "{5b3d8c44-3b5a-4d5d-9e0e-0b0c2b8c6b11}"); !reflect.DeepEqual(got.Body, []byte(plainBody)) || got.Category != "NAAConfig" || got.By != "anna" || got.Level != proof.LevelKnown {
		t.Errorf("stored as %+v", got)
	}
}

func noEncryptionCertificate(t *testing.T, w *world) {
	w.add(t, site.NewPolicy{ID: "S", Flags: ccm.PolicySecret, Body: []byte(secretBody), All: true})
	d := w.registered(t, signed(), device(1).request(func(r *ccm.RegistrationRequest) { r.Encryption = nil })).Device
	d, err := w.Approve(t.Context(), d.ClientID, proof.LevelSecrets, "anna", "seen")
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.PolicyBody(t.Context(), &d, "S", "1.00")
	refused(t, "the body", err, catalog.PolicyNoEncryptionCertificate)
}

func blockedPolicies(t *testing.T, w *world) {
	w.add(t, site.NewPolicy{ID: "auth", Flags: ccm.PolicyRequiresAuth, All: true})
	d := w.at(t, 1, proof.LevelManaged)
	d, err := w.Block(t.Context(), d.ClientID, "anna", "stolen")
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Assignments(t.Context(), d)
	refused(t, "assignments", err, catalog.DeviceBlocked)
	_, err = w.PolicyBody(t.Context(), &d, "auth", "1.00")
	refused(t, "body", err, catalog.DeviceBlocked)
}
