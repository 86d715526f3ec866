package site

import (
	"crypto"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"time"

	"postern/token"
)

// Nonces of the site: every management point computes the same ones, from the site's own sealed root and the time, and keeps none. A new root brings new
// nonces; a device in between is asked for one once more.
const (
	nonceBytes = 16
	nonceLabel = "postern dpop nonce"

	nonceWindows = int64(token.NonceLife/token.NonceWindow) + 1 // windows whose nonce is good: a client is given the second newest
)

// nonceKey derives the key of the nonces; it tells nothing of the root.
func nonceKey(root crypto.Signer) ([]byte, error) {
	private, err := x509.MarshalPKCS8PrivateKey(root)
	if err != nil {
		return nil, err
	}
	return hkdf.Key(sha256.New, private, nil, nonceLabel, sha256.Size)
}

func nonceWindow(now time.Time) int64 { return now.Unix() / int64(token.NonceWindow/time.Second) }

// nonceOf is the nonce of a window.
func (now *snapshot) nonceOf(window int64) string {
	mac := hmac.New(sha256.New, now.nonces)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(window)))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:nonceBytes])
}

// Nonce implements [token.Nonces]: it is the one of the window before, which gateways have heard by now.
func (s *Site) Nonce() string { return s.current.Load().nonceOf(nonceWindow(s.now()) - 1) }

// newestNonce is the one that gateways are told.
func (s *Site) newestNonce() string { return s.current.Load().nonceOf(nonceWindow(s.now())) }

// GoodNonce implements [token.Nonces]. One of the next window is of a management point whose clock is a little ahead.
func (s *Site) GoodNonce(nonce string) bool {
	now, newest := s.current.Load(), nonceWindow(s.now())
	for window := newest + 1; window >= newest-nonceWindows; window-- {
		if hmac.Equal([]byte(nonce), []byte(now.nonceOf(window))) {
			return true
		}
	}
	return false
}
