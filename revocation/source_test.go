package revocation

import (
	"context"
	"crypto/x509"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postern/catalog"
	"postern/internal/authority"
)

// Every way in which a list's server fails, under each policy.
func TestASourceThatFails(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name string
		mode authority.Mode
		code catalog.Code
		says string
	}{
		{"down", authority.Down, catalog.RevocationUnreachable, "cannot be reached"},
		{"slow", authority.Slow, catalog.RevocationUnreachable, "did not answer within 200ms"},
		{"huge", authority.Huge, catalog.RevocationListMalformed, "more than the 100000 bytes"},
		{"announced huge", authority.Announced, catalog.RevocationListMalformed, "more than the 100000 bytes"},
		{"a web page", authority.Garbage, catalog.RevocationListMalformed, "not a revocation list"},
		{"status 500", authority.Failing, catalog.RevocationUnreachable, "status 500"},
		{"another host", authority.Elsewhere, catalog.RevocationUnreachable, "sends the caller to another host"},
		{"redirects without end", authority.Around, catalog.RevocationUnreachable, "cannot be reached"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.publisher.Switch(test.mode)
			defer w.publisher.Switch(authority.Healthy)
			bounds := func(c *Config) { c.MaxBytes, c.FetchTimeout = 100_000, 200*time.Millisecond }
			verdict := ask(t, w.checker(bounds), w.good.Chain(), ForClient(), test.code)
			if verdict.OK || verdict.Flags != FlagRevocationFailed || !strings.Contains(verdict.Sentence, test.says) {
				t.Errorf("require: got %v, %s, %s", verdict.OK, verdict.Flags, verdict.Sentence)
			}
			verdict = ask(t, w.checker(bounds, policy(PolicyPrefer)), w.revoked.Chain(), ForClient(), test.code)
			if !verdict.OK || !verdict.Warning() || verdict.Flags != 0 || verdict.Certificates[0].State != StateUnknown {
				t.Errorf("prefer: got %+v", verdict)
			}
			verdict = ask(t, w.checker(bounds, policy(PolicyOff)), w.revoked.Chain(), ForClient(), "")
			if verdict.Warning() || verdict.Certificates[0].State != StateUnchecked {
				t.Errorf("off: got %+v", verdict)
			}
		})
	}
}

