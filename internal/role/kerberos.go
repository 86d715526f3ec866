package role

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"postern/auth"
	"postern/auth/kerberos"
	"postern/catalog"
	"postern/proof"
	"postern/site"
)

// Kerberos says how a management point judges Windows authentication. Which realms are trusted is a setting of the site.
type Kerberos struct {
	Keytab         string `yaml:"keytab,omitempty" doc:"file with the keys of the account that owns the SPN HTTP/<name>; the same on every node behind one name"`
	AllowRC4       bool   `yaml:"allow_rc4,omitempty" doc:"accept tickets with RC4 keys; AES only unless set"`
	ChannelBinding string `yaml:"channel_binding,omitempty" doc:"when-sent (default) or required: over TLS, a ticket must be bound to this connection"`
}

const (
	// maxTickets bounds the memory of used tickets: at most eleven minutes' worth, about 60 bytes each.
	maxTickets = 1 << 20
	// keytabEvery is how often the keytab is looked at: a new password of the account takes effect without a restart.
	keytabEvery = 10 * time.Second
)

// windows is the Windows authentication of a management point.
type windows struct {
	path     string
	acceptor *kerberos.Acceptor
	audit    atomic.Pointer[kerberos.Audit]
	stale    atomic.Pointer[string] // why the keytab that lies there now is not in use
	seen     os.FileInfo
}

// openWindows reads the keytab; nil when the configuration names none.
func openWindows(c Config, s *site.Site, now func() time.Time) (*windows, error) {
	if c.Kerberos.Keytab == "" {
		return nil, nil
	}
	binding, err := kerberos.ParseBinding(c.Kerberos.ChannelBinding)
	if err != nil {
		return nil, err
	}
	w := &windows{path: c.Kerberos.Keytab}
	keytab, err := w.load()
	if err != nil {
		return nil, err
	}
	w.acceptor, err = kerberos.New(kerberos.Config{
		Keytab: keytab, Realms: func() []proof.Realm { return s.Settings().Realms }, AllowRC4: c.Kerberos.AllowRC4, Binding: binding, Replay: auth.NewMemory(maxTickets, now), Now: now,
	})
	if err != nil {
		return nil, err
	}
	w.taken(keytab)
	return w, nil
}

// load reads the keytab and remembers how the file looked before.
func (w *windows) load() (*kerberos.Keytab, error) {
	w.seen, _ = os.Stat(w.path) // reading says what is wrong
	return kerberos.LoadKeytab(w.path)
}

// taken notes which keytab is in use.
func (w *windows) taken(keytab *kerberos.Keytab) {
	audit := keytab.Audit()
	w.audit.Store(&audit)
	w.stale.Store(nil)
}

// negotiator is the acceptor, or nothing: a nil *windows must not become an interface that is not nil.
func (w *windows) negotiator() auth.Negotiator {
	if w == nil {
		return nil
	}
	return w.acceptor
}

// watch takes a changed keytab into use until ctx ends. One that cannot be read leaves the old one in force, and health says so.
func (w *windows) watch(ctx context.Context, log *slog.Logger) error {
	return every(ctx, keytabEvery, func() { w.refresh(log) })
}

// refresh reads the keytab when the file has changed, and again and again while it cannot be taken: then it may be its mode that changes.
func (w *windows) refresh(log *slog.Logger) {
	now, err := os.Stat(w.path)
	if err == nil && w.stale.Load() == nil && unchanged(now, w.seen) {
		return
	}
	keytab, err := w.load()
	if err == nil {
		err = w.acceptor.Reload(keytab)
	}
	if err != nil {
		reason := catalog.Public(err)
		if old := w.stale.Swap(&reason); old == nil || *old != reason {
			log.Error("the keytab is not taken", "path", w.path, "error", err)
		}
		return
	}
	w.taken(keytab)
	log.Info("keytab taken", "path", w.path, "principals", w.audit.Load().Principals)
}

// health adds what a person should know of the keytab.
func (w *windows) health(h *Health) {
	if w == nil {
		return
	}
	audit := w.audit.Load()
	h.Detail["kerberos"] = map[string]any{"principals": audit.Principals, "realms": audit.Realms}
	if reason := w.stale.Load(); reason != nil {
		h.problem("the keytab is not taken, the one before stays in use: %s", *reason)
	}
	for _, finding := range audit.Findings {
		h.Problem = append(h.Problem, fmt.Sprintf("keytab: %s: %s", finding.Code, finding.Detail))
	}
}
