package analyze

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/diag"
	"postern/internal/authority"
)

// TestHostileGateways: whatever stands at the address, the analyzer ends, sends nothing
// secret on, and its answer stays small.
func TestHostileGateways(t *testing.T) {
	w := newWorld(t)
	elsewhere := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}}, postern(true))
	for _, test := range []struct {
		name    string
		answers http.HandlerFunc
		want    string
		says    string
	}{
		{"the answer never comes", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "fail P559", "in time"},
		{"the body comes a byte at a time", func(rw http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := fmt.Fprint(rw, " "); err != nil {
					return
				}
				rw.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(10 * time.Millisecond):
				}
			}
		}, "fail P559", "in time"},
		{"the body never ends", func(rw http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := rw.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}, "fail P092", ""},
		{"headers without end", func(rw http.ResponseWriter, _ *http.Request) {
			for i := range 100 {
				rw.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("a", 4<<10))
			}
		}, "fail P560", "exceeded"},
		{"it redirects", func(rw http.ResponseWriter, r *http.Request) {
			http.Redirect(rw, r, elsewhere.URL+r.URL.Path, http.StatusFound)
		}, "fail P092", "302"},
		{"JSON of great depth", func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			fmt.Fprint(rw, strings.Repeat("[", 200<<10))
		}, "fail P092", ""},
		{"a phrase and problem details that fill the screen", func(rw http.ResponseWriter, _ *http.Request) {
			body := `{"code":"` + strings.Repeat("P", 10_000) + `","title":"` + strings.Repeat("t", 50_000) + `","detail":"\u001b[2J` + strings.Repeat("d", 50_000) + `"}`
			conn, out, _ := rw.(http.Hijacker).Hijack()
			defer conn.Close()
			fmt.Fprintf(out, "HTTP/1.1 401 CMGService_%s\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n%s", strings.Repeat("x", 20_000), len(body), body)
			out.Flush()
		}, "pass", "CMGService_xxx"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := w.standIn(&tls.Config{Certificates: []tls.Certificate{w.server([]string{host}).TLS()}}, test.answers)
			got := w.run(w.options(s, func(o *Options) {
				o.Timeout = 500 * time.Millisecond
				o.Token, o.TenantID = bulk(time.Now().Add(-time.Hour), time.Now().Add(time.Hour)), "7b0c3806-d28c-4a45-adb2-fb9f94a462f8"
			}))
			got.is(t, "service", test.want, test.says)
			if size := len(got.String()); size > 16<<10 {
				t.Errorf("the answer has %d bytes:\n%.2000s", size, got)
			}
		})
	}
	if n := len(elsewhere.requests()); n > 0 {
		t.Errorf("%d requests followed the redirection", n)
	}
}

// TestChainsWithoutEnd: hundreds of certificates, and names of any length.
func TestChainsWithoutEnd(t *testing.T) {
	w := newWorld(t)
	leaf := w.server([]string{host}, dates(-300*day, 3*day))
	shown := leaf.TLS()
	for len(shown.Certificate) < 400 {
		shown.Certificate = append(shown.Certificate, leaf.Certificate.Raw)
	}
	wordy := w.server([]string{host}, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: strings.Repeat("long ", 4000)}
		for i := range 400 {
			c.DNSNames = append(c.DNSNames, fmt.Sprintf("%d.%s.example", i, strings.Repeat("a", 60)))
		}
	}).TLS()
	root := must[*authority.Authority](t)(authority.NewRoot("Site Root", time.Now()))
	for name, pair := range map[string]tls.Certificate{"400 certificates": shown, "wordy": wordy} {
		t.Run(name, func(t *testing.T) {
			s := w.standIn(&tls.Config{Certificates: []tls.Certificate{pair}}, microsoft())
			for _, o := range []Options{w.options(s), w.options(s, func(o *Options) { o.Authorities, o.RootKey = nil, pin(root.Certificate) })} {
				got := w.run(o)
				if size := len(got.String()); size > 16<<10 {
					t.Errorf("the answer has %d bytes:\n%.2000s", size, got)
				}
				if !strings.Contains(got.of("certificate").String(), host) {
					t.Errorf("the leaf is not told:\n%s", got.of("certificate"))
				}
			}
		})
	}
	// 10,000 do not even come: crypto/tls reads no handshake message of more than 256 KiB.
	for len(shown.Certificate) < 10_000 {
		shown.Certificate = append(shown.Certificate, leaf.Certificate.Raw)
	}
	s := w.standIn(&tls.Config{Certificates: []tls.Certificate{shown}}, microsoft())
	w.run(w.options(s)).is(t, "TLS", "fail P988")
}

// TestRolesThatSaySomething: a problem keeps the code that it names, and there is always something to do.
func TestRolesThatSaySomething(t *testing.T) {
	asked := func(r Role) findings {
		return diag.Run(t.Context(), NewSite(Site{Roles: []func(context.Context) Role{func(context.Context) Role { return r }}}), nil)
	}
	for _, test := range []struct {
		name string
		role Role
		want string
		says string
	}{
		{"well", Role{Role: "gateway", Name: "gw1", OK: true, Facts: []string{"epoch 7"}}, "pass", "epoch 7"},
		{"a gateway that is not", Role{Role: "gateway", Name: "gw1", Problems: []string{"no connector is connected"}}, "fail P093", "no connector is connected"},
		{"a connector that is not", Role{Role: "connector", Name: "dc1", Problems: []string{"not every connection stands"}}, "fail P458", "not every connection stands"},
		{"a management point that is not", Role{Role: "management-point", Name: "mp", Problems: []string{"the store does not answer"}}, "fail " + string(catalog.SymptomSelfTest), "the store does not answer"},
		{"it works, and a gateway is silent", Role{Role: "management-point", Name: "mp", OK: true, Problems: []string{"gateway gw1 has not acknowledged"}}, "warn P094", "gw1"},
		{"it names the code", Role{Role: "management-point", Name: "mp", OK: true, Problems: []string{"keytab: P924: it cannot be read"}}, "warn P924", "keytab"},
		{"nobody answers", Role{Role: "gateway", Name: "gw1", Config: "gateway.yaml", Err: catalog.Errorf(catalog.AdminDoorClosed, "nothing answers")}, "fail " + string(catalog.AdminDoorClosed), "gateway.yaml"},
	} {
		t.Run(test.name, func(t *testing.T) { asked(test.role).is(t, "role", test.want, test.says) })
	}
	all := findings(diag.Run(t.Context(), NewSite(Site{}), nil))
	all.is(t, "connectors", "skipped", "--config")
}
