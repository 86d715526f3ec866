package lab_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"postern/catalog"
	"postern/ccm"
)

// TestPathConfusion (C19): what two parsers could understand differently is refused by the first; what is not in the table has one answer.
func TestPathConfusion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	door := fmt.Sprintf("/CCM_Proxy_ServerAuth/%d", w.role)
	for _, c := range []struct {
		name, target  string
		gateway, mp   catalog.Code
		gStatus, mSta int
	}{
		{"dot dot", "%s/CCM_STS/../ccm_system/request", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"dot dot, encoded", "%s/CCM_STS/%%2e%%2e/ccm_system/request", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"dot dot, encoded twice", "%s/CCM_STS/%%252e%%252e/ccm_system/request", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"a single dot", "%s/./CCM_STS", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"two slashes", "%s//CCM_STS", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"encoded slash", "%s/ccm_system_tokenauth%%2Frequest", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"encoded backslash", "%s/ccm_system%%5Crequest", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"backslash", `%s/ccm_system\request`, catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"NUL", "%s/CCM_STS%%00", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"line end", "%s/CCM_STS%%0d%%0aHost:evil", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"beyond ASCII", "%s/CCM_STS%%c0%%af", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"a dot at the end", "%s/CCM_STS.", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"an alternate stream", "%s/CCM_STS::$DATA", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"a fragment", "%s/CCM_STS#x", catalog.PathMalformed, catalog.PathMalformed, 400, 400},
		{"a long path", "%s/" + strings.Repeat("a", 9000), catalog.PathTooLong, catalog.PathTooLong, 414, 414},
		{"the state door", "%s/postern/state", catalog.GatewayNotPublished, catalog.ConnectorOnly, 404, 403},
		{"windows authentication", "%s/ccm_system_windowsauth/request", catalog.GatewayNotPublished, catalog.NegotiateRequired, 404, 401},
		{"an address of nobody", "%s/admin", catalog.GatewayNotPublished, catalog.PathUnknown, 404, 404},
		{"a door inside", "%s" + door + "/CCM_STS", catalog.GatewayNotPublished, catalog.PathUnknown, 404, 404},
		{"more than the endpoint", "%s/CCM_STS/more", catalog.GatewayNotPublished, catalog.PathUnknown, 404, 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.on(t)
			request := func(prefix string) string {
				return "GET " + fmt.Sprintf(c.target, prefix) + " HTTP/1.1\r\nHost: localhost\r\n\r\n"
			}
			w.refuses(refusal{status: c.gStatus, code: c.gateway}, func() answer { return w.raw("https://"+w.GatewayHost, request(door)) })
			if c.name == "a door inside" {
				return // the gateway's own test; at the management point it is the next one
			}
			w.refuses(refusal{status: c.mSta, code: c.mp}, func() answer { return w.raw(w.inside(""), request("")) })
		})
	}
	w.refuses(refusal{status: 404, code: catalog.PathUnknown}, func() answer {
		return w.raw(w.inside(""), "GET "+door+"/SMS_MP/.sms_aut?MPLIST HTTP/1.1\r\nHost: localhost\r\n\r\n")
	})
}

// TestAbsoluteForm: whole URLs as a request target are refused, whomever they name.
func TestAbsoluteForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, address := range map[string]string{"gateway": "https://" + w.GatewayHost, "management point": w.inside(""), "plain": w.plain("")} {
		for _, target := range []string{address + "/CCM_STS", "http://169.254.169.254/latest/meta-data", "file:///etc/passwd", "*", "CCM_STS"} {
			t.Run(name+" "+target, func(t *testing.T) {
				w := w.on(t)
				w.unchanged(func() {
					a := w.raw(address, "GET "+target+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
					if a.status != http.StatusBadRequest {
						t.Fatalf("answered %s, want 400", a)
					}
					if a.id() != "" { // net/http refuses the last two forms before anybody of us sees them
						w.check(a, refusal{status: 400, code: catalog.PathMalformed})
					}
				})
			})
		}
	}
}

