package lab_test

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"unicode/utf16"

	"postern/catalog"
	"postern/ccm"
	"postern/gateway"
	"postern/mp"
)

const boundary = "aAbBcCdDv1234567890VxXyYzZ"

const mixed = `multipart/mixed; boundary="` + boundary + `"`

// wide writes text as UTF-16LE with a byte order mark.
func wide(text string) []byte {
	b := []byte{0xFF, 0xFE}
	for _, unit := range utf16.Encode([]rune(text)) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return b
}

// multipart writes parts as clients do.
func multipart(parts ...[]byte) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		b.WriteString("--" + boundary + "\r\ncontent-type: text/plain; charset=UTF-16\r\n\r\n")
		b.Write(p)
		b.WriteString("\r\n")
	}
	b.WriteString("--" + boundary + "--\r\n")
	return b.Bytes()
}

// msg is a header part for a registration, with anything inserted before or into it.
func msg(before, inside string) []byte {
	return wide(before + `<Msg ReplyCompression="zlib" SchemaVersion="1.1"><ID>{5DD100CD-DF1D-45F5-BA17-A327F43465F8}</ID><SourceID></SourceID>` +
		`<Body Type="ByteRange" Length="100" Offset="0"/><TargetEndpoint>MP_ClientRegistration</TargetEndpoint><TargetHost></TargetHost>` +
		`<ReplyMode>Sync</ReplyMode><Protocol>http</Protocol><SentTime>2026-11-21T22:00:00Z</SentTime>` + inside + `</Msg>`)
}

const compressed = `<Hooks><Hook3 Name="zlib-compress"/></Hooks>`

func deflated(content []byte) []byte {
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	z.Write(content)
	z.Close()
	return b.Bytes()
}

// bomb unpacks to far more than it weighs.
var bomb = sync.OnceValue(func() []byte { return deflated(make([]byte, 40<<20)) })

const billionLaughs = `<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]>`

const externalEntity = `<!DOCTYPE x [<!ENTITY file SYSTEM "file:///etc/passwd">]>`

type badMessage struct {
	name        string
	contentType string
	body        func(t testing.TB, d *device) []byte
	status      int // 200: nothing on the wire says why
	codes       []catalog.Code
}

