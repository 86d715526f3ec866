package mp

import (
	"crypto/sha256"
	"errors"
	"net/http"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// policyFreshness is how far the time in the headers of a policy download may be from ours, both ways. It is this wide because one client
// sends its local time and calls it UTC (protocol.md 12), and zones reach from -12 to +14 hours; the signature covers nothing but id and
// time, so a copied header opens this one device's policies for as long, and a secret among them stays sealed to the device's key.
const policyFreshness = 26 * time.Hour

func isNotFound(err error) bool { return errors.Is(err, site.ErrNotFound) }

// assignments answers a request for policy assignments by a device whose signature has been checked.
func (v *visit) assignments(m *ccm.Message, device site.Device) (string, error) {
	ask, err := ccm.ParseAssignmentsRequest(m.Text())
	if err != nil {
		return "", err
	}
	if ask.ClientID != device.ClientID {
		return "", catalog.Errorf(catalog.MessageOtherDevice, "signed by %s, asks for %s", device.ClientID, ask.ClientID)
	}
	policies, err := v.policiesFor(ask, device)
	if err != nil {
		return "", err
	}
	v.did("%d policy assignments for %s", len(policies), device.ClientID)
	reply := ccm.AssignmentsReply{
		SiteCode: v.mp.site.SiteCode(), ClientID: device.ClientID, FQDN: ask.FQDN, NetBIOSName: ask.NetBIOSName, ResourceType: ask.ResourceType,
		ServerCookie: v.began.UTC().Format("2006-01-02 15:04:05.000"),
	}
	for _, p := range policies {
		reply.Assignments = append(reply.Assignments, ccm.PolicyAssignment{
			ID: assignmentID(p), PolicyID: p.ID, Version: p.Version, Type: p.Type, Category: p.Category, Flags: p.Flags,
			Location: v.policyLocation(p), Hash: assignmentHash(p),
		})
	}
	return reply.XML(), nil
}

// policiesFor lists what a machine may have; the site has no policies for users.
func (v *visit) policiesFor(ask ccm.AssignmentsRequest, device site.Device) ([]site.Policy, error) {
	if strings.EqualFold(ask.ResourceType, "User") {
		return nil, nil
	}
	return v.mp.site.Assignments(v.r.Context(), device)
}

// policyLocation is where the body is, by the scheme and the door that the client used: old clients replace the literal <mp> and change
// nothing else (protocol.md 4.2).
func (v *visit) policyLocation(p site.Policy) string {
	location := ccm.PolicyLocation(p.ID, p.Version)
	if v.listener != HTTP {
		location = "https" + strings.TrimPrefix(location, "http")
	}
	if v.proof.Method == proof.CCMToken {
		location = strings.Replace(location, "/SMS_MP/", "/SMS_MP_TokenAuth/", 1)
	}
	return location
}

// assignmentHash is what a client can compare with the body. The hash of a secret is of its sealed form at rest, which no client ever has, so
// it is left out: CMS decryption fails by itself on another device's body.
func assignmentHash(p site.Policy) string {
	if p.Sealed {
		return ""
	}
	return p.Hash
}

// assignmentID derives the id of an assignment from the policy that it assigns, so that it stays the same.
func assignmentID(p site.Policy) string {
	sum := sha256.Sum256([]byte("assignment:" + p.ID + ":" + p.Version))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80 // RFC 9562: version 8
	return "{" + strings.ToUpper(asUUID(sum[:16])) + "}"
}

// smsPol serves a policy body. A refusal is 200 with the body that clients know (protocol.md 1.5, 4.4); the reason is in the log and the event.
func (v *visit) smsPol() {
	id, version, err := ccm.ParsePolicyQuery(v.path.Query)
	if err != nil {
		v.refusePolicy(err)
		return
	}
	device, err := v.policyReader()
	if err != nil {
		v.refusePolicy(err)
		return
	}
	body, err := v.mp.site.PolicyBody(v.r.Context(), device, id, version)
	if err != nil {
		v.refusePolicy(err)
		return
	}
	contentType := "text/xml; charset=utf-16"
	if len(body) > 0 && body[0] == derSequence {
		contentType = "application/octet-stream"
	}
	v.reply(http.StatusOK, contentType, body)
}

// derSequence begins EnvelopedData; a plain policy begins with its byte order mark.
const derSequence = 0x30

// policyReader returns the device that asks, or nil for a download that proves nothing. Whatever proof is there must hold: a token, the
// signed headers, or both for one device.
func (v *visit) policyReader() (*site.Device, error) {
	signed, present, err := ccm.ParsePolicyAuth(v.r.Header)
	if err != nil {
		return nil, err
	}
	if v.proof.Method == proof.CCMToken {
		if present && signed.ClientID != v.proof.Client {
			return nil, catalog.Errorf(catalog.MessageOtherDevice, "the token is for %s, the headers are by %s", v.proof.Client, signed.ClientID)
		}
		return v.tokenReader()
	}
	if !present && v.certified() {
		return v.certifiedReader()
	}
	if !present {
		return nil, nil
	}
	return v.signedReader(signed)
}

func (v *visit) tokenReader() (*site.Device, error) {
	device, err := v.device(v.proof.Client)
	if err != nil {
		return nil, err
	}
	if device.Key != v.proof.Key {
		return nil, catalog.Errorf(catalog.MessageOtherDevice, "device %s has another key than the token", device.ClientID)
	}
	device, err = v.limited(device, false)
	return &device, err
}

func (v *visit) signedReader(signed ccm.PolicyAuth) (*site.Device, error) {
	device, err := v.device(signed.ClientID)
	if err != nil {
		return nil, err
	}
	public, err := device.PublicKey()
	if err != nil {
		return nil, err
	}
	if err := signed.Verify(public); err != nil {
		return nil, err
	}
	if age := v.began.Sub(signed.Time); age.Abs() > policyFreshness {
		return nil, catalog.Errorf(catalog.PolicyProofWrong, "signed at %s by the client's clock; the time here is %s", signed.Time.Format(time.RFC3339), v.began.UTC().Format(time.RFC3339))
	}
	v.provedBy(device)
	device, err = v.limited(device, signed.Weak(public))
	return &device, err
}

func (v *visit) refusePolicy(err error) {
	if ours(err) {
		v.refuse(err)
		return
	}
	v.remember(err, "policy", string(v.proof.Client))
	v.reply(http.StatusOK, "text/html", []byte(ccm.PolicyError))
}
