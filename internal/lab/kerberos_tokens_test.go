package lab_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"postern/catalog"
	"postern/client/kerberos"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"
	"postern/internal/role"
)

// TestTokensThatAreNoTickets (C79): each kind is refused with its own reason, before the body is read, and nothing is kept.
func TestTokensThatAreNoTickets(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{}, role.NewSite{})
	n := i.add(t, i.Host("mp"), i.MPKeytab()).trusted(i.Child)
	good := realmstest.Token(t, realmstest.Login(t, i.Realms, i.Child), n.host)
	emptyList, err := hex.DecodeString("601006062b0601050502a0063004a0023000")
	n.must(err)
	text := func(token []byte) string { return "Negotiate " + base64.StdEncoding.EncodeToString(token) }
	for _, c := range []struct {
		name  string
		lines []string
		code  catalog.Code
	}{
		{"64 KB", []string{text(append(append([]byte{}, good...), make([]byte, 64<<10-len(good))...))}, catalog.KerberosTokenTooLarge},
		{"NTLM", []string{text(append([]byte("NTLMSSP\x00\x01\x00\x00\x00"), make([]byte, 28)...))}, catalog.NTLMRefused},
		{"the scheme NTLM", []string{"NTLM TlRMTVNTUAABAAAA"}, catalog.NTLMRefused},
		{"NegoEx", []string{text(append([]byte("NEGOEXTS"), make([]byte, 60)...))}, catalog.NegoExRefused},
		{"empty list of mechanisms", []string{text(emptyList)}, catalog.KerberosMechanismListEmpty},
		{"cut in the middle", []string{text(good[:len(good)/2])}, catalog.KerberosTokenMalformed},
		{"no token", []string{"Negotiate"}, catalog.NegotiateMalformed},
		{"not base64", []string{"Negotiate ***"}, catalog.NegotiateMalformed},
		{"another scheme", []string{"Basic YWRtaW46YWRtaW4="}, catalog.ProofNotAccepted},
		{"two credentials", []string{text(good), text(good)}, catalog.ProofNotAccepted},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := n.on(t)
			d := computer(t)
			contentType, body := d.encode(n, "MP_ClientRegistration", d.registration(n, inDomain("child.a2003.vm.local")), false)
			n.refuses(refusal{status: 401, code: c.code}, func() answer {
				return n.send(n.http1(), "CCM_POST", n.plain("/ccm_system_windowsauth/request"), contentType, body, http.Header{"Authorization": c.lines})
			})
		})
	}
	n.text(n.registerBy(computer(t), good, inDomain("child.a2003.vm.local")))
}

// TestRelayedTickets (C26, C77): a ticket that is bound to one TLS connection is worth nothing on another, nor without TLS.
func TestRelayedTickets(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{}, role.NewSite{})
	n := i.add(t, i.Host("mp"), i.MPKeytab()).trusted(i.Child)
	machine, err := kerberos.New(kerberos.Config{Keytab: i.ComputerKeytab(i.Child), Config: i.ClientConfig()})
	n.must(err)
	own := func(t *testing.T, n *node) []byte { // what a client sees that talks with the management point itself
		response, err := n.http1().Get("https://" + n.ManagementPoint.Addresses["https"] + "/SMS_MP/.sms_aut?MPLIST")
		if err != nil || len(response.TLS.PeerCertificates) == 0 {
			t.Fatal(err)
		}
		response.Body.Close()
		sum := sha256.Sum256(response.TLS.PeerCertificates[0].Raw)
		return append([]byte("tls-server-end-point:"), sum[:]...)
	}
	foreign := sha256.Sum256([]byte("the certificate of a man in the middle"))
	for _, c := range []struct {
		name, scheme string
		binding      func(*testing.T, *node) []byte
		code         catalog.Code
	}{
		{"bound to another certificate", "https", func(*testing.T, *node) []byte { return append([]byte("tls-server-end-point:"), foreign[:]...) }, catalog.KerberosBindingMismatch},
		{"bound, over plain HTTP", "http", own, catalog.KerberosBindingPlain},
		{"bound to this certificate", "https", own, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := n.on(t)
			proof, err := machine.Negotiate(t.Context(), n.host, c.binding(t, n))
			n.must(err)
			d := computer(t)
			contentType, body := d.encode(n, "MP_ClientRegistration", d.registration(n, inDomain("child.a2003.vm.local")), false)
			address := c.scheme + "://" + n.ManagementPoint.Addresses[c.scheme] + "/ccm_system_windowsauth/request"
			act := func() answer {
				return n.send(n.http1(), "CCM_POST", address, contentType, body, http.Header{"Authorization": {"Negotiate " + base64.StdEncoding.EncodeToString(proof.Token)}})
			}
			if c.code != "" {
				n.refuses(refusal{status: 401, code: c.code}, act)
				return
			}
			a := act()
			n.text(a)
			_, reply, _ := strings.Cut(a.header.Get("WWW-Authenticate"), " ")
			token, err := base64.StdEncoding.DecodeString(reply)
			n.must(err)
			n.must(proof.Verify(token))
		})
	}
}
