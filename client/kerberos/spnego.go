package kerberos

import (
	"bytes"
	"crypto/md5"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
)

// What begins a Kerberos token inside GSS-API (RFC 4121 4.1).
const (
	tokenRequest = "\x01\x00"
	tokenReply   = "\x02\x00"
	tokenError   = "\x03\x00"
)

// maxToken bounds what a server sends.
const maxToken = 64 << 10

// request is one AP-REQ and what its answer is checked against.
type request struct {
	token   []byte
	service string
	key     types.EncryptionKey
	time    time.Time
	micro   int
	now     func() time.Time
}

// newRequest makes the token for a server: NegTokenInit with Kerberos alone, and in it the
// AP-REQ with mutual authentication asked for.
func newRequest(c *credential, t *ticket, binding []byte, now func() time.Time) (*request, error) {
	authenticator, err := types.NewAuthenticator(c.realm, c.name)
	if err != nil {
		return nil, err
	}
	authenticator.Cksum = types.Checksum{CksumType: chksumtype.GSSAPI, Checksum: checksum(binding)}
	ask, err := messages.NewAPReq(t.Ticket, t.key, authenticator)
	if err != nil {
		return nil, err
	}
	types.SetFlag(&ask.APOptions, flags.APOptionMutualRequired)
	raw, err := ask.Marshal()
	if err != nil {
		return nil, err
	}
	token, err := wrap(raw)
	return &request{token, t.SName.PrincipalNameString(), t.key, authenticator.CTime, authenticator.Cusec, now}, err
}

// checksum is the authenticator's: the hash of the channel binding and the flags (RFC
// 4121 4.1.1).
func checksum(binding []byte) []byte {
	sum := binary.LittleEndian.AppendUint32(nil, 16)
	sum = append(sum, bindingHash(binding)...)
	return binary.LittleEndian.AppendUint32(sum, gssapi.ContextFlagMutual|gssapi.ContextFlagInteg)
}

// bindingHash is the hash over gss_channel_bindings_struct with nothing but application
// data (RFC 4121 4.1.1.2); zeros say that there is no binding.
func bindingHash(binding []byte) []byte {
	if len(binding) == 0 {
		return make([]byte, md5.Size)
	}
	structure := make([]byte, 16) // initiator and acceptor: no type, no address
	structure = binary.LittleEndian.AppendUint32(structure, uint32(len(binding)))
	sum := md5.Sum(append(structure, binding...)) // the hash is the RFC's choice
	return sum[:]
}

func oid(name gssapi.OIDName) asn1.ObjectIdentifier { return asn1.ObjectIdentifier(name.OID()) }

// wrap puts an AP-REQ into GSS-API's frame and that into NegTokenInit (RFC 4178 4.2.1).
func wrap(request []byte) ([]byte, error) {
	krb5, err := asn1.Marshal(oid(gssapi.OIDKRB5))
	if err != nil {
		return nil, err
	}
	mechanism := asn1tools.AddASNAppTag(bytes.Join([][]byte{krb5, []byte(tokenRequest), request}, nil), 0)
	init, err := asn1.MarshalWithParams(struct {
		Types []asn1.ObjectIdentifier `asn1:"explicit,tag:0"`
		Token []byte                  `asn1:"explicit,tag:2"`
	}{[]asn1.ObjectIdentifier{oid(gssapi.OIDKRB5)}, mechanism}, "explicit,tag:0")
	if err != nil {
		return nil, err
	}
	spnego, err := asn1.Marshal(oid(gssapi.OIDSPNEGO))
	return asn1tools.AddASNAppTag(append(spnego, init...), 0), err
}

// negTokenResp is a server's answer (RFC 4178 4.2.2).
type negTokenResp struct {
	State     asn1.Enumerated       `asn1:"explicit,optional,tag:0,default:-1"`
	Mechanism asn1.ObjectIdentifier `asn1:"explicit,optional,tag:1"`
	Token     []byte                `asn1:"explicit,optional,tag:2"`
	MIC       []byte                `asn1:"explicit,optional,tag:3"`
}

const (
	acceptCompleted = 0
	stateRejected   = 2
)

