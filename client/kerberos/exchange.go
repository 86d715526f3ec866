package kerberos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
)

// Budgets of an exchange.
const (
	maxReply     = 256 << 10
	maxReferrals = 6
	maxCentres   = 8
	oneTry       = 5 * time.Second
)

// exchange is a row of questions to key distribution centres for one proof. The library's
// own exchanges lose the error's time and number, start goroutines and cannot be stopped;
// here they are made of its messages (RFC 4120 3.1, 3.3).
type exchange struct {
	machine *Machine
	ctx     context.Context
}

// login gets a ticket-granting ticket with the keytab.
func (x *exchange) login() (*ticket, error) {
	c := x.machine.credential
	if c.keytab == nil {
		return nil, catalog.Errorf(catalog.ClientKerberosExpired, "the ticket of %s in %s has ended", c.principal(), x.machine.file)
	}
	realms := *x.machine.realms
	realms.LibDefaults.Canonicalize = false // the name in the keytab is the one that is meant
	realms.LibDefaults.DefaultTktEnctypeIDs = shared(realms.LibDefaults.DefaultTktEnctypeIDs, c.types)
	if len(realms.LibDefaults.DefaultTktEnctypeIDs) == 0 {
		return nil, catalog.Errorf(catalog.ClientKerberosEncryption, "%s has keys of the types %v, and krb5.conf allows none of them", x.machine.file, c.types)
	}
	ask, err := messages.NewASReqForTGT(c.realm, &realms, c.name)
	if err != nil {
		return nil, catalog.Wrap(catalog.ClientKerberosFailed, err, "the login of %s cannot be written", c.principal())
	}
	raw, err := x.ask(c.realm, ask.Marshal)
	if refused, ok := errors.AsType[*refusal](err); ok && refused.code == errorcode.KDC_ERR_PREAUTH_REQUIRED {
		if err := c.preauthenticate(&ask, refused.data); err != nil {
			return nil, catalog.Wrap(catalog.ClientKerberosEncryption, err, "the realm %s wants a key of another type than %s holds", c.realm, x.machine.file)
		}
		raw, err = x.ask(c.realm, ask.Marshal)
	}
	if err != nil {
		return nil, x.explain(err, "")
	}
	return x.granted(raw, ask)
}

func shared(wanted, held []int32) []int32 {
	return slices.DeleteFunc(slices.Clone(wanted), func(t int32) bool { return !slices.Contains(held, t) })
}

// preauthenticate adds the time under the machine's key (RFC 4120 5.2.7.2), with the first
// type of key that the realm names and the keytab has.
func (c *credential) preauthenticate(ask *messages.ASReq, data []byte) error {
	return guarded(func() error {
		var offered types.PADataSequence
		if err := offered.Unmarshal(data); err != nil {
			return err
		}
		kind, err := c.keyType(offered)
		if err != nil {
			return err
		}
		key, version, err := c.keytab.GetEncryptionKey(c.name, c.realm, 0, kind)
		if err != nil {
			return err
		}
		stamp, err := types.GetPAEncTSEncAsnMarshalled()
		if err != nil {
			return err
		}
		sealed, err := crypto.GetEncryptedData(stamp, key, keyusage.AS_REQ_PA_ENC_TIMESTAMP, version)
		if err != nil {
			return err
		}
		value, err := sealed.Marshal()
		ask.PAData = append(ask.PAData, types.PAData{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: value})
		return err
	})
}

func (c *credential) keyType(offered types.PADataSequence) (int32, error) {
	for _, p := range offered {
		if p.PADataType != patype.PA_ETYPE_INFO2 {
			continue
		}
		list, err := p.GetETypeInfo2()
		if err != nil {
			return 0, err
		}
		for _, info := range list {
			if slices.Contains(c.types, info.EType) {
				return info.EType, nil
			}
		}
		return 0, fmt.Errorf("the realm offers %d types of key, none of %v", len(list), c.types)
	}
	return c.types[0], nil
}

