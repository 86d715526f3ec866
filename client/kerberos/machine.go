package kerberos

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
	"postern/client"
)

// Config says where the machine's credential is. All of it may be empty.
type Config struct {
	Keytab    string // default: KRB5_KTNAME, then the keytab that krb5.conf names, then /etc/krb5.keytab
	CCache    string // a credential cache in a file (MIT's FILE: form); used instead of a keytab when given
	Config    string // krb5.conf; default: KRB5_CONFIG, then /etc/krb5.conf
	Principal string // HOST$ or HOST$@REALM; default: the keytab's first entry whose name ends in $

	// Time bounds one proof with all its exchanges; default 20 seconds.
	Time time.Duration
	// Dial opens connections to key distribution centres; default net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now is the device's clock, for deciding whether a ticket still lasts; default time.Now.
	Now func() time.Time
}

const (
	defaultTime   = 20 * time.Second
	defaultConfig = "/etc/krb5.conf"
	defaultKeytab = "/etc/krb5.keytab"
	closeToExpiry = 5 * time.Minute // a ticket that ends sooner is asked for anew
	maxTickets    = 64
)

// Machine is the machine's credential with the tickets that it has. It is safe for
// concurrent use.
type Machine struct {
	config    Config
	file      string // the keytab or cache
	realms    *config.Config
	principal string

	mu         sync.Mutex // guards what follows; held during exchanges, so that they happen once
	credential *credential
	granting   *ticket
	tickets    map[string]*ticket // by host
}

var _ client.Negotiator = (*Machine)(nil)

// ticket is a ticket with its session key.
type ticket struct {
	messages.Ticket
	key types.EncryptionKey
	end time.Time
}

func (t *ticket) lasts(now time.Time) bool { return t != nil && now.Add(closeToExpiry).Before(t.end) }

// New reads the credential and the configuration; nothing is sent. Errors have the codes
// ClientKerberosCredential, when there is no credential that could be a machine's, and
// ClientKerberosConfig.
func New(c Config) (*Machine, error) {
	c = c.withDefaults()
	realms, err := readConfig(c.Config)
	if err != nil {
		return nil, err
	}
	m := &Machine{config: c, realms: realms, tickets: map[string]*ticket{}}
	m.file = strings.TrimPrefix(cmp.Or(c.CCache, c.Keytab, os.Getenv("KRB5_KTNAME"), strings.TrimPrefix(realms.LibDefaults.DefaultKeytabName, "FILE:"), defaultKeytab), "FILE:")
	if m.credential, m.granting, err = m.read(c.Principal); err != nil {
		return nil, err
	}
	m.principal = m.credential.principal()
	return m, nil
}

// read reads the keytab, or the cache with its ticket-granting ticket.
func (m *Machine) read(principal string) (*credential, *ticket, error) {
	if m.config.CCache != "" {
		return readCache(m.file, principal)
	}
	c, err := readKeytab(m.file, principal, m.realms.LibDefaults.DefaultRealm)
	return c, nil, err
}

// refresh reads the file again: the machine's password changes and tickets of a cache are
// renewed while a device runs. A file that cannot be read now, or is another account's,
// changes nothing.
func (m *Machine) refresh() {
	c, granting, err := m.read(m.principal)
	if err != nil {
		return
	}
	m.credential = c
	if granting != nil {
		m.granting = granting
	}
}

func (c Config) withDefaults() Config {
	if c.Time <= 0 {
		c.Time = defaultTime
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Config == "" {
		// KRB5_CONFIG may be a list; the first file counts here.
		first, _, _ := strings.Cut(os.Getenv("KRB5_CONFIG"), string(os.PathListSeparator))
		c.Config = cmp.Or(first, defaultConfig)
	}
	return c
}

// Principal returns the machine's name and realm, as in WK02-020-51W$@CHILD.A2003.VM.LOCAL.
func (m *Machine) Principal() string { return m.principal }

// Negotiate makes a proof for HTTP/host. See client.Negotiator. Errors have the codes
// ClientKerberosConfig, ClientKerberosUnreachable, ClientKerberosServiceUnknown,
// ClientKerberosClock, ClientKerberosKey, ClientKerberosAccount,
// ClientKerberosEncryption, ClientKerberosExpired and ClientKerberosFailed.
func (m *Machine) Negotiate(ctx context.Context, host string, binding []byte) (client.Negotiation, error) {
	ctx, cancel := context.WithTimeout(ctx, m.config.Time)
	defer cancel()
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	own, t, err := m.ticketFor(ctx, host)
	if err != nil {
		return client.Negotiation{}, err
	}
	request, err := newRequest(own, t, binding, m.config.Now)
	if err != nil {
		return client.Negotiation{}, catalog.Wrap(catalog.ClientKerberosFailed, err, "the ticket for HTTP/%s cannot be used", host)
	}
	return client.Negotiation{
		Token: request.token, Client: m.Principal(), Service: strings.Join(t.SName.NameString, "/") + "@" + t.Realm,
		Verify: func(reply []byte) error {
			err := request.verify(reply)
			if err != nil {
				m.drop(host, t) // the service may have another key now
			}
			return err
		},
	}, nil
}

func (m *Machine) drop(host string, t *ticket) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tickets[host] == t {
		delete(m.tickets, host)
	}
}

// ticketFor returns a ticket that lasts, from memory or from the realms, and whose it is.
func (m *Machine) ticketFor(ctx context.Context, host string) (*credential, *ticket, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.config.Now()
	if t := m.tickets[host]; t.lasts(now) {
		return m.credential, t, nil
	}
	x := &exchange{machine: m, ctx: ctx}
	if !m.granting.lasts(now) {
		m.refresh()
	}
	if !m.granting.lasts(now) {
		granting, err := x.login()
		if err != nil {
			return nil, nil, err
		}
		m.granting = granting
	}
	t, err := x.service(m.granting, host)
	switch catalog.CodeOf(err) {
	case catalog.ClientKerberosKey, catalog.ClientKerberosExpired, catalog.ClientKerberosFailed:
		m.granting = nil // the realm may have a new key since: the next proof begins anew
	}
	if err != nil {
		return nil, nil, err
	}
	if len(m.tickets) >= maxTickets {
		clear(m.tickets)
	}
	m.tickets[host] = t
	return m.credential, t, nil
}

// guarded runs what reads bytes with the library, whose readers panic on some of what is
// malformed.
func guarded(act func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed: %v", r)
		}
	}()
	return act()
}