// badMessages are the bodies that no client sends (S0; protocol.md 1.5: a message that fails gets 200 and nothing).
func badMessages() []badMessage {
	fixed := func(b []byte) func(testing.TB, *device) []byte { return func(testing.TB, *device) []byte { return b } }
	parts := func(header, payload []byte) func(testing.TB, *device) []byte {
		return fixed(multipart(header, payload))
	}
	genuine := func(edit func([]byte) []byte) func(testing.TB, *device) []byte {
		return func(t testing.TB, d *device) []byte {
			_, data := d.encode(t, "MP_ClientRegistration", d.registration(t), false)
			return edit(data)
		}
	}
	one := func(c catalog.Code) []catalog.Code { return []catalog.Code{c} }
	return []badMessage{
		{"nothing", mixed, fixed(nil), 200, one(catalog.MessageTruncated)},
		{"no Content-Type", "", fixed([]byte("x")), 200, one(catalog.MessageContentType)},
		{"another Content-Type", "application/json", fixed([]byte("{}")), 200, one(catalog.MessageContentType)},
		{"noise", mixed, fixed(bytes.Repeat([]byte{0xDE, 0xAD}, 500)), 200, one(catalog.MessageTruncated)},
		{"cut before the last boundary", mixed, genuine(func(b []byte) []byte { return b[:len(b)-40] }), 200, one(catalog.MessageTruncated)},
		{"cut in the middle", mixed, genuine(func(b []byte) []byte { return b[:len(b)/2] }), 200, one(catalog.MessageTruncated)},
		{"wrong boundary", `multipart/mixed; boundary="another"`, genuine(func(b []byte) []byte { return b }), 200, one(catalog.MessageTruncated)},
		{"no boundary", "multipart/mixed", genuine(func(b []byte) []byte { return b }), 200, one(catalog.MessageContentType)},
		{"one part", mixed, fixed(multipart(msg("", ""))), 200, one(catalog.MessageParts)},
		{"three parts", mixed, fixed(multipart(msg("", ""), []byte("x"), []byte("y"))), 200, one(catalog.MessageParts)},
		{"data behind the last boundary", mixed, genuine(func(b []byte) []byte { return append(b, "GET / HTTP/1.1"...) }), 200, one(catalog.MessageParts)},
		{"odd UTF-16 in the header", mixed, parts(msg("", "")[:101], nil), 200, one(catalog.XMLMalformed)},
		{"lone surrogates in the header", mixed, parts(append(msg("", "")[:60], 0x00, 0xD8, 0x00, 0xD8), nil), 200, one(catalog.XMLMalformed)},
		{"UTF-8 header", mixed, parts([]byte(`<Msg><ID>x</ID></Msg>`), nil), 200, one(catalog.XMLMalformed)},
		{"odd UTF-16 in the body", mixed, parts(msg("", ""), wide("<ClientRegistrationRequest/>")[:35]), 200, one(catalog.RegistrationMalformed)},
		{"entity bomb in the header", mixed, parts(msg(billionLaughs, "<X>&c;</X>"), nil), 200, one(catalog.XMLForbidden)},
		{"external entity in the header", mixed, parts(msg(externalEntity, "<X>&file;</X>"), nil), 200, one(catalog.XMLForbidden)},
		{"entity bomb in the body", mixed, parts(msg("", ""), wide(billionLaughs+"<ClientRegistrationRequest>&c;</ClientRegistrationRequest>")), 200, one(catalog.RegistrationMalformed)},
		{"external entity in the body", mixed, parts(msg("", ""), wide(externalEntity+"<ClientRegistrationRequest>&file;</ClientRegistrationRequest>")), 200, one(catalog.RegistrationMalformed)},
		{"ten thousand levels", mixed, parts(msg("", ""), wide("<ClientRegistrationRequest>"+strings.Repeat("<a>", 10_000))), 200, one(catalog.RegistrationMalformed)},
		{"ten thousand levels in the header", mixed, parts(msg("", strings.Repeat("<a>", 10_000)), nil), 200, one(catalog.XMLBudget)},
		{"an element twice", mixed, parts(msg("", "<TargetEndpoint>MP_PolicyManager</TargetEndpoint>"), nil), 200, one(catalog.MessageHeader)},
		{"a SourceID that is no GUID", mixed, parts(wide(`<Msg><ID/><SourceID>GUID:../../etc</SourceID><Body Type="ByteRange" Length="1" Offset="0"/><TargetEndpoint>MP_ClientRegistration</TargetEndpoint></Msg>`), nil), 200, one(catalog.ClientIDMalformed)},
		{"zlib bomb", mixed, parts(msg("", compressed), bomb()), 200, one(catalog.InflateBudget)},
		{"broken zlib", mixed, parts(msg("", compressed), []byte{0x78, 0x9C, 1, 2, 3}), 200, one(catalog.InflateMalformed)},
		{"zlib that ends early", mixed, parts(msg("", compressed), deflated(wide("<ClientRegistrationRequest/>"))[:12]), 200, one(catalog.InflateMalformed)},
		{"unknown endpoint", mixed, func(t testing.TB, d *device) []byte {
			_, data := d.encode(t, "MP_Nonsense", "<X/>", false)
			return data
		}, 200, one(catalog.EndpointUnknown)},
		{"an endpoint of another server", mixed, func(t testing.TB, d *device) []byte {
			_, data := d.encode(t, `\\.\pipe\lsass`, "<X/>", false)
			return data
		}, 200, one(catalog.EndpointUnknown)},
		{"a registration that is none", mixed, func(t testing.TB, d *device) []byte {
			_, data := d.encode(t, "MP_ClientRegistration", "<Nonsense/>", false)
			return data
		}, 200, one(catalog.RegistrationMalformed)},
	}
}

// TestBadMessages sends each of them by every way that reaches the message door: plain, enhanced HTTP, and through gateway and connector.
func TestBadMessages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sender, newcomer := w.enrolled("sender"), newDevice(t, "newcomer")
	ways := map[string]func(w *world, contentType string, body []byte) answer{
		"plain": func(w *world, contentType string, body []byte) answer {
			return w.send(w.http1(), "CCM_POST", w.plain("/ccm_system/request"), contentType, body, nil)
		},
		"enhanced HTTP": func(w *world, contentType string, body []byte) answer {
			return w.send(w.http1(), "CCM_POST", w.inside("/CCM_System_AltAuth/request"), contentType, body, nil)
		},
		"through the gateway": func(w *world, contentType string, body []byte) answer {
			return w.post(sender, sender.ccm, contentType, body)
		},
	}
	for way, send := range ways {
		for _, bad := range badMessages() {
			t.Run(way+"/"+bad.name, func(t *testing.T) {
				w := w.on(t)
				w.unchanged(func() {
					a := send(w, bad.contentType, bad.body(t, newcomer))
					got := catalog.CodeOf(w.point.of(w, a.id()).Err)
					want := refusal{status: bad.status, code: got, silent: bad.status == 200}
					if !contains(bad.codes, got) {
						t.Errorf("refused with %q, want %v", got, bad.codes)
					}
					w.check(a, want)
				})
			})
		}
	}
	w.event(catalog.InflateBudget)
	w.event(catalog.MessageParts)
}

