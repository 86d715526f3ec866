package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"postern/client"
)

// TestTheWayInTheStatus: which way, since when and why, and what the device would do elsewhere.
func TestTheWayInTheStatus(t *testing.T) {
	at := time.Date(2026, 11, 22, 6, 13, 6, 0, time.UTC)
	const gateway = "gw.example.net/CCM_Proxy_MutualAuth/72057594037927937"
	inside := client.Status{Way: client.WayInside, WaySince: at, WayWhy: "the management point was given"}
	outside := client.Status{Way: client.WayInternet, WaySince: at, WayWhy: "the management point cannot be reached", LooksFor: "https://mp.corp.example"}
	for name, test := range map[string]struct {
		status client.Status
		edit   func(*client.Status)
		want   []string
	}{
		"not begun":              {client.Status{}, func(*client.Status) {}, nil},
		"inside, gateways known": {inside, func(s *client.Status) { s.Gateways, s.GatewaysHeard = []string{gateway}, at }, []string{"inside, since 2026-11-22 06:13:06Z: the management point was given", gateway + ", from the site 2026-11-22 06:13:06Z"}},
		"inside, never asked":    {inside, func(*client.Status) {}, []string{"inside, since", "none yet", "postern code P034"}},
		"inside, none named":     {inside, func(s *client.Status) { s.GatewaysHeard = at }, []string{"inside, since", "the site named none 2026-11-22 06:13:06Z", "postern code P034"}},
		"outside, not looked":    {outside, func(*client.Status) {}, []string{"internet, since 2026-11-22 06:13:06Z: the management point cannot be reached", "https://mp.corp.example, to return inside; not looked yet"}},
		"outside, looked":        {outside, func(s *client.Status) { s.Looked, s.NotInside = at, "P557" }, []string{"internet, since", "https://mp.corp.example, to return inside; last 2026-11-22 06:13:06Z: P557"}},
	} {
		var out bytes.Buffer
		test.edit(&test.status)
		writeStatus(&out, test.status)
		var got []string
		for line := range strings.Lines(out.String()) {
			if name, _, _ := strings.Cut(line, "  "); name == "way" || name == "looks for" || name == "knows gateways" {
				got = append(got, line)
			}
		}
		text := strings.Join(got, "")
		for _, want := range test.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: lacks %q:\n%s", name, want, text)
			}
		}
		if len(test.want) == 0 && text != "" {
			t.Errorf("%s: says %s", name, text)
		}
	}
}