// A slow source costs a check its own wait, not the fetch's.
func TestACheckWaitsNoLongerThanItMay(t *testing.T) {
	w := newWorld(t)
	w.publisher.Switch(authority.Slow)
	c := w.checker(func(c *Config) { c.Wait = 50 * time.Millisecond })
	begun := time.Now()
	verdict := ask(t, c, w.good.Chain(), ForClient(), catalog.RevocationUnreachable)
	if took := time.Since(begun); took > 2*time.Second || !strings.Contains(verdict.Sentence, "in time") {
		t.Errorf("took %s: %s", took, verdict.Sentence)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Check(ctx, w.good.Chain(), ForClient()); catalog.CodeOf(err) != catalog.RevocationUnreachable {
		t.Errorf("got %v", err)
	}
	w.publisher.Switch(authority.Healthy) // the fetch went on
	c.Refresh(t.Context())
	ask(t, c, w.good.Chain(), ForClient(), "")
}

// A source that never answers delays the first check by the wait, and no check fails that another source can answer.
func TestASlowSourceBesideAGoodOne(t *testing.T) {
	w := newWorld(t)
	slow := must[*authority.Publisher](t)(authority.NewPublisher())
	t.Cleanup(slow.Close)
	slow.Switch(authority.Slow)
	for name, address := range map[string]string{"list": slow.URL("/slow.crl"), "responder": "ocsp:" + slow.URL("/slow")} {
		t.Run(name, func(t *testing.T) {
			c := w.checker(func(c *Config) {
				c.Sources, c.Wait = append([]string{address}, c.Sources...), 200*time.Millisecond
			})
			for range 3 {
				ask(t, c, w.good.Chain(), ForClient(), "")
				ask(t, c, w.revoked.Chain(), ForClient(), catalog.CertificateRevoked)
			}
		})
	}
}

func TestAListIsFetchedOnce(t *testing.T) {
	w := newWorld(t)
	c := w.checker()
	var all sync.WaitGroup
	w.publisher.Switch(authority.Slow)
	for range 100 {
		all.Go(func() { ask(t, c, w.good.Chain(), ForClient(), "") })
	}
	for asked := 0; asked == 0; {
		asked, _ = w.publisher.Requests(betweenList)
	}
	w.publisher.Switch(authority.Healthy)
	all.Wait()
	for _, path := range []string{rootList, betweenList} {
		if asked, _ := w.publisher.Requests(path); asked != 1 {
			t.Errorf("%s was fetched %d times by 100 checks", path, asked)
		}
	}
}

// A source that failed rests for MinAge.
func TestASourceThatFailedRests(t *testing.T) {
	w := newWorld(t)
	w.publisher.Switch(authority.Failing)
	c := w.checker()
	for range 10 {
		ask(t, c, w.good.Chain(), ForClient(), catalog.RevocationUnreachable)
	}
	if asked, _ := w.publisher.Requests(betweenList); asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	w.publisher.Switch(authority.Healthy)
	w.clock.advance(time.Minute)
	ask(t, c, w.good.Chain(), ForClient(), "")
}

func TestAListIsRenewedBeforeItEnds(t *testing.T) {
	w := newWorld(t)
	c := w.checker()
	ask(t, c, w.good.Chain(), ForClient(), "")
	ask(t, c, w.good.Chain(), ForClient(), "")
	w.clock.advance(23 * time.Hour)
	c.Refresh(t.Context())
	if asked, _ := w.publisher.Requests(betweenList); asked != 1 {
		t.Errorf("asked %d times within MaxAge", asked)
	}
	w.clock.advance(2 * time.Hour)
	c.Refresh(t.Context())
	if asked, sent := w.publisher.Requests(betweenList); asked != 2 || sent != 1 {
		t.Errorf("asked %d times, sent %d times: an unchanged list is not sent again", asked, sent)
	}
	w.between.Revoke(w.good.Certificate, w.clock.Now(), 4)
	w.publish()
	w.clock.advance(25 * time.Hour)
	c.Refresh(t.Context())
	ask(t, c, w.good.Chain(), ForClient(), catalog.CertificateRevoked)
}

// A list that shall be renewed is used while the fetch runs, so nobody waits.
func TestACurrentListIsUsedWhileItIsRenewed(t *testing.T) {
	w := newWorld(t)
	c := w.checker()
	ask(t, c, w.good.Chain(), ForClient(), "")
	w.publisher.Switch(authority.Slow)
	w.clock.advance(25 * time.Hour)
	ask(t, c, w.good.Chain(), ForClient(), "")
	ask(t, c, w.revoked.Chain(), ForClient(), catalog.CertificateRevoked)
}

// While the source is away, a stale list is refused under require and counts under prefer; what it revokes stays revoked.
func TestAStaleList(t *testing.T) {
	w := newWorld(t)
	strict, lenient := w.checker(), w.checker(policy(PolicyPrefer))
	for _, c := range []*Checker{strict, lenient} {
		ask(t, c, w.good.Chain(), ForClient(), "")
	}
	w.publisher.Switch(authority.Down)
	w.clock.advance(8 * 24 * time.Hour)
	if verdict := ask(t, strict, w.good.Chain(), ForClient(), catalog.RevocationListDate); verdict.OK || !verdict.Certificates[0].Stale {
		t.Errorf("got %+v", verdict)
	}
	if verdict := ask(t, lenient, w.good.Chain(), ForClient(), catalog.RevocationListDate); !verdict.OK || verdict.Certificates[0].State != StateGood {
		t.Errorf("got %+v", verdict)
	}
	for _, c := range []*Checker{strict, lenient} {
		ask(t, c, w.revoked.Chain(), ForClient(), catalog.CertificateRevoked)
	}
	w.publisher.Switch(authority.Healthy)
	w.clock.advance(time.Minute)
	w.publish()
	ask(t, strict, w.good.Chain(), ForClient(), "")
}

// An older list in the place of a newer one would bring a revoked certificate back.
func TestAnOlderListDoesNotReplaceANewerOne(t *testing.T) {
	w := newWorld(t)
	old := must[[]byte](t)(w.between.List(start().Add(-2 * time.Hour)))
	w.between.Revoke(w.good.Certificate, start(), 1)
	w.publish()
	c := w.checker()
	ask(t, c, w.good.Chain(), ForClient(), catalog.CertificateRevoked)
	w.publisher.Put(betweenList, old)
	w.clock.advance(25 * time.Hour)
	c.Refresh(t.Context())
	ask(t, c, w.good.Chain(), ForClient(), catalog.CertificateRevoked)
	status := c.Status()
	if at := slices.IndexFunc(status, func(s SourceStatus) bool { return s.Code == catalog.RevocationListDate }); at < 0 {
		t.Errorf("got %+v", status)
	}
}

// A list of an authority that only clients show is read again when the first such client comes.
func TestAListOfAnAuthorityThatBecomesKnown(t *testing.T) {
	w := newWorld(t)
	second := must[*authority.Authority](t)(w.root.Intermediate("Second Issuing"))
	client := must[*authority.Certificate](t)(second.Client("wk04.contoso.com"))
	w.publisher.Put("/second.crl", must[[]byte](t)(second.List(start())))
	c := w.checker(func(c *Config) { c.Sources = append(c.Sources, w.publisher.URL("/second.crl")) })
	ask(t, c, w.good.Chain(), ForClient(), "")
	c.Refresh(t.Context())
	ask(t, c, client.Chain(), ForClient(), "")
	if asked, _ := w.publisher.Requests("/second.crl"); asked != 2 {
		t.Errorf("asked %d times", asked)
	}
}

// users-and-threats.md C85: a client's certificate cannot make a gateway fetch anything.
func TestAddressesInAClientsCertificateAreNotAsked(t *testing.T) {
	w := newWorld(t)
	bait := must[*authority.Certificate](t)(w.between.Client("wk05.contoso.com", func(c *x509.Certificate) {
		c.CRLDistributionPoints = []string{w.publisher.URL("/bait.crl"), "http://169.254.169.254/latest"}
		c.OCSPServer = []string{w.publisher.URL("/bait")}
		c.IssuingCertificateURL = []string{w.publisher.URL("/bait.cer")}
	}))
	ask(t, w.checker(), bait.Chain(), ForClient(), "")
	ask(t, w.checker(sources()), bait.Chain(), ForClient(), catalog.RevocationSourceMissing)
	for _, path := range []string{"/bait.crl", "/bait", "/bait.cer"} {
		if asked, _ := w.publisher.Requests(path); asked != 0 {
			t.Errorf("%s was asked for", path)
		}
	}
}

func TestAServersCertificateNamesItsLists(t *testing.T) {
	w := newWorld(t)
	named := func(addresses ...string) authority.Edit {
		return func(c *x509.Certificate) { c.CRLDistributionPoints = addresses }
	}
	between := must[*authority.Authority](t)(w.root.Intermediate("Published", named(w.publisher.URL(rootList))))
	server := must[*authority.Certificate](t)(between.Server([]string{"cmg.contoso.com"}, named("ldap:///CN=CA", w.publisher.URL("/published.crl"))))
	unnamed := must[*authority.Certificate](t)(between.Server([]string{"cmg.contoso.com"}))
	unusable := must[*authority.Certificate](t)(between.Server([]string{"cmg.contoso.com"}, named("ldap:///CN=CA", "file:///etc/passwd", "http://user:pw@pki/")))
	w.publisher.Put("/published.crl", must[[]byte](t)(between.List(start())))
	fromCertificate := func(c *Config) { c.Sources, c.FromCertificate = nil, true }
	c := w.checker(fromCertificate)
	ask(t, c, server.Chain(), ForServer("cmg.contoso.com"), "")
	ask(t, c, unnamed.Chain(), ForServer("cmg.contoso.com"), catalog.RevocationSourceMissing)
	ask(t, c, unusable.Chain(), ForServer("cmg.contoso.com"), catalog.RevocationSourceMissing)
	between.Revoke(server.Certificate, start(), 4)
	w.publisher.Put("/published.crl", must[[]byte](t)(between.List(start())))
	ask(t, w.checker(fromCertificate), server.Chain(), ForServer("cmg.contoso.com"), catalog.CertificateRevoked)

	// Without a client of the caller's, nothing on this host is asked because a certificate says so.
	guarded := w.checker(fromCertificate, func(c *Config) { c.Client = nil })
	verdict := ask(t, guarded, server.Chain(), ForServer("cmg.contoso.com"), catalog.RevocationUnreachable)
	if !strings.Contains(verdict.Sentence, "this host or its link") {
		t.Errorf("got %s", verdict.Sentence)
	}
	configured := w.checker(func(c *Config) { c.Client = nil })
	ask(t, configured, w.good.Chain(), ForClient(), "")
}

func TestLocalAddressesAreRefused(t *testing.T) {
	for address, refused := range map[string]bool{
		"127.0.0.1:80": true, "[::1]:80": true, "[::ffff:127.0.0.1]:80": true, "169.254.169.254:80": true, "[fe80::1%eth0]:80": true,
		"0.0.0.0:80": true, "224.0.0.1:80": true, "nonsense": true, "10.0.0.1:80": false, "192.0.2.1:80": false, "[2001:db8::1]:80": false,
	} {
		if err := refuseLocal("tcp", address, nil); (err != nil) != refused {
			t.Errorf("%s: got %v", address, err)
		}
	}
}

func TestRedirects(t *testing.T) {
	for target, allowed := range map[string]bool{
		"http://pki.contoso.com/b.crl": true, "https://PKI.contoso.com/b.crl": true, "http://pki.contoso.com:8080/b.crl": false,
		"http://other.contoso.com/b.crl": false, "http://169.254.169.254/": false, "ftp://pki.contoso.com/b.crl": false,
	} {
		from, _ := http.NewRequest(http.MethodGet, "http://pki.contoso.com/a.crl", nil)
		to, err := http.NewRequest(http.MethodGet, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := sameHost(to, []*http.Request{from}); (err == nil) != allowed {
			t.Errorf("%s: got %v", target, err)
		}
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t)
	c := w.checker(func(c *Config) {
		c.Sources = append(c.Sources, "ocsp:"+w.publisher.URL("/none"), w.publisher.URL("/missing.crl"))
	})
	for _, status := range c.Status() {
		if !status.Fetched.IsZero() || status.Code != "" {
			t.Errorf("before anything: got %+v", status)
		}
	}
	ask(t, c, w.good.Chain(), ForClient(), "")
	c.Refresh(t.Context())
	w.clock.advance(time.Hour)
	got := map[string]SourceStatus{}
	for _, status := range c.Status() {
		got[strings.TrimPrefix(status.Address, w.publisher.URL(""))] = status
	}
	if s := got[betweenList]; s.Issuer != "CN=Test Issuing,O=Postern tests" || s.Entries != 1 || s.Age != time.Hour || s.NextUpdate.IsZero() || s.Code != "" || s.Stale {
		t.Errorf("got %+v", s)
	}
	if s := got["/missing.crl"]; s.Code != catalog.RevocationUnreachable || !strings.Contains(s.LastError, "404") || !s.Fetched.IsZero() {
		t.Errorf("got %+v", s)
	}
	if s := got["/none"]; !s.Responder || s.Code != catalog.RevocationUnreachable {
		t.Errorf("got %+v", s)
	}
}

func TestRunFetchesAndEnds(t *testing.T) {
	w := newWorld(t)
	c := w.checker(func(c *Config) { c.Intermediates = []*x509.Certificate{w.between.Certificate} })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- c.Run(ctx) }()
	for ready := false; !ready; {
		ready = !slices.ContainsFunc(c.Status(), func(s SourceStatus) bool { return s.Fetched.IsZero() })
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.publisher.Switch(authority.Down)
	ask(t, c, w.good.Chain(), ForClient(), "")
}

// Many servers may come and go: the lists that are kept are bounded in number and in entries.
func TestTheCacheIsBounded(t *testing.T) {
	w := newWorld(t)
	c := w.checker(sources(), func(c *Config) { c.FromCertificate, c.MaxLists, c.MaxEntries = true, 4, 10 })
	for i := range 20 {
		path := "/" + strings.Repeat("x", i+1)
		w.publisher.Put(path, must[[]byte](t)(w.between.List(start(), func(l *x509.RevocationList) {
			for n := range int64(9) {
				l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(n + 1), RevocationTime: start()})
			}
		})))
		client := must[*authority.Certificate](t)(w.between.Client("a", func(c *x509.Certificate) { c.CRLDistributionPoints = []string{w.publisher.URL(path)} }))
		c.Check(t.Context(), client.Chain(), ForClient())
		w.clock.advance(time.Second)
		lists, entries := 0, 0
		for _, held := range c.lists.all() {
			lists++
			if held.held {
				entries += len(held.value.entries)
			}
		}
		if lists > 4 || entries > 40 {
			t.Fatalf("%d lists with %d entries", lists, entries)
		}
	}
}

func TestNothingRunsAfterClose(t *testing.T) {
	w := newWorld(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() // accepts and never answers
	before := goleak.IgnoreCurrent()
	c := w.checker(sources("http://"+listener.Addr().String()+"/a.crl"), func(c *Config) { c.Wait, c.Client = time.Millisecond, nil })
	ask(t, c, w.good.Chain(), ForClient(), catalog.RevocationUnreachable)
	begun := time.Now()
	c.Close()
	goleak.VerifyNone(t, before)
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}
