package kerberos

import (
	"crypto"
	"crypto/md5"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"sync"

	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"

	"postern/catalog"
)

const (
	bindingSize = md5.Size
	// checksumSize is that of the GSS checksum without delegation (RFC 4121 4.1.1).
	checksumSize = 4 + bindingSize + 4
	// optionsType is AD-AP-OPTIONS, optionBinding its flag "this client binds its
	// tickets" (MS-KILE 3.2.5.8).
	optionsType   = 143
	optionBinding = 0x4000
	ifRelevant    = 1
	// maxHashes bounds the memory of certificates; a server has a few.
	maxHashes = 64
)

// gssChecksum is what a GSS client says of the context (RFC 4121 4.1.1). It lies in the
// authenticator and is sealed with it.
type gssChecksum struct {
	bound   bool
	binding [bindingSize]byte
	mutual  bool
}

func parseChecksum(a authenticator) (gssChecksum, error) {
	var c gssChecksum
	if a.checksumType != chksumtype.GSSAPI || len(a.checksum) < checksumSize || binary.LittleEndian.Uint32(a.checksum) != bindingSize {
		return c, catalog.Errorf(catalog.KerberosChecksumMissing, "the authenticator has no GSS checksum, but one of type %d with %d bytes", a.checksumType, len(a.checksum))
	}
	copy(c.binding[:], a.checksum[4:])
	c.bound = c.binding != [bindingSize]byte{}
	c.mutual = binary.LittleEndian.Uint32(a.checksum[4+bindingSize:])&gssapi.ContextFlagMutual != 0
	return c, nil
}

// checkBinding is the protection against tokens that a man in the middle passes on: a
// token that is bound to a TLS connection fits that server's certificate only.
func (v *visit) checkBinding() (err error) {
	if v.binding, err = parseChecksum(v.authenticator); err != nil {
		return err
	}
	encrypted := v.channel.TLS != nil
	promised, err := v.promisesBinding()
	switch {
	case err != nil:
		return err
	case v.binding.bound && !encrypted:
		return catalog.Errorf(catalog.KerberosBindingPlain, "the ticket of %s is bound to a TLS connection and came over plain HTTP", v.proved.LogName())
	case v.binding.bound && !v.acceptor.hashes.match(v.binding.binding, v.channel.Certificates):
		return catalog.Errorf(catalog.KerberosBindingMismatch, "the ticket of %s is bound to a TLS connection with another certificate", v.proved.LogName())
	case v.binding.bound:
		return nil
	case v.acceptor.config.Binding == Required:
		return catalog.Errorf(catalog.KerberosBindingMissing, "the ticket of %s is not bound to the TLS connection, and channel_binding is required", v.proved.LogName())
	case encrypted && promised:
		return catalog.Errorf(catalog.KerberosBindingMissing, "the client of %s binds its tickets, and this one, which came over TLS, is not bound", v.proved.LogName())
	}
	return nil
}

// promisesBinding says whether the client marked itself as one that binds its tickets
// wherever there is TLS. An unbound ticket of such a client was made for a place without.
func (v *visit) promisesBinding() (promised bool, err error) {
	if v.authenticator.data.Empty() {
		return false, nil
	}
	ok := findAuthorization(v.authenticator.data, optionsType, maxNesting, func(value []byte) bool {
		promised = promised || len(value) == 4 && binary.LittleEndian.Uint32(value)&optionBinding != 0
		return true
	})
	if !ok {
		err = catalog.Errorf(catalog.KerberosRequestMalformed, "the authorization data of the authenticator cannot be read")
	}
	return promised, err
}

// certificateHashes remembers which binding belongs to which certificate.
type certificateHashes struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte][bindingSize]byte
}

// match says whether a binding is that of one of the certificates.
func (h *certificateHashes) match(binding [bindingSize]byte, certificates [][]byte) bool {
	for _, certificate := range certificates {
		if h.binding(certificate) == binding {
			return true
		}
	}
	return false
}

func (h *certificateHashes) binding(certificate []byte) [bindingSize]byte {
	id := sha256.Sum256(certificate)
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.known[id]; ok {
		return known
	}
	if len(h.known) >= maxHashes || h.known == nil {
		h.known = map[[sha256.Size]byte][bindingSize]byte{}
	}
	binding := channelBinding(EndPoint(certificate))
	h.known[id] = binding
	return binding
}

// EndPoint returns the channel binding "tls-server-end-point" of a server certificate in
// DER (RFC 5929 4.1), with its prefix: what a client hands to GSSAPI as application data.
// The hash is that of the certificate's signature, SHA-256 where that is weaker or says none.
func EndPoint(certificate []byte) []byte {
	hash := crypto.SHA256
	if parsed, err := x509.ParseCertificate(certificate); err == nil {
		hash = signatureHash(parsed.SignatureAlgorithm)
	}
	h := hash.New()
	h.Write(certificate)
	return h.Sum([]byte("tls-server-end-point:"))
}

func signatureHash(algorithm x509.SignatureAlgorithm) crypto.Hash {
	switch algorithm {
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		return crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		return crypto.SHA512
	}
	return crypto.SHA256
}

// channelBinding is the hash of RFC 4121 4.1.1.2: no addresses, the application data.
func channelBinding(application []byte) [bindingSize]byte {
	data := make([]byte, 16, 20+len(application))
	data = binary.LittleEndian.AppendUint32(data, uint32(len(application)))
	return md5.Sum(append(data, application...))
}
