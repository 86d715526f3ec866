package kerberos

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
	"postern/diag"
)

// maxEntries bounds what is read of a search.
const maxEntries = 100

// checkDirectory asks the directory who owns the service name, over LDAP with this
// machine's own ticket.
func (r *run) checkDirectory(ctx context.Context) []diag.Finding {
	switch {
	case r.host == "":
		return []diag.Finding{diag.NotLooked("no server was named: give --server")}
	case r.Directory == NoDirectory:
		return []diag.Finding{r.notAsked("--ldap none")}
	case r.tgt == nil:
		return []diag.Finding{r.notAsked("there is no ticket-granting ticket to log in with")}
	}
	own, owner := r.tgt.realm, r.tgt.realm
	if r.service != nil {
		owner = r.service.ticket.Realm
	}
	if r.Seat == Server {
		own = owner
	}
	if r.Directory != "" || own == owner {
		return r.askRealm(ctx, owner, r.askOwners, r.askTrusts)
	}
	owners, trusts := r.askRealm(ctx, owner, r.askOwners), r.askRealm(ctx, own, r.askTrusts)
	if silent(owners) && silent(trusts) {
		return []diag.Finding{r.notAsked("%s\n%s", owners[0].Detail, trusts[0].Detail)}
	}
	return append(owners, trusts...)
}

func silent(findings []diag.Finding) bool {
	return len(findings) == 1 && findings[0].Code == catalog.CheckDirectoryNotAsked
}

// directory is a connection to one directory server.
type directory struct {
	*ldap.Conn
	server string // as it was named
	base   string // its domain as a distinguished name
	domain string // and as a DNS name
	forest string // the DNS name of its forest's root
}

// question is something to ask a directory.
type question func(context.Context, directory) ([]diag.Finding, error)

// askRealm asks the first directory server of a realm that answers.
func (r *run) askRealm(ctx context.Context, realm string, questions ...question) []diag.Finding {
	servers := r.directoryServers(ctx, realm)
	if len(servers) == 0 {
		return []diag.Finding{r.notAsked("neither DNS nor krb5.conf gives a directory server of %s by its name", realm)}
	}
	var failures []string
	for _, server := range servers {
		findings, err := r.askServer(ctx, server, questions)
		if err == nil {
			return findings
		}
		failures = append(failures, fmt.Sprintf("%s: %v", server, err))
	}
	return []diag.Finding{r.notAsked("%s", strings.Join(failures, "\n"))}
}

func (r *run) notAsked(why string, arguments ...any) diag.Finding {
	return diag.Found(diag.Skipped, catalog.CheckDirectoryNotAsked, why, arguments...)
}

// directoryServers are the names to ask: the one that the person gave, else those of
// the realm's SRV records, else the realm's KDCs that have a name, since domain
// controllers are both. Nobody else is asked.
func (r *run) directoryServers(ctx context.Context, realm string) []string {
	if r.Directory != "" {
		return []string{r.Directory}
	}
	candidates := r.lookupSRV(ctx, "ldap", "tcp", realm)
	if len(candidates) == 0 {
		candidates, _, _ = r.kdcs(ctx, realm) // none is none
	}
	var servers []string
	for _, candidate := range candidates {
		host, _, err := net.SplitHostPort(candidate)
		if err == nil && net.ParseIP(host) == nil && !slices.Contains(servers, host) {
			servers = append(servers, host)
		}
	}
	return servers[:min(len(servers), 3)]
}

func (r *run) askServer(ctx context.Context, server string, questions []question) (findings []diag.Finding, err error) {
	connection, err := r.connect(ctx, server, "636", "389")
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	d, err := describe(connection, server)
	if err != nil {
		return nil, err
	}
	for _, ask := range questions {
		answers, err := ask(ctx, d)
		if err != nil {
			return nil, err
		}
		findings = append(findings, answers...)
	}
	return findings, nil
}

