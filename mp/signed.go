package mp

import (
	"encoding/base64"
	"strings"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// wantsChain precedes the nonce of a client that does not know the signer yet.
const wantsChain = "chain "

// sign signs an answer for a client that asks for it: its word that no gateway, connector or network without TLS has made or changed the
// answer. It costs one ECDSA signature; clients that do not ask pay nothing.
func (v *visit) sign(status int, body []byte) error {
	asked := v.r.Header.Get(ccm.HeaderSignedReply)
	if asked == "" || v.signed || v.mp.config.Identity == nil {
		return nil
	}
	v.signed = true
	nonce, chain := strings.CutPrefix(asked, wantsChain)
	if err := token.CheckNonce(nonce); err != nil {
		return err
	}
	certificates, key := v.mp.config.Identity()
	signed, err := token.SignReply(key, token.Reply{Nonce: nonce, Path: v.path.Internal(), Status: status, Sum: token.ReplySum(body), At: v.mp.now().UTC()})
	if err != nil {
		return catalog.Wrap(catalog.InternalError, err, "")
	}
	header := v.w.Header()
	header.Set(ccm.HeaderSignedReply, signed)
	if chain {
		header.Set(ccm.HeaderSignedReplyChain, encodeChain(certificates))
	}
	return nil
}

func encodeChain(certificates [][]byte) string {
	texts := make([]string, len(certificates))
	for i, der := range certificates {
		texts[i] = base64.StdEncoding.EncodeToString(der)
	}
	return strings.Join(texts, ",")
}