func contains(codes []catalog.Code, code catalog.Code) bool {
	for _, c := range codes {
		if c == code {
			return true
		}
	}
	return false
}

// TestOversizedBodies: said by a length, or only seen while it flows; at the management point and at the gateway. The device sees the status,
// not a reset, as long as it stays within what a hop reads to be polite.
func TestOversizedBodies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("big")
	system := w.outside(ccm.DoorServerAuth, "/CCM_System_TokenAuth/request")
	sts := w.outside(ccm.DoorServerAuth, "/CCM_STS")
	for _, c := range []struct {
		name, method, address, contentType, token string
		size                                      int
		chunked                                   bool
		code                                      catalog.Code
	}{
		{"a message of 9 MiB, plain", "CCM_POST", w.plain("/ccm_system/request"), mixed, "", 9 << 20, false, catalog.RequestTooLarge},
		{"a message of 9 MiB that does not say so", "CCM_POST", w.plain("/ccm_system/request"), mixed, "", 9 << 20, true, catalog.MessageTooLarge},
		{"a message of 9 MiB through the gateway", "CCM_POST", system, mixed, d.ccm, 9 << 20, false, catalog.RequestTooLarge},
		{"a message of 17 MiB at the gateway", "CCM_POST", system, mixed, d.ccm, 17 << 20, false, catalog.GatewayBodyTooLarge},
		{"a message without end at the gateway", "CCM_POST", system, mixed, d.ccm, 16<<20 + 64<<10, true, ""},
		{"a token request of 1 MiB", "POST", sts, form, d.selfProve, 1 << 20, false, catalog.GatewayBodyTooLarge},
		{"a token request of 200 KiB that does not say so", "POST", sts, form, d.selfProve, 200 << 10, true, ""},
		{"a token request of 32 KiB", "POST", sts, form, d.selfProve, 32 << 10, false, catalog.RequestTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.on(t)
			w.unchanged(func() {
				r, err := http.NewRequestWithContext(t.Context(), c.method, c.address, io.LimitReader(zeros{}, int64(c.size)))
				w.must(err)
				if c.token != "" {
					r.Header = proofOf(t, d.key, c.method, c.address, c.token)
				}
				if r.Header.Set("Content-Type", c.contentType); !c.chunked {
					r.ContentLength = int64(c.size)
				}
				response, err := w.http1().Do(r)
				w.must(err)
				a, err := answerOf(response)
				w.must(err)
				if c.code == "" { // the gateway and the management point see it at the same moment; either may say so
					if a.status != http.StatusRequestEntityTooLarge || !contains([]catalog.Code{catalog.GatewayBodyTooLarge, catalog.RequestTooLarge, catalog.MessageTooLarge}, a.problem()) {
						t.Errorf("answered %s, want 413 and the reason", a)
					}
					return
				}
				w.check(a, refusal{status: 413, code: c.code})
			})
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestBodyThatEndsEarly: the sender goes away in the middle. Nothing is registered, and the hops say why.
func TestBodyThatEndsEarly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("cut")
	newcomer := newDevice(t, "newcomer")
	contentType, body := newcomer.encode(t, "MP_ClientRegistration", newcomer.registration(t), false)
	for name, c := range map[string]struct {
		address, path string
		header        http.Header
	}{
		"plain": {w.plain(""), "/ccm_system/request", nil},
		"through the gateway": {"https://" + w.GatewayHost, ccm.ExternalPath(ccm.DoorServerAuth, w.role, "/CCM_System_TokenAuth/request"),
			proofOf(t, d.key, "CCM_POST", w.outside(ccm.DoorServerAuth, "/CCM_System_TokenAuth/request"), d.ccm)},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			w.unchanged(func() {
				before := len(w.point.all())
				conn := w.dial(c.address)
				fmt.Fprintf(conn, "CCM_POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n", c.path, contentType, len(body))
				c.header.Write(conn)
				io.WriteString(conn, "\r\n")
				conn.Write(body[:len(body)/2])
				if name != "plain" {
					eventually(t, "the request is on its way", func() bool { return w.Gateway.Gateway.Status().Requests > 0 })
				}
				conn.Close()
				if name == "plain" {
					eventually(t, "the management point gives up", func() bool { return len(w.point.all()) > before })
					return
				}
				w.gateway.find(t, "the broken request", func(e gateway.Exchange) bool {
					return e.Path.Endpoint == ccm.EndpointSystemTokenAuth && e.Status.Code == 0
				})
			})
		})
	}
	w.point.find(t, "the truncated message", func(e mp.Exchange) bool { return catalog.CodeOf(e.Err) == catalog.MessageTruncated })
}
