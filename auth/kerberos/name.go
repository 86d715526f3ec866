package kerberos

import "strings"

const (
	maxAccount = 64  // of a computer or a person; Windows allows 20 and 64
	maxService = 320 // service and host
)

// notInAccounts are the characters that Windows refuses in account names, and those
// that would make an account look like another in DOMAIN\ACCOUNT or ACCOUNT@REALM.
const notInAccounts = `@\/"[]:;|=,+*?<>`

// accountName says whether a name can be written into logs and rules as it is: ASCII
// that can be seen, so that no control or bidi character and no homograph gets in.
func accountName(name string) bool {
	return printable(name, maxAccount) && !strings.ContainsAny(name, notInAccounts)
}

// printable says whether text is visible ASCII without blanks and not too long.
func printable(text string, limit int) bool {
	if text == "" || len(text) > limit {
		return false
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// forbidden says whether a service is one of the KDC's own, whose tickets are never
// meant for us and whose keys have no place in a keytab.
func forbidden(service string) bool {
	first, _, _ := strings.Cut(service, "/")
	return strings.EqualFold(first, "krbtgt") || strings.EqualFold(first, "kadmin")
}
