package lab_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/ccm"
	"postern/client"
	"postern/internal/lab"
	"postern/internal/role"
	"postern/proof"
	"postern/site"
	"postern/store"
)

// labClock is the clock of every role and of every device.
type labClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *labClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *labClock) add(days int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.AddDate(0, 0, days)
}

// absentDays are the absences of the table in docs/operations.md, in runs that a role's certificate of a year outlives.
func absentDays() [][]int { return [][]int{{1, 29, 30, 31, 89}, {90, 91}, {365}} }

// outcome is what became of a device that came back.
type outcome struct {
	does  string // by what it got its CCM token
	gets  string
	level string // at first, and at the end
}

const (
	bySelfProve = "renews by its self-prove token"
	byKey       = "comes back by its registered key"
	bothTokens  = "CCM token, self-prove token"
)

// expected is the table of docs/operations.md for the devices that live on tokens of the site.
func expected(kind string, days int) outcome {
	switch {
	case days < 90:
		return outcome{bySelfProve, bothTokens, "managed"}
	case kind == staysInside:
		return outcome{byKey, bothTokens, "managed"}
	}
	return outcome{byKey, bothTokens, "known (quarantine), then managed"}
}

// staysInside is the device that comes back to the inner network; the others come back through a gateway.
const staysInside = "inside the network"

// TestAbsence drives the rows of the table: real agents, a gateway, a tunnel, a management point and a store, over TLS on loopback, with one clock that
// moves for all of them. What is simulated is the proof of the device that came by Kerberos: its approval is written into the store as a ticket leaves it.
// Devices of a tenant and devices with a certificate show those, whatever the absence; see package client.
func TestAbsence(t *testing.T) {
	t.Parallel()
	for _, run := range absentDays() {
		t.Run(strings.Trim(strings.ReplaceAll(fmt.Sprint(run), " ", "-"), "[]"), func(t *testing.T) {
			clock := &labClock{at: time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)}
			w := newWorld(t, func(o *lab.Options) { o.Now = clock.now })
			devices := absentees(t, w, clock)
			for _, days := range run {
				for _, d := range devices {
					w.must(d.agent.Renew(t.Context(), true)) // the day it was last heard of
				}
				if w.Site().Flush(t.Context()); days == 365 {
					clock.add(days)
					w.restart(clock)
				} else {
					clock.add(days)
				}
				for _, d := range devices {
					got := d.comeBack(w, clock.now())
					if want := expected(d.kind, days); got != want {
						t.Errorf("%s, away for %d days: got %+v, want %+v", d.kind, days, got, want)
					}
				}
			}
		})
	}
}

// absentee is a device with what its acts were.
type absentee struct {
	kind  string
	agent *client.Agent
	mu    sync.Mutex
	steps []string
}

func (d *absentee) told(s client.Step) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.steps = append(d.steps, s.What)
}

func absentees(t *testing.T, w *world, clock *labClock) (all []*absentee) {
	t.Helper()
	_, err := w.Site().AddPolicy(t.Context(), site.NewPolicy{Body: []byte("<Policy/>"), Level: proof.LevelManaged, All: true, By: "anna"})
	w.must(err)
	for _, kind := range []string{"bulk registration token", "approved by hand", "Kerberos", staysInside} {
		d := &absentee{kind: kind}
		name := strings.ReplaceAll(kind, " ", "-")
		d.agent, err = client.Open(client.Config{Dir: filepath.Join(t.TempDir(), "device"), Now: clock.now, Observe: d.told, Dial: w.dialFrom(w.ManagementPointURL())})
		w.must(err)
		t.Cleanup(func() { d.agent.Close() })
		raw, _ := w.bulk(1)
		setup := w.Setup(name, raw)
		if kind != "bulk registration token" {
			inside := setup
			inside.Gateway, inside.Token, inside.ManagementPoint = client.Gateway{}, "", w.ManagementPointURL()
			w.must(d.agent.Enrol(t.Context(), inside))
			setup.Token = "" // it goes out with its self-prove token
		}
		switch id := d.agent.Status().ClientID; kind {
		case "approved by hand", staysInside:
			_, err = w.Site().Approve(t.Context(), id, proof.LevelManaged, "anna", "seen")
		case "Kerberos":
			err = w.proved(id, proof.Kerberos)
		}
		w.must(err)
		if kind != staysInside {
			w.must(d.agent.Enrol(t.Context(), setup))
		}
		all = append(all, d)
	}
	return all
}

