package proof

import (
	"strings"
	"time"
)

// Ticket is what a Kerberos ticket and its authenticator have proved. Name and realm
// are those that the KDC sealed into the ticket, never what the client wrote beside it.
type Ticket struct {
	Account        string    // the client's principal without its realm, e.g. WK02-020-51W$
	Realm          string    // the client's realm, e.g. CHILD.A2003.VM.LOCAL
	Domain         string    // the realm's short name for logs, e.g. CHILD
	SID            string    // from a verified PAC; "" without one
	PAC            bool      // a PAC was there and its signature was right
	Service        string    // a name of the key that opened the ticket, e.g. HTTP/mp.a2003.vm.local@A2003.VM.LOCAL
	KeyVersion     int       // of that key, as the keytab says
	EncryptionType int       // of the ticket, e.g. 18
	Transited      []string  // realms between the client's and the service's, if any
	Use            string    // names this one authenticator: used once and never again
	UseUntil       time.Time // until when a second use must be recognised
}

// LogName returns the account as the access log has it: DOMAIN\COMPUTER$ (S0).
func (t Ticket) LogName() string { return t.Domain + `\` + t.Account }

// Realm is a realm whose computers may prove themselves.
type Realm struct {
	Name     string   // e.g. CHILD.A2003.VM.LOCAL
	Domain   string   // its short name, e.g. CHILD
	Suffixes []string // DNS domains of its computers, lower case; never empty
}

// NewRealm returns a realm with what is usual: the first label as short name, the
// realm's own name as DNS domain.
func NewRealm(name string) Realm {
	domain, _, _ := strings.Cut(name, ".")
	return Realm{Name: name, Domain: strings.ToUpper(domain), Suffixes: []string{strings.ToLower(name)}}
}
