package kerberos

import (
	"context"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
	"postern/diag"
)

// offered are the encryption types that we name to a KDC: a Windows client's, with the
// newer ones. RC4 is among them on purpose: a KDC that would use it is to say so.
var offered = []int32{18, 17, 20, 19, 23}

// ticket is a ticket that we hold, with its session key.
type ticket struct {
	ticket messages.Ticket
	name   types.PrincipalName // of the service
	client types.PrincipalName // whose it is, as the KDC writes it
	realm  string              // of the client
	key    types.EncryptionKey
	ends   time.Time
}

// takenBy is the realm whose KDC takes a ticket-granting ticket.
func (t *ticket) takenBy() string {
	if names := t.ticket.SName.NameString; len(names) == 2 && names[0] == "krbtgt" {
		return names[1]
	}
	return t.ticket.Realm
}

// loginFacts are what a login showed beside the ticket.
type loginFacts struct {
	kinds   []int32 // the types of the account's keys, as the KDC names them
	version int     // of the key that the reply is encrypted with, 0 when not said
	proof   bool    // the KDC wanted a proof first
}

// probe is a request that any KDC answers, for our account or for one that no realm
// has.
func (r *run) probe() *messages.ASReq {
	if len(r.client.NameString) == 0 {
		return r.probeNobody()
	}
	request := r.asRequest(r.client, r.realm, offered)
	return &request
}

// probeNobody asks for an account that no realm has, to be refused.
func (r *run) probeNobody() *messages.ASReq {
	name := types.PrincipalName{NameType: nametype.KRB_NT_PRINCIPAL, NameString: []string{"postern-check"}}
	request := r.asRequest(name, r.realm, offered)
	return &request
}

// asRequest asks a ticket-granting ticket (RFC 4120 5.4.1).
func (r *run) asRequest(name types.PrincipalName, realm string, kinds []int32) messages.ASReq {
	service := types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: []string{"krbtgt", realm}}
	return messages.ASReq{KDCReqFields: messages.KDCReqFields{
		PVNO: iana.PVNO, MsgType: msgtype.KRB_AS_REQ, ReqBody: r.requestBody(name, service, realm, kinds),
	}}
}

func (r *run) requestBody(client, service types.PrincipalName, realm string, kinds []int32) messages.KDCReqBody {
	options := types.NewKrbFlags()
	types.SetFlag(&options, flags.Canonicalize)
	types.SetFlag(&options, flags.RenewableOK)
	return messages.KDCReqBody{
		KDCOptions: options, CName: client, Realm: realm, SName: service, Nonce: nonce(), EType: kinds,
		Till: r.now().Add(time.Hour).Truncate(time.Second),
	}
}

func nonce() int {
	n, err := rand.Int(rand.Reader, big.NewInt(math.MaxInt32))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return int(n.Int64())
}

// login gets a ticket-granting ticket for a name with one of the keys, of which there
// is at least one. Its errors are codes of the catalogue.
func (r *run) login(ctx context.Context, name types.PrincipalName, realm string, keys []key) (*ticket, loginFacts, error) {
	var facts loginFacts
	request := r.asRequest(name, realm, kindsOf(keys))
	reply, err := r.sendAS(ctx, &request, realm)
	var refused *refusal
	if errors.As(err, &refused) && refused.code == errorcode.KDC_ERR_PREAUTH_REQUIRED {
		facts.proof, facts.kinds = true, kindsOfferedBy(refused.data)
		if err := r.addProof(&request, pickKey(keys, facts.kinds)); err != nil {
			return nil, facts, err
		}
		reply, err = r.sendAS(ctx, &request, realm)
	}
	if err != nil {
		return nil, facts, loginError(err, name)
	}
	facts.version = reply.EncPart.KVNO
	got, err := openLogin(reply, keys, request.ReqBody)
	return got, facts, err
}