// dialFrom leads to the management point that runs now, under the address that it had first: in the lab it has another port after a restart.
func (w *world) dialFrom(first string) func(ctx context.Context, network, address string) (net.Conn, error) {
	host := func(url string) string { return strings.TrimPrefix(url, "https://") }
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == host(first) {
			address = host(w.ManagementPointURL())
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
}

// proved writes into the store what a proof leaves that this test does not make.
func (w *world) proved(id ccm.ClientID, method proof.Method) error {
	s, err := store.Open(w.Context(), filepath.Join(w.Dir, "site", "site.db"), store.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Update(w.Context(), func(tx site.Tx) error {
		d, err := tx.Device(id)
		if err != nil {
			return err
		}
		d.Approval.Status, d.Approval.Level, d.Approval.Method, d.Approval.Rule = ccm.ApprovalApproved, proof.LevelManaged, method, string(method)
		return tx.PutDevice(d)
	})
}

// comeBack lets a device do what it does when it wakes, and says what that came to.
func (d *absentee) comeBack(w *world, now time.Time) outcome {
	w.Helper()
	d.mu.Lock()
	d.steps = nil
	d.mu.Unlock()
	id := d.agent.Status().ClientID
	quarantines := w.trustEntries("device.quarantine", id)
	w.must(d.agent.Renew(w.Context(), true))
	steps := strings.Join(d.steps, "; ")
	got := outcome{level: "?"}
	switch {
	case strings.Contains(steps, "CCM token by self-prove token"):
		got.does = bySelfProve
	case strings.Contains(steps, "CCM token by assertion of the registered key"):
		got.does = byKey
	}
	var tokens []string
	for _, one := range d.agent.Status().Tokens {
		if one.Expires.After(now) {
			tokens = append(tokens, map[string]string{"ccm": "CCM token", "self-prove": "self-prove token"}[one.Kind])
		}
	}
	if got.gets = strings.Join(tokens, ", "); (d.agent.Status().Way == client.WayInside) != (d.kind == staysInside) {
		w.Errorf("%s comes back by the way %s", d.kind, d.agent.Status().Way)
	}
	policies, err := d.agent.Policies(w.Context())
	w.must(err)
	device, err := w.Site().Device(w.Context(), id)
	w.must(err)
	if device.Level() == proof.LevelManaged && len(policies) == 1 {
		got.level = "managed"
	}
	if w.trustEntries("device.quarantine", id) > quarantines {
		got.level = "known (quarantine), then " + got.level
	}
	return got
}

// trustEntries counts entries of the trust log.
func (w *world) trustEntries(action string, id ccm.ClientID) (n int) {
	w.Helper()
	entries, err := w.Site().TrustLog(w.Context(), 0, 0)
	w.must(err)
	for _, e := range entries {
		if e.Action == action && e.Subject == string(id) {
			n++
		}
	}
	return n
}

// restart starts every role anew, as they would have gone on by themselves within the year: each with a new certificate.
func (w *world) restart(clock *labClock) {
	w.Helper()
	w.must(w.Connector.Stop())
	w.must(w.Gateway.Stop())
	w.must(w.ManagementPoint.Stop())
	environment := role.Environment{Now: clock.now}
	load := func(path ...string) role.Config {
		config, err := role.Load(filepath.Join(append([]string{w.Dir}, path...)...))
		w.must(err)
		return config
	}
	var err error
	w.ManagementPoint, err = role.StartManagementPoint(w.Context(), load("site", "mp.yaml"), environment)
	w.must(err)
	w.Gateway, err = role.StartGateway(w.Context(), load("gateway", "gateway.yaml"), environment)
	w.must(err)
	code, err := w.Site().Invite(w.Context(), "lab2", "test")
	w.must(err)
	made, err := role.JoinConnector(w.Context(), role.NewConnector{Dir: filepath.Join(w.Dir, "connector2"), ManagementPoint: w.ManagementPointURL(), Code: code + "." + w.SiteRoot}, role.Protection{}, clock.now)
	w.must(err)
	w.Connector, err = role.StartConnector(w.Context(), load("connector2", filepath.Base(made.Config)), environment)
	w.must(err)
	w.clients.closeIdle()
	eventually(w, "the gateway is ready", func() bool {
		s := w.Gateway.Gateway.Status()
		return len(s.Connectors) > 0 && s.Epoch > 0 && s.Certificate.Source == "site" && s.Certificate.NotAfter.After(clock.now())
	})
}

// TestAbsencePage: the table in docs/operations.md is the one that TestAbsence drives.
func TestAbsencePage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range absentDays() {
		for _, days := range run {
			want := expected("", days)
			if row := fmt.Sprintf("| %d | bulk registration token, Kerberos, approved by hand | %s | %s | %s |", days, want.does, want.gets, want.level); !strings.Contains(string(page), row) {
				t.Errorf("docs/operations.md lacks the row %s", row)
			}
		}
	}
	if row := fmt.Sprintf("| any of them | any, inside the network | %s; from 90 days on signs an assertion with its registered key | %s | as before |", bySelfProve, bothTokens); !strings.Contains(string(page), row) {
		t.Errorf("docs/operations.md lacks the row %s", row)
	}
}