func parseResponse(token []byte) (negTokenResp, error) {
	var r negTokenResp
	switch rest, err := asn1.UnmarshalWithParams(token, &r, "explicit,tag:1"); {
	case len(token) > maxToken:
		return negTokenResp{}, fmt.Errorf("%d bytes", len(token))
	case err != nil:
		return negTokenResp{}, err
	case len(rest) > 0:
		return negTokenResp{}, errors.New("more follows its end")
	}
	return r, nil
}

// unwrap returns the kind and the content of a Kerberos token in GSS-API's frame. Some
// servers leave the frame away.
func unwrap(token []byte) (kind string, content []byte, err error) {
	var frame asn1.RawValue
	rest, err := asn1.Unmarshal(token, &frame)
	switch {
	case err != nil:
		return "", nil, err
	case len(rest) > 0:
		return "", nil, errors.New("more follows its end")
	case frame.Class == asn1.ClassApplication && frame.Tag == 15:
		return tokenReply, token, nil
	case frame.Class == asn1.ClassApplication && frame.Tag == 30:
		return tokenError, token, nil
	case frame.Class != asn1.ClassApplication || frame.Tag != 0:
		return "", nil, errors.New("it is no Kerberos token")
	}
	var mechanism asn1.ObjectIdentifier
	content, err = asn1.Unmarshal(frame.Bytes, &mechanism)
	if err != nil || len(content) < 2 || !mechanism.Equal(oid(gssapi.OIDKRB5)) && !mechanism.Equal(oid(gssapi.OIDMSLegacyKRB5)) {
		return "", nil, errors.New("it is of another mechanism")
	}
	return string(content[:2]), content[2:], nil
}

// verify is the device's check that the server could open the ticket: only who has the
// service's key knows the session key, and with it the authenticator's time. It returns
// nil when that is so. Codes: ClientKerberosServer, and for a token that says why the
// server refused ClientKerberosClock, ClientKerberosTicket and ClientKerberosFailed.
func (q *request) verify(reply []byte) error {
	unproven := func(err error, text string) error {
		return catalog.Wrap(catalog.ClientKerberosServer, err, "%s, which says it is %s", text, q.service)
	}
	response, err := parseResponse(reply)
	if err != nil {
		return unproven(err, "there is no readable token of the server")
	}
	var kind string
	var content []byte
	if len(response.Token) > 0 {
		if kind, content, err = unwrap(response.Token); err != nil {
			return unproven(err, "there is no readable token of the server")
		}
	}
	switch {
	case kind == tokenError:
		return q.refused(content)
	case response.State == stateRejected:
		return catalog.Errorf(catalog.ClientKerberosTicket, "the server rejected the ticket for %s", q.service)
	case kind != tokenReply:
		return unproven(nil, "there is no proof of the server")
	case response.State > acceptCompleted:
		return unproven(nil, "the negotiation is not complete with the server")
	}
	var part messages.EncAPRepPart
	err = guarded(func() error {
		var answer messages.APRep
		if err := answer.Unmarshal(content); err != nil {
			return err
		}
		opened, err := crypto.DecryptEncPart(answer.EncPart, q.key, keyusage.AP_REP_ENCPART)
		if err != nil {
			return err
		}
		return part.Unmarshal(opened)
	})
	switch {
	case err != nil:
		return unproven(err, "the proof does not open with the session key: it is not of the server")
	case part.CTime.Unix() != q.time.Unix() || part.Cusec != q.micro:
		return unproven(nil, "the proof is one to another request of the server")
	}
	return nil
}

// refused reads the reason in a server's KRB-ERROR. Nobody has signed it: it explains a
// refusal and decides nothing.
func (q *request) refused(content []byte) error {
	var e messages.KRBError
	if err := guarded(func() error { return e.Unmarshal(content) }); err != nil {
		return catalog.Wrap(catalog.ClientKerberosServer, err, "the server's error cannot be read")
	}
	said := &refusal{q.service, e.ErrorCode, printable(e.EText), e.STime.Add(time.Duration(e.Susec) * time.Microsecond), nil}
	switch e.ErrorCode {
	case errorcode.KRB_AP_ERR_SKEW, errorcode.KRB_AP_ERR_TKT_NYV:
		return clockError(said.at.Sub(q.now()), q.service)
	}
	return catalog.Wrap(catalog.ClientKerberosTicket, said, "the server says %s to the ticket for %s", name(e.ErrorCode), q.service)
}
