//go:build ad && linux

package kerberos

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"postern/diag"
	"postern/internal/realms"
)

// TestTheDirectoryNamesEachCause needs root and Samba: make test-ad.
func TestForestDirectoryNamesEachCause(t *testing.T) {
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
	a2003, contoso := started[0], started[1]
	config := filepath.Join(t.TempDir(), "krb5.conf")
	machine := realms.Account{Name: "WK02-020-51W", Computer: true, Password: "Machine!1pw", EncryptionTypes: realms.AESOnly}
	if err := errors.Join(
		realms.ForestsConfig(config, started...),
		a2003.Add(t.Context(), machine,
			realms.Account{Name: "MP1", Computer: true, Password: "Machine!2pw", Services: []string{"HOST/mp1.a2003.vm.local", "HOST/MP1"}, EncryptionTypes: realms.AESOnly},
			realms.Account{Name: "MP2", Computer: true, Password: "Machine!3pw", Services: []string{"HOST/mp2.a2003.vm.local"}, EncryptionTypes: realms.AESOnly},
			realms.Account{Name: "svc-mp", Password: "Passw0rd!svc", Services: []string{"HTTP/mpcluster.a2003.vm.local"}, EncryptionTypes: realms.AESOnly},
			realms.Account{Name: "svc-reports", Password: "Passw0rd!rep", Services: []string{"HTTP/mp2.a2003.vm.local"}, EncryptionTypes: realms.AESOnly},
			realms.Account{Name: "svc-old", Password: "Passw0rd!old", Services: []string{"HTTP/old.a2003.vm.local"}},
			realms.Account{Name: "svc-case", Password: "Passw0rd!cas", Services: []string{"http/CASE.a2003.vm.local"}, EncryptionTypes: realms.AESOnly},
			realms.Account{Name: "svc-twin1", Password: "Passw0rd!one", Services: []string{"HTTP/twin.a2003.vm.local"}, EncryptionTypes: realms.AESOnly},
			realms.Account{Name: "svc-twin2", Password: "Passw0rd!two", EncryptionTypes: realms.AESOnly}),
		contoso.Add(t.Context(), machine),
		a2003.Force(t.Context(), "dn: CN=svc-twin2,CN=Users,DC=a2003,DC=vm,DC=local\nchangetype: modify\nadd: servicePrincipalName\nservicePrincipalName: HTTP/twin.a2003.vm.local\n"),
	); err != nil {
		t.Fatal(err)
	}
	for _, forest := range started { // what samba_spnupdate does on a controller of its own
		host := strings.ToLower(forest.HostName()) + "." + forest.DNSDomain()
		if out, err := forest.Tool(t.Context(), "spn", "add", "ldap/"+host, forest.HostName()+"$"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	o := Options{Seat: Client, Config: config, Keytab: exported(t, a2003, machine.SAMName()), Resolver: asking(a2003)}
	wk := func(o Options) Options { return o }
	tests := []struct {
		name, host string
		change     func(Options) Options
		want       string // of the ticket and the directory
		says       string
	}{
		{"the computer's HOST name serves", "mp1.a2003.vm.local", wk, "pass; pass; warn P937", "MP1$ has HOST/mp1.a2003.vm.local"},
		{"a service account owns the cluster's name", "mpcluster.a2003.vm.local", wk, "pass; warn P930; warn P937", "svc-mp"},
		{"the name is on another service's account, the computer's keytab given beside", "mp2.a2003.vm.local", func(o Options) Options {
			o.ServerKeytab = exported(t, a2003, "MP2$")
			return o
		}, "pass; fail P927; fail P930; warn P937", "svc-reports"},
		{"its own keytab given beside", "mpcluster.a2003.vm.local", func(o Options) Options {
			o.ServerKeytab = exported(t, a2003, "svc-mp")
			return o
		}, "pass; pass; pass; warn P937", "the server has its key"},
		{"RC4 for want of an attribute", "old.a2003.vm.local", wk, "pass; warn P913; warn P930; warn P932; warn P937", "no msDS-SupportedEncryptionTypes"},
		{"other letter case", "case.a2003.vm.local", wk, "pass; warn P930; pass P935; warn P937", "http/CASE.a2003.vm.local"},
		{"two accounts", "twin.a2003.vm.local", wk, "fail P915; fail P929; warn P937", "svc-twin2"},
		{"nobody", "ghost.a2003.vm.local", wk, "fail P915; fail P915; warn P937", "the global catalog of"},
		{"the directory server given by name", "mp1.a2003.vm.local", func(o Options) Options {
			o.Directory = "dc-a2003.a2003.vm.local"
			return o
		}, "pass; pass; warn P937", "dc-a2003.a2003.vm.local"},
		{"a port given with it", "mp1.a2003.vm.local", func(o Options) Options {
			o.Directory = "dc-a2003.a2003.vm.local:389"
			return o
		}, "pass; pass; warn P937", "the domain a2003.vm.local alone"},
		{"no directory wanted", "mp1.a2003.vm.local", func(o Options) Options {
			o.Directory = NoDirectory
			return o
		}, "pass; skipped P934", "setspn -Q HTTP/mp1.a2003.vm.local"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { judge(t, test.change(o), test.host, test.want, test.says) })
	}
	t.Run("from the server's seat", func(t *testing.T) {
		server := Options{Seat: Server, Server: "mpcluster.a2003.vm.local", Config: config, Keytab: exported(t, a2003, "svc-mp"), Resolver: asking(a2003)}
		findings := check(t, server)
		if got, want := states(only(findings, "key", "directory")), "pass; pass; pass; warn P937"; got != want {
			t.Errorf("%q, want %q\n%s", got, want, findingList(findings))
		}
	})
	foreign := Options{Seat: Client, Config: config, Keytab: exported(t, contoso, machine.SAMName()), Resolver: asking(contoso)}
	t.Run("no trust", func(t *testing.T) {
		judge(t, foreign, "mpcluster.a2003.vm.local", "fail P916; skipped P934; skipped; warn P937", "has no trust of its own")
	})
	t.Run("external trust", func(t *testing.T) {
		makeTrust(t, contoso, a2003, "external")
		judge(t, foreign, "mpcluster.a2003.vm.local", "fail P916; skipped P934; fail P933; warn P937", "external trust")
		if out, err := contoso.Tool(t.Context(), "domain", "trust", "delete", a2003.Realm, "--delete-location=both", "-U", "Administrator@"+a2003.Realm+"%"+a2003.AdministratorPassword); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
	t.Run("forest trust", func(t *testing.T) {
		makeTrust(t, contoso, a2003, "forest")
		judge(t, foreign, "mpcluster.a2003.vm.local", "pass; warn P930; pass; warn P937", "by referral: CONTOSO.LOCAL → A2003.VM.LOCAL")
	})
}

// judge checks the findings about the ticket and the directory.
func judge(t *testing.T, o Options, host, want, says string) {
	t.Helper()
	o.Server = host
	findings := check(t, o)
	if got := states(only(findings, "ticket", "directory")); got != want {
		t.Errorf("%q, want %q\n%s", got, want, findingList(findings))
	}
	if text := findingList(findings).String(); !strings.Contains(text, says) {
		t.Errorf("no finding says %q:\n%s", says, text)
	}
}

func only(findings []diag.Finding, checks ...string) (kept []diag.Finding) {
	for _, f := range findings {
		for _, name := range checks {
			if f.Check == name {
				kept = append(kept, f)
			}
		}
	}
	return kept
}

// asking is a resolver that asks a forest's own DNS.
func asking(f *realms.Forest) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(f.Address, "53"))
	}}
}

func exported(t *testing.T, f *realms.Forest, account string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "account.keytab")
	if err := f.Keytab(t.Context(), path, account); err != nil {
		t.Fatal(err)
	}
	return path
}

func makeTrust(t *testing.T, own, other *realms.Forest, kind string) {
	t.Helper()
	out, err := own.Tool(t.Context(), "domain", "trust", "create", other.Realm, "--type="+kind, "--direction=both", "--create-location=both", "--skip-validation",
		"-U", "Administrator@"+other.Realm+"%"+other.AdministratorPassword)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
