package lab_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"os"

	"postern/catalog"
	"postern/ccm"
	"postern/internal/role"
	"postern/site"
)

// forgedHop is what a device would write to look like a hop: ours, those of other proxies, in every case.
func forgedHop() http.Header {
	header := http.Header{}
	for _, name := range append(ccm.HopHeaders(), "Postern-Status", "Postern-Anything", "X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Real-IP", "X-Original-URL", "X-Client-Cert", "True-Client-Ip") {
		header[name] = []string{"203.0.113.7"}
		header[strings.ToLower(name)] = []string{"203.0.113.8"}
	}
	return header
}

func withHop(header http.Header) http.Header {
	for name, values := range forgedHop() {
		header[name] = values
	}
	return header
}

const forgedAddress = "203.0.113."

// TestForgedHopHeaders: what a device says of the hops changes nothing: not its address, not its message id, not the host that its proof
// must name.
func TestForgedHopHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, newcomer := w.enrolled("forger"), newDevice(t, "newcomer")
	connector := w.certified("connector", w.connectorCertificate("lab2"))
	foreign := w.certified("foreign", foreignCertificate(t))

	t.Run("through the gateway", func(t *testing.T) {
		w := w.on(t)
		address := w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut")
		a := w.send(w.http1(), http.MethodGet, address+"?MPLIST", "", nil, withHop(proofOf(t, d.key, http.MethodGet, address, d.ccm)))
		if a.status != 200 {
			t.Fatalf("answered %s", a)
		}
		if e := w.point.of(t, a.id()); strings.HasPrefix(e.Proof.Address, forgedAddress) || e.Proof.Address != "127.0.0.1" {
			t.Errorf("the management point took the address %s", e.Proof.Address)
		}
		if strings.HasPrefix(a.id(), forgedAddress) {
			t.Errorf("the message id is the device's: %s", a.id())
		}
	})
	for name, c := range map[string]struct {
		client *http.Client
		base   string
	}{"plain": {w.http1(), w.plain("")}, "enhanced HTTP": {w.http1(), w.inside("")}, "with a foreign certificate": {foreign, w.inside("")}} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			contentType, body := newcomer.encode(t, "MP_ClientRegistration", newcomer.registration(t), false)
			a := w.send(c.client, "CCM_POST", c.base+"/ccm_system/request", contentType, body, forgedHop())
			e := w.point.of(t, a.id())
			if e.Connector != "" || strings.HasPrefix(e.Proof.Address, forgedAddress) {
				t.Errorf("taken as of connector %q, address %s", e.Connector, e.Proof.Address)
			}
			if got := catalog.CodeOf(e.Err); got != catalog.HopHeadersForged {
				t.Errorf("told of %q, want %s", got, catalog.HopHeadersForged)
			}
			if strings.HasPrefix(a.id(), forgedAddress) {
				t.Errorf("the message id is the caller's: %s", a.id())
			}
		})
		t.Run(name+", the state door", func(t *testing.T) {
			w := w.on(t)
			if c.base == w.plain("") {
				w.refuses(refusal{status: 404, code: catalog.RouteNotOnListener}, func() answer {
					return w.send(c.client, http.MethodGet, c.base+"/postern/state", "", nil, nil)
				})
				return
			}
			w.refuses(refusal{status: 403, code: catalog.ConnectorOnly}, func() answer {
				a := w.send(c.client, http.MethodGet, c.base+"/postern/state", "", nil, nil)
				return a
			})
		})
	}
	t.Run("only a connector is believed", func(t *testing.T) {
		w := w.on(t)
		header := http.Header{ccm.HeaderClientAddress: {"203.0.113.9"}, ccm.HeaderMessageID: {"11111111-2222-4333-8444-555555555555"}}
		a := w.send(connector, http.MethodGet, w.inside("/SMS_MP_AltAuth/.sms_aut?MPLIST"), "", nil, header)
		if e := w.point.of(t, "11111111-2222-4333-8444-555555555555"); e.Connector != "lab2" || e.Proof.Address != "203.0.113.9" {
			t.Errorf("a connector's word was not taken: %+v (%s)", e, a)
		}
	})
	w.event(catalog.HopHeadersForged)
	logged, err := os.ReadFile(filepath.Join(w.Dir, "site", "mp", "logs", "MP_RegistrationManager.log"))
	w.must(err)
	for _, address := range []string{"203.0.113.7", "203.0.113.8"} {
		if strings.Contains(string(logged), address) {
			t.Errorf("MP_RegistrationManager.log has the forged address %s", address)
		}
	}
	devices, err := w.Site().Devices(t.Context(), site.DeviceFilter{})
	w.must(err)
	for _, d := range devices {
		if a := d.Approval.Evidence["address"]; strings.HasPrefix(a, "203.0.113.7") || strings.HasPrefix(a, "203.0.113.8") {
			t.Errorf("%s is approved from the forged address %s", d.Name(), a)
		}
	}
}

// foreignCertificate is a connector's certificate in all but the authority: another site made it.
func foreignCertificate(t testing.TB) tls.Certificate {
	t.Helper()
	other := newOther(t)
	return other.issue(t, site.RoleConnector, "lab1")
}

// otherSite is another hierarchy, with a root of its own.
type otherSite struct{ site *site.Site }

func newOther(t testing.TB) otherSite {
	t.Helper()
	opened := openSite(t, newSite(t, t.TempDir(), role.NewSite{}).Config)
	return otherSite{opened}
}

func (o otherSite) issue(t testing.TB, of site.Role, name string, hosts ...string) tls.Certificate {
	t.Helper()
	return issueRole(t, o.site, of, name, hosts...)
}

// issueRole makes a key and lets a site certify it.
func issueRole(t testing.TB, s *site.Site, of site.Role, name string, hosts ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.IssueRole(of, name, key.Public(), hosts)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

// TestSharedTraceIsNoHop: a traceparent of the device is kept as a trace id and grants nothing.
func TestSharedTraceIsNoHop(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("traced")
	address := w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut")
	header := proofOf(t, d.key, http.MethodGet, address, d.ccm)
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	header.Set("Traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	a := w.send(w.http1(), http.MethodGet, address+"?MPLIST", "", nil, header)
	if got := w.gateway.of(t, a.id()).TraceID; got != trace {
		t.Errorf("the gateway's trace id is %s, want the device's %s", got, trace)
	}
	if got := w.point.of(t, a.id()).TraceID; got != trace {
		t.Errorf("the management point's trace id is %s, want the device's %s", got, trace)
	}
	if took := w.point.of(t, a.id()).Duration; took < 0 || took > time.Minute {
		t.Errorf("took %s", took)
	}
}
