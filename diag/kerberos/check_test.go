package kerberos

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	acceptor "postern/auth/kerberos"
	"postern/diag"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"
)

// cause is one thing that keeps a computer from proving its account, made on real KDCs,
// with the verdict that it must get (threat C81).
type cause struct {
	name string
	make func(t *testing.T, r *realms.Realms, o *Options) // changes what is healthy
	want string                                           // verdict
	says []string                                         // words among the details
}

// The label of each cause is the code's meaning; see catalog/data/check.yaml.
func TestEachCauseIsNamed(t *testing.T) {
	r := realmstest.Start(t, realms.Options{Others: []realms.Other{realms.ExternalTrust(), realms.Transit()}})
	mp := r.Host("mp")
	tests := []cause{
		{"healthy, by referral", nil, "", []string{"by referral: CHILD.A2003.VM.LOCAL → A2003.VM.LOCAL", "proves itself", "HTTP/mp.a2003.vm.local@A2003.VM.LOCAL"}},
		{"healthy, over TLS to a server that requires channel binding", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Server = windows{keytab: r.MPKeytab(), realms: r.Names(), tls: true, binding: acceptor.Required}.start(t, mp)
		}, "", []string{"https://"}},
		{"healthy, from a credential cache", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab, o.Cache = "", realmstest.Login(t, r, r.Child).Cache
		}, "", []string{"credential cache", "proves itself"}},
		{"healthy, through a realm between", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = r.ComputerKeytab(realms.Partner)
			o.Server = windows{keytab: r.MPKeytab(), realms: []string{realms.Partner, realms.Child, realms.Parent}}.start(t, mp)
		}, "", []string{"PARTNER.EXAMPLE → CHILD.A2003.VM.LOCAL → A2003.VM.LOCAL"}},
		{"healthy, the KDC found by SRV records", func(t *testing.T, r *realms.Realms, o *Options) {
			z := names(mp)
			z.kdc(t, "child.a2003.vm.local", r.Address(r.Child))
			z.kdc(t, "a2003.vm.local", r.Address(r.Parent))
			o.Config, o.Resolver = "", z.resolver(t)
		}, "", []string{"from DNS"}},
		{"healthy, the keytab given beside", func(_ *testing.T, r *realms.Realms, o *Options) {
			o.ServerKeytab = r.MPKeytab()
		}, "", []string{"with the key of HTTP/mp.a2003.vm.local@A2003.VM.LOCAL"}},

		{"the service name is registered nowhere", func(t *testing.T, r *realms.Realms, o *Options) {
			host := r.Host("ghost")
			o.Server, o.Resolver = windows{keytab: r.MPKeytab()}.start(t, host), names(host).resolver(t)
		}, "ticket fail P915", []string{"HTTP/ghost.a2003.vm.local", "CHILD.A2003.VM.LOCAL → A2003.VM.LOCAL"}},
		{"the service name is on another account", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Server = windows{keytab: r.WrongKeytab(), realms: r.Names()}.start(t, mp)
		}, "answer fail P921", []string{"P863"}},
		{"the service name is on another account, and the server says nothing", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Server = windows{keytab: r.WrongKeytab(), realms: r.Names(), silent: true}.start(t, mp)
		}, "answer fail P921", []string{"does not say why"}},
		{"the service name is on another account, its keytab given beside", func(t *testing.T, r *realms.Realms, o *Options) {
			o.ServerKeytab = r.WrongKeytab()
			o.Server = windows{keytab: r.WrongKeytab(), realms: r.Names()}.start(t, mp)
		}, "ticket fail P927; answer fail P921", nil},
		{"the service's key was changed after its keytab was written", func(t *testing.T, r *realms.Realms, o *Options) {
			host, keytab := service(t, r, "stale", realms.Principal{})
			if err := r.ChangeKey(r.Parent, r.Service("stale")); err != nil {
				t.Fatal(err)
			}
			o.ServerKeytab = keytab
			o.Server, o.Resolver = windows{keytab: keytab, realms: r.Names()}.start(t, host), names(host).resolver(t)
		}, "ticket fail P926; answer fail P921", []string{"version 2"}},
		{"the service has an RC4 key only", func(t *testing.T, r *realms.Realms, o *Options) {
			host, keytab := service(t, r, "weak", realms.Principal{EncryptionTypes: []string{realms.RC4}})
			o.Server, o.Resolver = windows{keytab: keytab, realms: r.Names(), rc4: true}.start(t, host), names(host).resolver(t)
		}, "ticket warn P913", []string{"arcfour-hmac (RC4)"}},
		{"the account has an RC4 key too", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = computer(t, r, "WEAK$", realms.Principal{EncryptionTypes: []string{realms.AES256, realms.RC4}})
		}, "account warn P912", []string{"WEAK$@CHILD.A2003.VM.LOCAL"}},
		{"the keytab has AES and the KDC RC4 only", func(t *testing.T, r *realms.Realms, o *Options) {
			keytab := computer(t, r, "OLD$", realms.Principal{EncryptionTypes: []string{realms.AES256}})
			if err := r.Admin(r.Child, `cpw -e "arcfour-hmac:normal" -randkey OLD$`); err != nil {
				t.Fatal(err)
			}
			o.Keytab = keytab
		}, "login fail P914", nil},

		{"our clock is 6 minutes ahead", func(_ *testing.T, _ *realms.Realms, o *Options) {
			o.Now = func() time.Time { return time.Now().Add(6 * time.Minute) }
		}, "clock fail P905", []string{"the clock of this machine is 360 seconds ahead of the clock of the KDC of CHILD.A2003.VM.LOCAL", "proves itself"}},
		{"our clock is 7 minutes behind", func(_ *testing.T, _ *realms.Realms, o *Options) {
			o.Now = func() time.Time { return time.Now().Add(-7 * time.Minute) }
		}, "clock fail P905", []string{"420 seconds behind"}},
		{"our clock is 2 minutes ahead", func(_ *testing.T, _ *realms.Realms, o *Options) {
			o.Now = func() time.Time { return time.Now().Add(2 * time.Minute) }
		}, "clock warn P906", []string{"120 seconds"}},
		{"the server's clock is 6 minutes ahead", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Server = windows{keytab: r.MPKeytab(), realms: r.Names(), ahead: 6 * time.Minute}.start(t, mp)
		}, "request fail P905; answer fail P905", []string{"seconds behind the clock of mp.a2003.vm.local"}},

		{"the name does not resolve", func(t *testing.T, _ *realms.Realms, o *Options) {
			o.Resolver = zone{}.resolver(t)
		}, "name fail P900; request fail P918", []string{"no such host"}},
		{"the name does not resolve, and the address is given", func(t *testing.T, _ *realms.Realms, o *Options) {
			o.Resolver, o.Address = zone{}.resolver(t), "127.0.0.13"
		}, "name warn P900", []string{"the address 127.0.0.13 was given instead", "proves itself"}},
		{"the name is an alias", func(t *testing.T, _ *realms.Realms, o *Options) {
			z := names("node1.a2003.vm.local")
			z["CNAME mp.a2003.vm.local."] = []string{"node1.a2003.vm.local."}
			z["PTR 13.0.0.127.in-addr.arpa."] = []string{"mp.a2003.vm.local."}
			o.Resolver = z.resolver(t)
		}, "name warn P901", []string{"alias of node1.a2003.vm.local"}},
		{"the reverse name is another, and krb5.conf follows it", func(t *testing.T, r *realms.Realms, o *Options) {
			z := names(mp)
			z["PTR 13.0.0.127.in-addr.arpa."] = []string{"node7.a2003.vm.local."}
			o.Resolver, o.Config = z.resolver(t), followingDNS(t, r)
		}, "name warn P901", []string{"127.0.0.13 is node7.a2003.vm.local"}},
		{"the reverse name is another, and krb5.conf does not follow it", func(t *testing.T, _ *realms.Realms, o *Options) {
			z := names(mp)
			z["PTR 13.0.0.127.in-addr.arpa."] = []string{"node7.a2003.vm.local."}
			o.Resolver = z.resolver(t)
		}, "", []string{"says not to follow"}},
		{"several addresses stand behind the name", func(t *testing.T, _ *realms.Realms, o *Options) {
			z := names(mp)
			z["A mp.a2003.vm.local."] = []string{"127.0.0.13", "127.0.0.14"}
			o.Resolver = z.resolver(t)
		}, "", []string{"127.0.0.13, 127.0.0.14"}},
		{"the server is given by its address", func(_ *testing.T, _ *realms.Realms, o *Options) {
			o.Server = strings.Replace(o.Server, mp, "127.0.0.13", 1)
		}, "name fail P900; ticket fail P916", nil},

		{"the KDC does not answer", func(t *testing.T, _ *realms.Realms, o *Options) {
			o.Config = file(t, "krb5.conf", krb5("CHILD.A2003.VM.LOCAL", closedPort(t)))
		}, "kdc fail P904", []string{"connection refused"}},
		{"the KDC of the next realm does not answer", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Config = file(t, "krb5.conf", krb5(r.Child, r.Address(r.Child), r.Parent, closedPort(t)))
		}, "ticket fail P904", []string{"no KDC of A2003.VM.LOCAL answers"}},
		{"one KDC of two does not answer", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Config = file(t, "krb5.conf", krb5(r.Child, closedPort(t), r.Child, r.Address(r.Child), r.Parent, r.Address(r.Parent)))
		}, "kdc warn P904", nil},
		{"no KDC is known", func(t *testing.T, _ *realms.Realms, o *Options) {
			o.Config = file(t, "krb5.conf", "[libdefaults]\n default_realm = CHILD.A2003.VM.LOCAL\n")
		}, "kdc fail P903", []string{"_kerberos._tcp.child.a2003.vm.local"}},
		{"the realm is not known", func(_ *testing.T, _ *realms.Realms, o *Options) {
			o.Config, o.Keytab = "", ""
		}, "account fail P902", nil},
		{"krb5.conf cannot be read", func(_ *testing.T, _ *realms.Realms, o *Options) {
			o.Config = "/nowhere/krb5.conf"
		}, "account fail P938; kdc fail P903", nil},

		{"only an external trust leads to the name", func(_ *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = r.ComputerKeytab(realms.External)
		}, "ticket fail P916", []string{"does not refer to A2003.VM.LOCAL, where the name is"}},
		{"no trust leads to the name", func(t *testing.T, r *realms.Realms, o *Options) {
			host := "mp.elsewhere.example"
			o.Server, o.Resolver = windows{keytab: r.MPKeytab()}.start(t, host), names(host).resolver(t)
		}, "ticket fail P916", []string{"no way to ELSEWHERE.EXAMPLE"}},
		{"the client's realm is not trusted by the site", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Server = windows{keytab: r.MPKeytab()}.start(t, mp)
		}, "answer fail P922", []string{"P869"}},

		{"there is no credential, and the realm is this machine's", func(t *testing.T, r *realms.Realms, o *Options) {
			z := names(mp)
			z.kdc(t, "child.a2003.vm.local", r.Address(r.Child))
			o.Config, o.Keytab, o.Realm, o.Resolver = "", "", "child.a2003.vm.local", z.resolver(t)
		}, "account skipped P907", []string{"the clocks agree", "invites to authenticate"}},
		{"there is no credential", func(_ *testing.T, _ *realms.Realms, o *Options) {
			o.Keytab = ""
		}, "account skipped P907", nil},
		{"the keytab is not there", func(_ *testing.T, _ *realms.Realms, o *Options) {
			o.Keytab = "/nowhere/krb5.keytab"
		}, "account fail P924; account skipped P907", nil},
		{"the account was deleted", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = computer(t, r, "GONE$", realms.Principal{})
			if err := r.DeletePrincipal(r.Child, "GONE$"); err != nil {
				t.Fatal(err)
			}
		}, "login fail P908", []string{"GONE$"}},
		{"the account's key was changed", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = computer(t, r, "JOINED$", realms.Principal{})
			if err := r.ChangeKey(r.Child, "JOINED$"); err != nil {
				t.Fatal(err)
			}
		}, "login fail P909", []string{"the keytab cannot read the KDC's answer"}},
		{"the account's key was changed, and the KDC wants a proof first", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = computer(t, r, "PROVEN$", realms.Principal{Preauth: true})
			if err := r.ChangeKey(r.Child, "PROVEN$"); err != nil {
				t.Fatal(err)
			}
		}, "login fail P909", nil},
		{"healthy, and the KDC wants a proof first", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = computer(t, r, "WARY$", realms.Principal{Preauth: true})
		}, "", []string{"the account has keys of aes256-cts-hmac-sha1-96"}},
		{"the account is disabled", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = changed(t, r, "OFF$", "modprinc -allow_tix OFF$")
		}, "login fail P910", nil},
		{"the account has expired", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = changed(t, r, "ENDED$", `modprinc -expire "2020-01-01 00:00:00 UTC" ENDED$`)
		}, "login fail P911", nil},
		{"the password has expired", func(t *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = changed(t, r, "AGED$", `modprinc -pwexpire "2020-01-01 00:00:00 UTC" AGED$`)
		}, "login fail P911", nil},

		{"the server does not answer", func(t *testing.T, _ *realms.Realms, o *Options) {
			_, port, _ := net.SplitHostPort(closedPort(t))
			o.Server = "http://" + net.JoinHostPort(mp, port)
		}, "request fail P918", []string{"connection refused"}},
		{"the server has NTLM only", func(t *testing.T, _ *realms.Realms, o *Options) {
			o.Server = fixed(t, mp, 401, "NTLM")
		}, "request fail P920", nil},
		{"the server asks for nothing", func(t *testing.T, _ *realms.Realms, o *Options) {
			o.Server = fixed(t, mp, 200, "")
		}, "request fail P919", nil},
		{"the server is another one", func(t *testing.T, _ *realms.Realms, o *Options) {
			o.Server = fixed(t, mp, 404, "")
		}, "request fail P936", nil},
		{"the server accepts and proves nothing", func(t *testing.T, _ *realms.Realms, o *Options) {
			o.Server = address(serve(t, mp, false, careless), mp)
		}, "answer warn P923", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			o := healthy(t, r, mp)
			if test.make != nil {
				test.make(t, r, &o)
			}
			findings := check(t, o)
			if got := verdict(findings); got != test.want {
				t.Errorf("verdict %q, want %q\n%s", got, test.want, findingList(findings))
			}
			text := findingList(findings).String()
			for _, words := range test.says {
				if !strings.Contains(text, words) {
					t.Errorf("no finding says %q:\n%s", words, text)
				}
			}
			if diag.Failed(findings) != strings.Contains(test.want, " fail ") {
				t.Errorf("failed %v, want the other", diag.Failed(findings))
			}
		})
	}
}