// askOwners asks who owns the service name: the global catalog when there is one, so
// that the whole forest is seen.
func (r *run) askOwners(ctx context.Context, d directory) ([]diag.Finding, error) {
	accounts, where, err := r.searchOwners(ctx, d)
	if err != nil {
		return nil, err
	}
	if len(accounts) == 0 && r.service != nil {
		return []diag.Finding{r.notAsked("%s does not have the name, and the KDC of %s gives tickets for it: ask a domain controller of that realm", where, r.service.ticket.Realm)}, nil
	}
	if len(accounts) == 0 && !under(r.host, d.domain) && !under(r.host, d.forest) {
		return []diag.Finding{r.notAsked("%s does not have the name, which lies in another domain: ask a domain controller of that one", where)}, nil
	}
	findings := judgeOwners(r.host, accounts, r.accepted)
	findings[len(findings)-1].Detail += "\n(asked: " + where + ")"
	return findings, nil
}

// askTrusts asks which trusts the domain has, and who may make computer accounts in it.
func (r *run) askTrusts(_ context.Context, d directory) ([]diag.Finding, error) {
	trusts, err := searchTrusts(d.Conn, d.base)
	if err != nil {
		return nil, err
	}
	return append(judgeTrusts(d.domain, r.host, trusts), judgeQuota(d.domain, readQuota(d.Conn, d.base))...), nil
}

// connect opens a connection with TLS, else without, and logs in with Kerberos. A
// server that wants its connections signed or sealed takes the first kind only.
func (r *run) connect(ctx context.Context, server string, tlsPort, plainPort string) (*ldap.Conn, error) {
	host, port, err := net.SplitHostPort(server)
	if err == nil { // the person named the port
		return r.bind(ctx, host, port, port == "636" || port == "3269")
	}
	connection, tlsErr := r.bind(ctx, server, tlsPort, true)
	if tlsErr == nil {
		return connection, nil
	}
	connection, err = r.bind(ctx, server, plainPort, false)
	if err != nil {
		return nil, fmt.Errorf("port %s: %v; port %s: %v", tlsPort, shortLDAP(tlsErr), plainPort, shortLDAP(err))
	}
	return connection, nil
}

func shortLDAP(err error) error {
	var failed *ldap.Error
	if errors.As(err, &failed) && failed.ResultCode == ldap.LDAPResultStrongAuthRequired {
		return errors.New("it wants TLS")
	}
	if errors.As(err, &failed) && failed.ResultCode == ldap.ErrorNetwork && failed.Err != nil {
		return plain(failed.Err)
	}
	return err
}

func (r *run) bind(ctx context.Context, host, port string, secure bool) (*ldap.Conn, error) {
	raw, err := r.dialer().DialContext(ctx, "tcp", net.JoinHostPort(host, port)) // the dialer has its own timeout
	if err != nil {
		return nil, plain(err)
	}
	service, _, err := r.follow(ctx, r.tgt, hostService("ldap", strings.ToLower(host)))
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("a ticket for ldap/%s: %w", host, err)
	}
	var leaf *x509.Certificate
	if secure {
		// The certificate is not judged: the login is bound to it and the server proves itself by Kerberos.
		wrapped := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, ServerName: host})
		handshake, cancel := context.WithTimeout(ctx, r.Timeout)
		defer cancel()
		if err := wrapped.HandshakeContext(handshake); err != nil {
			raw.Close()
			return nil, err
		}
		leaf, raw = wrapped.ConnectionState().PeerCertificates[0], wrapped
	}
	wire := &signedConn{Conn: raw}
	connection := ldap.NewConn(wire, secure)
	connection.SetTimeout(r.Timeout)
	connection.Start()
	login := &ldapLogin{run: r, service: service, binding: bindingOf(leaf), secure: secure}
	if err := connection.GSSAPIBind(login, "ldap/"+host, ""); err != nil {
		connection.Close()
		return nil, err
	}
	if login.sign {
		wire.layer.Store(login.wrapper)
	}
	return connection, nil
}

