package site

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// What a key has proved to be is kept as text in [Device.Proved]. A Kerberos account is ACCOUNT@REALM in upper case, so that nothing with one of these
// prefixes can be one (docs/decisions/0014-entra-and-pki.md).
const (
	identityEntra       = "entra:"       // entra:device@tenant
	identityCertificate = "certificate:" // certificate:dns.name@hash of the issuing authority's key
)

// accountIdentity reports whether an identity is a Kerberos account. Of the three only an account also proves the name of the computer.
func accountIdentity(identity string) bool {
	return identity != "" && !strings.HasPrefix(identity, identityEntra) && !strings.HasPrefix(identity, identityCertificate)
}

// cloud is what an Entra token proved of the caller: by itself at the token service, or through the register-scoped or client token that it was exchanged
// for. What a token only inherited names a tenant and proves nobody.
func (c Caller) cloud() *proof.Cloud {
	if c.Cloud == nil || c.Method != proof.Entra && c.Method != proof.CCMToken || c.Cloud.Device == "" && c.Cloud.User == "" {
		return nil
	}
	return c.Cloud
}

// entra is the Entra device that the key stands for: what it has proved, or else what stands behind its approval.
func (d Device) entra() (tenant, device string) {
	if rest, proved := strings.CutPrefix(d.Proved, identityEntra); proved {
		at := strings.LastIndexByte(rest, '@')
		return rest[at+1:], rest[:max(at, 0)]
	}
	return d.Approval.Evidence[factTenant], d.Approval.Evidence[factEntraDevice]
}

// sameEntra refuses an identity of another Entra device than the one that the key stands for, and a user of another tenant. A user's token that names no
// device says nothing about devices.
func (d Device) sameEntra(cloud proof.Cloud) error {
	tenant, device := d.entra()
	if tenant != "" && tenant != cloud.Tenant || device != "" && cloud.Device != "" && device != cloud.Device {
		return catalog.Errorf(catalog.EntraOtherDevice, "the key is of device %s in tenant %s, the token of device %s in tenant %s",
			cmp.Or(device, "-"), cmp.Or(tenant, "-"), cmp.Or(shown(cloud.Device), "-"), shown(cloud.Tenant))
	}
	return nil
}

// carry puts the identity by which the caller came into the claims of its token. The token that is got with the Entra token itself has all of it; one that
// is got with that has the tenant only: enough to end with the tenant, and no evidence any more.
func carry(claims *token.Claims, ask Exchange) {
	cloud := ask.Caller.Cloud
	if cloud == nil {
		return
	}
	kept := *cloud
	if ask.Caller.Method != proof.Entra || ask.Want != token.KindCCM {
		kept = proof.Cloud{Tenant: cloud.Tenant, Issuer: cloud.Issuer, Kind: cloud.Kind}
	}
	claims.Cloud, claims.TokenType = &kept, kept.Kind
}

// Facts of an approval by Entra and by certificate.
const (
	factTenant      = "tenant"
	factEntraDevice = "entra-device"
	factKind        = "entra-kind"
	factIssuer      = "entra-issuer"
	factCertificate = "certificate" // SHA-256 of its DER, lower-case hex
)

// addCloud keeps what an Entra token proved.
func addCloud(facts map[string]string, c proof.Cloud) {
	add(facts, map[string]string{
		factTenant: c.Tenant, factEntraDevice: c.Device, "entra-user": c.User, factKind: c.Kind, factIssuer: c.Issuer, "entra-token": c.TokenID,
		"user-sid": c.UserSID, "device-sid": c.DeviceSID,
	})
}

// add adds the facts that there are, as they can be shown.
func add(facts, more map[string]string) {
	for label, value := range more {
		if value != "" {
			facts[label] = shown(value)
		}
	}
}

// shown is text of others as a person may read it: on one line, without what deceives the eye, and not long.
func shown(text string) string {
	if strings.ContainsFunc(text, unprintable) {
		text = fmt.Sprintf("%+q", text)
	}
	if len(text) > maxShown {
		text = strings.ToValidUTF8(text[:maxShown], "") + "..."
	}
	return text
}

const maxShown = 512

// certificate is a certificate of the company that the caller showed.
type certificate struct {
	*x509.Certificate
	held   bool   // the management point itself has seen that the caller holds its key
	issuer string // hash of the key of the uploaded authority that issued it; "" when that was not uploaded
}

// readCertificate reads the certificate of a caller that has shown one.
func (s *Site) readCertificate(caller Caller, key proof.KeyThumbprint) (c *certificate, own bool, err error) {
	if caller.Method != proof.PKICertificate || len(caller.Certificate) == 0 {
		return nil, false, nil
	}
	parsed, err := x509.ParseCertificate(caller.Certificate)
	if err != nil {
		return nil, false, catalog.Wrap(catalog.CertificateUnreadable, err, "the client certificate cannot be read")
	}
	thumbprint, err := proof.Thumbprint(parsed.PublicKey)
	own = err == nil && thumbprint == key
	// A gateway could put its own registration behind another's certificate: there the certificate counts with its own key only.
	c = &certificate{Certificate: parsed, held: caller.Direct || own && caller.Key != ""}
	for _, above := range s.current.Load().issuers {
		if bytes.Equal(above.RawSubject, parsed.RawIssuer) && parsed.CheckSignatureFrom(above) == nil {
			c.issuer = token.PinOf(above.RawSubjectPublicKeyInfo)
		}
	}
	return c, own, nil
}

// name is the one DNS name of a certificate that is for one computer, else "".
func (c *certificate) name() string {
	if len(c.DNSNames) != 1 || !dnsLabels(c.DNSNames[0]) {
		return ""
	}
	return strings.ToLower(c.DNSNames[0])
}

// of reports whether the certificate is that of a computer with these names, and of no other.
func (c *certificate) of(netbios, fqdn string) bool {
	name := c.name()
	host, _, _ := strings.Cut(name, ".")
	if fqdn == "" {
		return sameName(host, netbios)
	}
	return shortens(netbios, host) && sameName(strings.TrimSuffix(fqdn, "."), name)
}

// addCertificate keeps what a certificate says.
func addCertificate(facts map[string]string, c *certificate) {
	sum := sha256.Sum256(c.Raw)
	add(facts, map[string]string{
		factCertificate: hex.EncodeToString(sum[:]), "certificate-subject": c.Subject.String(), "certificate-names": strings.Join(c.DNSNames, " "),
		"certificate-issuer": c.Issuer.String(), "certificate-serial": c.SerialNumber.Text(16), "certificate-ends": c.NotAfter.UTC().Format(time.RFC3339),
	})
}
