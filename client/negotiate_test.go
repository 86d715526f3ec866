package client

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"

	"postern/catalog"
	"postern/ccm"
)

// testTicket is a machine's proof that the test's site takes: "ticket <host>", answered
// with "proof of <host>". Real ones are in package kerberos.
type testTicket struct {
	err  error
	asks []string // host and binding of each
}

func (n *testTicket) Negotiate(_ context.Context, host string, binding []byte) (Negotiation, error) {
	n.asks = append(n.asks, strings.TrimSpace(host+" "+string(binding[:min(len(binding), 21)])))
	return Negotiation{
		Token: []byte("ticket " + host), Client: "WK02$@CHILD", Service: "HTTP/" + host + "@PARENT",
		Verify: func(reply []byte) error {
			if string(reply) == "proof of "+host {
				return nil
			}
			return catalog.Errorf(catalog.ClientKerberosServer, "%q", reply)
		},
	}, n.err
}

// windowsSite answers Windows authentication as S0 has it.
func windowsSite(proof string) func(http.ResponseWriter, *http.Request) (string, bool) {
	return func(w http.ResponseWriter, r *http.Request) (string, bool) {
		raw, found := strings.CutPrefix(r.Header.Get("Authorization"), "Negotiate ")
		token, err := base64.StdEncoding.DecodeString(raw)
		if !found || err != nil || string(token) != "ticket "+pointHost {
			w.Header().Set("WWW-Authenticate", "Negotiate")
			w.WriteHeader(http.StatusUnauthorized)
			return "", false
		}
		if proof != "" {
			w.Header().Set("WWW-Authenticate", "Negotiate "+base64.StdEncoding.EncodeToString([]byte(proof)))
		}
		return "WK02$@CHILD", true
	}
}

func (s *testSite) machine(by Negotiator, err error) (*testAgent, *[]string) {
	agent, said := s.newAgent(), []string{}
	agent.config.Negotiator = func() (Negotiator, error) { return by, err }
	agent.config.Say = func(text string) { said = append(said, text) }
	return agent, &said
}

func TestAMachinesTicketProvesARegistration(t *testing.T) {
	for _, scheme := range []string{"https", "http"} {
		t.Run(scheme, func(t *testing.T) {
			site, ticket := newTestSite(t), &testTicket{}
			site.windows = windowsSite("proof of " + pointHost)
			agent, said := site.machine(ticket, nil)
			agent.enrol(t, site.inside(scheme))
			status := agent.Status()
			if status.State != StateReady || len(site.proved) != 1 || len(*said) > 0 || status.NoKerberos != "" {
				t.Errorf("got %+v, proved %q, said %q", status, site.proved, *said)
			}
			if want := "Kerberos: WK02$@CHILD to HTTP/mp.test@PARENT, which proved itself too"; status.Proof != want {
				t.Errorf("proof: got %q, want %q", status.Proof, want)
			}
			if got := site.count("ccm_system_windowsauth"); got != 2 {
				t.Errorf("got %d requests, want one without a ticket and one with", got)
			}
			want := map[string][]string{"https": {pointHost + " tls-server-end-point:"}, "http": {pointHost}}[scheme]
			if !slices.Equal(ticket.asks, want) {
				t.Errorf("asked for %q, want %q", ticket.asks, want)
			}
		})
	}
}

func TestATokenIsBetterThanATicket(t *testing.T) {
	site, ticket := newTestSite(t), &testTicket{}
	site.windows = windowsSite("proof of " + pointHost)
	agent, _ := site.machine(ticket, nil)
	setup := site.inside("https")
	setup.Token = site.bulk
	agent.enrol(t, setup)
	if len(ticket.asks) > 0 || agent.Status().Proof != "the token that it enrolled with" {
		t.Errorf("asked for %q, proved by %q", ticket.asks, agent.Status().Proof)
	}
}

func TestAGatewayIsToldNoTicket(t *testing.T) {
	site, ticket := newTestSite(t), &testTicket{}
	agent, said := site.machine(ticket, nil)
	agent.enrol(t, site.setup())
	if len(ticket.asks) > 0 || len(*said) > 0 {
		t.Errorf("asked for %q, said %q", ticket.asks, *said)
	}
}

