package site_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// contoso is the tenant that every test's site has onboarded (S2).
func contoso() token.Tenant {
	const id = "2ca9a796-a1a6-43ec-88f1-5935b32155c5"
	return token.Tenant{ID: id, Issuers: site.EntraIssuers(id), Audiences: []string{site.DefaultResource}, Resource: site.DefaultResource}
}

// entraDevice is what a token of the n-th Entra device proves.
func entraDevice(n int) *proof.Cloud {
	t := contoso()
	return &proof.Cloud{Tenant: t.ID, Issuer: t.Issuers[1], Kind: proof.CloudDevice, Device: fmt.Sprintf("8d2b4ff9-0172-4998-9851-%012x", n), TokenID: fmt.Sprint("uti-", n)}
}

// entraUser is what a user's token proves, on the n-th Entra device or, below zero, on none.
func entraUser(n int) *proof.Cloud {
	c := entraDevice(max(n, 0))
	c.Kind, c.User, c.UserSID = proof.CloudUser, "e8838041-db7a-42d5-b9ae-78813910e4cc", "S-1-5-21-1527250992-855612568-2252598708-1604"
	if n < 0 {
		c.Device = ""
	}
	return c
}

// byEntra is the caller who showed an Entra token and a proof of the n-th device's key.
func byEntra(n int, cloud *proof.Cloud) site.Caller {
	c := withMethod(proof.Entra, n)
	c.Cloud, c.Tenant, c.Device, c.User = cloud, cloud.Tenant, cloud.Device, cloud.User
	return c
}

// byToken is the caller who shows the site's own token that was issued.
func byToken(issued site.Issued) site.Caller {
	methods := map[token.Kind]proof.Method{token.KindCCM: proof.CCMToken, token.KindSelfProve: proof.SelfProveToken}
	c := issued.Claims
	return site.Caller{Proof: proof.Proof{Method: methods[c.Kind], Key: c.Key, Client: c.Client, Scope: c.Scope, BulkID: c.BulkID, Cloud: c.Cloud, Address: "192.0.2.8"}, Ceiling: proof.LevelManaged}
}

func (w *world) issued(t testing.TB, ask site.Exchange) site.Issued {
	t.Helper()
	issued, err := w.ask(t, ask)
	if err != nil {
		t.Fatal(err)
	}
	return issued
}

func entraStories() []story {
	return []story{
		{"S2 an Entra token, a registration, a second token", entraFlow},
		{"a user's token is evidence of the user", entraUserFlow},
		{"manual mode holds Entra devices", entraHeld},
		{"a tenant that is disabled or removed ends what came by it", entraDisabled},
		{"a tenant that is disabled between token and registration", entraBetween},
		{"a key is of one Entra device for ever", entraOtherDevice},
		{"a registered key may come with its first Entra identity", entraRaises},
		{"what a token inherits from another is no evidence", entraInherited},
		{"the same Entra device with another key takes its place", entraSupersedes},
		{"an Entra device takes nobody's place by a name", entraByName},
		{"an Entra token of nobody gives nothing", entraNobody},
		{"RS256 by setting", tokenAlgorithm},
		{"a user's token where a device's is asked for", deviceTokensOnly},
	}
}

