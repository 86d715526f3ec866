package site_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/site"
	"postern/token"
)

func peerStories() []story {
	return []story{
		{"management points keep their role id and answer to their names", enlist},
		{"gateways are listed by address and pin", gateways},
		{"C77 an acknowledgement counts only with a listed pin and a sane clock", acknowledge},
		{"a site hears what its gateways refuse", toldRefusals},
		{"a gateway gets a server certificate for its own key only", gatewayCertificate},
		{"an invitation works once and not for ever", invitations},
		{"two joins with one code have one winner", oneWinner},
		{"C93 a blocked connector stays out", blockedConnector},
	}
}

func clientIDs(n ...int) (ids []ccm.ClientID) {
	for _, i := range n {
		ids = append(ids, clientID(i))
	}
	return ids
}

// unavailable fails the test unless err says that nothing was decided.
func unavailable(t testing.TB, what string, err error) {
	t.Helper()
	if !errors.Is(err, site.ErrUnavailable) || catalog.CodeOf(err) == catalog.PolicyInvalid {
		t.Errorf("%s: got %v, want ErrUnavailable", what, err)
	}
}

func newECKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func requestFor(key crypto.Signer) []byte {
	return must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "ignored"}, DNSNames: []string{"evil.example.com"}}, key))
}

// parseChain reads a chain of certificates.
func parseChain(t testing.TB, chain [][]byte) (list []*x509.Certificate) {
	t.Helper()
	for _, der := range chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

func enlist(t *testing.T, w *world) {
	point := site.ManagementPoint{Name: "MP1", FQDN: "mp1.example.com", InternalURL: "https://mp1.example.com:8443", Names: []string{"mp.example.com"}}
	var first, second site.ManagementPoint
	entries := w.during(t, func() {
		first, _ = w.Enlist(t.Context(), point)
		point.FQDN = "MP1.Example.COM"
		again, err := w.Enlist(t.Context(), point)
		if err != nil || again.RoleID != first.RoleID {
			t.Errorf("again: got %+v, %v", again, err)
		}
		second, _ = w.Enlist(t.Context(), site.ManagementPoint{FQDN: "mp2.example.com"})
	})
	if first.RoleID <= 1<<56 || second.RoleID != first.RoleID+1 {
		t.Errorf("role ids %d and %d", first.RoleID, second.RoleID)
	}
	if got := actions(entries); got != "management-point.enlist management-point.enlist" {
		t.Errorf("trust entries: %s", got)
	}
	for host, want := range map[string]bool{
		"mp1.example.com": true, "MP1.EXAMPLE.COM": true, "mp1.example.com.": true, "mp1": true, "mp.example.com": true, "mp2.example.com": true,
		"": false, ".": false, "mp1.example.com.evil.example": false, "evilmp1.example.com": false, "mp3": false,
	} {
		if got := w.OwnName(host); got != want {
			t.Errorf("own name %q: got %t", host, got)
		}
	}
}

const pin = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func gateways(t *testing.T, w *world) {
	forms := []struct{ address, pin, name, url string }{
		{"https://gw.example.com", pin, "gw.example.com", "https://gw.example.com"},
		{"https://GW.example.com:443/", strings.ToUpper(pin), "gw.example.com", "https://gw.example.com"},
		{"https://gw.example.com:8443", "sha256:" + pin, "gw.example.com:8443", "https://gw.example.com:8443"},
		{"https://127.0.0.1:8443", " SHA256:" + strings.ToUpper(pin) + "\n", "127.0.0.1:8443", "https://127.0.0.1:8443"},
		{"https://[::1]", pin, "::1", "https://[::1]"},
		{"https://[::1]:8443", pin, "[::1]:8443", "https://[::1]:8443"},
	}
	for _, form := range forms {
		var g site.Gateway
		entries := w.during(t, func() {
			var err error
			if g, err = w.AddGateway(t.Context(), form.address, form.pin, "anna"); err != nil {
				t.Fatalf("%s: %v", form.address, err)
			}
			if g.Name != form.name || g.URL != form.url || g.Pin != pin || g.By != "anna" {
				t.Errorf("%s: got %+v", form.address, g)
			}
			if got := w.Gateways(); len(got) != 1 || got[0].Name != form.name {
				t.Errorf("%s: listed %+v", form.address, got)
			}
			host := strings.Trim(strings.TrimSuffix(strings.TrimSuffix(form.name, ":8443"), ":443"), "[]")
			if !w.GatewayName(strings.ToUpper(host)) || w.GatewayName("other.example.com") || w.GatewayName("") {
				t.Errorf("%s: the name %q is not known, or too much is", form.address, host)
			}
			if err := w.RemoveGateway(t.Context(), strings.ToUpper(form.name), "anna", "try it"); err != nil {
				t.Error(err)
			}
		})
		if got := actions(entries); got != "gateway.add gateway.remove" {
			t.Errorf("%s: trust entries %s", form.address, got)
		}
	}
	for _, address := range []string{
		"", "gw.example.com", "http://gw.example.com", "https://", "https://:8443", "https://gw.example.com/path", "https://u:p@gw.example.com", "https://gw.example.com?x",
		"https://gw.example.com#x", "https://gw.example.com:0", "https://gw.example.com:70000", "https://gw.example.com:http", "https://<b>", "https://..", "https://gw..example.com", "https://-gw.example.com",
		"https://gw.example.com.", "https://" + strings.Repeat("a.", 130) + "com", "https://gw_1.example.com", "https://münchen.example", "ftp://gw.example.com", "https://[fe80::1%25eth0]",
	} {
		_, err := w.AddGateway(t.Context(), address, pin, "anna")
		refused(t, "address "+address, err, catalog.GatewayAddressInvalid)
	}
	for _, bad := range []string{"", pin[1:], pin + "00", strings.Replace(pin, "0", "g", 1), "sha256:", "sha1:" + pin} {
		_, err := w.AddGateway(t.Context(), "https://gw.example.com", bad, "anna")
		refused(t, "pin "+bad, err, catalog.GatewayAddressInvalid)
	}
	refused(t, "removing an unknown one", w.RemoveGateway(t.Context(), "gw.example.com", "anna", "try it"), catalog.NotFound)
	w.addGateway(t, "https://gw.example.com", pin)
	_, err := w.AddGateway(t.Context(), "https://other.example.com", pin, "anna")
	refused(t, "one key for two gateways", err, catalog.AlreadyExists)
	w.addGateway(t, "https://gw.example.com", strings.Replace(pin, "0", "1", 1)) // the same gateway with a new key
	if got := w.Gateways(); len(got) != 1 || got[0].Pin == pin {
		t.Errorf("listed %+v", got)
	}
}

func (w *world) addGateway(t testing.TB, address, pin string) site.Gateway {
	t.Helper()
	g, err := w.AddGateway(t.Context(), address, pin, "anna")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// ack is a gateway's signed word.
func (w *world) ack(key crypto.Signer, edit ...func(*token.Ack)) string {
	ack := token.Ack{Gateway: "gw.example.com", Epoch: w.Epoch(), At: w.clock.now()}
	for _, change := range edit {
		change(&ack)
	}
	return must(token.SignAck(key, ack))
}

// What a gateway refuses by itself is known at the site, by its own clock, and `device why` says so. What has not the form that it should have is left out.
func toldRefusals(t *testing.T, w *world) {
	key := newECKey()
	w.addGateway(t, "https://gw.example.com", token.Pin(key.Public()))
	out := w.registered(t, with(w.bulk(t, 1), device(1).thumbprint), device(1).request())
	w.clock.advance(time.Hour)
	raw := w.ack(key, func(a *token.Ack) {
		a.At = a.At.Add(4 * time.Minute)
		told := token.Refusal{
			At: a.At.Add(-time.Minute), Times: 3, Code: catalog.TokenExpired, Endpoint: "ccm_sts", Key: device(1).thumbprint,
			Address: "192.0.2.7", TraceID: "0123456789abcdef0123456789abcdef", Detail: "the token ended\x1b[2J",
		}
		odd, newer := told, told
		odd.Key, odd.Address, odd.TraceID, odd.Code, odd.At, odd.Detail = "wk1", "wk1", "error", catalog.TokenMissing, a.At.Add(time.Hour), ""
		newer.Code = "P000000"
		a.Refusals = []token.Refusal{told, odd, newer}
	})
	if _, err := w.Acknowledge(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
	_, err := w.Acknowledge(t.Context(), raw)
	refused(t, "the same word again", err, catalog.AcknowledgementReplayed)
	events := must(w.Events(t.Context(), site.EventFilter{}))
	events = slices.DeleteFunc(events, func(e site.Event) bool { return e.Kind != "gateway" })
	for i := range events {
		events[i].ID = 0
	}
	now := truncated(w.clock.now())
	missing, _ := catalog.Lookup(catalog.TokenMissing)
	want := []site.Event{
		{At: now, Code: string(catalog.TokenMissing), Kind: "gateway", Detail: "gateway gw.example.com at ccm_sts: " + missing.Title + " (3 times)"},
		{At: now.Add(-time.Minute), Code: string(catalog.TokenExpired), Kind: "gateway", Subject: string(device(1).thumbprint), Address: "192.0.2.7",
			TraceID: "0123456789abcdef0123456789abcdef", Detail: `gateway gw.example.com at ccm_sts: "the token ended\x1b[2J" (3 times)`},
	}
	if !slices.EqualFunc(events, want, func(a, b site.Event) bool { at := a.At.Equal(b.At); a.At = b.At; return at && a == b }) {
		t.Errorf("got %+v\nwant %+v", events, want)
	}
	for _, who := range []string{string(out.Device.ClientID), string(device(1).thumbprint)} {
		facts := must(w.DeviceFacts(t.Context(), who))
		facts.Running = true
		d := site.Why(facts)
		if d.Verdict == nil || d.Verdict.Code != catalog.TokenExpired || d.Verdict.Sure != "certain" || d.Stopped != "the gateway" {
			t.Errorf("%s: %+v", who, d)
		}
	}
}

func acknowledge(t *testing.T, w *world) {
	key := newECKey()
	w.addGateway(t, "https://gw.example.com", token.Pin(key.Public()))
	skewed := func(by time.Duration) func(*token.Ack) {
		return func(a *token.Ack) { a.At = a.At.Add(by) }
	}
	for name, c := range map[string]struct {
		raw  string
		want catalog.Code
	}{
		"another key":   {w.ack(newECKey()), catalog.GatewayUnknown},
		"clock behind":  {w.ack(key, skewed(-301*time.Second)), catalog.GatewayClock},
		"clock ahead":   {w.ack(key, skewed(301*time.Second)), catalog.GatewayClock},
		"not an answer": {"e30.e30.e30", catalog.AckMalformed},
		"altered":       {alter(w.ack(key)), catalog.AckSignature},
	} {
		_, err := w.Acknowledge(t.Context(), c.raw)
		refused(t, name, err, c.want)
	}
	if g := w.Gateways()[0]; g.Acknowledged != 0 || !g.Heard.Before(begin) {
		t.Errorf("a refused acknowledgement counts: %+v", g)
	}
	epoch := w.Epoch()
	entries := w.during(t, func() {
		for _, skew := range []time.Duration{0, -299 * time.Second, 299 * time.Second} {
			if chain, err := w.Acknowledge(t.Context(), w.ack(key, skewed(skew))); err != nil || chain != nil {
				t.Errorf("skew %s: got %d certificates, %v", skew, len(chain), err)
			}
		}
	})
	if g := w.Gateways()[0]; g.Acknowledged != epoch || !g.Heard.Equal(truncated(begin)) || w.Epoch() != epoch || len(entries) != 0 {
		t.Errorf("got %+v, epoch %d, trust entries %s", g, w.Epoch(), actions(entries))
	}
	before := w.dump(t)
	w.clock.advance(10 * time.Second)
	if _, err := w.Acknowledge(t.Context(), w.ack(key)); err != nil || string(w.dump(t)) != string(before) {
		t.Errorf("an acknowledgement that says nothing new was written, %v", err)
	}
	if _, err := w.Acknowledge(t.Context(), w.ack(key, func(a *token.Ack) { a.Epoch-- })); err != nil || w.Gateways()[0].Acknowledged != epoch {
		t.Errorf("an older epoch: got %+v, %v", w.Gateways()[0], err)
	}
	if err := w.RemoveGateway(t.Context(), "gw.example.com", "anna", "try it"); err != nil {
		t.Fatal(err)
	}
	_, err := w.Acknowledge(t.Context(), w.ack(key))
	refused(t, "a removed gateway", err, catalog.GatewayUnknown)
}

// alter changes one character of the signature.
func alter(raw string) string {
	at := strings.LastIndex(raw, ".") + 5
	other := "A"
	if raw[at] == 'A' {
		other = "B"
	}
	return raw[:at] + other + raw[at+1:]
}

func gatewayCertificate(t *testing.T, w *world) {
	key := newECKey()
	w.addGateway(t, "https://gw.example.com:8443", token.Pin(key.Public()))
	with := func(csr []byte) string { return w.ack(key, func(a *token.Ack) { a.CSR = csr }) }
	for name, csr := range map[string][]byte{"another key": requestFor(newECKey()), "not a request": []byte("csr"), "altered": altered(requestFor(key))} {
		chain, err := w.Acknowledge(t.Context(), with(csr))
		refused(t, name, err, catalog.CertificateRequestInvalid)
		if chain != nil {
			t.Errorf("%s: a certificate came with the error", name)
		}
	}
	var chain [][]byte
	entries := w.during(t, func() {
		var err error
		if chain, err = w.Acknowledge(t.Context(), with(requestFor(key))); err != nil {
			t.Fatal(err)
		}
	})
	if got := actions(entries); got != "certificate.issue" {
		t.Errorf("trust entries: %s", got)
	}
	certificates := parseChain(t, chain)
	name, pin, err := auth.RoleCertificate(certificates, w.RootPin(), token.RoleGateway, w.clock.now())
	if err != nil || name != "gw.example.com" || pin != token.Pin(key.Public()) {
		t.Errorf("got %s, %s, %v", name, pin, err)
	}
	leaf := certificates[0]
	if !slices.Equal(leaf.DNSNames, []string{"gw.example.com"}) || leaf.Subject.CommonName != "gw.example.com" || leaf.IsCA || leaf.SerialNumber.Sign() <= 0 {
		t.Errorf("the certificate is for %v, %s", leaf.DNSNames, leaf.Subject)
	}
	for _, role := range []string{token.RoleConnector, token.RoleManagementPoint} {
		if _, _, err := auth.RoleCertificate(certificates, w.RootPin(), role, w.clock.now()); err == nil {
			t.Errorf("C12 the certificate passes as a %s's", role)
		}
	}
	if _, _, err := auth.RoleCertificate(certificates, w.RootPin(), token.RoleGateway, w.clock.now().Add(366*24*time.Hour)); catalog.CodeOf(err) != catalog.RoleCertificateExpired {
		t.Errorf("after a year: %v", err)
	}
	if _, err := w.IssueRole("site", "x", key.Public(), nil); err == nil {
		t.Error("a certificate for an unknown role")
	}
	server, err := w.IssueRole(site.RoleManagementPoint, "mp1", key.Public(), []string{"mp1.example.com", "127.0.0.1", "::1"})
	if err != nil {
		t.Fatal(err)
	}
	if leaf := parseChain(t, server)[0]; len(leaf.IPAddresses) != 2 || len(leaf.DNSNames) != 1 {
		t.Errorf("names %v, addresses %v", leaf.DNSNames, leaf.IPAddresses)
	}
	if _, _, err := auth.RoleCertificate(parseChain(t, server), w.RootPin(), token.RoleManagementPoint, w.clock.now()); err != nil {
		t.Error(err)
	}
}

func altered(der []byte) []byte {
	der[len(der)-3] ^= 1
	return der
}

func (w *world) invite(t testing.TB, name string) string {
	t.Helper()
	code, err := w.Invite(t.Context(), name, "anna")
	if err != nil {
		t.Fatal(err)
	}
	return code
}

func invitations(t *testing.T, w *world) {
	for _, name := range []string{"", "-a", "a-", "a b", "a/b", "../a", "a.b", strings.Repeat("a", 64), "münchen", "a\n"} {
		_, err := w.Invite(t.Context(), name, "anna")
		refused(t, "name "+name, err, catalog.InvalidArgument)
	}
	var code string
	entries := w.during(t, func() { code = w.invite(t, "hq-1") })
	if got := actions(entries); got != "connector.invite" || strings.Contains(entries[0].Detail, code) {
		t.Errorf("trust entries: %+v", entries)
	}
	if len(code) != 24 || strings.Contains(string(w.dump(t)), code) {
		t.Errorf("the code has %d characters, or is in the database", len(code))
	}
	key := newECKey()
	_, _, err := w.Join(t.Context(), code, []byte("csr"))
	refused(t, "a broken request", err, catalog.CertificateRequestInvalid)
	_, _, err = w.Join(t.Context(), code[1:]+"A", requestFor(key))
	refused(t, "another code", err, catalog.InvitationInvalid)
	_, _, err = w.Join(t.Context(), "", requestFor(key))
	refused(t, "no code", err, catalog.InvitationInvalid)
	epoch := w.Epoch()
	var chain [][]byte
	entries = w.during(t, func() {
		var name string
		if chain, name, err = w.Join(t.Context(), " "+strings.ToLower(code)+"\n", requestFor(key)); err != nil || name != "hq-1" {
			t.Fatalf("got %s, %v", name, err)
		}
	})
	if got := actions(entries); got != "connector.join" {
		t.Errorf("trust entries: %s", got)
	}
	certificates := parseChain(t, chain)
	name, pin, err := auth.RoleCertificate(certificates, w.RootPin(), token.RoleConnector, w.clock.now())
	if err != nil || name != "hq-1" || pin != token.Pin(key.Public()) || len(certificates[0].DNSNames) != 0 {
		t.Errorf("got %s, %s, names %v, %v", name, pin, certificates[0].DNSNames, err)
	}
	if _, _, err := auth.RoleCertificate(certificates, w.RootPin(), token.RoleGateway, w.clock.now()); err == nil {
		t.Error("C12 the certificate passes as a gateway's")
	}
	if err := w.ConnectorAdmitted(pin); err != nil || w.Epoch() != epoch+1 {
		t.Errorf("admitted: %v, epoch %d, want %d", err, w.Epoch(), epoch+1)
	}
	refused(t, "a stranger", w.ConnectorAdmitted(token.Pin(newECKey().Public())), catalog.ConnectorUnknown)
	_, _, err = w.Join(t.Context(), code, requestFor(newECKey()))
	refused(t, "the code again", err, catalog.InvitationInvalid)
	late := w.invite(t, "hq-2")
	w.clock.advance(site.InvitationLife + time.Second)
	_, _, err = w.Join(t.Context(), late, requestFor(newECKey()))
	refused(t, "after a day", err, catalog.InvitationInvalid)
}

func oneWinner(t *testing.T, w *world) {
	code := w.invite(t, "hq-1")
	nodes := []*site.Site{w.Site, w.node(t)}
	var won, lost atomic.Int64
	var all sync.WaitGroup
	for i := range 8 {
		request := requestFor(newECKey())
		all.Go(func() {
			chain, _, err := nodes[i%2].Join(t.Context(), code, request)
			switch {
			case err == nil && len(chain) == 2:
				won.Add(1)
			case catalog.CodeOf(err) == catalog.InvitationInvalid && chain == nil:
				lost.Add(1)
			default:
				t.Errorf("%d certificates, %v", len(chain), err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 || lost.Load() != 7 {
		t.Errorf("%d joined, %d did not", won.Load(), lost.Load())
	}
	if err := w.Refresh(t.Context()); err != nil || len(w.Connectors()) != 1 {
		t.Errorf("%d connectors, %v", len(w.Connectors()), err)
	}
}

func blockedConnector(t *testing.T, w *world) {
	key := newECKey()
	pin := token.Pin(key.Public())
	join := func(key crypto.Signer) error {
		_, _, err := w.Join(t.Context(), w.invite(t, "hq-1"), requestFor(key))
		return err
	}
	if err := join(key); err != nil {
		t.Fatal(err)
	}
	epoch := w.Epoch()
	entries := w.during(t, func() {
		for range 2 { // the second time is none
			if err := w.BlockConnector(t.Context(), "hq-1", true, "anna", "try it"); err != nil {
				t.Fatal(err)
			}
		}
	})
	if actions(entries) != "connector.block" || w.Epoch() != epoch+1 {
		t.Errorf("trust entries %s, epoch %d, want %d", actions(entries), w.Epoch(), epoch+1)
	}
	refused(t, "the blocked one", w.ConnectorAdmitted(pin), catalog.ConnectorBlocked)
	if got := w.opened(t).BlockedCertificates; !slices.Equal(got, []string{pin}) {
		t.Errorf("the state blocks %v", got)
	}
	refused(t, "its key with a new invitation", join(key), catalog.ConnectorBlocked)
	refused(t, "still", w.ConnectorAdmitted(pin), catalog.ConnectorBlocked)
	fresh := newECKey()
	if err := join(fresh); err != nil {
		t.Errorf("a new key with a new invitation: %v", err)
	}
	if err := w.ConnectorAdmitted(token.Pin(fresh.Public())); err != nil {
		t.Error(err)
	}
	if err := w.BlockConnector(t.Context(), "hq-1", false, "anna", "try it"); err != nil {
		t.Fatal(err)
	}
	if err := w.ConnectorAdmitted(pin); err != nil || len(w.opened(t).BlockedCertificates) != 0 {
		t.Errorf("unblocked: %v", err)
	}
	refused(t, "an unknown one", w.BlockConnector(t.Context(), "hq-9", true, "anna", "try it"), catalog.NotFound)
}
