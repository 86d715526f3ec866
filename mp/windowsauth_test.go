package mp

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
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
