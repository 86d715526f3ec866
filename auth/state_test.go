package auth

import (
	"crypto"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/token"
)

var (
	siteRoot  = sync.OnceValue(newKey)
	otherRoot = sync.OnceValue(newKey)
)

func stateLine(t testing.TB, root crypto.Signer, epoch uint64, issued time.Time, change func(*token.SiteState)) string {
	t.Helper()
	keys, err := siteRing().PublicKeys()
	if err != nil {
		t.Fatal(err)
	}
	state := token.SiteState{Epoch: epoch, Issued: issued, SiteCode: "PS1", Hierarchy: hierarchy, Keys: keys}
	if change != nil {
		change(&state)
	}
	line, err := token.SignState(state, root)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func beatLine(t testing.TB, root crypto.Signer, epoch uint64, at time.Time) string {
	t.Helper()
	line, err := token.SignBeat(epoch, at, root)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

func tampered(line string) string {
	parts := strings.Split(line, ".")
	return parts[0] + "." + parts[1][:len(parts[1])-4] + "AAAA." + parts[2]
}

func newState(now *time.Time) *State {
	return NewState(strings.ToUpper(token.Pin(siteRoot().Public())), func() time.Time { return *now })
}

func TestStateBeforeTheFirstLine(t *testing.T) {
	now := noon
	s := newState(&now)
	if _, ok := s.Current(); ok || !s.Stale() || !s.LastHeard().IsZero() {
		t.Error("there is a state before the first line")
	}
	wantCode(t, s.Revoked(token.Claims{}), catalog.StateMissing)
	_, err := s.Verifier().Verify(signed(t, token.KindCCM, nil), noon, token.Kinds()...)
	wantCode(t, err, catalog.TokenUnknownKey)
	if _, ok := s.Published(1, ccm.EndpointSTS); ok {
		t.Error("something is published")
	}
	_, err = s.Apply(beatLine(t, siteRoot(), 1, noon))
	wantCode(t, err, catalog.StateMissing)
}

// TestStateEndsWhatCameByATenant: at a gateway, too, a disabled tenant takes the site's tokens with it.
func TestStateEndsWhatCameByATenant(t *testing.T) {
	now, epoch := noon, uint64(1)
	s := newState(&now)
	apply := func(tenants ...token.Tenant) {
		t.Helper()
		epoch++
		if _, err := s.Apply(stateLine(t, siteRoot(), epoch, now, func(state *token.SiteState) { state.Tenants = tenants })); err != nil {
			t.Fatal(err)
		}
	}
	const issuer = "https://id.example/"
	by := func(tenant, issuer string) token.Claims {
		return token.Claims{Kind: token.KindCCM, ID: "1", Key: "k", Scope: token.ScopeClient, Cloud: &proof.Cloud{Tenant: tenant, Issuer: issuer}}
	}
	good := token.Tenant{ID: "a", Issuers: []string{"https://other.example/", issuer}}
	disabled := good
	disabled.Disabled = true
	for _, test := range []struct {
		name    string
		tenants []token.Tenant
		claims  token.Claims
		want    catalog.Code
	}{
		{"onboarded", []token.Tenant{{ID: "0"}, good}, by("a", issuer), ""},
		{"onboarded, the issuer is not told", []token.Tenant{good}, by("a", ""), ""},
		{"disabled", []token.Tenant{disabled}, by("a", issuer), catalog.EntraTenantDisabled},
		{"removed", []token.Tenant{{ID: "0"}}, by("a", issuer), catalog.EntraTenantDisabled},
		{"never a tenant", nil, by("a", issuer), catalog.EntraTenantDisabled},
		{"an issuer that was dropped", []token.Tenant{good}, by("a", "https://gone.example/"), catalog.EntraTenantDisabled},
		{"by no tenant", []token.Tenant{disabled}, token.Claims{ID: "1", Key: "k"}, ""},
	} {
		apply(test.tenants...)
		if got := catalog.CodeOf(s.Revoked(test.claims)); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestHostileLinesKeepTheState(t *testing.T) {
	good := stateLine(t, siteRoot(), 7, noon, nil)
	tests := map[string]struct {
		line string
		want catalog.Code
	}{
		"the same again":                 {good, ""},
		"the same with a line break":     {good + "\n", ""},
		"an older epoch":                 {stateLine(t, siteRoot(), 6, noon.Add(time.Second), nil), catalog.StateOlderEpoch},
		"another root":                   {stateLine(t, otherRoot(), 8, noon, nil), catalog.StateOtherRoot},
		"tampered":                       {tampered(stateLine(t, siteRoot(), 8, noon, nil)), catalog.StateSignature},
		"a key that cannot be read":      {stateLine(t, siteRoot(), 8, noon, func(s *token.SiteState) { s.Keys[0].SPKI = []byte{1} }), catalog.StateMalformed},
		"the same epoch, signed earlier": {stateLine(t, siteRoot(), 7, noon.Add(-time.Second), func(s *token.SiteState) { s.Keys = nil }), ""},
		"a heartbeat":                    {beatLine(t, siteRoot(), 7, noon), ""},
		"a heartbeat by another root":    {beatLine(t, otherRoot(), 7, noon), catalog.StateOtherRoot},
		"a tampered heartbeat":           {tampered(beatLine(t, siteRoot(), 7, noon)), catalog.StateSignature},
		"a heartbeat of an older epoch":  {beatLine(t, siteRoot(), 6, noon), catalog.StateOlderEpoch},
		"a heartbeat of a newer epoch":   {beatLine(t, siteRoot(), 8, noon), catalog.StateBehind},
		"a heartbeat long on its way":    {beatLine(t, siteRoot(), 7, noon.Add(-91*time.Second)), catalog.StateStale},
		"a heartbeat from the future":    {beatLine(t, siteRoot(), 7, noon.Add(61*time.Second)), catalog.StateStale},
		"a token":                        {signed(t, token.KindCCM, nil), catalog.StateMalformed},
		"an empty line":                  {"", catalog.StateMalformed},
		"5 MiB":                          {strings.Repeat("a", 5<<20), catalog.StateTooLarge},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			now := noon
			s := newState(&now)
			if changed, err := s.Apply(good); !changed || err != nil {
				t.Fatalf("got %t, %v", changed, err)
			}
			changed, err := s.Apply(test.line)
			wantCode(t, err, test.want)
			if changed {
				t.Error("the state changed")
			}
			if state, ok := s.Current(); !ok || state.Epoch != 7 || len(state.Keys) != 3 {
				t.Errorf("the state was not kept: %+v", state)
			}
		})
	}
}

func TestNewStateIsInForceAtOnce(t *testing.T) {
	now := noon
	s := newState(&now)
	publish := func(s *token.SiteState) {
		s.Published = []token.Published{{RoleID: 9, Name: "mp", InternalURL: "https://mp.contoso.com", Endpoints: []ccm.Endpoint{ccm.EndpointSTS}}}
	}
	if _, err := s.Apply(stateLine(t, siteRoot(), 1, noon, publish)); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Published(9, ccm.EndpointSTS); !ok || got != "https://mp.contoso.com" {
		t.Errorf("got %q, %t", got, ok)
	}
	for name, d := range map[string]door{"another role": {8, ccm.EndpointSTS}, "another endpoint": {9, ccm.EndpointSystemWindowsAuth}} {
		if _, ok := s.Published(d.role, d.endpoint); ok {
			t.Errorf("%s is published", name)
		}
	}
	device := token.Claims{ID: "jti-1", BulkID: bulkID, Scope: token.ScopeClient, Key: "key"}
	newcomer := token.Claims{ID: "jti-2", BulkID: bulkID, Scope: token.ScopeRegister, Key: "new"}
	bulk := token.Claims{Kind: token.KindBulk, ID: bulkID, BulkID: bulkID}
	for _, c := range []token.Claims{device, newcomer, bulk} {
		wantCode(t, s.Revoked(c), "")
	}
	block := func(s *token.SiteState) {
		s.BlockedTokens, s.BlockedKeys, s.BlockedCertificates = []string{bulkID}, []proof.KeyThumbprint{"lost"}, []string{"aabb"}
	}
	if changed, err := s.Apply(stateLine(t, siteRoot(), 2, noon, block)); !changed || err != nil {
		t.Fatalf("got %t, %v", changed, err)
	}
	wantCode(t, s.Revoked(bulk), catalog.TokenBlocked)
	wantCode(t, s.Revoked(newcomer), catalog.TokenBlocked)
	wantCode(t, s.Revoked(device), "")
	device.Key = "lost"
	wantCode(t, s.Revoked(device), catalog.KeyBlocked)
	wantCode(t, s.RevokedCertificate("AABB"), catalog.RoleCertificateBlocked)
	wantCode(t, s.RevokedCertificate("aacc"), "")
	if _, ok := s.Published(9, ccm.EndpointSTS); ok {
		t.Error("what is no longer published is still there")
	}
	if _, err := s.Verifier().Verify(signed(t, token.KindCCM, nil), noon, token.KindCCM); err != nil {
		t.Error(err)
	}
}

func TestStale(t *testing.T) {
	now := noon
	s := newState(&now)
	apply := func(line string) {
		t.Helper()
		if _, err := s.Apply(line); err != nil {
			t.Fatal(err)
		}
	}
	wantStale := func(want bool, when string) {
		t.Helper()
		if got := s.Stale(); got != want {
			t.Errorf("%s: got %t, want %t", when, got, want)
		}
	}
	old := stateLine(t, siteRoot(), 1, noon.Add(-time.Hour), nil)
	apply(old)
	wantStale(true, "a state of an hour ago is no sign of life")
	beat := beatLine(t, siteRoot(), 1, now)
	apply(beat)
	wantStale(false, "after a heartbeat")
	now = noon.Add(StaleAfter)
	wantStale(false, "30 s later")
	now = now.Add(time.Second)
	wantStale(true, "31 s later")
	apply(beat)
	apply(old)
	wantStale(true, "after the same lines again")
	apply(beatLine(t, siteRoot(), 1, now))
	wantStale(false, "after a new heartbeat")
	if got := s.LastHeard(); !got.Equal(now) {
		t.Errorf("got %s, want %s", got, now)
	}
	now = now.Add(time.Minute)
	apply(stateLine(t, siteRoot(), 1, now, nil))
	wantStale(false, "after the state, signed anew")
}
