package mp

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/inbox"
	"postern/proof"
	"postern/site"
)

// verdict stands for what is outside: a domain whose tickets are judged so.
type verdict struct {
	proof proof.Proof
	err   error
}

func (v verdict) Accept(context.Context, []byte, auth.Channel) (proof.Proof, []byte, error) {
	return v.proof, []byte("reply"), v.err
}

func TestWhoseFaultARefusedTicketIs(t *testing.T) {
	for _, test := range []struct {
		name    string
		err     error
		relayed bool
		status  int
		code    catalog.Code
		invited bool // to authenticate
	}{
		{"the caller's", catalog.Errorf(catalog.KerberosReplay, "used before"), false, http.StatusUnauthorized, catalog.KerberosReplay, true},
		{"ours: no memory for another", catalog.Errorf(catalog.ProofMemoryFull, "full"), false, http.StatusServiceUnavailable, catalog.ProofMemoryFull, false},
		{"ours: something unforeseen", errors.New("a fault"), false, http.StatusInternalServerError, catalog.InternalError, false},
		{"nobody's: a connector brought it", nil, true, http.StatusUnauthorized, catalog.ProofNotAccepted, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, func(c *Config) { c.Windows = verdict{err: test.err} })
			client, headers := f.client, []string{"Authorization", "Negotiate dGlja2V0"}
			if test.relayed {
				client, headers = f.connector("C1"), append(headers, ccm.HeaderExternalHost, gatewayName, ccm.HeaderClientAddress, "192.0.2.1")
			}
			g := f.send(client, methodCCM, f.url(EnhancedHTTP, "/ccm_system_windowsauth/request"), "", nil, headers...)
			if g.StatusCode != test.status || g.code() != string(test.code) {
				t.Errorf("%s, code %s; want %d, %s", g.Status, g.code(), test.status, test.code)
			}
			if invited := g.Header.Get("WWW-Authenticate") == "Negotiate cmVwbHk="; invited != test.invited {
				t.Errorf("WWW-Authenticate: %q", g.Header.Values("WWW-Authenticate"))
			}
			if later := g.Header.Get("Retry-After") != ""; later != (test.status >= 500) {
				t.Errorf("Retry-After: %q", g.Header.Get("Retry-After"))
			}
		})
	}
}

// TestOneTicketInTwoInboxes is an authenticator that was given to two nodes while the database was away for longer than uses are remembered: it registers
// one device, not two.
func TestOneTicketInTwoInboxes(t *testing.T) {
	ticket := proof.Proof{Method: proof.Kerberos, Account: `CORP\WK1$`, Ticket: &proof.Ticket{Account: "WK1$", Realm: "CORP.EXAMPLE", Domain: "CORP", Use: "once", UseUntil: captured.Add(6 * time.Minute)}}
	node := func(c *Config) {
		waiting, err := inbox.Open(filepath.Join(t.TempDir(), "log"), inbox.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { waiting.Close() })
		c.Inbox, c.Windows = waiting, verdict{proof: ticket}
	}
	f := newFixture(t, node)
	config := f.mp.config
	node(&config)
	second, err := New(config)
	f.must(err)

	f.store.take(true)
	for n, m := range []*ManagementPoint{f.mp, second} {
		contentType, body := f.message("MP_ClientRegistration", f.registration(f.device(n)), nil)
		f.must(m.config.Inbox.Append(t.Context(), inbox.Record{ID: "{1}", ReceivedAt: captured, Proof: ticket, Ceiling: proof.LevelManaged, Direct: true, ContentType: contentType, Message: body,
			ClientID: ccm.ClientID("GUID:00000000-0000-4000-8000-00000000000" + string(rune('1'+n)))}))
	}
	f.clock.advance(time.Hour)
	f.store.take(false)
	f.must(f.mp.Replay(t.Context()))
	f.clock.advance(10 * time.Minute)
	f.must(second.Replay(t.Context()))
	devices, err := f.site.Devices(t.Context(), site.DeviceFilter{})
	f.must(err)
	if len(devices) != 1 {
		t.Errorf("one ticket made %d devices", len(devices))
	}
	f.wantEvent(catalog.InboxRegistrationRefused)
}

