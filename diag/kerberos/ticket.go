package kerberos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
	"postern/diag"
)

// maxReferrals bounds the realms on the way; a forest's tree is not deeper.
const maxReferrals = 10

// follow asks a ticket for a service, beginning at the realm of a ticket-granting
// ticket and following referrals (RFC 6806 8). The path is the realms that were asked.
func (r *run) follow(ctx context.Context, tgt *ticket, service types.PrincipalName) (got *ticket, path []string, err error) {
	for at := tgt; len(path) < maxReferrals; at = got {
		realm := at.takenBy()
		if slices.Contains(path, realm) {
			return nil, append(path, realm), catalog.Errorf(catalog.CheckKDCRefused, "the realms refer to each other in a circle: %s", strings.Join(append(path, realm), " → "))
		}
		path = append(path, realm)
		if got, err = r.grant(ctx, at, service); err != nil {
			return nil, path, err
		}
		if next := got.takenBy(); got.name.NameString[0] != "krbtgt" || sameName(got.name, service) || next == realm {
			return got, path, nil
		}
	}
	return nil, path, catalog.Errorf(catalog.CheckKDCRefused, "more than %d referrals: %s", maxReferrals, strings.Join(path, " → "))
}

// grant asks the KDC that takes tgt for one ticket (RFC 4120 3.3).
func (r *run) grant(ctx context.Context, tgt *ticket, service types.PrincipalName) (*ticket, error) {
	realm := tgt.takenBy()
	body := r.requestBody(tgt.client, service, realm, offered)
	request := messages.TGSReq{KDCReqFields: messages.KDCReqFields{PVNO: iana.PVNO, MsgType: msgtype.KRB_TGS_REQ, ReqBody: body}}
	proof, err := r.proofOf(tgt, body)
	if err != nil {
		return nil, err
	}
	request.PAData = types.PADataSequence{{PADataType: patype.PA_TGS_REQ, PADataValue: proof}}
	encoded, err := request.Marshal()
	if err != nil {
		return nil, err
	}
	answer, err := r.ask(ctx, realm, encoded)
	if err != nil {
		return nil, err
	}
	return openGrant(answer, tgt, body.Nonce)
}

// proofOf is the AP-REQ that goes with a request for a ticket, with a checksum over the
// request's body.
func (r *run) proofOf(tgt *ticket, body messages.KDCReqBody) ([]byte, error) {
	encoded, err := body.Marshal()
	if err != nil {
		return nil, err
	}
	kind, err := crypto.GetEtype(tgt.key.KeyType)
	if err != nil {
		return nil, catalog.Wrap(catalog.CheckNoCommonEncryption, err, "session key of %s", EncryptionName(tgt.key.KeyType))
	}
	sum, err := kind.GetChecksumHash(tgt.key.KeyValue, encoded, keyusage.TGS_REQ_PA_TGS_REQ_AP_REQ_AUTHENTICATOR_CHKSUM)
	if err != nil {
		return nil, err
	}
	request, _, err := r.apRequest(tgt, types.Checksum{CksumType: kind.GetHashID(), Checksum: sum})
	if err != nil {
		return nil, err
	}
	return request.Marshal()
}

// apRequest makes the proof that we hold a ticket's session key, at the KDC's time.
func (r *run) apRequest(t *ticket, sum types.Checksum) (messages.APReq, types.Authenticator, error) {
	now := r.now()
	authenticator := types.Authenticator{
		AVNO: iana.PVNO, CRealm: t.realm, CName: t.client, Cksum: sum,
		CTime: now.Truncate(time.Second), Cusec: now.Nanosecond() / 1000, SeqNumber: int64(nonce() & 0x3fffffff),
	}
	request, err := messages.NewAPReq(t.ticket, t.key, authenticator)
	return request, authenticator, err
}

func openGrant(answer []byte, tgt *ticket, nonce int) (got *ticket, err error) {
	defer guard(&err)
	var reply messages.TGSRep
	if err := reply.Unmarshal(answer); err != nil {
		return nil, catalog.Wrap(catalog.CheckKDCRefused, err, "the KDC's answer cannot be read")
	}
	if err := reply.DecryptEncPart(tgt.key); err != nil {
		return nil, catalog.Wrap(catalog.CheckKDCRefused, err, "the KDC's answer cannot be decrypted")
	}
	inside := reply.DecryptedEncPart
	if inside.Nonce != nonce || len(reply.Ticket.SName.NameString) == 0 {
		return nil, catalog.Errorf(catalog.CheckKDCRefused, "the KDC's answer is to another request")
	}
	return &ticket{ticket: reply.Ticket, name: reply.Ticket.SName, client: tgt.client, realm: tgt.realm, key: inside.Key, ends: inside.EndTime}, nil
}

// checkTicket gets the ticket for the management point.
func (r *run) checkTicket(ctx context.Context) []diag.Finding {
	switch {
	case r.host == "":
		return []diag.Finding{diag.NotLooked("no server was named: give --server")}
	case r.tgt == nil:
		return []diag.Finding{diag.NotLooked("there is no ticket-granting ticket to ask with")}
	}
	got, path, err := r.follow(ctx, r.tgt, r.serviceName())
	if err != nil {
		return []diag.Finding{r.judgeRefusal(ctx, err, r.serviceName(), path)}
	}
	r.service = got
	detail := fmt.Sprintf("%s@%s, version %d, %s", got.ticket.SName.PrincipalNameString(), got.ticket.Realm, got.ticket.EncPart.KVNO, EncryptionName(got.ticket.EncPart.EType))
	if len(path) > 1 {
		detail += "\nby referral: " + strings.Join(path, " → ")
	}
	findings := append([]diag.Finding{diag.Good("the KDC gives a ticket for the management point", "%s", detail)}, weakTicket(got)...)
	if len(r.server) > 0 {
		findings = append(findings, r.judgeServiceKey(got)...)
	}
	return findings
}

