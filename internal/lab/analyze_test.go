package lab_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/client"
	"postern/diag"
	"postern/diag/analyze"
	"postern/internal/lab"
)

// TestAnalyzerAgainstTheRealGateway: with a device of the lab everything passes, and the request is found in the log of every hop. Then the
// connector stops, and the analyzer names that and nothing else.
func TestAnalyzerAgainstTheRealGateway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw, _ := w.bulk(2)
	agent, err := w.NewDevice("laptop7")
	w.must(err)
	w.must(agent.Enrol(t.Context(), w.Setup("laptop7", raw)))
	w.must(agent.Close())
	options := analyze.Options{
		Gateway: "https://" + w.GatewayHost, RootKey: w.SiteRoot, Token: raw, Timeout: 10 * time.Second,
		Device: func(observe func(client.Step)) (*client.Agent, error) {
			return client.Open(client.Config{Dir: filepath.Join(w.Dir, "device-laptop7"), Observe: observe})
		},
		Logs: []string{filepath.Join(w.Dir, "gateway", "logs"), filepath.Join(w.Dir, "connector", "logs"), filepath.Join(w.Dir, "site", "mp", "logs")},
	}
	got := diag.Run(t.Context(), analyze.New(options), nil)
	passes := states(got)
	for check, want := range map[string]string{
		"connection": "pass", "proxy": "skipped", "TLS": "pass", "certificate": "pass", "revocation": "pass", "versions": "pass", "service": "pass", "clock": "pass",
		"token": "pass pass", "MPLIST": "pass", "request": "pass pass pass pass",
	} {
		if passes[check] != want {
			t.Errorf("%s: got %q, want %q: %s", check, passes[check], want, details(got, check))
		}
	}
	if device, err := w.Site().FindDevice(t.Context(), "laptop7"); err != nil || device.ClientID == "" {
		t.Errorf("the device is not there any more: %v", err)
	}
	if tokens, err := w.Site().BulkTokens(t.Context()); err != nil || tokens[0].Uses != 1 {
		t.Errorf("the analyzer has spent a use of the token: %+v, %v", tokens, err)
	}

	foreign := options
	foreign.RootKey = strings.Repeat("ab", 32)
	if found := diag.Codes(diag.Run(t.Context(), analyze.New(foreign)[:5], nil), diag.Fail); len(found) != 1 || found[0] != catalog.ClientServerRoot {
		t.Errorf("under another root: %v", found)
	}

	w.must(w.Lab.Connector.Stop())
	w.Lab.Connector = nil
	eventually(w, "the gateway has noticed that the connector is gone", func() bool { return len(w.Lab.Gateway.Gateway.Status().Connectors) == 0 })
	got = diag.Run(t.Context(), analyze.New(options), nil)
	if found := diag.Codes(got, diag.Fail); len(found) < 2 || found[0] != catalog.GatewaySaysNotHealthy {
		t.Errorf("without a connector: %v\n%s", found, details(got, "MPLIST"))
	}
	if !strings.Contains(details(got, "MPLIST"), "cannot carry it inside") {
		t.Errorf("without a connector MPLIST says:\n%s", details(got, "MPLIST"))
	}
}

// TestAnalyzerFromTheSite: what the site knows of its gateway, and one that does not confirm.
func TestAnalyzerFromTheSite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	site := siteOf(w.Lab)
	got := diag.Run(t.Context(), analyze.NewSite(site), nil)
	if diag.Failed(got) {
		t.Errorf("a healthy site: %+v", got)
	}
	for _, test := range []struct {
		name string
		edit func(*analyze.Site)
		want catalog.Code
		how  diag.State
	}{
		{"behind", func(s *analyze.Site) { s.Gateways[0].Acknowledged-- }, catalog.GatewayNotConfirmed, diag.Warn},
		{"stale", func(s *analyze.Site) { s.Gateways[0].Heard = time.Now().Add(-time.Hour) }, catalog.GatewayNotConfirmed, diag.Fail},
		{"another pin", func(s *analyze.Site) { s.Gateways[0].Pin = strings.Repeat("ab", 32) }, catalog.GatewayPinMismatch, diag.Fail},
		{"a management point under another root", func(s *analyze.Site) { s.RootKey = strings.Repeat("ab", 32) }, catalog.BackendCertificate, diag.Fail},
		{"a management point that is away", func(s *analyze.Site) { s.ManagementPoints[0].URL = "https://127.0.0.1:1" }, catalog.BackendUnreachable, diag.Fail},
		{"no connector", func(s *analyze.Site) { s.Connectors[0].Blocked = true }, catalog.NoConnector, diag.Fail},
	} {
		t.Run(test.name, func(t *testing.T) {
			edited := siteOf(w.Lab)
			test.edit(&edited)
			found := diag.Codes(diag.Run(t.Context(), analyze.NewSite(edited), nil), test.how)
			if len(found) == 0 || found[0] != test.want {
				t.Errorf("got %v, want %s", found, test.want)
			}
		})
	}
}

func siteOf(l *lab.Lab) analyze.Site {
	st := l.Site()
	s := analyze.Site{Code: lab.SiteCode, Epoch: st.Epoch(), RootKey: st.RootPin(), Timeout: 10 * time.Second}
	for _, p := range st.ManagementPoints() {
		s.ManagementPoints = append(s.ManagementPoints, analyze.Point{Name: p.Name, URL: p.InternalURL})
	}
	for _, g := range st.Gateways() {
		s.Gateways = append(s.Gateways, analyze.Gateway{Name: g.Name, URL: g.URL, Pin: g.Pin, Acknowledged: s.Epoch, Heard: time.Now()})
	}
	for _, c := range st.Connectors() {
		s.Connectors = append(s.Connectors, analyze.Connector{Name: c.Name, Expires: c.Expires, Blocked: c.Blocked})
	}
	return s
}

func states(all []diag.Finding) map[string]string {
	by := map[string]string{}
	for _, f := range all {
		by[f.Check] = strings.TrimSpace(by[f.Check] + " " + string(f.State))
	}
	return by
}

func details(all []diag.Finding, check string) string {
	var text []string
	for _, f := range all {
		if f.Check == check {
			text = append(text, f.Title, f.Detail)
		}
	}
	return strings.Join(text, "\n")
}
