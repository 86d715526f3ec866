package client

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

func mps(names ...string) []ccm.ManagementPoint {
	var list []ccm.ManagementPoint
	for _, name := range names {
		list = append(list, ccm.ManagementPoint{Name: strings.ToUpper(name), FQDN: name, SiteCode: "GER", Version: "9128", Capabilities: []ccm.Capability{ccm.SSLState(false)}})
	}
	return list
}

// reaching lets an agent reach some addresses only, and remembers which it tried.
func (s *testSite) reaching(a *testAgent, open ...string) (tried *[]string) {
	tried = &[]string{}
	a.config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if !slices.Contains(*tried, address) {
			*tried = append(*tried, address)
		}
		if !slices.Contains(open, address) {
			return nil, &net.OpError{Op: "dial", Net: network, Err: fmt.Errorf("refused by the test")}
		}
		return s.dial(ctx, network, address)
	}
	return tried
}

func TestTheManagementPointIsChosenFromTheSitesList(t *testing.T) {
	for name, test := range map[string]struct {
		scheme string
		list   []ccm.ManagementPoint
		open   []string
		want   string
		why    string
	}{
		"https before http":              {"http", mps(pointHost), []string{"mp.test:80", "mp.test:443"}, "https://mp.test", "https before http"},
		"http where there is no https":   {"http", mps(pointHost), []string{"mp.test:80"}, "http://mp.test", "1 before it could not be used"},
		"another of the site":            {"http", mps("mp2.test"), []string{"mp.test:80", "mp2.test:443"}, "https://mp2.test", "from the site's list"},
		"the next when one fails":        {"https", mps("a.test", "b.test", pointHost), []string{"mp.test:443"}, "https://mp.test", "from the site's list"},
		"no list":                        {"http", nil, []string{"mp.test:80", "mp.test:443"}, "http://mp.test", "names no other"},
		"another site's":                 {"https", []ccm.ManagementPoint{{FQDN: "other.test", SiteCode: "XYZ"}}, []string{"mp.test:443", "other.test:443"}, "https://mp.test", "names no other"},
		"never down to http":             {"https", mps("mp2.test"), []string{"mp.test:443", "mp2.test:80"}, "https://mp.test", "none of the 1 ways"},
		"names that are none":            {"http", mps("mp2.test/evil", "mp2.test:81", "a b", "user@host", "", "[::1", "..\\x"), []string{"mp.test:80"}, "http://mp.test", "names no other"},
		"one that demands a certificate": {"http", []ccm.ManagementPoint{{FQDN: "mp2.test", SiteCode: "GER", Capabilities: []ccm.Capability{ccm.SSLState(true)}}}, []string{"mp.test:80", "mp2.test:80"}, "http://mp.test", "none of the 1 ways"},
	} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			setup := site.inside(test.scheme)
			site.show(certificateFor{names: []string{pointHost, "mp2.test", "other.test"}, role: token.RoleManagementPoint})
			site.points = test.list
			agent := site.newAgent()
			tried := site.reaching(agent, test.open...)
			agent.enrol(t, setup)
			if got := agent.Status(); got.ManagementPoint != test.want || !strings.Contains(got.Chosen, test.why) {
				t.Errorf("got %s: %s; want %s: %s", got.ManagementPoint, got.Chosen, test.want, test.why)
			}
			if strings.Contains(strings.Join(*tried, " "), "evil") || test.scheme == "https" && slices.ContainsFunc(*tried, func(a string) bool { return strings.HasSuffix(a, ":80") }) {
				t.Errorf("tried %q", *tried)
			}
			if text := readLog(t, agent, "LocationServices.log"); !strings.Contains(text, "Using the management point "+test.want+": ") {
				t.Errorf("LocationServices.log does not say which:\n%s", text)
			}
		})
	}
}

func TestTheSitesPortIsUsed(t *testing.T) {
	site := newTestSite(t)
	setup := site.inside("http")
	site.points, site.httpsPort = mps(pointHost), 8443
	agent := site.newAgent()
	site.reaching(agent, "mp.test:80", "mp.test:8443")
	agent.enrol(t, setup)
	if got := agent.Status().ManagementPoint; got != "https://mp.test:8443" {
		t.Errorf("got %s", got)
	}
}

