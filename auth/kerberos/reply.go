package kerberos

import (
	"crypto/hmac"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"postern/catalog"
)

// Flags of a MIC token (RFC 4121 4.2.2) and its length without the checksum.
const (
	micFromAcceptor   = 1
	micSealed         = 2
	micAcceptorSubkey = 4
	micHeader         = 16
)

// reply builds the token for the answer: proof of ourselves when the client asks for
// it, and a MIC over the list of mechanisms when the client sent one.
func (v *visit) reply() ([]byte, error) {
	var token, mic []byte
	if v.request.mutual || v.binding.mutual {
		message, err := v.proveServer()
		if err != nil {
			return nil, fmt.Errorf("prove the server to %s: %w", v.proved.LogName(), err)
		}
		token = frame(tokenReply, message)
	}
	if len(v.offer.mic) > 0 {
		mic = v.mechanismMIC()
	}
	return v.offer.accept(token, mic), nil
}

// proveServer builds an AP-REP (RFC 4120 5.5.2): only who could open the ticket can send
// the client's time back under the session key.
func (v *visit) proveServer() ([]byte, error) {
	part, err := v.session.seal(usageReply, v.replyPart())
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddASN1(application(asnAppTag.APREP), func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			addNumber(b, 0, iana.PVNO)
			addNumber(b, 1, msgtype.KRB_AP_REP)
			b.AddASN1(field(2), func(b *cryptobyte.Builder) {
				b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
					addNumber(b, 0, int64(v.session.kind))
					addOptional(b, 2, der.OCTET_STRING, part)
				})
			})
		})
	})
	return b.Bytes()
}

// replyPart is the EncAPRepPart. We begin to count where the client does.
func (v *visit) replyPart() []byte {
	var b cryptobyte.Builder
	b.AddASN1(application(asnAppTag.EncAPRepPart), func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			addOptional(b, 0, der.GeneralizedTime, []byte(v.authenticator.time.UTC().Format("20060102150405Z")))
			addNumber(b, 1, int64(v.authenticator.microseconds))
			addNumber(b, 3, int64(v.authenticator.sequence))
		})
	})
	return b.BytesOrPanic()
}

func addNumber(b *cryptobyte.Builder, number uint8, value int64) {
	b.AddASN1(field(number), func(b *cryptobyte.Builder) { b.AddASN1Int64(value) })
}

// clockError tells the client our time, when its clock was the reason; nil otherwise.
// MIT's GSSAPI then says "Clock skew too great" instead of a mere refusal.
func (v *visit) clockError() []byte {
	if !v.skewed {
		return nil
	}
	failure := messages.KRBError{
		PVNO: iana.PVNO, MsgType: msgtype.KRB_ERROR, ErrorCode: errorcode.KRB_AP_ERR_SKEW,
		STime: v.now.UTC(), Susec: v.now.Nanosecond() / 1000, Realm: v.request.realm,
		SName: types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: strings.Split(v.request.service, "/")},
	}
	message, err := failure.Marshal()
	if err != nil {
		return nil
	}
	return frame(tokenError, message)
}

// contextKey is the key of the GSS context: the client's own, when it sent one
// (RFC 4121 2).
func (v *visit) contextKey() *secret {
	if v.authenticator.subkey.etype != nil {
		return &v.authenticator.subkey
	}
	return &v.session
}

// checkMechanismList verifies the MIC over the list of mechanisms, which shows whether
// somebody cut a better one out of it (RFC 4178 5).
func (v *visit) checkMechanismList() error {
	mic := v.offer.mic
	if len(mic) == 0 {
		return nil
	}
	key := v.contextKey()
	if key.kind == etypeID.RC4_HMAC {
		return catalog.Errorf(catalog.KerberosMechanismListAltered, "the list of mechanisms is signed with RC4, which is not verified here")
	}
	if len(mic) <= micHeader || mic[0] != 4 || mic[1] != 4 || mic[2]&(micFromAcceptor|micSealed|micAcceptorSubkey) != 0 {
		return catalog.Errorf(catalog.KerberosMechanismListAltered, "the signature over the list of mechanisms cannot be read")
	}
	header, sum := mic[:micHeader], mic[micHeader:]
	if !hmac.Equal(key.checksum(usageClientMIC, v.offer.list, header), sum) {
		return catalog.Errorf(catalog.KerberosMechanismListAltered, "the signature over the list of mechanisms does not fit")
	}
	return nil
}

// mechanismMIC is our MIC over the client's list.
func (v *visit) mechanismMIC() []byte {
	header := make([]byte, micHeader, micHeader+24)
	copy(header, []byte{4, 4, micFromAcceptor, 0xff, 0xff, 0xff, 0xff, 0xff})
	binary.BigEndian.PutUint64(header[8:], uint64(v.authenticator.sequence))
	return append(header, v.contextKey().checksum(usageServerMIC, v.offer.list, header)...)
}
