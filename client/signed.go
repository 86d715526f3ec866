package client

import (
	"crypto/x509"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// wantsChain precedes the nonce: the signer's certificates come with the signature. Behind
// one name may be several management points, so they are asked for each time.
const wantsChain = "chain "

// maxSignerChain bounds the certificates of a signer, in base64.
const maxSignerChain = 16 << 10

// wantsSignature reports whether answers on a route are asked to be signed: where something
// lies between that could change them, and there is a root key to judge a signature by.
// Straight over https the connection itself says who answers.
func (n anchor) wantsSignature(r route) bool {
	return n.RootKey != "" && (!r.secure() || r.RoleID != 0)
}

// askSignature puts a fresh nonce into a request.
func (a *Agent) askSignature(header http.Header) error {
	var nonce [16]byte
	if _, err := io.ReadFull(a.config.Rand, nonce[:]); err != nil {
		return err
	}
	header.Set(ccm.HeaderSignedReply, wantsChain+base64.RawURLEncoding.EncodeToString(nonce[:]))
	return nil
}

// checkSigned judges an answer that was asked to be signed: by a management point of this
// site, for this question, with this body. On plain HTTP there must be a signature; behind
// a gateway there must be one since the first that came. An answer without content is no
// exception: whoever makes one up hides a refusal or an answer. A signature that is there
// must hold.
func (a *Agent) checkSigned(c *conversation, response *http.Response, body []byte) error {
	n, asked := a.current().Anchor, response.Request.Header.Get(ccm.HeaderSignedReply)
	raw := response.Header.Get(ccm.HeaderSignedReply)
	seen := a.current().Signed
	switch {
	case asked == "" || raw == "" && c.route.secure() && !seen:
		return nil
	case raw == "":
		return catalog.Errorf(catalog.ClientReplyUnsigned, "%s does not sign its answer", c.route.Host)
	}
	path, err := ccm.ParsePath(response.Request.URL.RequestURI())
	if err != nil {
		return err
	}
	reply, pin, err := token.OpenReply(raw)
	if err != nil {
		return err
	}
	if err := checkSigner(response.Header.Get(ccm.HeaderSignedReplyChain), pin, n, a.config.Now()); err != nil {
		return err
	}
	if err := reply.Answers(strings.TrimPrefix(asked, wantsChain), path.Internal(), response.StatusCode, body); err != nil || seen {
		return err
	}
	return a.save(func(r *record) { r.Signed = true })
}

// checkSigner wants the certificate of a management point of this site, of the key that
// signed.
func checkSigner(text, pin string, n anchor, now time.Time) error {
	chain, err := parseChain(text)
	switch {
	case err != nil:
		return catalog.Wrap(catalog.ClientReplyUnsigned, err, "the certificates of the signer cannot be read")
	case token.Pin(chain[0].PublicKey) != pin:
		return catalog.Errorf(catalog.ClientReplyUnsigned, "the signature is not of the certificate that comes with it")
	}
	if err := checkIssued(chain, n, token.RoleManagementPoint, now); err != nil {
		return catalog.Wrap(catalog.ClientReplyUnsigned, err, "the signer is no management point of this site: %s", plain(err))
	}
	return nil
}

func parseChain(text string) ([]*x509.Certificate, error) {
	if len(text) > maxSignerChain {
		return nil, catalog.Errorf(catalog.ClientAnswerTooLarge, "%d bytes", len(text))
	}
	var chain []*x509.Certificate
	for part := range strings.SplitSeq(text, ",") {
		der, err := base64.StdEncoding.DecodeString(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if chain = append(chain, certificate); len(chain) > maxChain {
			return nil, catalog.Errorf(catalog.ClientAnswerTooLarge, "more than %d certificates", maxChain)
		}
	}
	return chain, nil
}