func TestTheOrderIsADevicesOwn(t *testing.T) {
	names := []string{"a.test", "b.test", "c.test", "d.test"}
	first := map[string]int{}
	for i := range 400 {
		r := record{Name: fmt.Sprint("device", i), SiteCode: "GER"}
		order := func(list []ccm.ManagementPoint) (hosts []string) {
			for _, c := range r.candidates(route{Scheme: "https", Host: "x.test"}, pointInformation{list: list}) {
				hosts = append(hosts, c.Host)
			}
			return hosts
		}
		got := order(mps(names...))
		first[got[0]]++
		turned := slices.Clone(names)
		slices.Reverse(turned)
		if again := order(mps(turned...)); !slices.Equal(got, again) {
			t.Fatalf("the list's order counts: %q, %q", got, again)
		}
		fewer := slices.DeleteFunc(slices.Clone(got), func(h string) bool { return h == got[1] })
		if again := order(mps(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == got[1] })...)); !slices.Equal(fewer, again) {
			t.Fatalf("one that left changed the order of the others: %q, %q", fewer, again)
		}
	}
	for _, name := range names {
		if n := first[name]; n < 60 || n > 140 {
			t.Errorf("%s is the first of %d devices of 400", name, n)
		}
	}
}

func TestTheInitialManagementPointsAreTriedInTurn(t *testing.T) {
	site := newTestSite(t)
	setup := site.inside("https")
	setup.MorePoints = []string{"https://b.test", "https://" + pointHost}
	setup.ManagementPoint = "https://a.test"
	agent := site.newAgent()
	tried := site.reaching(agent, "mp.test:443")
	agent.enrol(t, setup)
	if want := []string{"a.test:443", "b.test:443", "mp.test:443"}; !slices.Equal(*tried, want) || len(agent.waits) != 2 {
		t.Errorf("tried %q with %d pauses, want %q with 2", *tried, len(agent.waits), want)
	}

	agent = site.newAgent()
	site.reaching(agent)
	err := agent.Enrol(t.Context(), setup)
	if catalog.CodeOf(err) != catalog.ClientNoManagementPoint || !Transient(err) || !strings.Contains(err.Error(), "b.test") {
		t.Errorf("got %v, want %s with the reasons, worth trying again", err, catalog.ClientNoManagementPoint)
	}
}

func TestAChosenManagementPointThatFailsIsLeft(t *testing.T) {
	site := newTestSite(t)
	setup := site.inside("https")
	site.show(certificateFor{names: []string{pointHost, "mp2.test"}, role: token.RoleManagementPoint})
	site.points = mps("mp2.test")
	agent := site.newAgent()
	site.reaching(agent, "mp.test:443", "mp2.test:443")
	agent.enrol(t, setup)
	if got := agent.Status().ManagementPoint; got != "https://mp2.test" {
		t.Fatalf("got %s", got)
	}
	agent.Close()
	site.do(func() { agent.client = nil })
	site.reaching(agent, "mp.test:443")
	if err := agent.Enrol(t.Context(), Setup{}); !Transient(err) {
		t.Errorf("got %v", err)
	}
	agent.enrol(t, Setup{})
	if got := agent.Status(); got.ManagementPoint != "https://mp.test" || *agent.made != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestRunGoesToAnotherManagementPoint(t *testing.T) {
	site := newTestSite(t)
	setup := site.inside("https")
	site.show(certificateFor{names: []string{pointHost, "mp2.test"}, role: token.RoleManagementPoint, from: begin().AddDate(0, 0, -1), to: begin().AddDate(1, 0, 0)})
	site.points = mps("mp2.test")
	agent := site.newAgent()
	site.reaching(agent, "mp.test:443", "mp2.test:443")
	agent.enrol(t, setup)
	agent.Close()
	agent.Agent.client = nil
	site.reaching(agent, "mp.test:443")
	site.clock.add(token.CCMLifetime)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	agent.onWait = func(d time.Duration) error {
		if d > time.Hour { // the pause after a renewal that went well
			cancel()
		}
		return ctx.Err()
	}
	if err := agent.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := agent.Status(); got.ManagementPoint != "https://mp.test" || !agent.cached().CCM.lasts(site.clock.now(), 0) {
		t.Errorf("got %+v", got)
	}
}

func TestAnswersUnderAnotherRootAreRefused(t *testing.T) {
	key, other := newRoot(t)
	for name, test := range map[string]struct {
		scheme string
		site   func(*testSite)
		code   catalog.Code
	}{
		"another key announced over http":  {"http", func(s *testSite) { s.information = trk(ccm.MPTRK{Key: other.RawSubjectPublicKeyInfo}.XML()) }, catalog.ClientRootKeyOther},
		"another key announced over https": {"https", func(s *testSite) { s.information = trk(ccm.MPTRK{Key: other.RawSubjectPublicKeyInfo}.XML()) }, catalog.ClientRootKeyOther},
		"no key announced over http":       {"http", func(s *testSite) { s.information = trk("<KEYDATA/>") }, catalog.ClientRootKeyOther},
		"noise over http":                  {"http", func(s *testSite) { s.information = trk("noise") }, catalog.ClientRootKeyOther},
		"answers that nobody signed":       {"http", func(s *testSite) { s.unsigned = true }, catalog.ClientReplyUnsigned},
		"a signer of another site": {"http", func(s *testSite) {
			genuine := s.rootCA
			s.information = trk(ccm.MPTRK{Key: genuine.RawSubjectPublicKeyInfo}.XML())
			s.root, s.rootCA = key, other
			s.shown = s.certificate(certificateFor{names: []string{pointHost}, role: token.RoleManagementPoint})
		}, catalog.ClientReplyUnsigned},
		"a signer of another role": {"http", func(s *testSite) {
			s.shown = s.certificate(certificateFor{names: []string{pointHost}, role: token.RoleGateway})
		}, catalog.ClientReplyUnsigned},
		"another site's code": {"https", func(s *testSite) {
			s.information = func(query string) (string, bool) {
				return ccm.MPKeyInformation{SiteCode: "XYZ"}.XML(), strings.HasPrefix(query, "MPKEYINFORMATION")
			}
		}, catalog.ClientSiteOther},
	} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			setup := site.inside(test.scheme)
			site.do(func() { test.site(site) })
			agent := site.newAgent()
			err := agent.Enrol(t.Context(), setup)
			if catalog.CodeOf(err) != test.code || len(site.devices) > 0 {
				t.Errorf("got %v and %d devices, want %s", err, len(site.devices), test.code)
			}
		})
	}
}