func entraFlow(t *testing.T, w *world) {
	cloud := entraDevice(1)
	cloud.DeviceSID = "S-1-5-21-1"
	var first site.Issued
	if entries := w.during(t, func() { first = w.issued(t, site.Exchange{Caller: byEntra(1, cloud)}) }); len(entries) != 0 {
		t.Errorf("the exchange left %s", actions(entries))
	}
	claims := w.verified(t, first, token.KindCCM)
	if !first.First || claims.Scope != token.ScopeRegister || claims.TokenType != token.TypeDevice || claims.Cloud == nil || *claims.Cloud != *cloud || claims.BulkID != "" {
		t.Errorf("got %+v", claims)
	}
	again := w.issued(t, site.Exchange{Caller: byEntra(1, cloud)})
	if again.First || again.Claims.Client != first.Claims.Client {
		t.Errorf("again: %+v", again.Claims)
	}
	_, err := w.ask(t, site.Exchange{Caller: byEntra(1, cloud), Want: token.KindSelfProve})
	refused(t, "a self-prove token before registration", err, catalog.TokenBeforeRegistration)

	out := w.registered(t, byToken(first), device(1).request())
	a := out.Device.Approval
	if out.Device.ClientID != first.Claims.Client || a.Status != ccm.ApprovalEntra || a.Level != proof.LevelManaged || a.Method != proof.Entra || a.Rule != "Entra" {
		t.Errorf("got %s %+v", out.Device.ClientID, a)
	}
	for fact, want := range map[string]string{
		"tenant": cloud.Tenant, "entra-device": cloud.Device, "entra-kind": "Device", "entra-issuer": cloud.Issuer, "entra-token": "uti-1", "device-sid": "S-1-5-21-1", "entra-user": "",
	} {
		if got := a.Evidence[fact]; got != want {
			t.Errorf("evidence %s: got %q, want %q", fact, got, want)
		}
	}
	if want := "entra:" + cloud.Device + "@" + cloud.Tenant; out.Device.Proved != want {
		t.Errorf("proved %q, want %q", out.Device.Proved, want)
	}
	second := w.issued(t, site.Exchange{Caller: byEntra(1, cloud)})
	if second.Claims.Scope != token.ScopeClient || second.Claims.Client != first.Claims.Client || second.Claims.TokenType != token.TypeDevice || second.Approval != ccm.ApprovalEntra {
		t.Errorf("after registration: %+v", second)
	}
	if groups, err := w.DeviceGroups(t.Context(), site.DeviceFilter{}); err != nil || len(groups) != 1 || groups[0].Origin != cloud.Tenant {
		t.Errorf("groups: %+v, %v", groups, err)
	}
}

func entraUserFlow(t *testing.T, w *world) {
	cloud := entraUser(1)
	first := w.issued(t, site.Exchange{Caller: byEntra(1, cloud)})
	if first.Claims.TokenType != token.TypeUDA {
		t.Errorf("got %+v", first.Claims)
	}
	d := w.registered(t, byToken(first), device(1).request()).Device
	a := d.Approval
	if a.Status != ccm.ApprovalEntra || a.Level != proof.LevelManaged || a.Evidence["entra-user"] != cloud.User || a.Evidence["entra-kind"] != "UDA" || a.Evidence["user-sid"] != cloud.UserSID || a.Evidence["entra-device"] != cloud.Device {
		t.Errorf("got %+v", a)
	}
	if d.Proved != "" {
		t.Errorf("a user is a device: %q", d.Proved)
	}
	other := entraUser(1)
	other.User = "11111111-0000-4000-8000-000000000001"
	for name, ask := range map[string]struct {
		cloud *proof.Cloud
		want  catalog.Code
	}{
		"another user on the same device": {other, ""},
		"a user on no device":             {entraUser(-1), ""},
		"a user on another device":        {entraUser(2), catalog.EntraOtherDevice},
		"another device":                  {entraDevice(2), catalog.EntraOtherDevice},
		"the device itself":               {entraDevice(1), ""},
	} {
		issued, err := w.ask(t, site.Exchange{Caller: byEntra(1, ask.cloud)})
		if catalog.CodeOf(err) != ask.want || err == nil && (issued.Claims.Client != d.ClientID || issued.Claims.TokenType != ask.cloud.Kind) {
			t.Errorf("%s: got %+v, %v, want %q", name, issued.Claims, err, ask.want)
		}
	}
}

func entraHeld(t *testing.T, w *world) {
	w.set(t, "approval.mode", "manual")
	for n, cloud := range map[int]*proof.Cloud{1: entraDevice(1), 2: entraUser(2)} {
		a := w.registered(t, byToken(w.issued(t, site.Exchange{Caller: byEntra(n, cloud)})), device(n).request()).Device.Approval
		if a.Status != ccm.ApprovalNone || a.Level != proof.LevelKnown || a.Evidence["tenant"] != cloud.Tenant || a.Rule != "manual approval" {
			t.Errorf("%s: got %+v", cloud.Kind, a)
		}
	}
}

