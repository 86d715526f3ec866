package client

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/catalog"
	"postern/token"
)

// TestTwoAgentsOnOneFolderLoseNothing: what one process notes beside its turn, the other's next change keeps, and the other way round.
func TestTwoAgentsOnOneFolderLoseNothing(t *testing.T) {
	site := newTestSite(t)
	first := site.newAgent()
	first.enrol(t, site.setup())
	agents := []*testAgent{first, site.agentIn(filepath.Dir(first.dir), first.made, site.clock)}
	want := slices.Clone(first.current().Verified)
	var all sync.WaitGroup
	for at, agent := range agents {
		for n := range 20 {
			text := fmt.Sprintf("agent %d has seen %d", at, n)
			want = append(want, text)
			all.Go(func() { agent.verified(text) })
		}
	}
	all.Wait()
	r, err := first.readFile(fileState)
	succeed(t, err)
	slices.Sort(want)
	if slices.Sort(r.Verified); !slices.Equal(r.Verified, want) {
		t.Errorf("kept %d of %d notes: %q", len(r.Verified), len(want), r.Verified)
	}
	succeed(t, first.save(func(r *record) { r.Roaming.Why = "the first has moved" }))
	succeed(t, agents[1].save(func(r *record) { r.Signed = true }))
	if r, err = first.readFile(fileState); err != nil || r.Roaming.Why != "the first has moved" || !r.Signed {
		t.Errorf("state.json says %+v, %v", r, err)
	}
}

// TestAFolderThatStaysBusy: another process has the turn and does not end. The agent waits half a minute, says so, and has changed nothing.
func TestAFolderThatStaysBusy(t *testing.T) {
	for name, test := range map[string]struct {
		lock string
		act  func(ctx context.Context, a *Agent) error
	}{
		"an act":       {"lock", func(ctx context.Context, a *Agent) error { return a.Renew(ctx, true) }},
		"a key change": {"lock", func(ctx context.Context, a *Agent) error { return a.RotateKey(ctx) }},
		"one change":   {"state.lock", func(_ context.Context, a *Agent) error { return a.save(func(r *record) { r.Name = "other" }) }},
	} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			agent.Close()
			before := agent.files(t)
			synctest.Test(t, func(t *testing.T) {
				held := lockFile(agent.dir, test.lock)
				if locked, err := held.TryLock(); !locked || err != nil {
					t.Fatalf("locked %v, %v", locked, err)
				}
				defer held.Unlock()
				began := time.Now()
				err := test.act(t.Context(), agent.Agent)
				if waited := time.Since(began); catalog.CodeOf(err) != catalog.ClientFolderInUse || waited < lockTimeout || waited > 2*lockTimeout {
					t.Errorf("got %v after %s, want %s after %s", err, waited, catalog.ClientFolderInUse, lockTimeout)
				}
			})
			if after := agent.files(t); after != before {
				t.Errorf("the folder was changed:\n%s\nbefore:\n%s", after, before)
			}
			succeed(t, agent.Renew(t.Context(), true))
		})
	}
}

// files is what the state folder holds, in one text.
func (a *testAgent) files(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	for _, name := range []string{fileKey, fileState, fileStateCopy, fileKeys, fileTokens, fileNext} {
		content, err := os.ReadFile(filepath.Join(a.dir, name))
		fmt.Fprintf(&text, "%s: %x, %v\n", name, content, err)
	}
	return text.String()
}

// TestNextKeysThatCannotBeRead: they may be those by which the site knows the device, so the agent does not go on without a word. The remedy works.
func TestNextKeysThatCannotBeRead(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	id := agent.Status().ClientID
	path := filepath.Join(agent.dir, fileNext)
	succeed(t, os.WriteFile(path, []byte("cut off"), 0o600))
	_, err := Open(Config{Dir: agent.dir})
	if catalog.CodeOf(err) != catalog.ClientKeysUnreadable || !strings.Contains(err.Error(), fileNext) {
		t.Errorf("got %v, want %s and the file", err, catalog.ClientKeysUnreadable)
	}
	succeed(t, os.Rename(path, path+".damaged"))
	again := site.agentIn(filepath.Dir(agent.dir), agent.made, site.clock)
	succeed(t, again.Renew(t.Context(), true))
	if got := again.Status(); got.ClientID != id || *again.made != 1 {
		t.Errorf("got %+v with %d keys", got, *again.made)
	}
}

// TestAStateFileThatIsGone: the copy stands for it.
func TestAStateFileThatIsGone(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	id := agent.Status().ClientID
	succeed(t, os.Remove(filepath.Join(agent.dir, fileState)))
	var said []string
	again, err := Open(Config{Dir: agent.dir, Now: site.clock.now, Dial: site.dial, Say: func(s string) { said = append(said, s) }})
	succeed(t, err)
	defer again.Close()
	if got := again.Status(); got.ClientID != id || got.State != StateReady || len(said) != 1 || !strings.Contains(said[0], string(catalog.ClientStateRecovered)) {
		t.Errorf("got %+v, said %q", got, said)
	}
	succeed(t, again.Renew(t.Context(), true))
}

// TestWhoeverIsToldOfADamagedFileMayAskTheAgent: the agent holds no lock while it speaks.
func TestWhoeverIsToldOfADamagedFileMayAskTheAgent(t *testing.T) {
	site := newTestSite(t)
	agent := site.newAgent()
	agent.enrol(t, site.setup())
	asked := false
	agent.Agent.config.Say = func(string) { asked = agent.Status().ClientID != "" && agent.current().State == StateReady }
	succeed(t, os.Truncate(filepath.Join(agent.dir, fileState), 10))
	succeed(t, agent.Renew(t.Context(), true))
	if !asked {
		t.Error("nothing was said")
	}
}