// weakTicket finds a ticket that the management point refuses for its encryption.
func weakTicket(t *ticket) []diag.Finding {
	if !weak(t.ticket.EncPart.EType) {
		return nil
	}
	return []diag.Finding{diag.Found(diag.Warn, catalog.CheckWeakTicket, "%s@%s: %s", t.ticket.SName.PrincipalNameString(), t.ticket.Realm, EncryptionName(t.ticket.EncPart.EType))}
}

// ticketCodes say what a KDC's refusal of a ticket means, where that needs no look at
// realms.
var ticketCodes = map[int32]catalog.Code{
	errorcode.KDC_ERR_PRINCIPAL_NOT_UNIQUE: catalog.CheckNameDuplicate,
	errorcode.KDC_ERR_ETYPE_NOSUPP:         catalog.CheckNoCommonEncryption,
	errorcode.KRB_AP_ERR_SKEW:              catalog.CheckClockSkew,
	errorcode.KDC_ERR_CLIENT_REVOKED:       catalog.CheckAccountDisabled,
}

// judgeRefusal says why there is no ticket.
func (r *run) judgeRefusal(ctx context.Context, err error, service types.PrincipalName, path []string) diag.Finding {
	var refused *refusal
	if !errors.As(err, &refused) {
		finding := diag.FromError(diag.Fail, err, catalog.CheckKDCRefused)
		if len(path) > 1 {
			finding.Detail += "\non the way " + strings.Join(path, " → ")
		}
		return finding
	}
	if refused.code == errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN {
		return r.judgeUnknown(ctx, service, path)
	}
	code, ok := ticketCodes[refused.code]
	if !ok {
		code = catalog.CheckKDCRefused
	}
	return diag.Found(diag.Fail, code, "%s: %v%s", service.PrincipalNameString(), refused, onTheWay(path))
}

func onTheWay(path []string) string {
	if len(path) < 2 {
		return ""
	}
	return "\non the way " + strings.Join(path, " → ")
}

// judgeUnknown tells a name that is registered nowhere from one that lies in a realm to
// which ours refers nobody: it asks our realm for a way to each realm that the name's
// DNS domain could be.
func (r *run) judgeUnknown(ctx context.Context, service types.PrincipalName, path []string) diag.Finding {
	name, last := service.PrincipalNameString(), path[len(path)-1]
	host := service.NameString[len(service.NameString)-1]
	if len(path) > 1 {
		return diag.Found(diag.Fail, catalog.CheckServiceUnknown, "%s: realm %s, to which the referrals lead (%s), does not know it", name, last, strings.Join(path, " → "))
	}
	candidates := r.realmsOf(host)
	for _, realm := range candidates {
		if strings.EqualFold(realm, last) {
			break
		}
		way := types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: []string{"krbtgt", realm}}
		tgt, err := r.grant(ctx, r.tgt, way)
		if err != nil || !sameName(tgt.name, way) {
			continue
		}
		if _, err := r.grant(ctx, tgt, service); err != nil {
			return diag.Found(diag.Fail, catalog.CheckServiceUnknown, "%s: neither %s nor %s, which it trusts, gives a ticket (%v)", name, last, realm, plain(err))
		}
		return diag.Found(diag.Fail, catalog.CheckNoReferral, "%s: %s does not refer to %s, where the name is; a client that guesses the realm gets a ticket, Windows does not guess. That is what an external trust looks like", name, last, realm)
	}
	if under(host, last) || r.config.ResolveRealm(host) == last {
		return diag.Found(diag.Fail, catalog.CheckServiceUnknown, "%s: realm %s, to whose domain the name belongs, does not know it", name, last)
	}
	finding := diag.Found(diag.Fail, catalog.CheckNoReferral, "%s: realm %s does not know the name, refers to no other realm, and has no way to %s", name, last, strings.Join(candidates, " or "))
	if len(candidates) == 0 {
		finding.Detail = fmt.Sprintf("%s: realm %s does not know the name and refers to no other realm", name, last)
	}
	return finding
}

// realmsOf returns the realms that a host could be in, the likeliest first: what
// krb5.conf says, then its DNS domain and that domain's parents.
func (r *run) realmsOf(host string) (realms []string) {
	if configured := r.config.ResolveRealm(host); configured != "" {
		realms = append(realms, configured)
	}
	_, domain, _ := strings.Cut(host, ".")
	for strings.Contains(domain, ".") && len(realms) < 4 {
		if realm := strings.ToUpper(domain); !slices.Contains(realms, realm) {
			realms = append(realms, realm)
		}
		_, domain, _ = strings.Cut(domain, ".")
	}
	return realms
}

// under says whether a host is in a realm's DNS domain, on a label's boundary.
func under(host, realm string) bool {
	return realm != "" && strings.HasSuffix("."+strings.ToLower(host), "."+strings.ToLower(realm))
}
