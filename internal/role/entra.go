package role

import (
	"context"
	"crypto/x509"
	"log/slog"
	"time"

	"postern/auth/entra"
	"postern/catalog"
	"postern/site"
)

// Entra says how a management point reaches the providers of the onboarded tenants, and how it and a gateway judge their tokens. Which tenants there
// are is in the site.
type Entra struct {
	Leeway time.Duration `yaml:"leeway,omitempty" doc:"management point, gateway: how far a provider's clock may differ, at most 10m; 1m when empty"`

	Roots string   `yaml:"roots,omitempty" doc:"management point: PEM file with the authorities of the providers' TLS; the system's when empty"`
	Hosts []string `yaml:"hosts,omitempty" doc:"management point: hosts, besides the issuers' own, that may serve a tenant's keys"`
}

// maxLeeway bounds what a person can set: a token that has ended is not to be good for long.
const maxLeeway = 10 * time.Minute

// writeEvery is how often it is noted how the fetches went. The site writes only what has changed.
const writeEvery = time.Minute

// tenants keeps the keys of the onboarded tenants fresh and judges their tokens.
type tenants struct {
	site      *site.Site
	source    *entra.Source
	validator *entra.Validator
	now       func() time.Time
	log       *slog.Logger
}

func openTenants(c Config, s *site.Site, now func() time.Time, log *slog.Logger) (*tenants, error) {
	roots, err := c.providerRoots()
	if err != nil {
		return nil, err
	}
	t := &tenants{site: s, now: now, log: log}
	t.source = entra.NewSource(entra.SourceConfig{Tenants: s.Tenants, Roots: roots, Hosts: c.Entra.Hosts, LoopbackHTTP: s.Settings().LoopbackHTTP, Now: now, Log: log})
	for _, known := range s.Onboarded() {
		if len(known.Keys) == 0 {
			continue
		}
		if err := t.source.Restore(known.ID, known.Keys, known.KeysFetched); err != nil {
			log.Warn("the kept keys of a tenant are not used", "tenant", known.ID, "error", err)
		}
	}
	t.validator = entra.New(entra.Config{Tenants: s.Tenants, Leeway: c.Entra.Leeway, Now: now, OnUnknownKey: t.source.Unknown})
	return t, nil
}

// providerRoots are the authorities of the providers; nil means the system's.
func (c Config) providerRoots() (*x509.CertPool, error) {
	if c.Entra.Roots == "" {
		return nil, nil
	}
	content, err := readBounded(c.Entra.Roots)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(content) {
		return nil, catalog.Wrap(catalog.ConfigInvalid, err, "entra.roots names %s, which holds no certificates in PEM form", c.Entra.Roots)
	}
	return pool, nil
}

// publish hands fetched keys to the site, which signs them into its state, and tells the source when the list of tenants has changed.
func (t *tenants) publish(ctx context.Context) error {
	changed := t.site.Watch(ctx)
	tick := time.NewTicker(writeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			t.source.Poke()
		case <-t.source.Changed():
			t.write(ctx)
		case <-tick.C:
			t.write(ctx)
		}
	}
}

// oldKeys is how old the published keys of a tenant become while no node reaches its provider; the source's own limit.
const oldKeys = 7 * 24 * time.Hour

func (t *tenants) write(ctx context.Context) {
	published := map[string]time.Time{}
	for _, known := range t.site.Onboarded() {
		published[known.ID] = known.KeysFetched
	}
	for _, status := range t.source.Status() {
		t.site.NoteFetch(status.Tenant, site.Fetch{At: status.Fetched, Err: status.Err})
		// A node without keys may be the only one that cannot reach the provider: another's stay until they are old.
		if status.Keys == 0 && t.now().Sub(published[status.Tenant]) < oldKeys {
			continue
		}
		err := t.site.SetTenantKeys(ctx, status.Tenant, t.source.Keys(status.Tenant), status.Fetched)
		if err != nil && ctx.Err() == nil {
			t.log.Error("the keys of a tenant were not written", "tenant", status.Tenant, "error", err)
		}
	}
}

// unknownKey takes what a gateway has met.
func (t *tenants) unknownKey(tenant, keyID string) {
	t.source.Unknown(entra.TenantKey{Tenant: tenant, KeyID: keyID})
}

// health adds what a person should know of the tenants.
func (t *tenants) health(h *Health) {
	var all []map[string]any
	for _, status := range t.source.Status() {
		all = append(all, map[string]any{"tenant": status.Tenant, "keys": status.Keys, "fetched": status.Fetched, "next": status.Next})
		if status.Err != nil {
			h.problem("the keys of tenant %s: %s", status.Tenant, catalog.Public(status.Err))
		}
	}
	if all != nil {
		h.Detail["tenants"] = all
	}
}
