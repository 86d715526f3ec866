package role

import (
	"bytes"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/catalog"
	"postern/token"
)

// files are the contents of a folder's files and of those of its folders.
func files(t *testing.T, folder string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	err := filepath.Walk(folder, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			all[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestLookingChangesNothing: a check of a site leaves every byte of its folder as it was, of a restored one that has forgotten a revocation, and of one of an
// older version too, which it does not open.
func TestLookingChangesNothing(t *testing.T) {
	h := newHouse(t, false)
	d := h.device(1)
	restore := h.backup()
	_, err := h.opened.Site.Block(t.Context(), d.ClientID, "anna", "stolen")
	h.must(err)
	forgotten, err := os.ReadFile(RevocationsFile(h.config))
	h.must(err)
	h.must(os.Remove(RevocationsFile(h.config)))
	restore()
	h.must(h.opened.Close())
	h.must(os.WriteFile(RevocationsFile(h.config), forgotten, 0o600)) // so that the next who opens the site applies it again

	looks := func(what string, want catalog.Code) {
		t.Helper()
		before := files(t, filepath.Dir(h.config.Store))
		looked, err := LookAtSite(t.Context(), h.config, Protection{})
		if got := catalog.CodeOf(err); got != want {
			t.Errorf("%s: got %v, want %q", what, err, want)
		}
		if err == nil {
			if _, err := looked.Site.Audit(t.Context(), []token.Checkpoint{}); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if looked.Site.Revoked(token.Claims{Key: d.Key}) != nil {
				t.Errorf("%s: the revocation was applied", what)
			}
			_, err := looked.Site.Block(t.Context(), d.ClientID, "anna", "stolen")
			if got := catalog.CodeOf(err); got != catalog.StoreReadOnly {
				t.Errorf("%s: an act ends with %v", what, err)
			}
			h.must(looked.Close())
		}
		after := files(t, filepath.Dir(h.config.Store))
		for path, content := range after {
			if was, there := before[path]; !there || !bytes.Equal(was, content) {
				t.Errorf("%s: %s is new or has changed", what, path)
			}
		}
		if len(after) != len(before) {
			t.Errorf("%s: %d files, there were %d", what, len(after), len(before))
		}
	}
	looks("as it is", "")
	db, err := sql.Open("sqlite", h.config.Store)
	h.must(err)
	_, err = db.Exec("delete from schema_version where version_id = (select max(version_id) from schema_version)")
	h.must(err)
	h.must(db.Close())
	looks("of an older version", catalog.StoreOlderSchema)
	if _, err := LookAtSite(t.Context(), Config{Role: ManagementPoint, SiteKey: h.config.SiteKey, Store: h.config.Store + ".none"}, Protection{}); catalog.CodeOf(err) != catalog.SiteNotInitialised {
		t.Errorf("without a store: %v", err)
	}
	if text := catalog.Public(catalog.Errorf(catalog.StoreOlderSchema, "x")); !strings.Contains(text, "Start the management point") {
		t.Errorf("the remedy is %q", text)
	}
}