func TestTheServersSeatNamesEachCause(t *testing.T) {
	r := realmstest.Start(t, realms.Options{})
	tests := []cause{
		{"healthy", nil, "", []string{"the keytab reads a fresh ticket"}},
		{"healthy, no server named", func(_ *testing.T, _ *realms.Realms, o *Options) { o.Server = "" }, "", []string{"HTTP/mp.a2003.vm.local@A2003.VM.LOCAL"}},
		{"a service account for the cluster's name", func(t *testing.T, r *realms.Realms, o *Options) {
			host := r.Host("mpcluster")
			z := names(host)
			z["A mpcluster.a2003.vm.local."] = []string{"127.0.0.13", "127.0.0.14"}
			o.Keytab, o.Server, o.Resolver = r.ClusterKeytab(), host, z.resolver(t)
		}, "", []string{"svc-mp@A2003.VM.LOCAL", "127.0.0.13, 127.0.0.14", "the keytab reads a fresh ticket"}},
		{"the key was changed after the keytab was written", func(t *testing.T, r *realms.Realms, o *Options) {
			host, keytab := service(t, r, "stale", realms.Principal{})
			if err := r.ChangeKey(r.Parent, r.Service("stale")); err != nil {
				t.Fatal(err)
			}
			o.Server, o.Keytab, o.Resolver = host, keytab, names(host).resolver(t)
		}, "key fail P926", []string{"does not accept the keytab's key (version 1)"}},
		{"the key was changed, and the KDC wants a proof first", func(t *testing.T, r *realms.Realms, o *Options) {
			host, keytab := service(t, r, "wary", realms.Principal{Preauth: true})
			if err := r.ChangeKey(r.Parent, r.Service("wary")); err != nil {
				t.Fatal(err)
			}
			o.Server, o.Keytab, o.Resolver = host, keytab, names(host).resolver(t)
		}, "key fail P926", nil},
		{"the keytab is another account's", func(_ *testing.T, r *realms.Realms, o *Options) {
			o.Keytab = r.WrongKeytab()
		}, "key fail P927", []string{"svc-reports@A2003.VM.LOCAL"}},
		{"the keytab lacks the ticket's type", func(t *testing.T, r *realms.Realms, o *Options) {
			host, _ := service(t, r, "types", realms.Principal{})
			keytab := t.TempDir() + "/some.keytab"
			if err := r.Admin(r.Parent, "addprinc -e \"aes128-cts-hmac-sha1-96:normal\" -randkey svc-types", "ktadd -norandkey -k "+keytab+" svc-types"); err != nil {
				t.Fatal(err)
			}
			o.Server, o.Keytab, o.Resolver = host, keytab, names(host).resolver(t)
		}, "key fail P931", nil},
		{"the name is registered nowhere", func(t *testing.T, r *realms.Realms, o *Options) {
			host := r.Host("ghost")
			o.Server, o.Resolver = host, names(host).resolver(t)
		}, "key fail P915", nil},
		{"the keytab's names cannot log in", func(t *testing.T, r *realms.Realms, o *Options) {
			host, keytab := service(t, r, "nologin", realms.Principal{})
			if err := r.Admin(r.Parent, "modprinc -allow_tix "+r.Service("nologin")); err != nil {
				t.Fatal(err)
			}
			o.Server, o.Keytab, o.Resolver = host, keytab, names(host).resolver(t)
		}, "key skipped P910", []string{"--ccache"}},
		{"the keytab's names cannot log in, and a credential cache helps", func(t *testing.T, r *realms.Realms, o *Options) {
			host, keytab := service(t, r, "helped", realms.Principal{})
			o.Cache = realmstest.Login(t, r, r.Child).Cache
			o.Server, o.Keytab, o.Resolver = host, keytab, names(host).resolver(t)
		}, "", []string{"the keytab reads a fresh ticket"}},
		{"others can read the keytab", func(t *testing.T, r *realms.Realms, o *Options) {
			_, o.Keytab = copyOf(t, r.MPKeytab(), 0o644)
		}, "keytab fail P925", []string{"0644"}},
		{"the keytab holds weak keys", func(t *testing.T, r *realms.Realms, o *Options) {
			host, keytab := service(t, r, "weak", realms.Principal{EncryptionTypes: []string{realms.AES256, realms.RC4}})
			o.Server, o.Keytab, o.Resolver = host, keytab, names(host).resolver(t)
		}, "keytab warn P912", []string{"arcfour-hmac (RC4)"}},
		{"the keytab holds weak keys only", func(t *testing.T, r *realms.Realms, o *Options) {
			host, keytab := service(t, r, "weaker", realms.Principal{EncryptionTypes: []string{realms.RC4}})
			o.Server, o.Keytab, o.Resolver = host, keytab, names(host).resolver(t)
		}, "keytab fail P912; key warn P913", nil},
		{"two keys under one name and version", func(t *testing.T, r *realms.Realms, o *Options) {
			content, path := copyOf(t, r.MPKeytab(), 0o600)
			if err := os.WriteFile(path, append(content, alteredEntries(content)...), 0o600); err != nil {
				t.Fatal(err)
			}
			o.Keytab = path
		}, "keytab warn P928", nil},
		{"the keytab is not there", func(_ *testing.T, _ *realms.Realms, o *Options) { o.Keytab = "/nowhere/mp.keytab" }, "keytab fail P924", nil},
		{"the keytab is no keytab", func(t *testing.T, _ *realms.Realms, o *Options) {
			o.Keytab = file(t, "mp.keytab", "not a keytab")
		}, "keytab fail P924", nil},
		{"our clock is 6 minutes behind", func(_ *testing.T, _ *realms.Realms, o *Options) {
			o.Now = func() time.Time { return time.Now().Add(-6 * time.Minute) }
		}, "clock fail P905", []string{"360 seconds behind"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			host := r.Host("mp")
			o := Options{Seat: Server, Server: host, Config: r.ClientConfig(), Keytab: r.MPKeytab(), Principal: "", Resolver: names(host).resolver(t), Directory: NoDirectory}
			if test.make != nil {
				test.make(t, r, &o)
			}
			findings := check(t, o)
			if got := verdict(findings); got != test.want {
				t.Errorf("verdict %q, want %q\n%s", got, test.want, findingList(findings))
			}
			for _, words := range test.says {
				if text := findingList(findings).String(); !strings.Contains(text, words) {
					t.Errorf("no finding says %q:\n%s", words, text)
				}
			}
		})
	}
}