func entraDisabled(t *testing.T, w *world) {
	before := w.issued(t, site.Exchange{Caller: byEntra(1, entraDevice(1))})
	d := w.registered(t, byToken(before), device(1).request()).Device
	client := w.issued(t, site.Exchange{Caller: byEntra(1, entraDevice(1))})
	selfProve := w.issued(t, site.Exchange{Caller: byEntra(1, entraDevice(1)), Want: token.KindSelfProve, Assertion: w.assertion(1, d.ClientID, audience), Audience: audience})
	renewed := w.issued(t, site.Exchange{Caller: byToken(selfProve)})
	bulk := w.issued(t, site.Exchange{Caller: with(w.bulk(t, 0), device(2).thumbprint)})
	node := w.node(t)
	good := func(want catalog.Code) {
		t.Helper()
		for name, issued := range map[string]site.Issued{"register": before, "client": client, "self-prove": selfProve, "renewed by self-prove": renewed} {
			if got := catalog.CodeOf(w.Revoked(issued.Claims)); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
		if err := w.Revoked(bulk.Claims); err != nil {
			t.Errorf("a token that came by no tenant: %v", err)
		}
		for _, ask := range []site.Exchange{{Caller: byEntra(1, entraDevice(1))}, {Caller: byEntra(3, entraDevice(3))}, {Caller: byToken(selfProve)}} {
			if _, err := w.ask(t, ask); catalog.CodeOf(err) != want {
				t.Errorf("%s: got %v, want %q", ask.Caller.Method, err, want)
			}
		}
		kept, err := w.Device(t.Context(), d.ClientID)
		if err != nil || kept.Approval.Status != ccm.ApprovalEntra || kept.Blocked() {
			t.Errorf("the device's record: %+v, %v", kept, err)
		}
	}
	good("")
	epoch := w.Epoch()
	entries := w.during(t, func() {
		for range 2 { // the second changes nothing
			if err := w.EnableTenant(t.Context(), strings.ToUpper(contoso().ID), false, "anna", "merger"); err != nil {
				t.Fatal(err)
			}
		}
	})
	if got := actions(entries); got != "tenant.disable" || !strings.Contains(entries[0].Detail, "merger") || w.Epoch() <= epoch {
		t.Errorf("trust entries %s, epoch %d after %d", got, w.Epoch(), epoch)
	}
	good(catalog.EntraTenantDisabled)
	if _, err := node.Register(t.Context(), byToken(before), device(1).request()); catalog.CodeOf(err) != catalog.EntraTenantDisabled {
		t.Errorf("at another node that has not heard: %v", err)
	}
	if _, err := node.IssueToken(t.Context(), site.Exchange{Caller: byEntra(4, entraDevice(4)), Want: token.KindCCM}); catalog.CodeOf(err) != catalog.EntraTenantDisabled {
		t.Errorf("a reservation at another node that has not heard: %v", err)
	}
	if !w.Tenants()[0].Disabled {
		t.Error("the state does not say that the tenant is disabled")
	}
	if err := w.EnableTenant(t.Context(), contoso().ID, true, "anna", "try it"); err != nil {
		t.Fatal(err)
	}
	good("")
	change := contoso()
	change.Issuers = change.Issuers[:1]
	if _, err := w.AddTenant(t.Context(), change, "anna"); err != nil {
		t.Fatal(err)
	}
	good(catalog.EntraTenantDisabled)
	if err := w.RemoveTenant(t.Context(), contoso().ID, "anna", "sold"); err != nil {
		t.Fatal(err)
	}
	good(catalog.EntraTenantDisabled)
	refused(t, "removing it again", w.RemoveTenant(t.Context(), contoso().ID, "anna", "sold"), catalog.NotFound)
}

func entraBetween(t *testing.T, w *world) {
	issued := w.issued(t, site.Exchange{Caller: byEntra(1, entraDevice(1))})
	if err := w.EnableTenant(t.Context(), contoso().ID, false, "anna", "try it"); err != nil {
		t.Fatal(err)
	}
	_, err := w.Register(t.Context(), byToken(issued), device(1).request())
	refused(t, "registration", err, catalog.EntraTenantDisabled)
	if _, err := w.DeviceByKey(t.Context(), device(1).thumbprint); err == nil {
		t.Error("the device is there")
	}
}

func entraOtherDevice(t *testing.T, w *world) {
	d := w.registered(t, byEntra(1, entraDevice(1)), device(1).request()).Device
	foreign := entraDevice(1)
	foreign.Tenant = "fabrikam"
	if _, err := w.AddTenant(t.Context(), token.Tenant{ID: "fabrikam", Issuers: []string{"https://fabrikam.example/"}}, "anna"); err != nil {
		t.Fatal(err)
	}
	foreign.Issuer = "https://fabrikam.example/"
	for name, cloud := range map[string]*proof.Cloud{"another device": entraDevice(2), "another tenant": foreign, "a user on another device": entraUser(2)} {
		_, err := w.ask(t, site.Exchange{Caller: byEntra(1, cloud)})
		refused(t, name+" at the token service", err, catalog.EntraOtherDevice)
		_, err = w.Register(t.Context(), byEntra(1, cloud), device(1).request())
		refused(t, name+" at registration", err, catalog.EntraOtherDevice)
	}
	if _, err := w.Reject(t.Context(), d.ClientID, "anna", "looked at"); err != nil {
		t.Fatal(err)
	}
	_, err := w.ask(t, site.Exchange{Caller: byEntra(1, entraDevice(2))})
	refused(t, "after a person's decision", err, catalog.EntraOtherDevice)
	after, err := w.Device(t.Context(), d.ClientID)
	if err != nil || after.Proved != d.Proved || after.Approval.Evidence["entra-device"] != d.Approval.Evidence["entra-device"] {
		t.Errorf("got %+v, %v", after, err)
	}
}

func entraRaises(t *testing.T, w *world) {
	d := w.registered(t, signed(), device(1).request()).Device
	issued := w.issued(t, site.Exchange{Caller: byEntra(1, entraDevice(1))})
	if issued.Claims.Scope != token.ScopeClient || issued.Claims.Client != d.ClientID || issued.Approval != ccm.ApprovalNone {
		t.Errorf("got %+v", issued)
	}
	if kept, err := w.Device(t.Context(), d.ClientID); err != nil || kept.Approval.Level != proof.LevelKnown {
		t.Errorf("a token raised the device: %+v, %v", kept.Approval, err)
	}
	raised := w.registered(t, byToken(issued), device(1).request()).Device
	if raised.ClientID != d.ClientID || raised.Approval.Status != ccm.ApprovalEntra || raised.Proved == "" {
		t.Errorf("got %+v", raised)
	}
	if again := w.registered(t, signed(), device(1).request()).Device; again.Approval.Status != ccm.ApprovalEntra || again.Proved != raised.Proved {
		t.Errorf("a weaker proof lowered it: %+v", again)
	}
}

func entraInherited(t *testing.T, w *world) {
	w.set(t, "approval.mode", "manual")
	d := w.registered(t, byEntra(1, entraDevice(1)), device(1).request()).Device
	selfProve := w.issued(t, site.Exchange{Caller: byEntra(1, entraDevice(1)), Want: token.KindSelfProve, Assertion: w.assertion(1, d.ClientID, audience), Audience: audience})
	renewed := w.issued(t, site.Exchange{Caller: byToken(selfProve)})
	for _, issued := range []site.Issued{selfProve, renewed} {
		if c := issued.Claims.Cloud; c == nil || c.Tenant != contoso().ID || c.Device != "" || c.User != "" || c.TokenID != "" {
			t.Errorf("%s: got %+v", issued.Claims.Kind, c)
		}
	}
	w.set(t, "approval.mode", "trusted-domains")
	if got := w.registered(t, byToken(renewed), device(1).request()).Device.Approval; got.Level != proof.LevelKnown {
		t.Errorf("got %+v", got)
	}
}

func entraSupersedes(t *testing.T, w *world) {
	old := w.registered(t, byEntra(1, entraDevice(1)), device(1).request(hardware("2:AA"))).Device
	user := w.registered(t, byEntra(3, entraUser(1)), device(3).request(hardware("2:AA"))).Device
	if kept, err := w.Device(t.Context(), old.ClientID); err != nil || kept.Superseded() {
		t.Errorf("a user's token took the place: %+v, %v", kept, err)
	}
	stranger := w.registered(t, byEntra(4, entraDevice(4)), device(4).request(hardware("2:AA"))).Device
	if kept, err := w.Device(t.Context(), old.ClientID); err != nil || kept.Superseded() {
		t.Errorf("another Entra device took the place: %+v, %v", kept, err)
	}
	fresh := w.registered(t, byEntra(2, entraDevice(1)), device(2).request(hardware("2:AA"))).Device
	kept, err := w.Device(t.Context(), old.ClientID)
	if err != nil || kept.Obsolete.By != fresh.ClientID || fresh.ClientID == old.ClientID || fresh.Approval.Status != ccm.ApprovalEntra {
		t.Errorf("got %+v and %+v, %v", kept, fresh, err)
	}
	for _, d := range []site.Device{user, stranger} {
		if other, err := w.Device(t.Context(), d.ClientID); err != nil || other.Superseded() {
			t.Errorf("%+v, %v", other, err)
		}
	}
	_, err = w.ask(t, site.Exchange{Caller: byEntra(1, entraDevice(1))})
	refused(t, "a token for the former key", err, catalog.DeviceObsolete)
}

func entraByName(t *testing.T, w *world) {
	victim := w.registered(t, signed(), device(1).request(hardware("2:AA"), named(1))).Device
	w.registered(t, byEntra(2, entraDevice(2)), device(2).request(hardware("2:AA"), named(1)))
	if kept, err := w.Device(t.Context(), victim.ClientID); err != nil || kept.Superseded() {
		t.Errorf("got %+v, %v", kept, err)
	}
}

func entraNobody(t *testing.T, w *world) {
	nobody := entraDevice(1)
	nobody.Device = ""
	_, err := w.ask(t, site.Exchange{Caller: byEntra(1, nobody)})
	refused(t, "a token of nobody", err, catalog.DeviceUnknown)
	if got := w.registered(t, byEntra(1, nobody), device(1).request()).Device.Approval; got.Level != proof.LevelKnown || got.Status != ccm.ApprovalNone {
		t.Errorf("got %+v", got)
	}
	hostile := entraDevice(2)
	hostile.TokenID = "a\u202eb" + strings.Repeat("x", 2000)
	if got := w.registered(t, byEntra(2, hostile), device(2).request()).Device.Approval.Evidence["entra-token"]; strings.ContainsRune(got, '\u202e') || len(got) > 600 {
		t.Errorf("got %q", got)
	}
}

func tokenAlgorithm(t *testing.T, w *world) {
	old := w.issued(t, site.Exchange{Caller: byEntra(1, entraDevice(1))})
	refused(t, "another algorithm", w.Set(t.Context(), "token.algorithm", "hs256", "anna"), catalog.InvalidArgument)
	w.set(t, "token.algorithm", "RS256")
	if got := w.Settings().Value("token.algorithm"); got != "rs256" {
		t.Errorf("the setting is %q", got)
	}
	head := func(issued site.Issued) string { return issued.Token[:strings.IndexByte(issued.Token, '.')] }
	if again := w.issued(t, site.Exchange{Caller: byEntra(1, entraDevice(1))}); head(again) != head(old) {
		t.Error("the setting alone changed the key")
	}
	w.clock.advance(time.Second)
	for kind, want := range map[token.Kind]string{token.KindCCM: "RS256", token.KindSelfProve: "RS256", token.KindBulk: "RS256"} {
		record, err := w.RotateKey(context.Background(), kind, "anna")
		if err != nil || record.Algorithm != want {
			t.Fatalf("%s: got %s, %v", kind, record.Algorithm, err)
		}
	}
	fresh := w.issued(t, site.Exchange{Caller: byEntra(1, entraDevice(1))})
	if head(fresh) == head(old) {
		t.Error("the new key does not sign")
	}
	gateway, err := w.opened(t).Verifier()
	if err != nil {
		t.Fatal(err)
	}
	for name, issued := range map[string]site.Issued{"by the former key": old, "by the new key": fresh} {
		w.verified(t, issued, token.KindCCM)
		if _, err := gateway.Verify(issued.Token, w.clock.now(), token.KindCCM); err != nil {
			t.Errorf("%s at a gateway: %v", name, err)
		}
	}
	w.set(t, "token.algorithm", "es256")
	if record, err := w.RotateKey(t.Context(), token.KindCCM, "anna"); err != nil || record.Algorithm != "ES256" {
		t.Errorf("back: %s, %v", record.Algorithm, err)
	}
}

func deviceTokensOnly(t *testing.T, w *world) {
	user := entraUser(3)
	if err := w.Set(t.Context(), "tenant.device-tokens-only", "true", "anna"); err != nil {
		t.Fatal(err)
	}
	_, err := w.ask(t, site.Exchange{Caller: byEntra(3, user)})
	refused(t, "a user's token", err, catalog.EntraUserToken)
	w.issued(t, site.Exchange{Caller: byEntra(4, entraDevice(4))})
	if err := w.Set(t.Context(), "tenant.device-tokens-only", "false", "anna"); err != nil {
		t.Fatal(err)
	}
	w.issued(t, site.Exchange{Caller: byEntra(3, user)})
}
