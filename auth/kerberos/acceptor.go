package kerberos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync/atomic"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/proof"
)

// Binding says what becomes of tickets that are not bound to the TLS connection.
type Binding int

const (
	// WhenSent accepts a ticket without channel binding, unless its client says that it
	// always binds. A wrong binding is refused always.
	WhenSent Binding = iota
	// Required refuses tickets without channel binding, on plain HTTP too.
	Required
)

var bindingNames = map[string]Binding{"": WhenSent, "when-sent": WhenSent, "required": Required}

// ParseBinding reads the setting channel_binding: "when-sent" (also "") or "required".
func ParseBinding(text string) (Binding, error) {
	binding, ok := bindingNames[text]
	if !ok {
		return WhenSent, fmt.Errorf("channel_binding is %q; it must be when-sent or required", text)
	}
	return binding, nil
}

const (
	// DefaultSkew is how far clocks may differ (RFC 4120 3.2.3).
	DefaultSkew = 5 * time.Minute
	// useLeeway is kept on top when a use is noted, for nodes whose clocks differ.
	useLeeway = time.Minute
)

// Config is what an Acceptor works with. Keytab and Replay are needed.
type Config struct {
	Keytab   *Keytab
	Realms   func() []proof.Realm // realms that are trusted beside the keytab's own; nil: none
	AllowRC4 bool                 // RC4 tickets too, never DES
	Binding  Binding
	Replay   auth.Replay      // this node's memory of authenticators
	Now      func() time.Time // nil: time.Now
	Skew     time.Duration    // zero: DefaultSkew
}

// Acceptor implements auth.Negotiator. It is safe for concurrent use.
type Acceptor struct {
	config Config
	keytab atomic.Pointer[Keytab]
	hashes certificateHashes
}

