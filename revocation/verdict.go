package revocation

import (
	"crypto/x509"
	"time"

	"postern/catalog"
)

// Usage is what a chain is judged for.
type Usage struct {
	Server bool   // the certificate of a TLS server; otherwise of a client
	Name   string // a server's host name or address, compared with its certificate; "" leaves names alone
	Staple []byte // the OCSP answer that came with the handshake, if any
}

// ForServer is the usage of a TLS server that was called by this host name or address.
func ForServer(name string) Usage { return Usage{Server: true, Name: name} }

// ForClient is the usage of a TLS client.
func ForClient() Usage { return Usage{} }

// Verdict is the answer about one chain.
type Verdict struct {
	OK           bool
	Flags        Flags               // 0 when OK
	Code         catalog.Code        // of the first fault; "" when there is none
	Sentence     string              // of the first fault, for a person
	Faults       []Fault             // every reason, the most helpful first; warnings when OK
	Chain        []*x509.Certificate // leaf first, root last; nil when no chain holds
	Certificates []CertificateStatus // whether revoked, for each certificate of Chain but the root
}

// Warning says that the chain is accepted although something is wrong: under [PolicyPrefer], somebody could not say whether a
// certificate is revoked. Code and Sentence tell what.
func (v Verdict) Warning() bool { return v.OK && v.Code != "" }

// Fault is one reason.
type Fault struct {
	Flag     Flags
	Code     catalog.Code
	Sentence string
	err      error // for our log
}

// State says what is known about one certificate.
type State string

// The states of a certificate.
const (
	StateGood      State = "good"
	StateRevoked   State = "revoked"
	StateUnknown   State = "unknown"   // nobody could say
	StateUnchecked State = "unchecked" // nobody was asked: the policy is off
)

// CertificateStatus is what is known about one certificate of a chain, and from where.
type CertificateStatus struct {
	Certificate *x509.Certificate
	State       State
	Source      string // address of the list or responder, or "stapled"; "" when unknown
	ThisUpdate  time.Time
	NextUpdate  time.Time
	RevokedAt   time.Time
	Reason      int          // RFC 5280 5.3.1, when revoked
	Stale       bool         // the source is out of date and could not be renewed
	Code        catalog.Code // why it is unknown or stale
	Sentence    string
	err         error
}

// Refused is the cause inside the *catalog.Error of a refused chain: the whole verdict. [Explain] reads it.
type Refused struct{ Verdict Verdict }

// Error returns the code and sentence of every fault, for our log.
func (r *Refused) Error() string {
	text := "certificate refused (" + r.Verdict.Flags.String() + ")"
	for _, fault := range r.Verdict.Faults {
		text += "; " + string(fault.Code) + " " + fault.Sentence
		if fault.err != nil {
			text += ": " + fault.err.Error()
		}
	}
	return text
}

// faultOf makes a fault of an error of this package.
func faultOf(err error) Fault {
	code, sentence := catalog.CodeOf(err), ""
	if e, ok := asCatalog(err); ok {
		sentence, err = e.Detail, e.Err
	}
	return Fault{Flag: FlagsOf(code), Code: code, Sentence: sentence, err: err}
}

// conclude fills what follows from the faults.
func conclude(v Verdict, faults []Fault) (Verdict, error) {
	v.Faults = faults
	for _, fault := range faults {
		v.Flags |= fault.Flag
	}
	if len(faults) > 0 {
		v.Code, v.Sentence = faults[0].Code, faults[0].Sentence
	}
	if v.OK = len(faults) == 0; v.OK {
		return v, nil
	}
	return v, catalog.Wrap(v.Code, &Refused{v}, "%s", v.Sentence)
}