func TestWithoutKerberosNeverSilently(t *testing.T) {
	status := func(code int, challenge string) func(http.ResponseWriter, *http.Request) (string, bool) {
		return func(w http.ResponseWriter, r *http.Request) (string, bool) {
			if challenge != "" {
				w.Header().Set("WWW-Authenticate", challenge)
			}
			w.WriteHeader(code)
			return "", false
		}
	}
	refused := func(w http.ResponseWriter, r *http.Request) (string, bool) {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		if r.Header.Get("Authorization") != "" {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusUnauthorized)
			w.Write([]byte(`{"code":"` + string(catalog.KerberosNotAvailable) + `","detail":"the reason"}`))
			return "", false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return "", false
	}
	for name, test := range map[string]struct {
		windows func(http.ResponseWriter, *http.Request) (string, bool)
		opened  error
		ticket  error
		code    catalog.Code
	}{
		"no credential":              {nil, catalog.Errorf(catalog.ClientKerberosCredential, "none"), nil, catalog.ClientKerberosCredential},
		"no ticket":                  {windowsSite(""), nil, catalog.Errorf(catalog.ClientKerberosServiceUnknown, "none"), catalog.ClientKerberosServiceUnknown},
		"two 401":                    {status(401, "Negotiate"), nil, nil, catalog.ClientKerberosTicket},
		"two 401 and a reason":       {refused, nil, nil, catalog.KerberosNotAvailable},
		"another scheme":             {status(401, "NTLM"), nil, nil, catalog.ClientKerberosNotOffered},
		"no challenge":               {status(401, ""), nil, nil, catalog.ClientKerberosNotOffered},
		"nobody asks":                {status(200, ""), nil, nil, catalog.ClientKerberosNotOffered},
		"no such address":            {nil, nil, nil, catalog.PathUnknown},
		"forbidden without a reason": {status(403, ""), nil, nil, catalog.ClientRefused},
	} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			site.windows, site.approval = test.windows, ccm.ApprovalNone
			agent, said := site.machine(&testTicket{err: test.ticket}, test.opened)
			agent.enrol(t, site.inside("https"))
			got := agent.Status()
			if got.State != StateReady || got.Proof != "its own key alone" || len(site.proved) > 0 {
				t.Errorf("got %+v", got)
			}
			if !strings.HasPrefix(got.NoKerberos, string(test.code)+" ") {
				t.Errorf("kept %q, want %s", got.NoKerberos, test.code)
			}
			if len(*said) != 1 || !strings.Contains((*said)[0], string(test.code)) {
				t.Errorf("said %q, want %s once", *said, test.code)
			}
			if text := readLog(t, agent, "ClientIDManagerStartup.log"); !strings.Contains(text, "Kerberos did not prove this device: "+string(test.code)) {
				t.Errorf("the log does not say %s:\n%s", test.code, text)
			}
			failed := slices.ContainsFunc(agent.steps, func(s Step) bool { return !s.OK && s.Code == string(test.code) })
			if failed == (test.opened != nil) {
				t.Errorf("a failed step: got %v: %+v", failed, agent.steps)
			}
		})
	}
}

func TestAServerThatTookTheTicketMustProveItself(t *testing.T) {
	for name, proof := range map[string]string{"no proof": "", "a forged proof": "proof of another"} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			site.windows = windowsSite(proof)
			agent, _ := site.machine(&testTicket{}, nil)
			err := agent.Enrol(t.Context(), site.inside("http"))
			if catalog.CodeOf(err) != catalog.ClientKerberosServer || agent.Status().State.registered() {
				t.Errorf("got %v, %+v, want %s", err, agent.Status(), catalog.ClientKerberosServer)
			}
			anonymous := slices.ContainsFunc(agent.steps, func(s Step) bool { return s.OK && s.What == "registration message" })
			if anonymous {
				t.Error("it was told more without a ticket")
			}
		})
	}
}

