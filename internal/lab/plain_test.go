package lab_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/ccm"
	"postern/client"
)

// TestAPlainDeviceRoams: a device that finds only plain HTTP inside gets no tokens there. It learns the gateways from an answer that the management point has
// signed, goes on through one by its registered key when it leaves, and comes back.
func TestAPlainDeviceRoams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, port, err := net.SplitHostPort(w.ManagementPoint.Addresses["http"])
	w.must(err)
	plain := "localhost:" + port
	var outside, later atomic.Bool
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == strings.TrimPrefix(w.ManagementPointURL(), "https://") || outside.Load() && address == plain {
			return nil, &net.OpError{Op: "dial", Net: network, Err: errors.New("no route to host")}
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}
	now := func() time.Time {
		if later.Load() {
			return time.Now().Add(20 * time.Minute) // the next look for the management point is due; the site corrects this clock
		}
		return time.Now()
	}
	agent, err := client.Open(client.Config{Dir: filepath.Join(t.TempDir(), "device"), Dial: dial, Now: now})
	w.must(err)
	defer agent.Close()
	w.must(agent.Enrol(t.Context(), client.Setup{ManagementPoint: "http://" + plain, SiteCode: "LAB", RootKey: w.SiteRoot, Name: "plain"}))
	s := agent.Status()
	if s.Way != client.WayInside || s.ManagementPoint != "http://"+plain || len(s.Tokens) != 0 || !slices.Equal(s.Gateways, []string{w.HostName()}) {
		t.Fatalf("inside it is %+v, want %s and %s", s, plain, w.HostName())
	}
	ask := func() {
		t.Helper()
		_, err := agent.Send(t.Context(), "MP_PolicyManager", ccm.BuildAssignmentsRequest(ccm.AssignmentsRequest{ClientID: s.ClientID, RequestType: ccm.AssignmentsAlways}))
		w.must(err)
	}
	outside.Store(true)
	agent.Close()
	ask()
	if out := agent.Status(); out.Way != client.WayInternet || out.ClientID != s.ClientID || out.Key != s.Key || len(out.Tokens) == 0 {
		t.Errorf("outside it is %+v", out)
	}
	outside.Store(false)
	later.Store(true)
	ask()
	if back := agent.Status(); back.Way != client.WayInside || back.ManagementPoint != s.ManagementPoint || back.ClientID != s.ClientID {
		t.Errorf("back inside it is %+v", back)
	}
}
