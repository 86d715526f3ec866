package kerberos

import (
	"net"
	"testing"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// controller is the search of a domain controller: the encryption types of the accounts
// in its own domain, by their names. It answers nothing about others.
type controller map[string]string

// dial returns a connection to it.
func (c controller) dial(t *testing.T) *ldap.Conn {
	t.Helper()
	near, far := net.Pipe()
	connection := ldap.NewConn(near, false)
	connection.Start()
	t.Cleanup(func() { connection.Close() })
	go c.serve(far)
	return connection
}

func (c controller) serve(far net.Conn) {
	defer far.Close()
	buffer := make([]byte, 16<<10)
	for {
		n, err := far.Read(buffer)
		if err != nil {
			return
		}
		message, id, search, dn := cryptobyte.String(buffer[:n]), 0, cryptobyte.String{}, cryptobyte.String{}
		if !message.ReadASN1(&message, asn1.SEQUENCE) || !message.ReadASN1Integer(&id) ||
			!message.ReadASN1(&search, asn1.Tag(3).Constructed()|0x40) || !search.ReadASN1(&dn, asn1.OCTET_STRING) {
			return // the end of the connection
		}
		if kinds, found := c[string(dn)]; found {
			far.Write(ldapMessage(id, 4, func(b *cryptobyte.Builder) {
				text(b, string(dn))
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					if kinds == "" {
						return
					}
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						text(b, "msDS-SupportedEncryptionTypes")
						b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { text(b, kinds) })
					})
				})
			}))
		}
		far.Write(ldapMessage(id, 5, func(b *cryptobyte.Builder) {
			b.AddASN1Enum(0)
			text(b, "")
			text(b, "")
		}))
	}
}

func text(b *cryptobyte.Builder, s string) {
	b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
}

// ldapMessage is one message of a server (RFC 4511 4.1.1).
func ldapMessage(id int, kind uint8, fill func(*cryptobyte.Builder)) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(int64(id))
		b.AddASN1(asn1.Tag(kind).Constructed()|0x40, fill)
	})
	return b.BytesOrPanic()
}

// A global catalog has no encryption types: an account that it shows without them may
// have AES all the same, and only its own domain can tell.
func TestEncryptionTypesAreAskedInTheAccountsDomain(t *testing.T) {
	const (
		strong  = "CN=svc-mp,CN=Users,DC=a2003,DC=vm,DC=local"
		without = "CN=svc-old,CN=Users,DC=a2003,DC=vm,DC=local"
		gone    = "CN=svc-gone,CN=Users,DC=a2003,DC=vm,DC=local"
		foreign = "CN=svc-mp,CN=Users,DC=child,DC=a2003,DC=vm,DC=local"
	)
	d := directory{Conn: controller{strong: "24", without: ""}.dial(t), base: "DC=a2003,DC=vm,DC=local", domain: "a2003.vm.local"}
	for _, test := range []struct{ name, dn, want string }{
		{"its own domain says AES", strong, "pass"},
		{"its own domain says nothing", without, "pass; warn P932"},
		{"its own domain does not show it", gone, "pass; skipped"},
		{"another domain's, which was not asked", foreign, "pass; skipped"},
	} {
		shown := []account{{Name: "MP1$", DN: test.dn, Computer: true, Names: []string{"HTTP/mp.a2003.vm.local"}}}
		if got := states(judgeOwners("mp.a2003.vm.local", withKinds(d, shown), nil)); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