// New returns an acceptor. It refuses, with KerberosKeytabOnlyWeak, a keytab none of
// whose keys it may use.
func New(config Config) (*Acceptor, error) {
	if config.Keytab == nil || config.Replay == nil {
		return nil, fmt.Errorf("make an acceptor: a keytab and a replay memory are needed")
	}
	if config.Realms == nil {
		config.Realms = func() []proof.Realm { return nil }
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Skew == 0 {
		config.Skew = DefaultSkew
	}
	a := &Acceptor{config: config}
	return a, a.Reload(config.Keytab)
}

// Reload makes tokens be judged with another keytab from now on; those under way end
// with the one they began with. On an error the old keytab stays.
func (a *Acceptor) Reload(keytab *Keytab) error {
	if !keytab.usable(a.config.AllowRC4) {
		return catalog.Errorf(catalog.KerberosKeytabOnlyWeak, "%s has keys of the types %s only", keytab.path, keytab.typeNames())
	}
	a.keytab.Store(keytab)
	return nil
}

// Accept implements auth.Negotiator. The order of its checks is in the package comment.
func (a *Acceptor) Accept(ctx context.Context, token []byte, channel auth.Channel) (proof.Proof, []byte, error) {
	offer, err := readOffer(token)
	if err != nil {
		return proof.Proof{}, offer.reject(nil), err
	}
	v, err := a.judge(ctx, offer, channel)
	if err != nil {
		return proof.Proof{}, offer.reject(v.clockError()), err
	}
	reply, err := v.reply()
	if err != nil {
		return proof.Proof{}, offer.reject(nil), err
	}
	t := &v.proved
	return proof.Proof{Method: proof.Kerberos, Account: t.LogName(), Realm: t.Realm, SID: t.SID, Ticket: t, At: v.now}, reply, nil
}

// visit is one token on its way through the checks.
type visit struct {
	acceptor *Acceptor
	keytab   *Keytab
	realms   []proof.Realm
	channel  auth.Channel
	now      time.Time

	offer         offer
	request       request
	key           *key // the service's key that opened the ticket
	ticket        ticket
	session       secret // the key that KDC and client share with us
	authenticator authenticator
	binding       gssChecksum
	skewed        bool
	proved        proof.Ticket
}

// judge walks the checks that follow the frame.
func (a *Acceptor) judge(ctx context.Context, o offer, channel auth.Channel) (*visit, error) {
	v := &visit{acceptor: a, keytab: a.keytab.Load(), realms: a.config.Realms(), channel: channel, now: a.config.Now(), offer: o}
	for _, check := range [...]func() error{
		v.readRequest, v.openTicket, v.checkTimes, v.openAuthenticator, v.checkNames, v.checkClock,
		v.checkRealms, v.checkAccount, v.checkBinding, v.checkMechanismList, v.checkPAC,
	} {
		if err := check(); err != nil {
			return v, err
		}
	}
	return v, v.noteUse(ctx)
}

func (v *visit) readRequest() error {
	request, err := parseRequest(v.offer.ticket)
	if err != nil {
		return err
	}
	v.request = request
	switch {
	case request.userToUser:
		return catalog.Errorf(catalog.KerberosRequestMalformed, "the ticket is of the user-to-user kind, for which a service has no key")
	case !printable(request.service, maxService) || !printable(request.realm, maxService):
		return catalog.Errorf(catalog.KerberosNameInvalid, "the name of the service is not one: %.80q", request.service)
	case forbidden(request.service):
		return catalog.Errorf(catalog.KerberosServiceRefused, "the ticket is for %s@%s, a service of the KDC", request.service, request.realm)
	}
	return nil
}

// openTicket finds the key. The name of the service stands outside of the seal and any
// name of the account will do, so the key decides and never the name.
func (v *visit) openTicket() error {
	r := v.request
	if err := v.checkType("ticket", r.sealedTicket.kind); err != nil {
		return err
	}
	keys := v.keytab.candidates(r.realm, r.sealedTicket.kind, r.sealedTicket.version)
	if len(keys) == 0 {
		return catalog.Errorf(catalog.KerberosKeyMissing, "the ticket is for %s@%s, key version %d, %s; the keytab has %s",
			r.service, r.realm, r.sealedTicket.version, typeName(r.sealedTicket.kind), v.keytab.summary())
	}
	for _, k := range keys {
		plain, ok := k.secret.open(usageTicket, r.sealedTicket.data)
		if !ok {
			continue
		}
		v.key = k
		return v.readTicket(plain)
	}
	return catalog.Errorf(catalog.KerberosKeyWrong, "the ticket for %s@%s, key version %d, %s, was made with another key; keys of that realm and type tried: %d",
		r.service, r.realm, r.sealedTicket.version, typeName(r.sealedTicket.kind), len(keys))
}

func (v *visit) readTicket(plain []byte) (err error) {
	if v.ticket, err = parseTicket(plain); err != nil {
		return err
	}
	if err := v.checkType("session key", v.ticket.keyType); err != nil {
		return err
	}
	session, ok := newSecret(v.ticket.keyType, v.ticket.key)
	if !ok {
		return catalog.Errorf(catalog.KerberosRequestMalformed, "the session key has %d bytes, which is wrong for %s", len(v.ticket.key), typeName(v.ticket.keyType))
	}
	v.session = session
	return nil
}

func (v *visit) checkType(what string, kind int32) error {
	if !allowed(kind, v.acceptor.config.AllowRC4) {
		return catalog.Errorf(catalog.KerberosEncryptionRefused, "the %s for %s@%s is %s", what, v.request.service, v.request.realm, typeName(kind))
	}
	return nil
}

func (v *visit) checkTimes() error {
	skew, t := v.acceptor.config.Skew, v.ticket
	switch {
	case t.invalid:
		return catalog.Errorf(catalog.KerberosTicketNotYetValid, "the ticket is postdated and was not validated by its KDC")
	case t.start.Sub(v.now) > skew:
		return catalog.Errorf(catalog.KerberosTicketNotYetValid, "the ticket begins at %s, in %d seconds", stamp(t.start), seconds(t.start.Sub(v.now)))
	case v.now.Sub(t.end) > skew:
		return catalog.Errorf(catalog.KerberosTicketExpired, "the ticket ended at %s, %d seconds ago", stamp(t.end), seconds(v.now.Sub(t.end)))
	}
	return nil
}

func (v *visit) openAuthenticator() (err error) {
	sealed := v.request.sealedAuthenticator
	if sealed.kind != v.session.kind {
		return catalog.Errorf(catalog.KerberosAuthenticatorBroken, "the authenticator is %s, the session key %s", typeName(sealed.kind), typeName(v.session.kind))
	}
	plain, ok := v.session.open(usageAuthenticator, sealed.data)
	if !ok {
		return catalog.Errorf(catalog.KerberosAuthenticatorBroken, "the authenticator was not made with the session key of the ticket for %.100q", v.ticket.client)
	}
	v.authenticator, err = parseAuthenticator(plain)
	return err
}

// checkNames compares what the client wrote with what the KDC sealed, the realm
// included: a namesake in another realm is another computer.
func (v *visit) checkNames() error {
	if v.authenticator.client == v.ticket.client && v.authenticator.realm == v.ticket.realm {
		return nil
	}
	return catalog.Errorf(catalog.KerberosNameMismatch, "the authenticator says %.100q, the ticket %.100q", v.authenticator.client+"@"+v.authenticator.realm, v.ticket.client+"@"+v.ticket.realm)
}

func (v *visit) checkClock() error {
	behind := v.now.Sub(v.authenticator.time)
	if behind.Abs() <= v.acceptor.config.Skew {
		return nil
	}
	v.skewed = true
	word := "behind"
	if behind < 0 {
		word = "ahead"
	}
	return catalog.Errorf(catalog.KerberosClockSkew, "the client's clock is %d seconds %s; %d are allowed", seconds(behind.Abs()), word, seconds(v.acceptor.config.Skew))
}

func (v *visit) checkRealms() error {
	if !v.trusted(v.ticket.realm) {
		return catalog.Errorf(catalog.KerberosRealmNotTrusted, "the realm %.100q is not trusted here", v.ticket.realm)
	}
	transited, err := v.ticket.transitedRealms(v.request.realm)
	if err != nil {
		return err
	}
	if v.ticket.realm == v.request.realm && len(transited) > 0 {
		return catalog.Errorf(catalog.KerberosTransitNotTrusted, "the ticket is of %s itself and came back by %.100q: another realm has no word on our own accounts", v.ticket.realm, transited[len(transited)-1])
	}
	for _, realm := range transited {
		if !v.trusted(realm) {
			return catalog.Errorf(catalog.KerberosTransitNotTrusted, "the ticket came from %s by the realm %.100q, which is not trusted here", v.ticket.realm, realm)
		}
	}
	v.proved.Transited = transited
	return nil
}

// trusted compares byte for byte.
func (v *visit) trusted(realm string) bool {
	_, listed := v.listed(realm)
	return listed || v.keytab.hasRealm(realm)
}

func (v *visit) listed(realm string) (proof.Realm, bool) {
	for _, r := range v.realms {
		if r.Name == realm {
			return r, true
		}
	}
	return proof.Realm{}, false
}

func (v *visit) checkAccount() error {
	if !accountName(v.ticket.client) {
		return catalog.Errorf(catalog.KerberosNameInvalid, "the ticket of %s is for %.100q, which is no name of an account", v.ticket.realm, v.ticket.client)
	}
	realm, ok := v.listed(v.ticket.realm)
	if !ok || realm.Domain == "" {
		realm = proof.NewRealm(v.ticket.realm)
	}
	v.proved.Account, v.proved.Realm, v.proved.Domain = v.ticket.client, v.ticket.realm, realm.Domain
	v.proved.Service = v.serviceName()
	v.proved.KeyVersion, v.proved.EncryptionType = v.key.Version, v.key.EncryptionType
	return nil
}

// serviceName is the service in evidence. What the ticket says stands outside of the seal, where its sender can write anything, so it counts when it is a
// name of the key that opened the ticket. A keytab may have the account's name alone: that is the evidence then, and the name that was asked for stands
// beside it as such.
func (v *visit) serviceName() string {
	if name, ok := v.key.called(v.request.service); ok {
		return name + "@" + v.key.Realm
	}
	return v.key.Principal + "@" + v.key.Realm + " (asked for as " + v.request.service + ")"
}

// noteUse is the last check. The seal of an authenticator covers each of its bytes, so
// that its ciphertext names it: two that differ are two authenticators, even within one
// microsecond.
func (v *visit) noteUse(ctx context.Context) error {
	use := sha256.Sum256(v.request.sealedAuthenticator.data)
	v.proved.Use = hex.EncodeToString(use[:])
	v.proved.UseUntil = v.authenticator.time.Add(v.acceptor.config.Skew + useLeeway)
	fresh, err := v.acceptor.config.Replay.Fresh(ctx, v.proved.Use, v.proved.UseUntil)
	if err != nil {
		return fmt.Errorf("remember the authenticator: %w", err)
	}
	if !fresh {
		return catalog.Errorf(catalog.KerberosReplay, "%s used this authenticator before, made at %s", v.proved.LogName(), stamp(v.authenticator.time))
	}
	return nil
}

func seconds(d time.Duration) int64 { return int64(d.Round(time.Second) / time.Second) }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
