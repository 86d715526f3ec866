package mp

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"strings"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// admitCertificate is the door for devices with a certificate of the company: at a listener in HTTPS mode, where the handshake shows it, and
// for what a connector relays from the door of a gateway that asked for one (design decision 3). A connector's role certificate proves the
// connector and no device, so without the device's it is answered as if none had been shown (S4).
//
// What only a gateway saw proves little here: certificates are no secret, and a gateway that was taken can name any. So it opens the door and
// gives level known, and whatever a message proves by its own signature stays at that. A DPoP proof by the certificate's key, which is checked
// here, is as good as a handshake.
func (v *visit) admitCertificate() error {
	possession := len(v.r.Header.Values("DPoP")) > 0
	var chain []*x509.Certificate
	switch {
	case v.route.relayed():
		chain = v.hop.certificates
	case v.hop.direct() && v.showsCertificate():
		chain = v.r.TLS.PeerCertificates
	}
	switch {
	case len(v.r.Header.Values("Authorization")) > 0, len(chain) == 0 && possession:
		return catalog.Errorf(catalog.ProofNotAccepted, "this address takes a client certificate")
	case v.hop.certificateErr != nil:
		return &refusal{statusOfCertificate(v.hop.certificateErr), v.hop.certificateErr}
	case len(chain) == 0:
		return &refusal{ccm.StatusClientCertificateRequired, catalog.Errorf(catalog.ClientCertificateRequired, "no client certificate of a device was shown")}
	case v.hop.forged:
		// A connector that shows a certificate of the company would otherwise speak for itself with the words of the devices behind it.
		return untrusted("it came with the headers of a gateway and is no connector's")
	case v.mp.config.Certificates == nil:
		return untrusted("no certificates of a company are accepted here")
	}
	p, err := v.mp.config.Certificates.Check(v.r.Context(), chain)
	if err == nil {
		err = v.mp.site.Revoked(token.Claims{Key: p.Key})
	}
	if err != nil {
		return &refusal{statusOfCertificate(err), err}
	}
	if possession {
		if err := v.mp.bearer.Possession(v.r, p.Key); err != nil {
			return err
		}
	}
	if !v.hop.direct() && !possession {
		v.capped, p.Key = true, "" // whoever it is has shown the key to the gateway only
	}
	v.proof = p
	return nil
}

func untrusted(why string) error {
	err := catalog.Errorf(catalog.ClientCertificateNotTrusted, "%s", why)
	return &refusal{statusOfCertificate(err), err}
}

// statusOfCertificate is IIS's answer to a certificate that it does not accept, for the access log: sub-status and the error number of Windows.
// The phrase that clients compare is for those who show none.
func statusOfCertificate(err error) ccm.Status {
	const (
		revoked, untrusted, expired = 13, 16, 17

		revocationOffline = 0x80092013 // CRYPT_E_REVOCATION_OFFLINE
	)
	forbidden := func(sub int, windows uint32) ccm.Status {
		return ccm.Status{Code: http.StatusForbidden, Reason: http.StatusText(http.StatusForbidden), SubStatus: sub, Windows: windows}
	}
	code := catalog.CodeOf(err)
	switch code {
	case catalog.CertificateRevoked, catalog.KeyBlocked:
		return forbidden(revoked, 0x80092010) // CRYPT_E_REVOKED
	case catalog.RevocationSourceMissing, catalog.RevocationUnreachable, catalog.RevocationListMalformed, catalog.RevocationListUnsupported,
		catalog.RevocationListForeign, catalog.RevocationListDate, catalog.RevocationAnswerRefused, catalog.RevocationAnswerNone:
		return forbidden(revoked, revocationOffline)
	case catalog.CertificateDate:
		return forbidden(expired, 0x800B0101) // CERT_E_EXPIRED
	case catalog.CertificateUsage:
		return forbidden(untrusted, 0x800B0110) // CERT_E_WRONG_USAGE
	case catalog.CertificateIssuerMissing:
		return forbidden(untrusted, 0x800B010A) // CERT_E_CHAINING
	}
	if entry, ok := catalog.Lookup(code); !ok || entry.Status != http.StatusForbidden {
		return ccm.Status{} // a fault of ours: the catalogue's status
	}
	return forbidden(untrusted, 0x800B0109) // CERT_E_UNTRUSTEDROOT
}

// certified reports whether this management point itself has seen that the caller holds the key of its certificate.
func (v *visit) certified() bool { return v.proof.Method == proof.PKICertificate && v.proof.Key != "" }

// certifiedBy returns the device of a message that carries no signature, as clients of a site in HTTPS mode send them: the one whose registered
// key is that of the certificate.
func (v *visit) certifiedBy(m *ccm.Message) (site.Device, error) {
	device, err := v.mp.site.DeviceByKey(v.r.Context(), v.proof.Key)
	if isNotFound(err) {
		return device, catalog.Errorf(catalog.DeviceUnknown, "no device is registered with the key of the certificate")
	}
	if err != nil {
		return device, err
	}
	if m.Header.SourceID != "" && !strings.EqualFold(m.Header.SourceID, string(device.ClientID)) {
		return device, catalog.Errorf(catalog.MessageOtherDevice, "the certificate is of %s, the message is from %s", device.ClientID, m.Header.SourceID)
	}
	v.provedBy(device)
	return v.limited(device, false)
}

// certifiedReader returns the device whose registered key is that of the certificate, or nil when there is none: its holder then reads what
// everybody may.
func (v *visit) certifiedReader() (*site.Device, error) {
	device, err := v.mp.site.DeviceByKey(v.r.Context(), v.proof.Key)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v.provedBy(device)
	device, err = v.limited(device, false)
	return &device, err
}

// ceilingFor is the ceiling for one device. What a gateway relays with a certificate and a proof of its key gives more than known to the device of
// that certificate only: a signed message covers no time, so an old one of another device could come with it.
func (v *visit) ceilingFor(device site.Device) proof.Level {
	if v.hop.direct() || v.proof.Method != proof.PKICertificate || device.Key == v.proof.Key || device.Approval.Evidence[evidenceCertificate] == fingerprint(v.proof.Certificate) {
		return v.ceiling()
	}
	return min(v.ceiling(), proof.LevelKnown)
}

// evidenceCertificate is the fact of an approval that names the certificate by which a device registered.
const evidenceCertificate = "certificate"

// fingerprint names a certificate: the SHA-256 of its DER in lower-case hex.
func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// keyTypePKI is Signing/@KeyType of a company's certificate (protocol.md 3.1).
const keyTypePKI = 2

// bindCertificate fits the proof of a certificate to the registration that came with it (protocol.md 3). A client registers with the certificate
// itself as its signing certificate, and then its key is the device's. Or it signs with a key of its own and shows the certificate in TLS alone:
// then the certificate is the evidence, and the device's key is the one that signed, which the certificate's key must not be compared with. Behind
// a gateway that is worth no more than known.
func bindCertificate(p *proof.Proof, request *ccm.RegistrationRequest) {
	switch {
	case p.Method != proof.PKICertificate:
		return
	case request.Signing == nil: // a confirmation, which is judged by the registered key alone
		p.Key = ""
		return
	}
	if bytes.Equal(request.Signing.DER, p.Certificate) {
		request.KeyType = keyTypePKI
	}
	if key, err := proof.Thumbprint(request.Signing.PublicKey); err != nil || key != p.Key {
		p.Key = ""
	}
}