// granted opens the answer to a login.
func (x *exchange) granted(raw []byte, ask messages.ASReq) (*ticket, error) {
	c := x.machine.credential
	var reply messages.ASRep
	if err := guarded(func() error { return reply.Unmarshal(raw) }); err != nil {
		return nil, catalog.Wrap(catalog.ClientKerberosFailed, err, "the answer of the realm %s cannot be read", c.realm)
	}
	own := c.library()
	if err := guarded(func() error { _, err := reply.DecryptEncPart(own); return err }); err != nil {
		return nil, catalog.Wrap(catalog.ClientKerberosKey, err, "the answer of the realm %s does not open with the key of %s in %s (the realm used key version %d)", c.realm, c.principal(), x.machine.file, reply.EncPart.KVNO)
	}
	part := reply.DecryptedEncPart
	if skew := time.Until(part.AuthTime); skew.Abs() > x.machine.realms.LibDefaults.Clockskew {
		return nil, clockError(skew, "the realm "+c.realm)
	}
	err := guarded(func() error { _, err := reply.Verify(x.machine.realms, own, ask); return err })
	if err != nil {
		return nil, catalog.Wrap(catalog.ClientKerberosFailed, err, "the answer of the realm %s is not one to this login", c.realm)
	}
	return &ticket{Ticket: reply.Ticket, key: part.Key, end: part.EndTime}, nil
}

// service gets a ticket for HTTP/host, following referrals from realm to realm (RFC 6806
// 8). Name type NT-SRV-HST is what makes MIT's servers refer.
func (x *exchange) service(granting *ticket, host string) (*ticket, error) {
	name := types.PrincipalName{NameType: nametype.KRB_NT_SRV_HST, NameString: []string{"HTTP", host}}
	realms := *x.machine.realms
	realms.LibDefaults.Canonicalize = true // asks Windows servers for referrals
	realm, visited := x.machine.credential.realm, []string{}
	for range maxReferrals {
		visited = append(visited, realm)
		ask, err := messages.NewTGSReq(x.machine.credential.name, realm, &realms, granting.Ticket, granting.key, name, false)
		if err == nil {
			err = x.machine.credential.prove(&ask, granting)
		}
		if err != nil {
			return nil, catalog.Wrap(catalog.ClientKerberosFailed, err, "the question for HTTP/%s cannot be written", host)
		}
		raw, err := x.ask(realm, ask.Marshal)
		if err != nil {
			return nil, x.explain(err, "HTTP/"+host)
		}
		next, referral, err := opened(raw, ask, granting.key)
		switch {
		case err != nil:
			return nil, catalog.Wrap(catalog.ClientKerberosFailed, err, "the answer of the realm %s for HTTP/%s cannot be used", realm, host)
		case referral == "":
			return next, nil
		case slices.Contains(visited, referral):
			return nil, catalog.Errorf(catalog.ClientKerberosServiceUnknown, "HTTP/%s: the realms %s refer to each other in a circle", host, strings.Join(visited, ", "))
		}
		realm, granting = referral, next
	}
	return nil, catalog.Errorf(catalog.ClientKerberosServiceUnknown, "HTTP/%s: more than %d referrals: %s", host, maxReferrals, strings.Join(visited, ", "))
}

// prove puts the ticket-granting ticket and its proof into a question (RFC 4120 3.3.2). The
// library's own proof names the realm that gave the ticket as the device's: true at the
// first referral, and refused from the second on.
func (c *credential) prove(ask *messages.TGSReq, granting *ticket) error {
	body, err := ask.ReqBody.Marshal()
	if err != nil {
		return err
	}
	kind, err := crypto.GetEtype(granting.key.KeyType)
	if err != nil {
		return err
	}
	sum, err := kind.GetChecksumHash(granting.key.KeyValue, body, keyusage.TGS_REQ_PA_TGS_REQ_AP_REQ_AUTHENTICATOR_CHKSUM)
	if err != nil {
		return err
	}
	authenticator, err := types.NewAuthenticator(c.realm, c.name)
	if err != nil {
		return err
	}
	authenticator.Cksum = types.Checksum{CksumType: kind.GetHashID(), Checksum: sum}
	request, err := messages.NewAPReq(granting.Ticket, granting.key, authenticator)
	if err != nil {
		return err
	}
	raw, err := request.Marshal()
	ask.PAData = types.PADataSequence{{PADataType: patype.PA_TGS_REQ, PADataValue: raw}}
	return err
}