// ldapLogin is the client's side of SASL GSSAPI (RFC 4752) with a ticket that we hold.
type ldapLogin struct {
	run     *run
	service *ticket
	binding []byte
	secure  bool // the connection has TLS
	ours    types.Authenticator
	wrapper *wrapper
	sign    bool // messages after the login are signed
}

// InitSecContext is the first leg and the check of the server's proof.
func (l *ldapLogin) InitSecContext(target string, token []byte) ([]byte, bool, error) {
	return l.InitSecContextWithOptions(target, token, nil)
}

// InitSecContextWithOptions is [ldapLogin.InitSecContext]; we have no options.
func (l *ldapLogin) InitSecContextWithOptions(_ string, token []byte, _ []int) ([]byte, bool, error) {
	if token == nil {
		request, ours, err := l.run.gssRequest(l.service, l.binding, gssapi.ContextFlagMutual|gssapi.ContextFlagInteg)
		l.ours, l.wrapper = ours, &wrapper{key: l.service.key, sequence: uint64(ours.SeqNumber)}
		return request, true, err
	}
	answer, err := parseReply(token)
	switch {
	case err != nil:
		return nil, false, err
	case answer.reason != nil:
		return nil, false, answer.reason
	case answer.proof == nil || !l.service.proves(answer.proof, l.ours):
		return nil, false, errors.New("the directory server does not prove itself")
	}
	part, err := openProof(answer.proof, l.service.key)
	if err == nil && len(part.Subkey.KeyValue) > 0 {
		l.wrapper.key, l.wrapper.subkey = part.Subkey, true
	}
	return []byte{}, false, err
}

// NegotiateSaslAuth answers the server's offer of security layers.
func (l *ldapLogin) NegotiateSaslAuth(token []byte, authzid string) ([]byte, error) {
	offer, err := l.wrapper.unwrap(token)
	if err != nil {
		return nil, err
	}
	answer, sign, err := chooseLayer(offer, l.secure)
	if err != nil {
		return nil, err
	}
	l.sign = sign
	return l.wrapper.wrap(append(answer, authzid...))
}

// DeleteSecContext has nothing to do: the keys are needed as long as the connection.
func (l *ldapLogin) DeleteSecContext() error { return nil }

// describe asks a server which domain and forest it serves.
func describe(connection *ldap.Conn, server string) (directory, error) {
	attributes := []string{"defaultNamingContext", "rootDomainNamingContext"}
	result, err := connection.Search(ldap.NewSearchRequest("", ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, 0, false, "(objectClass=*)", attributes, nil))
	if err != nil {
		return directory{}, err
	}
	if len(result.Entries) == 0 || result.Entries[0].GetAttributeValue("defaultNamingContext") == "" {
		return directory{}, errors.New("it names no domain: it is no domain controller")
	}
	base := result.Entries[0].GetAttributeValue("defaultNamingContext")
	return directory{connection, server, base, domainOf(base), domainOf(result.Entries[0].GetAttributeValue("rootDomainNamingContext"))}, nil
}

// domainOf turns DC=a2003,DC=vm,DC=local into a2003.vm.local.
func domainOf(base string) string {
	parsed, err := ldap.ParseDN(base)
	if err != nil {
		return ""
	}
	var labels []string
	for _, rdn := range parsed.RDNs {
		for _, part := range rdn.Attributes {
			if strings.EqualFold(part.Type, "DC") {
				labels = append(labels, strings.ToLower(part.Value))
			}
		}
	}
	return strings.Join(labels, ".")
}

// searchOwners looks for the names that matter, and says where it looked.
func (r *run) searchOwners(ctx context.Context, d directory) (accounts []account, where string, err error) {
	if _, _, named := net.SplitHostPort(d.server); named != nil { // the person named no port
		if forest, err := r.connect(ctx, d.server, "3269", "3268"); err == nil {
			defer forest.Close()
			if accounts, err := searchAccounts(forest, "", r.host); err == nil {
				return withKinds(d, accounts), "the global catalog of " + d.server, nil
			}
		}
	}
	accounts, err = searchAccounts(d.Conn, d.base, r.host)
	return accounts, "the domain " + d.domain + " alone, at " + d.server, err
}

