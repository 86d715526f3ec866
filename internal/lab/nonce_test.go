package lab_test

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/internal/lab"
	"postern/internal/role"
	"postern/mp"
	"postern/store/postgrestest"
	"postern/token"
)

// TestADeviceWhoseClockCannotBeTrusted: a device that believes it is 400 days ago, or ten minutes on, enrols at once, through a gateway and directly: one
// request is asked for a nonce, is repeated, and nothing else is refused.
func TestADeviceWhoseClockCannotBeTrusted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, off := range map[string]time.Duration{"400 days back": -400 * 24 * time.Hour, "10 minutes ahead": 10 * time.Minute} {
		for way, setup := range map[string]func(name, raw string) client.Setup{
			"through the gateway": w.Setup,
			"directly": func(name, raw string) client.Setup {
				return client.Setup{ManagementPoint: w.ManagementPointURL(), SiteCode: lab.SiteCode, RootKey: w.SiteRoot, Token: client.Secret(raw), Name: name}
			},
		} {
			t.Run(name+" "+way, func(t *testing.T) {
				w := w.on(t)
				now := func() time.Time { return time.Now().Add(off) }
				agent, err := client.Open(client.Config{Dir: filepath.Join(t.TempDir(), "device"), Now: now})
				w.must(err)
				defer agent.Close()
				before := w.refusals()
				raw, _ := w.bulk(1)
				w.must(agent.Enrol(t.Context(), setup("astray", raw)))
				w.must(agent.Renew(t.Context(), true))
				if status := agent.Status(); status.State != client.StateReady || (status.ClockOffset+off).Abs() > 5*time.Second {
					t.Errorf("the device is %s, and takes the site to be %s ahead", status.State, status.ClockOffset)
				}
				if got := w.refusals()[catalog.ProofNonceNeeded] - before[catalog.ProofNonceNeeded]; got != 1 {
					t.Errorf("asked %d times for a nonce, want once: %v", got, w.refusals())
				}
			})
		}
	}
}

// refusals counts the codes of all hops.
func (w *world) refusals() map[catalog.Code]int {
	codes := map[catalog.Code]int{}
	for _, e := range w.gateway.all() {
		codes[e.Code()]++
	}
	for _, e := range w.point.all() {
		codes[catalog.CodeOf(e.Err)]++
	}
	return codes
}

