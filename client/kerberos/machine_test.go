package kerberos_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/client"
	"postern/client/kerberos"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"
)

// acceptor is MIT's GSSAPI as a server: what it makes of a token, in base64, and the
// token of its answer.
const acceptor = `
import sys, base64, gssapi
from gssapi.raw import ChannelBindings
binding = bytes.fromhex(sys.argv[2])
name = gssapi.Name(sys.argv[1], gssapi.NameType.hostbased_service)
creds = gssapi.Credentials(usage="accept")
bindings = ChannelBindings(application_data=binding) if binding else None
context = gssapi.SecurityContext(creds=creds, usage="accept", channel_bindings=bindings)
reply = context.step(base64.b64decode(sys.stdin.read()))
print(context.complete, context.initiator_name, base64.b64encode(reply).decode())
`

// accept judges a token with MIT's GSSAPI and a keytab, and returns who was proved.
func accept(t *testing.T, r *realms.Realms, keytab string, token, binding []byte) (name string, reply []byte) {
	t.Helper()
	return acceptAt(t, r, r.Host("mp"), keytab, token, binding)
}

func acceptAt(t *testing.T, r *realms.Realms, host, keytab string, token, binding []byte) (name string, reply []byte) {
	t.Helper()
	python := exec.Command("/usr/bin/python3", "-c", acceptor, "HTTP@"+host, hex.EncodeToString(binding))
	python.Env = append(os.Environ(), "KRB5_CONFIG="+r.ClientConfig(), "KRB5_KTNAME="+keytab, "KRB5RCACHENAME=none:")
	python.Stdin = strings.NewReader(base64.StdEncoding.EncodeToString(token))
	var said bytes.Buffer
	python.Stderr = &said
	out, err := python.Output()
	fields := strings.Fields(string(out))
	if err != nil || len(fields) != 3 || fields[0] != "True" {
		t.Fatalf("MIT's acceptor: %v, %q, %s", err, out, said.String())
	}
	if reply, err = base64.StdEncoding.DecodeString(fields[2]); err != nil {
		t.Fatal(err)
	}
	return fields[1], reply
}