// withKinds asks for what a global catalog does not have: the encryption types are no
// part of it (MS-ADA2, msDS-SupportedEncryptionTypes). An account of another domain stays
// unasked.
func withKinds(d directory, accounts []account) []account {
	for i := range accounts {
		a := &accounts[i]
		if a.Kinds != nil {
			continue
		}
		a.Unasked = true
		if !strings.EqualFold(domainOf(a.DN), d.domain) {
			continue
		}
		result, err := d.Search(ldap.NewSearchRequest(a.DN, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, 0, false, "(objectClass=*)", []string{kindsAttribute}, nil))
		if err == nil && len(result.Entries) == 1 {
			a.Kinds, a.Unasked = number(result.Entries[0], kindsAttribute), false
		}
	}
	return accounts
}

const kindsAttribute = "msDS-SupportedEncryptionTypes"

func searchAccounts(connection *ldap.Conn, base, host string) ([]account, error) {
	escaped := ldap.EscapeFilter(host)
	filter := fmt.Sprintf("(|(servicePrincipalName=HTTP/%s)(servicePrincipalName=HOST/%s))", escaped, escaped)
	attributes := []string{"sAMAccountName", "objectClass", "servicePrincipalName", kindsAttribute, "userAccountControl"}
	result, err := connection.Search(ldap.NewSearchRequest(base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, maxEntries, 0, false, filter, attributes, nil))
	if err != nil {
		return nil, err
	}
	accounts := make([]account, 0, len(result.Entries))
	for _, entry := range result.Entries {
		accounts = append(accounts, readAccount(entry))
	}
	return accounts, nil
}

func readAccount(entry *ldap.Entry) account {
	flags := number(entry, "userAccountControl")
	return account{
		Name: entry.GetAttributeValue("sAMAccountName"), DN: entry.DN, Names: entry.GetAttributeValues("servicePrincipalName"),
		Computer: slices.Contains(entry.GetAttributeValues("objectClass"), "computer"),
		Disabled: flags != nil && *flags&2 != 0, Kinds: number(entry, kindsAttribute),
	}
}

// number reads an attribute of whole numbers; nil when it is absent.
func number(entry *ldap.Entry, attribute string) *int {
	n, err := strconv.Atoi(entry.GetAttributeValue(attribute))
	if err != nil {
		return nil
	}
	return &n
}

func searchTrusts(connection *ldap.Conn, base string) ([]trust, error) {
	attributes := []string{"trustPartner", "trustType", "trustAttributes", "trustDirection"}
	result, err := connection.Search(ldap.NewSearchRequest("CN=System,"+base, ldap.ScopeSingleLevel, ldap.NeverDerefAliases, maxEntries, 0, false, "(objectClass=trustedDomain)", attributes, nil))
	if err != nil {
		return nil, err
	}
	var trusts []trust
	for _, entry := range result.Entries {
		t := trust{Partner: strings.ToLower(entry.GetAttributeValue("trustPartner"))}
		for attribute, into := range map[string]*int{"trustType": &t.Kind, "trustAttributes": &t.Attributes} {
			if n := number(entry, attribute); n != nil {
				*into = *n
			}
		}
		if direction := number(entry, "trustDirection"); direction != nil {
			t.Inwards = *direction&trustInbound == 0
		}
		trusts = append(trusts, t)
	}
	return trusts, nil
}

func readQuota(connection *ldap.Conn, base string) *int {
	result, err := connection.Search(ldap.NewSearchRequest(base, ldap.ScopeBaseObject, ldap.NeverDerefAliases, 1, 0, false, "(objectClass=*)", []string{"ms-DS-MachineAccountQuota"}, nil))
	if err != nil || len(result.Entries) == 0 {
		return nil
	}
	return number(result.Entries[0], "ms-DS-MachineAccountQuota")
}
