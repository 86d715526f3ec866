package kerberos_test

import (
	"encoding/base64"
	"encoding/hex"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/auth"
	"postern/auth/kerberos"
	"postern/catalog"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"
	"postern/proof"
)

// server is a small web server before an acceptor. It notes what it decided.
type server struct {
	*httptest.Server
	acceptor *kerberos.Acceptor

	mu      sync.Mutex
	asked   int // requests without a ticket
	proofs  []proof.Proof
	refused []error
}

func newServer(t *testing.T, keytab string, secured bool, change func(*kerberos.Config)) *server {
	t.Helper()
	keys, err := kerberos.LoadKeytab(keytab)
	if err != nil {
		t.Fatal(err)
	}
	config := kerberos.Config{
		Keytab: keys, Replay: auth.NewMemory(1000, time.Now),
		Realms: func() []proof.Realm { return []proof.Realm{proof.NewRealm(realms.Child)} },
	}
	if change != nil {
		change(&config)
	}
	s := &server{}
	if s.acceptor, err = kerberos.New(config); err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewUnstartedServer(s)
	if secured {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("WWW-Authenticate", "Negotiate")
	_, credential, ok := strings.Cut(r.Header.Get("Authorization"), "Negotiate ")
	if !ok {
		s.asked++
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token, err := base64.StdEncoding.DecodeString(credential)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	channel := auth.Channel{TLS: r.TLS}
	if r.TLS != nil {
		channel.Certificates = s.TLS.Certificates[0].Certificate[:1]
	}
	accepted, reply, err := s.acceptor.Accept(r.Context(), token, channel)
	if len(reply) > 0 {
		w.Header().Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString(reply))
	}
	if err != nil {
		s.refused = append(s.refused, err)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.proofs = append(s.proofs, accepted)
	w.Write([]byte(accepted.Account))
}

// lastRefusal returns the code and words of the last refusal.
func (s *server) lastRefusal() (catalog.Code, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refused) == 0 {
		return "", ""
	}
	err := s.refused[len(s.refused)-1]
	return catalog.CodeOf(err), err.Error()
}

// curl asks as the session's account does, under a host's name.
func curl(t *testing.T, session *realms.Session, s *server, host string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	scheme, _, _ := strings.Cut(s.URL, ":")
	command := session.Command(t.Context(), "curl", "-sSk", "--noproxy", "*", "--max-time", "10", "--anyauth", "-u", ":", "-X", "CCM_POST", "-d", "x", "-w", " %{http_code}",
		"--resolve", host+":"+port+":127.0.0.1", scheme+"://"+host+":"+port+"/ccm_system_windowsauth/request")
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("curl: %v: %s", err, out)
	}
	return string(out)
}