func trk(text string) func(string) (string, bool) {
	return func(query string) (string, bool) { return text, query == "MPTRK" }
}

func TestSomebodyInTheMiddleChangesNothing(t *testing.T) {
	for name, change := range map[string]func(w *changer){
		"the list":      func(w *changer) { w.replace("<MPList>", `<MPList><MP Name="EVIL" FQDN="evil.test" SiteCode="GER"/>`) },
		"the signature": func(w *changer) { w.header.Del(ccm.HeaderSignedReply) },
		"the chain":     func(w *changer) { w.header.Del(ccm.HeaderSignedReplyChain) },
		"noise":         func(w *changer) { w.header.Set(ccm.HeaderSignedReply, "noise") },
	} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			setup := site.inside("http")
			site.points = mps(pointHost)
			changed := false
			inner := site.plain.Config.Handler
			site.plain.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c := &changer{ResponseWriter: w, header: w.Header()}
				inner.ServeHTTP(c, r)
				if strings.Contains(r.RequestURI, "MPLIST") {
					change(c)
					changed = true
				}
				c.flush()
			})
			err := site.newAgent().Enrol(t.Context(), setup)
			switch catalog.CodeOf(err) {
			case catalog.ReplyOther, catalog.ReplyMalformed, catalog.ReplySignature, catalog.ClientReplyUnsigned:
			default:
				t.Errorf("got %v, want a refusal", err)
			}
			if !changed || len(site.devices) > 0 {
				t.Errorf("changed %v, %d devices", changed, len(site.devices))
			}
		})
	}
}

// changer holds an answer back for a change.
type changer struct {
	http.ResponseWriter
	header http.Header
	status int
	body   []byte
}

func (c *changer) WriteHeader(status int) { c.status = status }
func (c *changer) Write(b []byte) (int, error) {
	c.body = append(c.body, b...)
	return len(b), nil
}
func (c *changer) replace(old, new string) {
	c.body = []byte(strings.Replace(string(c.body), old, new, 1))
}
func (c *changer) flush() {
	if c.status != 0 {
		c.ResponseWriter.WriteHeader(c.status)
	}
	c.ResponseWriter.Write(c.body)
}

func TestTrustOnFirstUseIsAskedForAndSaidAloud(t *testing.T) {
	for _, scheme := range []string{"https", "http"} {
		t.Run(scheme, func(t *testing.T) {
			site := newTestSite(t)
			setup := site.inside(scheme)
			pin := setup.RootKey
			setup.RootKey = ""
			agent, said := site.machine(nil, catalog.Errorf(catalog.ClientKerberosCredential, "none"))
			err := agent.Enrol(t.Context(), setup)
			if code := map[string]catalog.Code{"https": catalog.ClientServerUntrusted, "http": catalog.ClientNoTrustAnchor}[scheme]; catalog.CodeOf(err) != code {
				t.Fatalf("not asked for: got %v, want %s", err, code)
			}
			agent.config.Negotiator = nil
			setup.TrustFirstUse = true
			agent.enrol(t, setup)
			got := agent.Status()
			if want := "learned on first use at 2026-03-02T08:00:00Z from " + scheme + "://mp.test, not given by a person"; got.Trust != want || got.Anchor != "site root "+pin {
				t.Errorf("got %q, %q", got.Trust, got.Anchor)
			}
			if len(*said) != 1 || !strings.HasPrefix((*said)[0], string(catalog.ClientTrustOnFirstUse)+" trusted on first use: the site root "+pin) {
				t.Errorf("said %q", *said)
			}
			for _, log := range []string{"ccmsetup.log", "LocationServices.log"} {
				if !strings.Contains(readLog(t, agent, log), "trusted on first use: the site root "+pin) {
					t.Errorf("%s does not say it", log)
				}
			}

			agent.enrol(t, setup)
			if again := agent.Status(); len(*said) != 1 || again.Trust != got.Trust {
				t.Errorf("learned again: %q, %q", *said, again.Trust)
			}
			setup.TrustFirstUse, setup.RootKey = false, pin
			agent.enrol(t, setup)
			if again := agent.Status(); again.Trust != "given at enrolment" {
				t.Errorf("confirmed by a person: %q", again.Trust)
			}
		})
	}
}