func machine(t *testing.T, r *realms.Realms, change func(*kerberos.Config)) *kerberos.Machine {
	t.Helper()
	config := kerberos.Config{Keytab: r.ComputerKeytab(realms.Child), Config: r.ClientConfig()}
	if change != nil {
		change(&config)
	}
	m, err := kerberos.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func negotiate(t *testing.T, m *kerberos.Machine, host string, binding []byte) client.Negotiation {
	t.Helper()
	n, err := m.Negotiate(t.Context(), host, binding)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAComputerProvesItselfByReferralToMITsAcceptor(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	session := realmstest.Login(t, r, realms.Child)
	for name, change := range map[string]func(*kerberos.Config){
		"with the keytab":           nil,
		"with a credential cache":   func(c *kerberos.Config) { c.Keytab, c.CCache = "", session.Cache },
		"with a cache named FILE:":  func(c *kerberos.Config) { c.Keytab, c.CCache = "", "FILE:"+strings.TrimPrefix(session.Cache, "FILE:") },
		"with its principal's name": func(c *kerberos.Config) { c.Principal = realms.Computer + "@" + realms.Child },
	} {
		t.Run(name, func(t *testing.T) {
			m := machine(t, r, change)
			if got, want := m.Principal(), realms.Computer+"@"+realms.Child; got != want {
				t.Errorf("principal: got %s, want %s", got, want)
			}
			for _, binding := range [][]byte{nil, []byte("tls-server-end-point:0123456789")} {
				n := negotiate(t, m, r.Host("mp"), binding)
				if want := "HTTP/" + r.Host("mp") + "@" + realms.Parent; n.Service != want || n.Client != m.Principal() {
					t.Errorf("got %s to %s, want %s to %s", n.Client, n.Service, m.Principal(), want)
				}
				name, reply := accept(t, r, r.MPKeytab(), n.Token, binding)
				if name != m.Principal() {
					t.Errorf("MIT's acceptor: got %s, want %s", name, m.Principal())
				}
				if err := n.Verify(reply); err != nil {
					t.Errorf("the server's proof: %v", err)
				}
				for at := range reply {
					if n.Verify(reply[:at]) == nil {
						t.Fatalf("a proof cut at %d was taken", at)
					}
				}
			}
		})
	}
	if log := r.KDCLog(realms.Child); !strings.Contains(log, "krbtgt/"+realms.Parent+"@"+realms.Child) {
		t.Errorf("the child's KDC gave no referral:\n%s", log)
	}
}

// Two domains below one parent trust each other by it alone: a computer of the one is
// referred to the parent, and by that to the other.
func TestAComputerProvesItselfToASiblingDomain(t *testing.T) {
	t.Parallel()
	const sibling, host, service = "SIBLING." + realms.Parent, "mp.child.a2003.vm.local", "HTTP/mp.child.a2003.vm.local"
	r := realmstest.Start(t, realms.Options{Others: []realms.Other{{Name: sibling, TrustedBy: realms.Parent, Referral: true}}})
	keytab := filepath.Join(t.TempDir(), "mp.keytab")
	if err := errors.Join(r.AddPrincipal(realms.Child, service, realms.Principal{}), r.Keytab(realms.Child, keytab, service)); err != nil {
		t.Fatal(err)
	}
	m := machine(t, r, func(c *kerberos.Config) { c.Keytab = r.ComputerKeytab(sibling) })
	n := negotiate(t, m, host, nil)
	if n.Client != realms.Computer+"@"+sibling || n.Service != service+"@"+realms.Child {
		t.Errorf("got %s to %s", n.Client, n.Service)
	}
	name, reply := acceptAt(t, r, host, keytab, n.Token, nil)
	if err := n.Verify(reply); name != n.Client || err != nil {
		t.Errorf("MIT's acceptor took %s for %s; the server's proof: %v", name, n.Client, err)
	}
	for realm, ticket := range map[string]string{sibling: "krbtgt/" + realms.Parent + "@" + sibling, realms.Parent: "krbtgt/" + realms.Child + "@" + realms.Parent, realms.Child: service + "@" + realms.Child} {
		if log := r.KDCLog(realm); !strings.Contains(log, ticket) {
			t.Errorf("the KDC of %s gave no ticket %s:\n%s", realm, ticket, log)
		}
	}
}

func TestTheServersProofMustBeOne(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	m := machine(t, r, nil)
	first, second := negotiate(t, m, r.Host("mp"), nil), negotiate(t, m, r.Host("mp"), nil)
	_, reply := accept(t, r, r.MPKeytab(), first.Token, nil)
	altered := bytes.Clone(reply)
	altered[len(altered)-1] ^= 1
	for name, test := range map[string]struct {
		reply []byte
		code  catalog.Code
	}{
		"none":                     {nil, catalog.ClientKerberosServer},
		"altered":                  {altered, catalog.ClientKerberosServer},
		"of another request":       {reply, catalog.ClientKerberosServer},
		"completed without proof":  {unhex("a1073005a0030a0100"), catalog.ClientKerberosServer},
		"incomplete without proof": {unhex("a1073005a0030a0101"), catalog.ClientKerberosServer},
		"rejected":                 {unhex("a1073005a0030a0102"), catalog.ClientKerberosTicket},
		"noise":                    {[]byte("NTLMSSP\x00"), catalog.ClientKerberosServer},
	} {
		if err := second.Verify(test.reply); catalog.CodeOf(err) != test.code {
			t.Errorf("%s: got %v, want %s", name, err, test.code)
		}
	}
	if err := first.Verify(reply); err != nil {
		t.Errorf("the right one: %v", err)
	}
}

func unhex(text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return b
}

func TestTicketsAreKeptAndAskedForAnewWhenTheyEnd(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	began := time.Now()
	now := began
	m := machine(t, r, func(c *kerberos.Config) { c.Now = func() time.Time { return now } })
	asked := func() int { return strings.Count(r.KDCLog(realms.Parent), "for HTTP/") }
	negotiate(t, m, r.Host("mp"), nil)
	negotiate(t, m, strings.ToUpper(r.Host("mp"))+".", nil)
	if got := asked(); got != 1 {
		t.Errorf("two proofs took %d tickets, want 1", got)
	}
	now = now.Add(9*time.Hour + 56*time.Minute)
	negotiate(t, m, r.Host("mp"), nil)
	if got := asked(); got != 2 {
		t.Errorf("close to its end: got %d tickets, want 2", got)
	}
	now = began
	n := negotiate(t, m, r.Host("mp"), nil)
	if n.Verify(nil) == nil {
		t.Error("nothing was taken for a proof")
	}
	negotiate(t, m, r.Host("mp"), nil)
	if got := asked(); got != 3 {
		t.Errorf("after a server that proved nothing: got %d tickets, want 3", got)
	}
}

func TestWhatGoesWrongAtTheRealmIsNamed(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{Others: []realms.Other{realms.ExternalTrust()}})
	dir := t.TempDir()
	if err := r.AddPrincipal(realms.Child, "STALE$", realms.Principal{Preauth: true}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"stale", "gone"} {
		account := strings.ToUpper(name) + "$"
		if name == "gone" {
			if err := r.AddPrincipal(realms.Child, account, realms.Principal{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Keytab(realms.Child, filepath.Join(dir, name), account); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(r.ChangeKey(realms.Child, "STALE$"), r.DeletePrincipal(realms.Child, "GONE$")); err != nil {
		t.Fatal(err)
	}
	away := filepath.Join(dir, "away.conf")
	writeFile(t, away, "[libdefaults]\n default_realm = "+realms.Child+"\n dns_lookup_kdc = false\n[realms]\n "+realms.Child+" = {\n  kdc = "+closedPort(t)+"\n }\n")
	nowhere := filepath.Join(dir, "nowhere.conf")
	writeFile(t, nowhere, "[libdefaults]\n default_realm = "+realms.Child+"\n dns_lookup_kdc = false\n")
	weak := filepath.Join(dir, "weak.conf")
	content, err := os.ReadFile(r.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, weak, strings.Replace(string(content), "[libdefaults]", "[libdefaults]\n default_tkt_enctypes = arcfour-hmac\n allow_weak_crypto = true\n", 1))

	for name, test := range map[string]struct {
		change func(*kerberos.Config)
		host   string
		code   catalog.Code
		says   string
	}{
		"a name that no realm knows": {nil, "nobody.a2003.vm.local", catalog.ClientKerberosServiceUnknown, "HTTP/nobody.a2003.vm.local"},
		"an external trust":          {func(c *kerberos.Config) { c.Keytab = r.ComputerKeytab(realms.External) }, r.Host("mp"), catalog.ClientKerberosServiceUnknown, realms.External},
		"a stale keytab":             {func(c *kerberos.Config) { c.Keytab = filepath.Join(dir, "stale") }, r.Host("mp"), catalog.ClientKerberosKey, "STALE$"},
		"a deleted account":          {func(c *kerberos.Config) { c.Keytab = filepath.Join(dir, "gone") }, r.Host("mp"), catalog.ClientKerberosAccount, "GONE$"},
		"no answer":                  {func(c *kerberos.Config) { c.Config = away }, r.Host("mp"), catalog.ClientKerberosUnreachable, realms.Child},
		"no address":                 {func(c *kerberos.Config) { c.Config = nowhere }, r.Host("mp"), catalog.ClientKerberosConfig, realms.Child},
		"no common type":             {func(c *kerberos.Config) { c.Config = weak }, r.Host("mp"), catalog.ClientKerberosEncryption, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := machine(t, r, test.change).Negotiate(t.Context(), test.host, nil)
			if catalog.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %s and %q", err, test.code, test.says)
			}
		})
	}
}

func TestAParentRealmThatIsAwayIsNamed(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	if err := r.StopKDC(realms.Parent); err != nil {
		t.Fatal(err)
	}
	_, err := machine(t, r, nil).Negotiate(t.Context(), r.Host("mp"), nil)
	if catalog.CodeOf(err) != catalog.ClientKerberosUnreachable || !strings.Contains(err.Error(), realms.Parent) {
		t.Errorf("got %v, want %s and the parent's name", err, catalog.ClientKerberosUnreachable)
	}
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestASilentCentreEndsInTime(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := realmstest.Start(t, realms.Options{})
	conf := filepath.Join(t.TempDir(), "krb5.conf")
	writeFile(t, conf, "[libdefaults]\n default_realm = "+realms.Child+"\n[realms]\n "+realms.Child+" = {\n  kdc = "+l.Addr().String()+"\n }\n")
	m := machine(t, r, func(c *kerberos.Config) { c.Config, c.Time = conf, 100*time.Millisecond })
	if _, err := m.Negotiate(t.Context(), r.Host("mp"), nil); catalog.CodeOf(err) != catalog.ClientKerberosUnreachable {
		t.Errorf("got %v, want %s", err, catalog.ClientKerberosUnreachable)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := machine(t, r, nil).Negotiate(ctx, r.Host("mp"), nil); err == nil {
		t.Error("an ended context was ignored")
	}
}

func TestCredentialsThatAreNone(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	dir := t.TempDir()
	noise, empty := filepath.Join(dir, "noise"), filepath.Join(dir, "empty")
	writeFile(t, noise, "\x05\x02\xff\xff\xff\xff")
	writeFile(t, empty, "")
	for name, test := range map[string]struct {
		config kerberos.Config
		code   catalog.Code
	}{
		"no keytab":                   {kerberos.Config{Keytab: filepath.Join(dir, "missing")}, catalog.ClientKerberosCredential},
		"an empty keytab":             {kerberos.Config{Keytab: empty}, catalog.ClientKerberosCredential},
		"a folder":                    {kerberos.Config{Keytab: dir}, catalog.ClientKerberosCredential},
		"no keytab at all":            {kerberos.Config{Keytab: noise}, catalog.ClientKerberosCredential},
		"a keytab without a computer": {kerberos.Config{Keytab: r.MPKeytab()}, catalog.ClientKerberosCredential},
		"a keytab of another":         {kerberos.Config{Keytab: r.ComputerKeytab(realms.Child), Principal: "OTHER$"}, catalog.ClientKerberosCredential},
		"no cache":                    {kerberos.Config{CCache: filepath.Join(dir, "missing")}, catalog.ClientKerberosCredential},
		"a cache that is none":        {kerberos.Config{CCache: noise}, catalog.ClientKerberosCredential},
		"no configuration":            {kerberos.Config{Config: filepath.Join(dir, "missing")}, catalog.ClientKerberosConfig},
	} {
		if test.config.Config == "" {
			test.config.Config = r.ClientConfig()
		}
		if _, err := kerberos.New(test.config); catalog.CodeOf(err) != test.code {
			t.Errorf("%s: got %v, want %s", name, err, test.code)
		}
	}
}
