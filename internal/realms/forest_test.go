//go:build ad && linux

package realms_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/client"
	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/spnego"

	"postern/auth"
	"postern/auth/kerberos"
	"postern/catalog"
	"postern/internal/realms"
	"postern/proof"
)

// twoForests are shared by all the tests below: a domain controller takes seconds to start.
type twoForests struct {
	a2003, contoso *realms.Forest
	config         string // the clients' krb5.conf
}

// TestForests needs root and Samba: make test-ad.
func TestForests(t *testing.T) {
	f := startForests(t)
	t.Run("ticket has a verified PAC", f.ticketHasAVerifiedPAC)
	t.Run("account without encryption types gets RC4", f.accountWithoutEncryptionTypesGetsRC4)
	t.Run("HOST stands for HTTP", f.hostNameStandsForHTTP)
	t.Run("service name on another account", f.serviceNameOnAnotherAccount)
	t.Run("duplicate service name", f.duplicateServiceName)
	t.Run("forest trust", f.forestTrust)
}

var (
	computer = realms.Account{Name: "WK02-020-51W", Computer: true, Password: "Machine!1pw", EncryptionTypes: realms.AESOnly}
	service  = realms.Account{Name: "svc-mp", Password: "Passw0rd!svc", Services: []string{"HTTP/mpcluster.a2003.vm.local"}, EncryptionTypes: realms.AESOnly}
	// point has the HOST names that every joined computer has, and no HTTP name of its own.
	point   = realms.Account{Name: "MP1", Computer: true, Password: "Machine!2pw", Services: []string{"HOST/mp1.a2003.vm.local", "HOST/MP1"}, EncryptionTypes: realms.AESOnly}
	reports = realms.Account{Name: "svc-reports", Password: "Passw0rd!rep", Services: []string{"HTTP/mp2.a2003.vm.local"}, EncryptionTypes: realms.AESOnly}
	old     = realms.Account{Name: "svc-old", Password: "Passw0rd!old", Services: []string{"HTTP/old.a2003.vm.local"}}
	twin1   = realms.Account{Name: "svc-twin1", Password: "Passw0rd!one", Services: []string{"HTTP/twin.a2003.vm.local"}, EncryptionTypes: realms.AESOnly}
	twin2   = realms.Account{Name: "svc-twin2", Password: "Passw0rd!two", EncryptionTypes: realms.AESOnly}
)

func startForests(t *testing.T) *twoForests {
	t.Helper()
	started, err := realms.StartForests(t.Context(),
		realms.ForestOptions{Realm: "A2003.VM.LOCAL", Domain: "A2003", Address: "127.0.0.31"},
		realms.ForestOptions{Realm: "CONTOSO.LOCAL", Domain: "CONTOSO", Address: "127.0.0.32"},
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, forest := range started {
		t.Cleanup(forest.Stop)
	}
	f := &twoForests{a2003: started[0], contoso: started[1], config: filepath.Join(t.TempDir(), "krb5.conf")}
	for _, act := range []func() error{
		func() error { return realms.ForestsConfig(f.config, started...) },
		func() error { return f.a2003.Add(t.Context(), computer, service, point, reports, old, twin1, twin2) },
		func() error { return f.contoso.Add(t.Context(), computer) },
		func() error { return f.a2003.Trust(t.Context(), f.contoso) },
	} {
		if err := act(); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// keytabOf exports an account's keytab.
func keytabOf(t *testing.T, f *realms.Forest, a realms.Account) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), a.Name+".keytab")
	if err := f.Keytab(t.Context(), file, a.SAMName()); err != nil {
		t.Fatal(err)
	}
	return file
}

