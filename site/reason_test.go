package site_test

import (
	"path/filepath"
	"strings"
	"testing"

	"postern/catalog"
	"postern/site"
)

// Whoever takes trust away, or gives it back, says why, in one line that can be kept.
func TestActsOnTrustNeedAReason(t *testing.T) {
	w := newWorld(t, filepath.Join(t.TempDir(), "site.db"))
	ctx := t.Context()
	_, bulk, err := w.NewBulkToken(ctx, site.NewBulk{By: "anna"})
	if err != nil {
		t.Fatal(err)
	}
	acts := map[string]func(by, why string) error{
		"block a connector":   func(by, why string) error { return w.BlockConnector(ctx, "hq-1", true, by, why) },
		"unblock a connector": func(by, why string) error { return w.BlockConnector(ctx, "hq-1", false, by, why) },
		"remove a gateway":    func(by, why string) error { return w.RemoveGateway(ctx, "gw.example.com", by, why) },
		"disable a tenant":    func(by, why string) error { return w.EnableTenant(ctx, "corp", false, by, why) },
		"enable a tenant":     func(by, why string) error { return w.EnableTenant(ctx, "corp", true, by, why) },
		"remove a tenant":     func(by, why string) error { return w.RemoveTenant(ctx, "corp", by, why) },
		"remove an authority": func(by, why string) error {
			_, err := w.RemoveAuthority(ctx, strings.Repeat("0", 64), by, why)
			return err
		},
	}
	for name, act := range acts {
		for _, why := range []string{"", " ", "two\nlines", "\x1b[2J", strings.Repeat("x", 513)} {
			refused(t, name+" because of "+why, act("anna", why), catalog.ReasonNeeded)
		}
		refused(t, name+" by nobody", act("", "lost"), catalog.InvalidArgument)
		if code := catalog.CodeOf(act("anna", "lost")); code != catalog.NotFound {
			t.Errorf("%s with a reason: %s, want %s: nothing has that name", name, code, catalog.NotFound)
		}
	}
	for _, why := range []string{"two\nlines", strings.Repeat("x", 513)} {
		_, err := w.BlockBulkToken(ctx, bulk.ID, true, "anna", why)
		refused(t, "block a token because of "+why, err, catalog.ReasonNeeded)
		_, err = w.Compromise(ctx, "ccm", why, "anna")
		refused(t, "declare a key compromised because of "+why, err, catalog.ReasonNeeded)
	}
	if _, err := w.BlockBulkToken(ctx, bulk.ID, true, "anna", ""); err != nil {
		t.Errorf("a leaked token is stopped without a reason: %v", err)
	}
}
