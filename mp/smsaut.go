package mp

import (
	"crypto/x509"
	"net/http"

	"postern/ccm"
)

// smsAut answers the questions that clients ask before they trust anything (protocol.md 1.3, 1.4). All of it is public.
func (v *visit) smsAut() {
	method, argument, err := ccm.ParseAuthQuery(v.path.Query)
	if err != nil {
		v.refuse(err)
		return
	}
	v.reply(http.StatusOK, "text/xml; charset=utf-8", []byte(v.authInformation(method, ccm.SiteCode(argument))))
}

func (v *visit) authInformation(method ccm.AuthMethod, code ccm.SiteCode) string {
	switch method {
	case ccm.AuthSiteSignCert:
		return ccm.SiteSignCert{Certificate: v.mp.site.SigningCertificate()}.XML()
	case ccm.AuthMPList:
		return v.mpList("").XML()
	case ccm.AuthMPList1, ccm.AuthMPList2:
		if !v.here(code) {
			return ccm.MPList{}.XML()
		}
		return v.mpList(v.mp.site.SiteCode()).XML()
	case ccm.AuthMPCert:
		return ccm.MPCert{Certificate: v.mp.certificate()}.XML()
	case ccm.AuthMPCert2:
		own := ccm.SignedCertificate{Certificate: v.mp.certificate()}
		return ccm.MPCert2{Signing: own, Encryption: own}.XML()
	case ccm.AuthMPTRK:
		return v.mp.trustedRootKey().XML()
	case ccm.AuthMPKeyInformation, ccm.AuthMPKeyInformationEx:
		return v.keyInformation().XML()
	}
	return ccm.SMSTRC
}

// mpList lists the site's management points; with a code each names its site, as MPLIST1 does.
func (v *visit) mpList(code ccm.SiteCode) ccm.MPList {
	var list ccm.MPList
	for _, point := range v.mp.site.ManagementPoints() {
		list.ManagementPoints = append(list.ManagementPoints, ccm.ManagementPoint{
			Name: point.Name, FQDN: point.FQDN, SiteCode: code, Version: v.mp.site.Settings().BuildNumber, Capabilities: v.capabilities(),
		})
	}
	return list
}

func (v *visit) keyInformation() ccm.MPKeyInformation {
	code := v.mp.site.SiteCode()
	return ccm.MPKeyInformation{
		AssignmentSiteCode: code, SiteCode: code, FQDN: v.mp.config.FQDN, MachineName: v.mp.name(),
		Certificate: ccm.SignedCertificate{Certificate: v.mp.certificate()}, TrustedRootKey: v.mp.trustedRootKey(),
	}
}

// certificate is the management point's own, else the one that the site signs with.
func (m *ManagementPoint) certificate() []byte {
	if m.config.Certificate != nil {
		return m.config.Certificate()
	}
	return m.site.SigningCertificate()
}

// trustedRootKey is the key of the site root in the form whose SHA-256 is the trusted root key that people compare. The documents have a
// PUBLICKEYBLOB here, which cannot hold a key on a curve.
func (m *ManagementPoint) trustedRootKey() ccm.MPTRK {
	root, err := x509.ParseCertificate(m.site.RootCertificate())
	if err != nil {
		return ccm.MPTRK{}
	}
	return ccm.MPTRK{Key: root.RawSubjectPublicKeyInfo}
}

// name is the management point's short name.
func (m *ManagementPoint) name() string {
	for _, point := range m.site.ManagementPoints() {
		if point.RoleID == m.config.RoleID {
			return point.Name
		}
	}
	return m.config.FQDN
}
