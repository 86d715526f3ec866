package mp

import (
	"bytes"
	"compress/zlib"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// strict takes a reply apart as the strictest known client does (protocol.md 2.7, 12) and returns the text of the payload.
func strict(f *fixture, g got, compressed bool) string {
	f.Helper()
	const boundary = "--aAbBcCdDv1234567890VxXyYzZ"
	if g.StatusCode != 200 || g.Header.Get("Content-Type") != `multipart/mixed; boundary="aAbBcCdDv1234567890VxXyYzZ"` {
		f.Fatalf("%s, Content-Type %q", g.Status, g.Header.Get("Content-Type"))
	}
	// That client cuts the whole reply at CR LF: boundary, header line, blank, content, boundary, header line, blank, content, boundary.
	lines := bytes.Split(bytes.TrimSuffix(g.body, []byte("\r\n")), []byte("\r\n"))
	if len(lines) != 9 {
		f.Fatalf("%d pieces, want 9: a line end inside a part, or more than one header line", len(lines))
	}
	for i, want := range map[int]string{0: boundary, 1: "content-type: text/plain; charset=UTF-16", 2: "", 4: boundary, 5: "content-type: application/octet-stream", 6: "", 8: boundary + "--"} {
		if string(lines[i]) != want {
			f.Errorf("piece %d is %q, want %q", i, lines[i], want)
		}
	}
	payload := lines[7]
	if compressed {
		r, err := zlib.NewReader(bytes.NewReader(payload))
		f.must(err)
		payload, err = io.ReadAll(r)
		f.must(err)
	}
	if len(payload)%2 != 0 || !bytes.HasSuffix(payload, []byte{'>', 0, 0, 0}) || bytes.HasSuffix(payload, []byte{0, 0, 0, 0, 0}) {
		f.Errorf("the payload does not end in > and exactly one U+0000: % x", payload[max(0, len(payload)-8):])
	}
	return ccm.DecodePolicyBody(payload)
}

func TestStrictReplyParser(t *testing.T) {
	f := newFixture(t)
	withCapturedDevice(f, proof.LevelManaged)
	for _, id := range []string{"PS1", "PS2", "{22222222-2222-2222-2222-222222222222}"} {
		_, err := f.site.AddPolicy(t.Context(), site.NewPolicy{ID: id, Category: "X", Body: []byte("<Policy/>"), All: true, By: "test"})
		f.must(err)
	}
	for _, name := range []string{"sdk-registration/02-confirmation", "sdk-policy/01-assignments-zlib", "sdk-location/01-site-information", "sdk-location/04-enumerate-mp", "python-client-anonymous-http/01-registration"} {
		for range 5 { // ids and times differ each time, so does the compressed form
			strict(f, f.raw(f.capture(name)), true)
		}
	}
	contentType, body := f.message("MP_LocationManager", `<AssignedSiteRequest SchemaVersion="1.00"/>`, nil, func(h *ccm.Header) { h.ReplyCompression = "none" })
	if text := strict(f, f.send(f.client, "CCM_POST", f.url(HTTP, "/ccm_system/request"), contentType, body), false); !strings.HasPrefix(text, "<AssignedSiteReply") {
		t.Errorf("uncompressed: %.60s", text)
	}
}

func TestHTTP2(t *testing.T) {
	f := newFixture(t)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	contentType, body := f.message("MP_ClientRegistration", f.registration(f.device(0)), nil)
	g := f.send(client, "CCM_POST", f.url(EnhancedHTTP, "/ccm_system/request"), contentType, body)
	if g.ProtoMajor != 2 || !strings.Contains(f.text(g), "SMSID=") {
		t.Errorf("%s %s: %q", g.Proto, g.Status, g.body)
	}
	g = f.send(client, "GET", f.url(HTTPS, "/SMS_MP/.sms_aut?MPLIST"), "", nil)
	if g.StatusCode != 403 || g.Header.Get("Postern-Status") != "Client certificate required" {
		t.Errorf("%s, Postern-Status %q, want the phrase there", g.Status, g.Header.Get("Postern-Status"))
	}
}

func TestHugeHeaders(t *testing.T) {
	f := newFixture(t)
	r, err := http.NewRequest("GET", f.url(HTTP, "/SMS_MP/.sms_aut?MPLIST"), nil)
	f.must(err)
	r.Header.Set("X", strings.Repeat("x", 10<<20))
	response, err := f.client.Do(r)
	if err != nil {
		return // cut off while it still sends is as good
	}
	response.Body.Close()
	if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("%s, want 431", response.Status)
	}
}