// healthy is a computer of the child's domain and a management point of the parent's.
func healthy(t *testing.T, r *realms.Realms, host string) Options {
	t.Helper()
	return Options{
		Seat: Client, Config: r.ClientConfig(), Keytab: r.ComputerKeytab(r.Child), Resolver: names(host).resolver(t),
		Server: windows{keytab: r.MPKeytab(), realms: r.Names()}.start(t, host),
	}
}

// changed makes a computer account and changes it by a command of kadmin.
func changed(t *testing.T, r *realms.Realms, name, command string) string {
	t.Helper()
	keytab := computer(t, r, name, realms.Principal{})
	if err := r.Admin(r.Child, command); err != nil {
		t.Fatal(err)
	}
	return keytab
}

// krb5 writes a krb5.conf from pairs of realm and KDC.
func krb5(pairs ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[libdefaults]\n default_realm = %s\n dns_canonicalize_hostname = false\n rdns = false\n[realms]\n", pairs[0])
	kdcs := map[string][]string{}
	var order []string
	for i := 0; i < len(pairs); i += 2 {
		if kdcs[pairs[i]] == nil {
			order = append(order, pairs[i])
		}
		kdcs[pairs[i]] = append(kdcs[pairs[i]], pairs[i+1])
	}
	for _, realm := range order {
		fmt.Fprintf(&b, " %s = {\n", realm)
		for _, kdc := range kdcs[realm] {
			fmt.Fprintf(&b, "  kdc = %s\n", kdc)
		}
		b.WriteString(" }\n")
	}
	return b.String()
}

// followingDNS is the realms' krb5.conf with MIT's defaults about DNS.
func followingDNS(t *testing.T, r *realms.Realms) string {
	t.Helper()
	text := krb5(r.Child, r.Address(r.Child), r.Parent, r.Address(r.Parent))
	text = strings.ReplaceAll(text, "= false", "= true")
	return file(t, "krb5.conf", text)
}

func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// kdc adds the SRV record of a KDC.
func (z zone) kdc(t *testing.T, domain, address string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	z["SRV _kerberos._tcp."+domain+"."] = []string{fmt.Sprintf("0 0 %s kdc.%s.", port, domain)}
	z["A kdc."+domain+"."] = []string{host}
}

func copyOf(t *testing.T, path string, mode os.FileMode) (content []byte, copied string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied = file(t, "copy.keytab", string(content))
	if err := os.Chmod(copied, mode); err != nil {
		t.Fatal(err)
	}
	return content, copied
}