func (r *run) sendAS(ctx context.Context, request *messages.ASReq, realm string) (*messages.ASRep, error) {
	encoded, err := request.Marshal()
	if err != nil {
		return nil, err
	}
	answer, err := r.ask(ctx, realm, encoded)
	if err != nil {
		return nil, err
	}
	return parseASReply(answer)
}

// addProof encrypts the time with our key (RFC 4120 5.2.7.2).
func (r *run) addProof(request *messages.ASReq, k key) error {
	now := r.now()
	stamp := types.PAEncTSEnc{PATimestamp: now.Truncate(time.Second), PAUSec: now.Nanosecond() / 1000}
	encoded, err := asn1.Marshal(stamp)
	if err != nil {
		return err
	}
	sealed, err := crypto.GetEncryptedData(encoded, k.key, keyusage.AS_REQ_PA_ENC_TIMESTAMP, k.version)
	if err != nil {
		return catalog.Wrap(catalog.CheckNoCommonEncryption, err, "encrypt with the keytab's key (%s)", EncryptionName(k.key.KeyType))
	}
	value, err := sealed.Marshal()
	if err != nil {
		return err
	}
	request.PAData = types.PADataSequence{{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: value}}
	return nil
}

// pickKey takes the newest key of a type that the KDC named first.
func pickKey(keys []key, kinds []int32) key {
	for _, kind := range kinds {
		for _, k := range keys {
			if k.key.KeyType == kind {
				return k
			}
		}
	}
	return keys[0]
}