// TestTokensOfTheWrongTime holds the codes of tokens that are not good, at a route of each kind.
func TestTokensOfTheWrongTime(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	bulk, _ := f.bulk(0)
	f.tokenFrom(f.exchange(d, bulk, url.Values{}))
	f.register(d)
	full := f.tokenFrom(f.exchange(d, bulk, url.Values{})).AccessToken
	address := f.url(EnhancedHTTP, "/SMS_MP_TokenAuth/.sms_aut")
	ask := func(raw string) got {
		return f.send(f.client, "GET", address+"?MPLIST", "", nil, f.withToken(d.key, "GET", address, raw)...)
	}
	if g := ask(full); g.StatusCode != 200 {
		t.Fatalf("a good token: %s %s", g.Status, g.body)
	}
	parts := strings.Split(full, ".")
	for name, test := range map[string]struct {
		raw  string
		code catalog.Code
	}{
		"signature cut off":   {parts[0] + "." + parts[1] + ".", catalog.TokenMalformed},
		"signature of others": {parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])), catalog.TokenSignature},
		"a bulk token":        {bulk, catalog.TokenWrongKind},
	} {
		if g := ask(test.raw); g.StatusCode != 401 || g.code() != string(test.code) {
			t.Errorf("%s: %s %s, want 401 %s", name, g.Status, g.code(), test.code)
		}
	}
	f.clock.advance(9 * 3600e9)
	for _, clock := range []string{"after nine hours", "and when the clock is set back"} {
		if g := ask(full); g.code() != string(catalog.TokenExpired) {
			t.Errorf("%s: %s %s, want %s", clock, g.Status, g.code(), catalog.TokenExpired)
		}
		f.clock.advance(-9 * 3600e9)
	}
	f.clock.advance(2 * 9 * 3600e9)
	full = f.tokenFrom(f.exchange(d, bulk, url.Values{})).AccessToken
	_, err := f.site.Block(t.Context(), d.id, "ann", "lost")
	f.must(err)
	if g := ask(full); g.StatusCode != 401 || g.code() != string(catalog.KeyBlocked) {
		t.Errorf("a blocked device: %s %s, want 401 %s", g.Status, g.code(), catalog.KeyBlocked)
	}
}

// FuzzMessage sends any body to the messaging address: it must be answered, and never as a fault of ours.
func FuzzMessage(f *testing.F) {
	site := newFixture(f)
	for _, name := range []string{"sdk-location/01-site-information", "sdk-registration/02-confirmation", "sdk-uploads/06-state-message"} {
		_, body, _ := bytes.Cut(site.capture(name), []byte("\r\n\r\n"))
		f.Add(body)
	}
	handler := site.mp.Handler(HTTP)
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("CCM_POST", "/ccm_system/request", bytes.NewReader(body))
		r.Header.Set("Content-Type", `multipart/mixed; boundary="aAbBcCdDv1234567890VxXyYzZ"`)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusOK && w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("answered %d: %s", w.Code, w.Body)
		}
	})
}

// FuzzForm sends any form to the token service.
func FuzzForm(f *testing.F) {
	site := newFixture(f)
	handler := site.mp.Handler(EnhancedHTTP)
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "/CCM_STS", strings.NewReader(body))
		r.Host = testFQDN
		r.Header.Set("Content-Type", form)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code < 400 || w.Code >= 500 {
			t.Errorf("answered %d: %s", w.Code, w.Body)
		}
	})
}