// opened returns the ticket of an answer and, when it is one for another realm's ticket
// granting, that realm. What decides is what is sealed for this device, not what stands
// beside it.
func opened(raw []byte, ask messages.TGSReq, key types.EncryptionKey) (t *ticket, referral string, err error) {
	err = guarded(func() error {
		var reply messages.TGSRep
		if err := reply.Unmarshal(raw); err != nil {
			return err
		}
		if err := reply.DecryptEncPart(key); err != nil {
			return err
		}
		part, wanted := reply.DecryptedEncPart, ask.ReqBody.SName
		got := part.SName.NameString
		switch {
		case part.Nonce != ask.ReqBody.Nonce:
			return errors.New("it is not the answer to this question")
		case !reply.CName.Equal(ask.ReqBody.CName):
			return fmt.Errorf("it is for %s", reply.CName.PrincipalNameString())
		case part.SRealm != ask.ReqBody.Realm || reply.Ticket.Realm != part.SRealm || !slices.Equal(got, reply.Ticket.SName.NameString):
			return errors.New("the ticket is not the one that it describes")
		case len(got) == 2 && got[0] == "krbtgt" && got[1] != "":
			referral = got[1]
		case len(got) != 2 || !strings.EqualFold(got[0], wanted.NameString[0]) || !strings.EqualFold(got[1], wanted.NameString[1]):
			return fmt.Errorf("the ticket is for %s", part.SName.PrincipalNameString())
		}
		t = &ticket{Ticket: reply.Ticket, key: part.Key, end: part.EndTime}
		return nil
	})
	return t, referral, err
}

// refusal is a KRB-ERROR.
type refusal struct {
	realm string
	code  int32
	text  string
	at    time.Time // by the clock of who refused
	data  []byte
}

func (r *refusal) Error() string {
	return fmt.Sprintf("realm %s: %s", r.realm, strings.TrimSpace(errorcode.Lookup(r.code)+" "+r.text))
}

// unreachable says that no key distribution centre of a realm answered.
type unreachable struct {
	realm string
	tried []string
	err   error
}

func (u *unreachable) Error() string {
	return fmt.Sprintf("realm %s (%s): %v", u.realm, strings.Join(u.tried, ", "), u.err)
}
func (u *unreachable) Unwrap() error { return u.err }

// ask sends a message to the centres of a realm until one answers.
func (x *exchange) ask(realm string, marshal func() ([]byte, error)) ([]byte, error) {
	message, err := marshal()
	if err != nil {
		return nil, err
	}
	centres, err := x.centres(realm)
	if err != nil {
		return nil, err
	}
	failed := &unreachable{realm: realm, tried: centres}
	for _, address := range centres {
		reply, err := x.send(address, message)
		if err == nil {
			return judge(realm, reply)
		}
		failed.err = errors.Join(failed.err, err)
		if x.ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// judge tells an answer from an error.
func judge(realm string, reply []byte) ([]byte, error) {
	var e messages.KRBError
	if guarded(func() error { return e.Unmarshal(reply) }) != nil {
		return reply, nil
	}
	return nil, &refusal{realm, e.ErrorCode, printable(e.EText), e.STime.Add(time.Duration(e.Susec) * time.Microsecond), e.EData}
}

func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, text)
	return text[:min(len(text), 200)]
}

// centres returns the addresses of a realm's key distribution centres: of krb5.conf, else
// of DNS where krb5.conf does not forbid it.
func (x *exchange) centres(realm string) ([]string, error) {
	var list []string
	for _, r := range x.machine.realms.Realms {
		if r.Realm == realm {
			list = append(list, r.KDC...)
		}
	}
	if len(list) == 0 && x.machine.realms.LibDefaults.DNSLookupKDC {
		_, records, err := net.DefaultResolver.LookupSRV(x.ctx, "kerberos", "tcp", realm)
		if err != nil {
			return nil, &unreachable{realm: realm, tried: []string{"_kerberos._tcp." + realm}, err: err}
		}
		for _, r := range records {
			list = append(list, net.JoinHostPort(strings.TrimSuffix(r.Target, "."), strconv.Itoa(int(r.Port))))
		}
	}
	if len(list) == 0 {
		return nil, catalog.Errorf(catalog.ClientKerberosConfig, "%s names no key distribution centre of the realm %s", x.machine.config.Config, realm)
	}
	for i, address := range list {
		if _, _, err := net.SplitHostPort(address); err != nil {
			list[i] = net.JoinHostPort(strings.Trim(address, "[]"), "88")
		}
	}
	return list[:min(len(list), maxCentres)], nil
}

// send asks one centre over TCP (RFC 4120 7.2.2): answers of Windows seldom fit into UDP.
func (x *exchange) send(address string, message []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(x.ctx, oneTry)
	defer cancel()
	connection, err := x.machine.config.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	stop := context.AfterFunc(ctx, func() { connection.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := connection.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)); err != nil {
		return nil, err
	}
	var size [4]byte
	if _, err := io.ReadFull(connection, size[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(size[:])
	if length == 0 || length > maxReply {
		return nil, fmt.Errorf("%s answers with %d bytes", address, length)
	}
	reply := make([]byte, length)
	_, err = io.ReadFull(connection, reply)
	return reply, err
}