// TestAnEnrolledDeviceWhoseClockJumps: the token's end and its age are then nonsense; the site's time puts them right.
func TestAnEnrolledDeviceWhoseClockJumps(t *testing.T) {
	for name, off := range map[string]time.Duration{"400 days back": -400 * testDay, "a quarter of an hour back": -15 * time.Minute, "100 days ahead": 100 * testDay} {
		t.Run(name, func(t *testing.T) {
			site := newTestSite(t)
			agent := site.newAgent()
			agent.enrol(t, site.setup())
			id := agent.Status().ClientID
			site.clock.add(token.CCMLifetime) // the token has ended, whatever the device's clock says
			jumped := site.agentIn(filepath.Dir(agent.dir), agent.made, &testClock{at: site.clock.now().Add(off)})
			if got, err := jumped.Send(t.Context(), "MP_Echo", "<A/>"); got == "" || err != nil {
				t.Fatalf("got %q, %v", got, err)
			}
			succeed(t, jumped.Renew(t.Context(), true))
			got := jumped.Status()
			if got.ClientID != id || *jumped.made != 1 || len(got.Tokens) != 2 || (got.ClockOffset+off).Abs() > time.Minute {
				t.Errorf("got %+v with %d keys", got, *jumped.made)
			}
			again := site.agentIn(filepath.Dir(agent.dir), agent.made, site.clock) // somebody sets the clock
			succeed(t, again.Renew(t.Context(), false))
			if now := site.clock.now(); !again.cached().CCM.lasts(now, time.Hour) || !again.cached().SelfProve.lasts(now, 24*time.Hour) {
				t.Errorf("the tokens are %+v at %s", again.Status().Tokens, now)
			}
		})
	}
}

// TestRenewalsOfCCMTokensAreSpread: 10,000 devices that got their tokens in one minute renew between 60 and 90 hundredths of its life, evenly; those that a
// busy server sends away for a minute come back within the half minute after it.
func TestRenewalsOfCCMTokensAreSpread(t *testing.T) {
	agent := newTestSite(t).newAgent()
	const devices, parts = 10_000, 24
	for name, test := range map[string]struct{ middle, from, to time.Duration }{
		"renewal": {token.CCMLifetime * 3 / 4, token.CCMLifetime * 60 / 100, token.CCMLifetime * 90 / 100},
		"busy":    {time.Minute * 5 / 4, time.Minute, 90 * time.Second},
	} {
		var count [parts]int
		for range devices {
			at := agent.jitter(test.middle)
			if at < test.from || at >= test.to {
				t.Fatalf("%s: after %s, want between %s and %s", name, at, test.from, test.to)
			}
			count[(at-test.from)*parts/(test.to-test.from)]++
		}
		for part, n := range count {
			if n > 2*devices/parts || n < devices/parts/2 {
				t.Errorf("%s: part %d of %d has %d of %d devices", name, part, parts, n, devices)
			}
		}
	}
}

// TestATokenEndsWhileTheMachineSleeps: what the agent keeps in memory is judged by the clock of the wall, as if it came from the disk.
func TestATokenEndsWhileTheMachineSleeps(t *testing.T) {
	agent, err := Open(Config{Dir: t.TempDir() + "/state", Now: time.Now})
	succeed(t, err)
	defer agent.Close()
	for name, at := range map[string]time.Time{"now": agent.config.Now(), "corrected": agent.clock.corrected(), "in an hour": agent.config.Now().Add(time.Hour)} {
		if strings.Contains(at.String(), "m=") {
			t.Errorf("%s: %s has a reading of the clock that stands still", name, at)
		}
	}
}

// FuzzStateFile: whatever a disk makes of state.json, the agent opens or says by a code why not, and its keys are as they were.
func FuzzStateFile(f *testing.F) {
	site := newTestSite(f)
	agent := site.newAgent()
	agent.enrol(f, site.setup())
	good, err := os.ReadFile(filepath.Join(agent.dir, fileState))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		string(good), string(good[:len(good)/2]), "", "{}", "null", "[1]", `{"state":"ready"}`, `{"state":"ready","route":{"scheme":"gopher","host":"x"}}`,
		`{"state":"ready","roaming":{"gateways":[{"scheme":"https","host":"g.test","role_id":1},{}]},"internet":-7,"approval_status":99}`,
		`{"state":"registered","tokens":[{"kind":"ccm","expires":"0000-01-01T00:00:00Z"}],"anchor":{"former_roots":[{}]}}`,
	} {
		f.Add([]byte(seed))
	}
	keys, err := os.ReadFile(filepath.Join(agent.dir, fileKeys))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, name := range []string{fileState, fileStateCopy} {
			succeed(t, os.WriteFile(filepath.Join(agent.dir, name), content, 0o600))
		}
		opened, err := Open(Config{Dir: agent.dir, Now: site.clock.now, Dial: site.dial})
		if err != nil && catalog.CodeOf(err) != catalog.ClientStateDamaged {
			t.Errorf("got %v", err)
		}
		if err == nil {
			opened.Status()
			opened.current().gateways()
			opened.Close()
		}
		if after, err := os.ReadFile(filepath.Join(agent.dir, fileKeys)); err != nil || string(after) != string(keys) {
			t.Errorf("the keys were touched: %v", err)
		}
	})
}