func TestALostConnectionIsNoReasonToGoWithoutKerberos(t *testing.T) {
	site := newTestSite(t)
	site.windows = windowsSite("proof of " + pointHost)
	agent, said := site.machine(&testTicket{}, nil)
	site.refuse = func(endpoint string) error {
		if endpoint == "ccm_system_windowsauth" {
			return catalog.Errorf(catalog.StoreUnavailable, "away")
		}
		return nil
	}
	if err := agent.Enrol(t.Context(), site.inside("https")); !Transient(err) || len(*said) > 0 || agent.Status().State.registered() {
		t.Errorf("got %v, said %q, %+v", err, *said, agent.Status())
	}
	site.do(func() { site.refuse = nil })
	agent.enrol(t, site.inside("https"))
	if !strings.HasPrefix(agent.Status().Proof, "Kerberos: ") {
		t.Errorf("got %+v", agent.Status())
	}
}

func TestAServerThatCannotJudgeTheTicketIsAskedAgain(t *testing.T) {
	for _, code := range []int{http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusTooManyRequests} {
		t.Run(http.StatusText(code), func(t *testing.T) {
			site := newTestSite(t)
			healthy := windowsSite("proof of " + pointHost)
			site.windows = func(w http.ResponseWriter, r *http.Request) (string, bool) {
				if r.Header.Get("Authorization") == "" {
					return healthy(w, r)
				}
				w.WriteHeader(code) // without a token of the server's
				return "", false
			}
			agent, said := site.machine(&testTicket{}, nil)
			if err := agent.Enrol(t.Context(), site.inside("https")); !Transient(err) || len(*said) > 0 || agent.Status().State.registered() {
				t.Errorf("got %v, said %q, %+v", err, *said, agent.Status())
			}
			site.do(func() { site.windows = healthy })
			agent.enrol(t, site.inside("https"))
			if !strings.HasPrefix(agent.Status().Proof, "Kerberos: ") {
				t.Errorf("got %+v", agent.Status())
			}
		})
	}
}

func TestADeviceThatWaitsProvesItselfLater(t *testing.T) {
	site := newTestSite(t)
	site.windows, site.approval = windowsSite("proof of "+pointHost), ccm.ApprovalNone
	agent, _ := site.machine(nil, catalog.Errorf(catalog.ClientKerberosCredential, "none"))
	agent.enrol(t, site.inside("https"))
	id := agent.Status().ClientID
	agent.config.Negotiator = func() (Negotiator, error) { return &testTicket{}, nil }
	site.do(func() { site.approval = ccm.ApprovalApproved })
	site.refuse = func(endpoint string) error {
		if endpoint == "ccm_sts" {
			return catalog.Errorf(catalog.StoreUnavailable, "away: the token cannot tell of the approval")
		}
		return nil
	}
	agent.enrol(t, Setup{})
	if got := agent.Status(); got.ApprovalStatus != ccm.ApprovalApproved || got.ClientID != id || got.NoKerberos != "" || !strings.HasPrefix(got.Proof, "Kerberos: ") {
		t.Errorf("got %+v", got)
	}
}

func TestChannelBindingIsTheServersCertificate(t *testing.T) {
	leaf := &x509.Certificate{Raw: []byte("certificate"), SignatureAlgorithm: x509.SHA1WithRSA}
	sum := sha256.Sum256(leaf.Raw)
	want := "tls-server-end-point:" + string(sum[:])
	if got := channelBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for algorithm, size := range map[x509.SignatureAlgorithm]int{x509.ECDSAWithSHA256: 32, x509.ECDSAWithSHA384: 48, x509.SHA512WithRSA: 64} {
		leaf.SignatureAlgorithm = algorithm
		if got := len(channelBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}})) - len("tls-server-end-point:"); got != size {
			t.Errorf("%s: got %d bytes, want %d", algorithm, got, size)
		}
	}
	if channelBinding(nil) != nil || channelBinding(&tls.ConnectionState{}) != nil {
		t.Error("a binding without TLS")
	}
}

func FuzzServerToken(f *testing.F) {
	f.Add("Negotiate b2s=")
	f.Add("negotiate  b2s= , Basic realm=x")
	f.Add("Negotiate")
	f.Fuzz(func(t *testing.T, challenge string) {
		header := http.Header{"Www-Authenticate": {challenge, "Basic"}}
		if token := serverToken(header); len(token) > 0 && !offersNegotiate(header) {
			t.Errorf("a token in %q, which does not offer it", challenge)
		}
	})
}
