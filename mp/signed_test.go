package mp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"postern/auth"
	"postern/catalog"
	"postern/ccm"
	"postern/site"
	"postern/token"
)

// withIdentity gives the management point a role certificate to sign answers with, once the site is there to issue it.
func withIdentity(c *Config) {
	s := c.Site
	c.Identity = func() ([][]byte, crypto.Signer) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		chain, err := s.IssueRole(site.RoleManagementPoint, "MP1", key.Public(), []string{testFQDN})
		if err != nil {
			panic(err)
		}
		return chain, key
	}
}

const nonce = "AAAAAAAAAAAAAAAAAAAAAA"

func TestSignedReply(t *testing.T) {
	f := newFixture(t, withIdentity)
	contentType, body := f.message("MP_ClientRegistration", f.registration(f.device(1)), nil)
	for _, test := range []struct {
		name, method, path, signed, contentType string
		body                                    []byte
	}{
		{"a list over plain HTTP", http.MethodGet, "/SMS_MP/.sms_aut?MPLIST", "/SMS_MP/.sms_aut?MPLIST", "", nil},
		{"a registration", methodCCM, "/ccm_system/request", "/CCM_System/request", contentType, body},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := f.send(f.client, test.method, f.url(HTTP, test.path), test.contentType, test.body, ccm.HeaderSignedReply, "chain "+nonce)
			reply, pin, err := token.OpenReply(g.Header.Get(ccm.HeaderSignedReply))
			if err != nil {
				t.Fatal(err)
			}
			var chain []*x509.Certificate
			for text := range strings.SplitSeq(g.Header.Get(ccm.HeaderSignedReplyChain), ",") {
				der, err := base64.StdEncoding.DecodeString(text)
				f.must(err)
				c, err := x509.ParseCertificate(der)
				f.must(err)
				chain = append(chain, c)
			}
			_, certified, err := auth.RoleCertificate(chain, f.site.RootPin(), token.RoleManagementPoint, captured)
			if err != nil || certified != pin {
				t.Fatalf("the signer is %s, its certificate %s, %v", pin, certified, err)
			}
			if err := reply.Answers(nonce, test.signed, g.StatusCode, g.body); err != nil || len(g.body) == 0 {
				t.Error(err, len(g.body), reply.Path)
			}
			for reason, err := range map[string]error{
				"another nonce":  reply.Answers(nonce+"A", test.signed, 200, g.body),
				"another path":   reply.Answers(nonce, "/sms_mp/.sms_aut?MPTRK", 200, g.body),
				"another status": reply.Answers(nonce, test.signed, 201, g.body),
				"another body":   reply.Answers(nonce, test.signed, 200, append(g.body, ' ')),
			} {
				if catalog.CodeOf(err) != catalog.ReplyOther {
					t.Errorf("%s: %v", reason, err)
				}
			}
		})
	}
}

func TestSignedReplyOnlyWhenAsked(t *testing.T) {
	f := newFixture(t, withIdentity)
	if g := f.send(f.client, http.MethodGet, f.url(HTTP, "/SMS_MP/.sms_aut?MPLIST"), "", nil); g.Header.Get(ccm.HeaderSignedReply) != "" || g.StatusCode != 200 {
		t.Errorf("%s with signature %q", g.Status, g.Header.Get(ccm.HeaderSignedReply))
	}
	g := f.send(f.client, http.MethodGet, f.url(HTTP, "/SMS_MP/.sms_aut?MPLIST"), "", nil, ccm.HeaderSignedReply, nonce)
	if g.Header.Get(ccm.HeaderSignedReply) == "" || g.Header.Get(ccm.HeaderSignedReplyChain) != "" {
		t.Error("a client that knows the signer wants the signature without the chain")
	}
	for name, bad := range map[string]string{"short": "AAAA", "long": strings.Repeat("A", 65), "no base64": "AAAAAAAAAAAAAAAA AAAA", "no nonce": "chain "} {
		if g := f.send(f.client, http.MethodGet, f.url(HTTP, "/SMS_MP/.sms_aut?MPLIST"), "", nil, ccm.HeaderSignedReply, bad); g.StatusCode != 400 || g.code() != string(catalog.ReplyNonce) {
			t.Errorf("%s: %s %s", name, g.Status, g.code())
		}
	}
}