func TestWhatWasLearnedOnFirstUseIsPinned(t *testing.T) {
	site := newTestSite(t)
	setup := site.inside("https")
	setup.RootKey, setup.TrustFirstUse = "", true
	agent := site.newAgent()
	agent.enrol(t, setup)
	pin := agent.Status().Anchor
	site.do(func() {
		site.root, site.rootCA = newRoot(t)
		site.shown = site.certificate(certificateFor{names: []string{pointHost}, role: token.RoleManagementPoint})
	})
	agent.Close()
	agent.Agent.client = nil
	if err := agent.Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientServerRoot || agent.Status().Anchor != pin {
		t.Errorf("got %v, %s; want %s and the pinned root", err, agent.Status().Anchor, catalog.ClientServerRoot)
	}
}

func TestTrustOnFirstUseHasItsLimits(t *testing.T) {
	site := newTestSite(t)
	for name, change := range map[string]func(*Setup){
		"a gateway":                       func(s *Setup) { *s = site.setup(); s.RootKey = "" },
		"always on the internet":          func(s *Setup) { s.AlwaysInternet = true },
		"a management point out there":    func(s *Setup) { s.InternetPoint = "https://mp.test" },
		"a root key that is given anyway": func(s *Setup) { s.RootKey = strings.Repeat("ab", 32) },
	} {
		setup := site.inside("https")
		setup.RootKey = ""
		change(&setup)
		setup.TrustFirstUse = true
		if err := site.newAgent().Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientCommandConflict {
			t.Errorf("%s: got %v, want %s", name, err, catalog.ClientCommandConflict)
		}
	}
	setup := site.inside("https")
	setup.RootKey, setup.TrustFirstUse = "", true
	_, other := newRoot(t)
	site.information = trk(ccm.MPTRK{Key: other.RawSubjectPublicKeyInfo}.XML())
	if err := site.newAgent().Enrol(t.Context(), setup); catalog.CodeOf(err) != catalog.ClientRootKeyOther {
		t.Errorf("a key that is not the certificate's: got %v, want %s", err, catalog.ClientRootKeyOther)
	}
}

func FuzzParseRootKeyAnswer(f *testing.F) {
	f.Add("<KEYDATA><TRUSTEDROOTKEY>3059</TRUSTEDROOTKEY></KEYDATA>")
	f.Add("<KEYDATA/>")
	f.Fuzz(func(t *testing.T, text string) {
		if root, err := parseRootKey(text); err == nil && (len(root.pin) != 64 || root.public == nil) {
			t.Errorf("a key that is none: %+v", root)
		}
	})
}

func FuzzParseSignerChain(f *testing.F) {
	f.Add("")
	f.Add("MIIB,MIIB")
	f.Fuzz(func(t *testing.T, text string) {
		if chain, err := parseChain(text); err == nil && (len(chain) == 0 || len(chain) > maxChain) {
			t.Errorf("%d certificates", len(chain))
		}
	})
}

func FuzzCandidates(f *testing.F) {
	f.Add("mp.test", "MP", "GER", false)
	f.Add("mp.test:81/x", "[::1]", "", true)
	f.Fuzz(func(t *testing.T, fqdn, name, site string, secure bool) {
		from := route{Scheme: "http", Host: pointHost}
		if secure {
			from.Scheme = "https"
		}
		list := []ccm.ManagementPoint{{FQDN: fqdn, Name: name, SiteCode: ccm.SiteCode(site)}}
		for _, c := range (record{SiteCode: "GER"}).candidates(from, pointInformation{list: list}) {
			if checkHost(c.Host) != nil || secure && !c.secure() || (record{State: StateNew, Route: c.route}).check() != nil {
				t.Errorf("%+v", c.route)
			}
		}
	})
}