// kindsOf are the types of the keys, in our order. Where all are weak, AES comes after
// them for the session key, which a KDC gives to who has an old key too.
func kindsOf(keys []key) []int32 {
	var kinds []int32
	for _, kind := range offered {
		if slices.ContainsFunc(keys, func(k key) bool { return k.key.KeyType == kind }) {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) == 0 {
		kinds = []int32{keys[0].key.KeyType}
	}
	if weak(kinds[0]) {
		kinds = append(kinds, 18, 17)
	}
	return kinds
}

// kindsOfferedBy reads the account's encryption types out of the KDC's refusal
// (ETYPE-INFO2, RFC 4120 5.2.7.5).
func kindsOfferedBy(data []byte) (kinds []int32) {
	var err error
	defer guard(&err)
	var sequence types.PADataSequence
	if sequence.Unmarshal(data) != nil {
		return nil
	}
	for _, item := range sequence {
		if item.PADataType != patype.PA_ETYPE_INFO2 {
			continue
		}
		if info, err := item.GetETypeInfo2(); err == nil {
			for _, entry := range info {
				kinds = append(kinds, entry.EType)
			}
		}
	}
	return kinds
}

func parseASReply(answer []byte) (reply *messages.ASRep, err error) {
	defer guard(&err)
	reply = new(messages.ASRep)
	if err := reply.Unmarshal(answer); err != nil {
		return nil, catalog.Wrap(catalog.CheckKDCRefused, err, "the KDC's answer cannot be read")
	}
	return reply, nil
}

// openASReply decrypts what a login reply holds for us.
func openASReply(reply *messages.ASRep, k types.EncryptionKey) (inside messages.EncKDCRepPart, err error) {
	defer guard(&err)
	plain, err := crypto.DecryptEncPart(reply.EncPart, k, keyusage.AS_REP_ENCPART)
	if err != nil {
		return inside, err
	}
	return inside, inside.Unmarshal(plain)
}

// openLogin reads a login reply with whichever of the keys fits.
func openLogin(reply *messages.ASRep, keys []key, asked messages.KDCReqBody) (*ticket, error) {
	code := catalog.CheckKeytabIncomplete
	for _, k := range keys {
		if k.key.KeyType != reply.EncPart.EType {
			continue
		}
		code = catalog.CheckAccountKeyWrong
		inside, err := openASReply(reply, k.key)
		if err != nil {
			continue
		}
		if inside.Nonce != asked.Nonce {
			return nil, catalog.Errorf(catalog.CheckKDCRefused, "the KDC's answer is to another request")
		}
		return &ticket{ticket: reply.Ticket, name: reply.Ticket.SName, client: reply.CName, realm: reply.CRealm, key: inside.Key, ends: inside.EndTime}, nil
	}
	return nil, catalog.Errorf(code, "the keytab cannot read the KDC's answer for %s@%s: that is encrypted with %s%s; the keytab has\n%s",
		asked.CName.PrincipalNameString(), asked.Realm, EncryptionName(reply.EncPart.EType), versionWords(reply.EncPart.KVNO), describeKeys(keys))
}

// versionWords is empty for a KDC that does not say its key's version, as MIT's.
func versionWords(version int) string {
	if version == 0 {
		return ""
	}
	return fmt.Sprintf(", key version %d", version)
}

// loginCodes say what a KDC's refusal of a login means.
var loginCodes = map[int32]catalog.Code{
	errorcode.KDC_ERR_NAME_EXP:            catalog.CheckPasswordExpired,
	errorcode.KDC_ERR_KEY_EXPIRED:         catalog.CheckPasswordExpired,
	errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN: catalog.CheckAccountUnknown,
	errorcode.KDC_ERR_CLIENT_REVOKED:      catalog.CheckAccountDisabled,
	errorcode.KDC_ERR_PREAUTH_FAILED:      catalog.CheckAccountKeyWrong,
	errorcode.KRB_AP_ERR_MODIFIED:         catalog.CheckAccountKeyWrong,
	errorcode.KRB_AP_ERR_BAD_INTEGRITY:    catalog.CheckAccountKeyWrong,
	errorcode.KDC_ERR_ETYPE_NOSUPP:        catalog.CheckNoCommonEncryption,
	errorcode.KRB_AP_ERR_SKEW:             catalog.CheckClockSkew,
	errorcode.KDC_ERR_WRONG_REALM:         catalog.CheckRealmUnknown,
}

func loginError(err error, name types.PrincipalName) error {
	var refused *refusal
	if !errors.As(err, &refused) {
		return err
	}
	code, ok := loginCodes[refused.code]
	if !ok {
		code = catalog.CheckKDCRefused
	}
	return catalog.Errorf(code, "%s@%s: %v", name.PrincipalNameString(), refused.realm, refused)
}

// checkLogin gets our ticket-granting ticket.
func (r *run) checkLogin(ctx context.Context) []diag.Finding {
	switch {
	case !r.canTry():
		return []diag.Finding{diag.NotLooked("there is no credential to try with")}
	case r.cache != nil:
		return r.loginFromCache()
	case !r.answered:
		return []diag.Finding{diag.NotLooked("no KDC answered")}
	case len(r.ownKeys()) == 0:
		return []diag.Finding{diag.NotLooked("the keytab holds no key of the account")}
	}
	got, facts, err := r.login(ctx, r.client, r.realm, r.ownKeys())
	if err != nil {
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.CheckKDCRefused)}
	}
	r.tgt = got
	detail := fmt.Sprintf("%s@%s, ticket %s, session key %s", r.client.PrincipalNameString(), r.realm, EncryptionName(got.ticket.EncPart.EType), EncryptionName(got.key.KeyType))
	if len(facts.kinds) > 0 {
		detail += "\nthe account has keys of " + namesOf(facts.kinds)
	}
	return []diag.Finding{diag.Good("the KDC knows the account and its key", "%s", detail)}
}

func (r *run) loginFromCache() []diag.Finding {
	got, err := r.cachedLogin()
	if err != nil {
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.CheckNoCredential)}
	}
	r.tgt = got
	return []diag.Finding{diag.Good("the credential cache has a ticket-granting ticket", "%s@%s, good until %s", r.client.PrincipalNameString(), r.realm, got.ends.Format("2006-01-02 15:04:05Z"))}
}

func namesOf(kinds []int32) string {
	words := make([]string, len(kinds))
	for i, kind := range kinds {
		words[i] = EncryptionName(kind)
	}
	return strings.Join(words, ", ")
}