// login is the computer of a forest, by Go's client, which follows referrals and guesses nothing.
func (f *twoForests) login(t *testing.T, forest *realms.Forest) *client.Client {
	t.Helper()
	keys, err := keytab.Load(keytabOf(t, forest, computer))
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(f.config)
	if err != nil {
		t.Fatal(err)
	}
	krb := client.NewWithKeytab(computer.SAMName(), forest.Realm, keys, c, client.DisablePAFXFAST(true))
	if err := krb.Login(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(krb.Destroy)
	return krb
}

// token gets a ticket for a service and makes the token of one request from it.
func token(krb *client.Client, service string) ([]byte, error) {
	ticket, key, err := krb.GetServiceTicket(service)
	if err != nil {
		return nil, err
	}
	inner, err := spnego.NewNegTokenInitKRB5(krb, ticket, key)
	if err != nil {
		return nil, err
	}
	whole := spnego.SPNEGOToken{Init: true, NegTokenInit: inner}
	return whole.Marshal()
}

// judge gives a computer's ticket for a service to an acceptor with a keytab that trusts realms.
func judge(t *testing.T, krb *client.Client, service, keytab string, trusted ...string) (proof.Ticket, error) {
	t.Helper()
	raw, err := token(krb, service)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := kerberos.LoadKeytab(keytab)
	if err != nil {
		t.Fatal(err)
	}
	acceptor, err := kerberos.New(kerberos.Config{
		Keytab: keys,
		Realms: func() (listed []proof.Realm) {
			for _, name := range trusted {
				listed = append(listed, proof.NewRealm(name))
			}
			return listed
		},
		Replay: auth.NewMemory(100, time.Now),
	})
	if err != nil {
		t.Fatal(err)
	}
	accepted, _, err := acceptor.Accept(t.Context(), raw, auth.Channel{})
	if accepted.Ticket == nil {
		return proof.Ticket{}, err
	}
	return *accepted.Ticket, err
}

func sid(t *testing.T, f *realms.Forest, a realms.Account) string {
	t.Helper()
	values, err := f.Search(t.Context(), "(sAMAccountName="+a.SAMName()+")", "objectSid")
	if err != nil || len(values) != 1 {
		t.Fatalf("SID of %s: %q, %v", a.SAMName(), values, err)
	}
	return values[0]
}

func (f *twoForests) ticketHasAVerifiedPAC(t *testing.T) {
	got, err := judge(t, f.login(t, f.a2003), "HTTP/mpcluster.a2003.vm.local", keytabOf(t, f.a2003, service))
	if err != nil {
		t.Fatal(err)
	}
	if got.LogName() != `A2003\WK02-020-51W$` || !got.PAC || got.SID != sid(t, f.a2003, computer) {
		t.Errorf("got %s, PAC %v, SID %s; want A2003\\WK02-020-51W$ with the SID %s", got.LogName(), got.PAC, got.SID, sid(t, f.a2003, computer))
	}
	if got.EncryptionType != 18 {
		t.Errorf("encryption type %d, want 18: msDS-SupportedEncryptionTypes is %d", got.EncryptionType, realms.AESOnly)
	}
}

func (f *twoForests) accountWithoutEncryptionTypesGetsRC4(t *testing.T) {
	_, err := judge(t, f.login(t, f.a2003), "HTTP/old.a2003.vm.local", keytabOf(t, f.a2003, old))
	if got := catalog.CodeOf(err); got != catalog.KerberosEncryptionRefused {
		t.Errorf("RC4 ticket: %v, want %s", err, catalog.KerberosEncryptionRefused)
	}
	ldif := fmt.Sprintf("dn: %s\nchangetype: modify\nreplace: msDS-SupportedEncryptionTypes\nmsDS-SupportedEncryptionTypes: %d\n", old.DN(f.a2003), realms.AESOnly)
	if err := f.a2003.Modify(t.Context(), ldif); err != nil {
		t.Fatal(err)
	}
	got, err := judge(t, f.login(t, f.a2003), "HTTP/old.a2003.vm.local", keytabOf(t, f.a2003, old))
	if err != nil || got.EncryptionType != 18 {
		t.Errorf("with AES only: encryption type %d, %v; want 18", got.EncryptionType, err)
	}
}

func (f *twoForests) hostNameStandsForHTTP(t *testing.T) {
	got, err := judge(t, f.login(t, f.a2003), "HTTP/mp1.a2003.vm.local", keytabOf(t, f.a2003, point))
	if want := "MP1$@A2003.VM.LOCAL (asked for as HTTP/mp1.a2003.vm.local)"; err != nil || got.Service != want {
		t.Errorf("ticket for %s, want %s: %v", got.Service, want, err)
	}
}

func (f *twoForests) serviceNameOnAnotherAccount(t *testing.T) {
	krb := f.login(t, f.a2003)
	if _, err := judge(t, krb, "HTTP/mp2.a2003.vm.local", keytabOf(t, f.a2003, point)); catalog.CodeOf(err) != catalog.KerberosKeyWrong {
		t.Errorf("the name is svc-reports', the keytab MP1's: %v, want %s", err, catalog.KerberosKeyWrong)
	}
}

func (f *twoForests) duplicateServiceName(t *testing.T) {
	krb := f.login(t, f.a2003)
	if _, err := token(krb, twin1.Services[0]); err != nil {
		t.Fatalf("while the name is on one account: %v", err)
	}
	ldif := fmt.Sprintf("dn: %s\nchangetype: modify\nadd: servicePrincipalName\nservicePrincipalName: %s\n", twin2.DN(f.a2003), twin1.Services[0])
	if err := f.a2003.Modify(t.Context(), ldif); err == nil {
		t.Error("the directory took a second account for the name")
	}
	if err := f.a2003.Force(t.Context(), ldif); err != nil {
		t.Fatal(err)
	}
	_, err := token(f.login(t, f.a2003), twin1.Services[0])
	if err == nil || !strings.Contains(err.Error(), "KDC_ERR_S_PRINCIPAL_UNKNOWN") {
		t.Errorf("with the name on two accounts: %v, want KDC_ERR_S_PRINCIPAL_UNKNOWN", err)
	}
}

func (f *twoForests) forestTrust(t *testing.T) {
	krb, keys := f.login(t, f.contoso), keytabOf(t, f.a2003, service)
	got, err := judge(t, krb, "HTTP/mpcluster.a2003.vm.local", keys, "CONTOSO.LOCAL")
	if err != nil {
		t.Fatal(err)
	}
	if got.LogName() != `CONTOSO\WK02-020-51W$` || got.Realm != "CONTOSO.LOCAL" || got.SID != sid(t, f.contoso, computer) {
		t.Errorf("got %s of %s with the SID %s, want the computer of CONTOSO", got.LogName(), got.Realm, got.SID)
	}
	if _, err := judge(t, krb, "HTTP/mpcluster.a2003.vm.local", keys); catalog.CodeOf(err) != catalog.KerberosRealmNotTrusted {
		t.Errorf("CONTOSO is not listed: %v, want %s", err, catalog.KerberosRealmNotTrusted)
	}
}