// TestMixedCaseWorks: the protocol does not mind case (protocol.md 1.1).
func TestMixedCaseWorks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("case")
	for name, address := range map[string]string{
		"gateway":          "https://" + strings.ToUpper("localhost") + strings.TrimPrefix(w.GatewayHost, "localhost") + strings.ToUpper(ccm.ExternalPath(ccm.DoorServerAuth, w.role, "/sms_mp_tokenauth/.sms_aut")),
		"management point": w.inside("/sMs_Mp_ToKeNaUtH/.SmS_aUt"),
	} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			a := w.send(w.http1(), http.MethodGet, address+"?mPlIsT", "", nil, proofOf(t, d.key, http.MethodGet, address, d.ccm))
			if a.status != 200 || !strings.Contains(string(a.body), "<MPList>") {
				t.Errorf("answered %s, want the MPList", a)
			}
		})
	}
}

// TestHugeHeaders: ten megabytes of header get 431 at every listener, and the listener goes on.
func TestHugeHeaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("headers")
	for name, address := range map[string]string{"gateway": "https://" + w.GatewayHost, "management point": w.inside(""), "plain": w.plain("")} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			w.unchanged(func() {
				conn := w.dial(address)
				go func() {
					io.WriteString(conn, "GET /SMS_MP/.sms_aut?MPLIST HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
					for range 10 {
						if _, err := io.WriteString(conn, strings.Repeat("x", 1<<20)); err != nil {
							return // the server has seen enough
						}
					}
					io.WriteString(conn, "\r\n\r\n")
				}()
				if a := w.read(conn); a.status != http.StatusRequestHeaderFieldsTooLarge {
					t.Errorf("answered %s, want 431", a)
				}
			})
		})
	}
	address := w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut")
	if a := w.send(w.http1(), http.MethodGet, address+"?MPLIST", "", nil, proofOf(t, d.key, http.MethodGet, address, d.ccm)); a.status != 200 {
		t.Errorf("afterwards: %s", a)
	}
}

// TestOtherHostAndMethod: a request for another host, and methods that the table does not name.
func TestOtherHostAndMethod(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sts := ccm.ExternalPath(ccm.DoorServerAuth, w.role, "/CCM_STS")
	for _, c := range []struct {
		name, address, request string
		want                   refusal
	}{
		{"another host at the gateway", "https://" + w.GatewayHost, "POST " + sts + " HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n", refusal{status: 421, code: catalog.GatewayOtherHost}},
		{"DELETE at the gateway", "https://" + w.GatewayHost, "DELETE " + sts + " HTTP/1.1\r\nHost: localhost\r\n\r\n", refusal{status: 405, code: catalog.GatewayMethod}},
		{"TRACE at the gateway", "https://" + w.GatewayHost, "TRACE " + sts + " HTTP/1.1\r\nHost: localhost\r\n\r\n", refusal{status: 405, code: catalog.GatewayMethod}},
		{"an override of the method", "https://" + w.GatewayHost, "GET " + sts + " HTTP/1.1\r\nHost: localhost\r\nX-HTTP-Method-Override: POST\r\n\r\n", refusal{status: 405, code: catalog.GatewayMethod}},
		{"DELETE at the management point", w.plain(""), "DELETE /ccm_system/request HTTP/1.1\r\nHost: localhost\r\n\r\n", refusal{status: 405, code: catalog.MethodNotAllowed}},
		{"CONNECT at the management point", w.plain(""), "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n", refusal{status: 400, code: catalog.PathMalformed}},
		{"CONNECT at the gateway", "https://" + w.GatewayHost, "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n", refusal{status: 400, code: catalog.PathMalformed}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.on(t)
			w.refuses(c.want, func() answer { return w.raw(c.address, c.request) })
		})
	}
}

// TestSmuggledRequest: two lengths, or a length and chunks, never become two requests.
func TestSmuggledRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, framing := range map[string]string{
		"two lengths":         "Content-Length: 5\r\nContent-Length: 50\r\n",
		"chunks in two words": "Transfer-Encoding: chunked, chunked\r\n",
		"unknown encoding":    "Transfer-Encoding: xchunked\r\n",
	} {
		for hop, address := range map[string]string{"gateway": "https://" + w.GatewayHost, "plain": w.plain("")} {
			t.Run(name+" "+hop, func(t *testing.T) {
				w := w.on(t)
				w.unchanged(func() {
					a := w.raw(address, "POST /ccm_system/request HTTP/1.1\r\nHost: localhost\r\n"+framing+"\r\n0\r\n\r\nGET /SMS_MP/.sms_aut?MPLIST HTTP/1.1\r\nHost: localhost\r\n\r\n")
					if a.status != 400 && a.status != 501 {
						t.Errorf("answered %s, want 400 or 501", a)
					}
				})
			})
		}
	}
}
