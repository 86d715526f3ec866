package role

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"postern/catalog"
	"postern/keyfile"
	"postern/site"
)

// keptRootsName is the file in a management point's state folder with the site's roots, the private half sealed with site.key: a backup of the store from
// before a change of the root is then no dead end.
const keptRootsName = "site-roots.json"

// maxKeptRoots bounds that file.
const maxKeptRoots = 4 << 20

// keptRoots keeps that file.
type keptRoots struct {
	path string
	site *site.Site
	log  *slog.Logger

	mu   sync.Mutex
	pin  string // of the newest root in the file, "" when it was not written yet
	fail error
}

func newKeptRoots(c Config, s *site.Site, log *slog.Logger) *keptRoots {
	return &keptRoots{path: filepath.Join(c.State, keptRootsName), site: s, log: log}
}

// BringBackRoots brings back the site roots that a restored store has forgotten, from what the management point with this configuration keeps beside it. A
// management point does so when it starts.
func BringBackRoots(ctx context.Context, c Config, s *site.Site) {
	newKeptRoots(c, s, slog.New(slog.DiscardHandler)).restore(ctx)
}

// restore brings back what the store has forgotten, before anybody is served. A file that does not fit this site is put aside.
func (k *keptRoots) restore(ctx context.Context) {
	content, err := readAtMost(k.path, maxKeptRoots)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var kept []site.KeptRoot
	if err == nil {
		err = json.Unmarshal(content, &kept)
	}
	restored := false
	if err == nil && len(kept) > 0 {
		restored, err = k.site.RestoreRoots(ctx, kept)
	}
	if err != nil {
		aside := k.path + ".unused"
		k.log.Error("the kept site roots are not used, and put aside", "code", catalog.RootLinksNotKept, "file", aside, "error", err, "moved", os.Rename(k.path, aside))
	}
	if restored {
		k.log.Warn("the store knew an older site root; the one of now was brought back", "root", k.site.RootPin())
	}
}

// keep writes the roots when there is a new one.
func (k *keptRoots) keep(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	pin := k.site.RootPin()
	if k.pin == pin {
		return
	}
	roots, err := k.site.KeepRoots(ctx)
	var content []byte
	if err == nil {
		content, err = json.MarshalIndent(roots, "", " ")
	}
	if err == nil {
		err = keyfile.WriteFile(k.path, append(content, '\n'))
	}
	if k.fail = err; err != nil {
		k.log.Error("the site roots are not kept beside the store", "code", catalog.RootLinksNotKept, "file", k.path, "error", err)
		return
	}
	k.pin = pin
}

// run keeps the roots until ctx ends.
func (k *keptRoots) run(ctx context.Context) error {
	for range k.site.Watch(ctx) {
		k.keep(ctx)
	}
	return nil
}

func (k *keptRoots) health(h *Health) {
	k.mu.Lock()
	defer k.mu.Unlock()
	h.Detail["site_root"] = k.site.RootPin()
	if k.fail != nil {
		h.problem("the site roots are not kept beside the store (%s): a backup from before a change of the root would not be enough", catalog.RootLinksNotKept)
	}
}

func readAtMost(path string, most int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > most {
		return nil, catalog.Errorf(catalog.RootLinkMalformed, "%s has %d bytes", path, info.Size())
	}
	return os.ReadFile(path)
}