// initiate lets MIT's GSSAPI ask and says what it thinks of the answer.
func initiate(t *testing.T, session *realms.Session, s *server, host string, binding []byte) string {
	t.Helper()
	scheme, _, _ := strings.Cut(s.URL, ":")
	arguments := []string{"testdata/initiate.py", s.Listener.Addr().String(), host, scheme}
	if binding != nil {
		arguments = append(arguments, hex.EncodeToString(binding))
	}
	out, err := session.Command(t.Context(), "/usr/bin/python3", arguments...).CombinedOutput()
	if _, failed := err.(*exec.ExitError); err != nil && !failed {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func TestComputersOfRealRealms(t *testing.T) {
	others := []realms.Other{realms.ExternalTrust(), realms.Transit()}
	r := realmstest.Start(t, realms.Options{Others: others})
	computer := realmstest.Login(t, r, realms.Child)
	mp := r.Host("mp")

	t.Run("curl is asked once, then proves the computer of the child realm", func(t *testing.T) {
		s := newServer(t, r.MPKeytab(), false, nil)
		if got, want := curl(t, computer, s, mp), `CHILD\WK02-020-51W$ 200`; got != want {
			t.Fatalf("got %q, want %q: %v", got, want, s.refused)
		}
		ticket := s.proofs[0].Ticket
		if s.asked != 1 || ticket.Realm != realms.Child || ticket.Service != "HTTP/"+mp+"@"+realms.Parent || ticket.EncryptionType != 18 || !ticket.PAC || len(ticket.Transited) != 0 {
			t.Errorf("asked %d times, got %+v", s.asked, *ticket)
		}
	})

	t.Run("MIT's GSSAPI is sure of the server", func(t *testing.T) {
		for _, secured := range []bool{false, true} {
			s := newServer(t, r.MPKeytab(), secured, nil)
			if got, want := initiate(t, computer, s, mp, nil), "200 complete=True mutual=True"; got != want {
				t.Errorf("TLS %v: got %q, want %q: %v", secured, got, want, s.refused)
			}
		}
	})

	t.Run("MIT's GSSAPI binds its ticket to the certificate", func(t *testing.T) {
		s := newServer(t, r.MPKeytab(), true, func(c *kerberos.Config) { c.Binding = kerberos.Required })
		endPoint := kerberos.EndPoint(s.TLS.Certificates[0].Certificate[0])
		if got, want := initiate(t, computer, s, mp, endPoint), "200 complete=True mutual=True"; got != want {
			t.Errorf("right binding: got %q, want %q: %v", got, want, s.refused)
		}
		for name, test := range map[string]struct {
			binding []byte
			want    catalog.Code
		}{"no binding": {nil, catalog.KerberosBindingMissing}, "another certificate": {kerberos.EndPoint([]byte("another")), catalog.KerberosBindingMismatch}} {
			got := initiate(t, computer, s, mp, test.binding)
			if code, _ := s.lastRefusal(); code != test.want || !strings.HasPrefix(got, "401 ") {
				t.Errorf("%s: got %q, %s, want %s", name, got, code, test.want)
			}
		}
		plain := newServer(t, r.MPKeytab(), false, nil)
		initiate(t, computer, plain, mp, endPoint)
		if code, _ := plain.lastRefusal(); code != catalog.KerberosBindingPlain {
			t.Errorf("over plain HTTP: got %s", code)
		}
	})

	t.Run("a service account's keytab serves the cluster's name on every node", func(t *testing.T) {
		one, two := newServer(t, r.ClusterKeytab(), false, nil), newServer(t, r.ClusterKeytab(), false, nil)
		for _, s := range []*server{one, two} {
			if got, want := curl(t, computer, s, r.Host("mpcluster")), `CHILD\WK02-020-51W$ 200`; got != want {
				t.Errorf("got %q, want %q: %v", got, want, s.refused)
			}
		}
	})

	t.Run("a token is good once", func(t *testing.T) {
		s := newServer(t, r.MPKeytab(), false, nil)
		token := realmstest.Token(t, computer, mp)
		first, _, err := s.acceptor.Accept(t.Context(), token, auth.Channel{})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.acceptor.Accept(t.Context(), token, auth.Channel{}); catalog.CodeOf(err) != catalog.KerberosReplay {
			t.Errorf("second use: %v", err)
		}
		other := newServer(t, r.MPKeytab(), false, nil)
		second, _, err := other.acceptor.Accept(t.Context(), token, auth.Channel{})
		if err != nil || second.Ticket.Use != first.Ticket.Use {
			t.Errorf("other node: %v; the use must have one name", err)
		}
	})

	t.Run("a wrong clock is told to MIT's GSSAPI", func(t *testing.T) {
		later := func() time.Time { return time.Now().Add(time.Hour) }
		s := newServer(t, r.MPKeytab(), false, func(c *kerberos.Config) { c.Now = later })
		got := initiate(t, computer, s, mp, nil)
		if code, text := s.lastRefusal(); code != catalog.KerberosClockSkew || !strings.HasPrefix(got, "401 ") || !strings.Contains(got, "Clock skew too great") {
			t.Errorf("got %q, %s", got, text)
		}
	})

	t.Run("SPN on another account", func(t *testing.T) {
		s := newServer(t, r.WrongKeytab(), false, nil)
		got := curl(t, computer, s, mp)
		if code, text := s.lastRefusal(); code != catalog.KerberosKeyWrong || !strings.Contains(text, "HTTP/"+mp) || !strings.HasSuffix(got, " 401") {
			t.Errorf("got %q, %s %s", got, code, text)
		}
	})

	t.Run("only an external trust, and the realm is not listed", func(t *testing.T) {
		s := newServer(t, r.MPKeytab(), false, nil)
		got := curl(t, realmstest.Login(t, r, realms.External), s, mp)
		if code, _ := s.lastRefusal(); code != catalog.KerberosRealmNotTrusted || !strings.HasSuffix(got, " 401") {
			t.Errorf("got %q, %s", got, code)
		}
	})

	t.Run("through the child's realm", func(t *testing.T) {
		partner := realmstest.Login(t, r, realms.Partner)
		listed := func(names ...string) func(*kerberos.Config) {
			return func(c *kerberos.Config) {
				c.Realms = func() (all []proof.Realm) {
					for _, name := range names {
						all = append(all, proof.NewRealm(name))
					}
					return all
				}
			}
		}
		tests := []struct {
			name   string
			listed []string
			want   catalog.Code
		}{
			{"only the computer's realm is listed", []string{realms.Partner}, catalog.KerberosTransitNotTrusted},
			{"only the realm between is listed", []string{realms.Child}, catalog.KerberosRealmNotTrusted},
			{"both are listed", []string{realms.Partner, realms.Child}, ""},
		}
		for _, test := range tests {
			s := newServer(t, r.MPKeytab(), false, listed(test.listed...))
			curl(t, partner, s, mp)
			if code, text := s.lastRefusal(); code != test.want {
				t.Errorf("%s: got %s, want %q", test.name, text, test.want)
			}
			if test.want == "" && (len(s.proofs) != 1 || strings.Join(s.proofs[0].Ticket.Transited, " ") != realms.Child) {
				t.Errorf("%s: got %+v", test.name, s.proofs)
			}
		}
	})

	t.Run("a new password of the account is taken up without a restart", func(t *testing.T) {
		s := newServer(t, r.MPKeytab(), false, nil)
		if err := r.ChangeKey(realms.Parent, r.Service("mp")); err != nil {
			t.Fatal(err)
		}
		fresh := realmstest.Login(t, r, realms.Child)
		curl(t, fresh, s, mp)
		if code, text := s.lastRefusal(); code != catalog.KerberosKeyWrong || !strings.Contains(text, "key version 2") {
			t.Errorf("stale keytab: %s", text)
		}
		path := t.TempDir() + "/new.keytab"
		if err := r.Keytab(realms.Parent, path, r.Service("mp")); err != nil {
			t.Fatal(err)
		}
		keys, err := kerberos.LoadKeytab(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.acceptor.Reload(keys); err != nil {
			t.Fatal(err)
		}
		if got, want := curl(t, fresh, s, mp), `CHILD\WK02-020-51W$ 200`; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestEachEncryptionTypeOfARealKDC(t *testing.T) {
	for kind, number := range map[string]int{realms.AES128: 17, realms.AES128SHA2: 19, realms.AES256SHA2: 20, realms.RC4: 23} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := realmstest.Start(t, realms.Options{EncryptionTypes: []string{kind}})
			computer := realmstest.Login(t, r, realms.Child)
			s := newServer(t, r.MPKeytab(), false, func(c *kerberos.Config) { c.AllowRC4 = number == 23 })
			if got, want := initiate(t, computer, s, r.Host("mp"), nil), "200 complete=True mutual=True"; got != want {
				t.Fatalf("got %q, want %q: %v", got, want, s.refused)
			}
			if got := s.proofs[0].Ticket.EncryptionType; got != number {
				t.Errorf("ticket of type %d", got)
			}
		})
	}
}