// noncedAt returns the headers of a request by a device whose clock is off.
func noncedAt(t testing.TB, d *device, off time.Duration, nonce, method, address, raw string) http.Header {
	t.Helper()
	p, err := token.SignProofNonce(d.key, method, address, raw, nonce, time.Now().Add(off), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return http.Header{"Authorization": {"DPoP " + raw}, "Dpop": {p}}
}

// TestNoncesAtRealListeners: what is asked for and given at both hops, and that a nonce makes a proof good once.
func TestNoncesAtRealListeners(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	w := newWorld(t, func(o *lab.Options) { o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
	d := w.enrolled("nonces")
	for _, hop := range []struct{ name, address, reason string }{
		{"gateway", w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut"), "CMGService_Invalid_Token"},
		{"management point", w.inside("/SMS_MP_TokenAuth/.sms_aut"), ""},
	} {
		ask := func(off time.Duration, nonce string) (http.Header, func() answer) {
			header := noncedAt(t, d, off, nonce, http.MethodGet, hop.address, d.ccm)
			return header, func() answer { return w.send(w.http1(), http.MethodGet, hop.address+"?MPLIST", "", nil, header) }
		}
		const year = -400 * 24 * time.Hour
		_, without := ask(year, "")
		refused := without()
		w.check(refused, refusal{status: 401, reason: hop.reason, code: catalog.ProofNonceNeeded})
		nonce := refused.header.Get("DPoP-Nonce")
		if nonce == "" || !strings.Contains(refused.header.Get("WWW-Authenticate"), `error="use_dpop_nonce"`) {
			t.Fatalf("%s: the refusal has the headers %v", hop.name, refused.header)
		}
		for _, off := range []time.Duration{year, 10 * time.Minute, 0} {
			_, with := ask(off, nonce)
			if a := with(); a.status != 200 || a.header.Get("DPoP-Nonce") == "" {
				t.Errorf("%s, a clock that is %s off, with a nonce: %s", hop.name, off, a)
			}
			w.refuses(refusal{status: 401, reason: hop.reason, code: catalog.ProofReplayed}, with)
		}
		_, madeUp := ask(0, "AAAAAAAAAAAAAAAAAAAAAA")
		w.refuses(refusal{status: 401, reason: hop.reason, code: catalog.ProofNonceUnknown}, madeUp)

		later, now := ahead.Load()+int64(6*time.Minute), time.Duration(ahead.Load())
		ahead.Store(later) // for the servers
		_, old := ask(time.Duration(later), nonce)
		w.refuses(refusal{status: 401, reason: hop.reason, code: catalog.ProofNonceUnknown}, old)
		_, slow := ask(now-6*time.Minute, "")
		if a := slow(); a.status != 401 {
			t.Errorf("%s: a slow clock without a nonce: %s", hop.name, a)
		}
		w.must(w.moved())
		eventually(t, "the gateway has heard a new nonce", func() bool {
			_, again := ask(year, "")
			fresh := again().header.Get("DPoP-Nonce")
			return fresh != "" && fresh != nonce
		})
	}
}

// moved makes the site send its state anew.
func (w *world) moved() error {
	w.Helper()
	return w.Site().Set(w.Context(), "return.enabled", fmt.Sprint(!w.Site().Settings().Return), "test")
}

// TestProofReplayedAtAnotherManagementPoint (C45): management points that share a database share the memory of proofs, with a nonce and without.
func TestProofReplayedAtAnotherManagementPoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(o *lab.Options) { o.Store = postgrestest.Start(t) })
	second, told := w.secondPoint()
	d := w.enrolled("two-nodes")
	first, err := url.Parse(w.inside("/SMS_MP_TokenAuth/.sms_aut"))
	w.must(err)
	other := *first
	other.Host = second
	for name, header := range map[string]http.Header{
		"without a nonce": proofOf(t, d.key, http.MethodGet, first.String(), d.ccm),
		"with a nonce":    noncedAt(t, d, -400*24*time.Hour, w.Site().Nonce(), http.MethodGet, first.String(), d.ccm),
	} {
		if a := w.send(w.http1(), http.MethodGet, first.String()+"?MPLIST", "", nil, header); a.status != 200 {
			t.Fatalf("%s at the first: %s", name, a)
		}
		a := w.send(w.http1(), http.MethodGet, other.String()+"?MPLIST", "", nil, header)
		if e := told.of(t, a.id()); a.status != 401 || a.problem() != catalog.ProofReplayed || catalog.CodeOf(e.Err) != catalog.ProofReplayed {
			t.Errorf("%s at the second: %s", name, a)
		}
	}
	// A nonce of one is good at the other.
	header := noncedAt(t, d, 10*time.Minute, w.Site().Nonce(), http.MethodGet, other.String(), d.ccm)
	if a := w.send(w.http1(), http.MethodGet, other.String()+"?MPLIST", "", nil, header); a.status != 200 {
		t.Errorf("a nonce of the first at the second: %s", a)
	}
}

// secondPoint starts another management point on the lab's database.
func (w *world) secondPoint() (address string, told *exchanges[mp.Exchange]) {
	w.Helper()
	config, err := role.Load(filepath.Join(w.Dir, "site", "mp.yaml"))
	w.must(err)
	dir := filepath.Join(w.TempDir(), "second")
	w.must(os.MkdirAll(dir, 0o700))
	config.Name, config.Names = "second.lab.example", append(config.Names, config.Name)
	config.Listen.HTTPS, config.Listen.HTTP = freeAddress(w.TB), ""
	config.State, config.Logs = dir, filepath.Join(dir, "logs")
	told = newExchanges(func(e mp.Exchange) string { return e.MessageID })
	running, err := role.StartManagementPoint(w.Context(), config, role.Environment{ObserveManagementPoint: told.add})
	w.must(err)
	w.Cleanup(func() {
		w.clients.closeIdle()
		if err := running.Stop(); err != nil {
			w.Error(err)
		}
	})
	return running.Addresses["https"], told
}