// TestATicketThatAnotherNodeHasSeen is refused whatever came with it, and learns nothing of the server.
func TestATicketThatAnotherNodeHasSeen(t *testing.T) {
	ticket := proof.Proof{Method: proof.Kerberos, Account: `CORP\WK1$`, Ticket: &proof.Ticket{Account: "WK1$", Realm: "CORP.EXAMPLE", Domain: "CORP", Use: "once", UseUntil: captured.Add(6 * time.Minute)}}
	f := newFixture(t, func(c *Config) { c.Windows = verdict{proof: ticket} })
	fresh, err := f.site.Fresh(t.Context(), ticket.Ticket.Use, ticket.Ticket.UseUntil) // what the other node notes
	if err != nil || !fresh {
		t.Fatal(fresh, err)
	}
	type wire struct {
		contentType string
		body        []byte
	}
	message := func(endpoint, body string) wire {
		contentType, data := f.message(endpoint, body, nil)
		return wire{contentType, data}
	}
	for name, test := range map[string]struct {
		method, path string
		wire         wire
	}{
		"no message":               {http.MethodGet, "/ccm_system_windowsauth", wire{}},
		"an empty body":            {methodCCM, "/ccm_system_windowsauth/request", wire{}},
		"noise":                    {methodCCM, "/ccm_system_windowsauth/request", wire{"text/plain", []byte("noise")}},
		"a question":               {methodCCM, "/ccm_system_windowsauth/request", message("MP_LocationManager", `<SiteInformationRequest SchemaVersion="1.00"/>`)},
		"a state message":          {methodCCM, "/ccm_system_windowsauth/request", message("MP_RelayEndpoint", "<Report/>")},
		"a registration":           {methodCCM, "/ccm_system_windowsauth/request", message("MP_ClientRegistration", f.registration(f.device(0)))},
		"a broken registration":    {methodCCM, "/ccm_system_windowsauth/request", message("MP_ClientRegistration", "<ClientRegistrationRequest/>")},
		"an endpoint that is none": {methodCCM, "/ccm_system_windowsauth/request", message("MP_Nothing", "<Report/>")},
	} {
		t.Run(name, func(t *testing.T) {
			g := f.send(f.client, test.method, f.url(HTTP, test.path), test.wire.contentType, test.wire.body, "Authorization", "Negotiate dGlja2V0")
			if g.StatusCode != http.StatusUnauthorized || g.code() != string(catalog.KerberosReplay) {
				t.Errorf("%s, code %s; want 401, %s", g.Status, g.code(), catalog.KerberosReplay)
			}
			if got := g.Header.Get("WWW-Authenticate"); got != rejected {
				t.Errorf("WWW-Authenticate: %q, want %q", got, rejected)
			}
		})
	}
	if strings.Contains(f.logged("u_ex.log"), "WK1$") {
		t.Error("the access log has the account of a ticket that was refused")
	}
	devices, err := f.site.Devices(t.Context(), site.DeviceFilter{})
	f.must(err)
	if len(devices) != 0 {
		t.Errorf("%d devices were registered", len(devices))
	}
}

// TestTheDatabaseComesBackMeanwhile is a registration that went into the inbox a moment before the database was there again: noting the use of its ticket
// apart from it would make a replay of the registration itself.
func TestTheDatabaseComesBackMeanwhile(t *testing.T) {
	ticket := proof.Proof{Method: proof.Kerberos, Account: `CORP\WK1$`, Ticket: &proof.Ticket{Account: "WK1$", Realm: "CORP.EXAMPLE", Domain: "CORP", Use: "once", UseUntil: captured.Add(6 * time.Minute)}}
	var f *fixture
	f = newFixture(t, func(c *Config) {
		waiting, err := inbox.Open(filepath.Join(t.TempDir(), "log"), inbox.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { waiting.Close() })
		c.Inbox, c.Windows = waiting, verdict{proof: ticket}
		c.Hooks.Registration = func(int) { f.store.take(false) } // after the record is durable, before the answer
	})
	contentType, body := f.message("MP_ClientRegistration", f.registration(f.device(0)), nil)
	f.store.take(true)
	g := f.send(f.client, methodCCM, f.url(HTTP, "/ccm_system_windowsauth/request"), contentType, body, "Authorization", "Negotiate dGlja2V0")
	response, err := ccm.ParseRegistrationResponse(f.text(g))
	f.must(err)
	if response.Status != ccm.RegistrationPending {
		t.Fatalf("answered %+v, want pending", response)
	}
	f.must(f.mp.Replay(t.Context()))
	if _, err := f.site.Device(t.Context(), response.SMSID); err != nil {
		t.Errorf("the registration that was acknowledged is lost: %v; events %v", err, f.events())
	}
}
