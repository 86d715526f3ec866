package role

import (
	"testing"
	"time"
)

func TestTheLeewayIsReported(t *testing.T) {
	for name, test := range map[string]struct {
		leeway  time.Duration
		tenants int
		want    any
	}{
		"nobody's tokens are judged": {2 * time.Minute, 0, nil},
		"nothing is set":             {0, 1, "1m0s"},
		"two minutes are set":        {2 * time.Minute, 3, "2m0s"},
	} {
		h := Health{Detail: map[string]any{}}
		leewayHealth(&h, Config{Entra: Entra{Leeway: test.leeway}}, test.tenants)
		if got := h.Detail["entra_leeway"]; got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
