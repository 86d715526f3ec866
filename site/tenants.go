package site

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/token"
)

// Tenant is an onboarded Entra tenant, or one realm of another OpenID provider (product.md 2.5).
type Tenant struct {
	token.Tenant
	KeysFetched time.Time `json:"keys_fetched,omitzero"` // when the provider last answered with Keys, to within an hour
	Created     time.Time `json:"created,omitzero"`
	By          string    `json:"by"`
}

// Budgets of tenants. All of them with their keys fit into a third of a site state ([token.MaxDocument]).
const (
	maxTenants       = 64
	maxIssuers       = 8
	maxAudiences     = 16
	maxTenantText    = 256
	maxTenantID      = 128
	maxTenantKeys    = 64 << 10
	maxAllTenantKeys = 768 << 10
)

// DefaultResource is what clients ask a token for, and the audience of that token, unless a tenant has another (S2).
const DefaultResource = "https://ConfigMgrService"

// keysLife is how long keys count that nobody could fetch again: a key that was withdrawn must not count for ever.
const keysLife = 7 * 24 * time.Hour

// fetchedEvery is how often the time of a fetch is written that brought nothing new.
const fetchedEvery = time.Hour

// AddTenant onboards a tenant, or changes one that is onboarded: what is given replaces what it had, the rest stays, and so does whether it is
// disabled. A new tenant with a GUID needs no issuers: it gets Entra's two. Keys are never taken from here: see [Site.SetTenantKeys]; those of
// an issuer that is dropped go with it. Whether the issuers may be dialled is for the caller to judge. Code: TenantInvalid.
func (s *Site) AddTenant(ctx context.Context, ask token.Tenant, by string) (tenant Tenant, err error) {
	ask.ID = strings.ToLower(strings.TrimSpace(ask.ID))
	err = s.update(ctx, func(tx Tx) (bool, error) {
		listed, err := tx.Tenants()
		if err != nil {
			return false, err
		}
		at := slices.IndexFunc(listed, func(t Tenant) bool { return t.ID == ask.ID })
		if at < 0 && len(listed) >= maxTenants {
			return false, catalog.Errorf(catalog.TenantInvalid, "%d tenants are onboarded; more are not possible", len(listed))
		}
		action := "tenant.change"
		old := Tenant{Created: s.time(), By: by}
		if at < 0 {
			action = "tenant.add"
		} else {
			old = listed[at]
		}
		tenant = old.with(ask)
		if err := s.checkTenant(tenant, listed); err != nil {
			return false, err
		}
		if at >= 0 && old.sameAs(tenant) {
			return false, nil
		}
		if err := tx.PutTenant(tenant); err != nil {
			return false, err
		}
		return true, s.trust(tx, by, action, tenant.ID, map[string]string{
			"issuers": strings.Join(tenant.Issuers, " "), "audiences": strings.Join(tenant.Audiences, " "), "client-app": tenant.ClientApp, "resource": tenant.Resource,
		})
	})
	return tenant, err
}

// with returns the tenant with what is given, and what is usual where nothing was.
func (t Tenant) with(ask token.Tenant) Tenant {
	next := t
	next.ID = ask.ID
	next.ClientApp = strings.ToLower(cmp.Or(strings.TrimSpace(ask.ClientApp), t.ClientApp))
	next.Resource = cmp.Or(strings.TrimSpace(ask.Resource), t.Resource, DefaultResource)
	switch {
	case len(ask.Issuers) > 0:
		next.Issuers = slices.Clone(ask.Issuers)
	case len(t.Issuers) == 0 && guid(ask.ID):
		next.Issuers = EntraIssuers(ask.ID)
	}
	switch {
	case len(ask.Audiences) > 0:
		next.Audiences = slices.Clone(ask.Audiences)
	case len(t.Audiences) == 0, slices.Equal(t.Audiences, usualAudiences(t.Tenant)):
		next.Audiences = usualAudiences(next.Tenant)
	}
	if slices.ContainsFunc(t.Issuers, func(issuer string) bool { return !slices.Contains(next.Issuers, issuer) }) {
		next.Keys, next.KeysFetched = nil, time.Time{}
	}
	return next
}

func (t Tenant) sameAs(o Tenant) bool {
	return slices.Equal(t.Issuers, o.Issuers) && slices.Equal(t.Audiences, o.Audiences) && t.ClientApp == o.ClientApp && t.Resource == o.Resource
}

// EntraIssuers are the two issuers of an Entra tenant in the worldwide cloud. The first is where a client begins to ask.
func EntraIssuers(id string) []string {
	return []string{"https://login.microsoftonline.com/" + id + "/v2.0", "https://sts.windows.net/" + id + "/"}
}

// usualAudiences are the resource, and the names that Entra gives the application itself. A token of another provider whose audience is the client
// app alone may be an ID token, which is for the client and not for us.
func usualAudiences(t token.Tenant) []string {
	audiences := []string{t.Resource}
	if t.ClientApp != "" {
		audiences = append(audiences, "api://"+t.ClientApp)
	}
	if t.ClientApp != "" && guid(t.ID) {
		audiences = append(audiences, t.ClientApp)
	}
	return audiences
}

func (s *Site) checkTenant(t Tenant, listed []Tenant) error {
	loopback := s.Settings().LoopbackHTTP
	switch {
	case !tenantID(t.ID):
		return catalog.Errorf(catalog.TenantInvalid, "%+.60q is no tenant id: give the directory's GUID, or a name of letters, digits, dots, hyphens and underscores", t.ID)
	case len(t.Issuers) == 0:
		return catalog.Errorf(catalog.TenantInvalid, "%s is no GUID, so it is no Entra tenant; name its issuer with --issuer", t.ID)
	case len(t.Issuers) > maxIssuers || len(t.Audiences) > maxAudiences:
		return catalog.Errorf(catalog.TenantInvalid, "%d issuers and %d audiences; at most %d and %d are allowed", len(t.Issuers), len(t.Audiences), maxIssuers, maxAudiences)
	}
	for _, text := range slices.Concat(t.Issuers, t.Audiences, []string{t.Resource, "x" + t.ClientApp}) {
		if text == "" || len(text) > maxTenantText || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return catalog.Errorf(catalog.TenantInvalid, "%+.60q is empty, longer than %d bytes, or holds blanks or other than ASCII characters", withoutSecret(text), maxTenantText)
		}
	}
	for _, issuer := range t.Issuers {
		if !issuerAddress(issuer, loopback) {
			return catalog.Errorf(catalog.TenantInvalid, "the issuer %q is no https address of a host without user, query and fragment", withoutSecret(issuer))
		}
		for _, other := range listed {
			if other.ID != t.ID && slices.Contains(other.Issuers, issuer) {
				return catalog.Errorf(catalog.TenantInvalid, "the issuer %s is that of tenant %s already", issuer, other.ID)
			}
		}
	}
	return nil
}

func tenantID(id string) bool {
	return id != "" && len(id) <= maxTenantID && !strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	})
}

// guid reports whether an id has the form of a directory's: 8-4-4-4-12 hexadecimal digits in lower case.
func guid(id string) bool {
	if len(id) != 36 {
		return false
	}
	for i, r := range id {
		hyphen := i == 8 || i == 13 || i == 18 || i == 23
		if hyphen != (r == '-') || !hyphen && !strings.ContainsRune("0123456789abcdef", r) {
			return false
		}
	}
	return true
}

// issuerAddress checks the shape of an issuer. http is for a stand-in on this machine, where the site's setting allows it.
func issuerAddress(issuer string, loopback bool) bool {
	u, err := url.Parse(issuer)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Opaque != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(issuer, "#") {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && loopback && ip != nil && ip.IsLoopback()
}

// Tenants returns the onboarded tenants with their keys, ordered by id. It answers from memory. The slice is not to be changed.
func (s *Site) Tenants() []token.Tenant { return s.current.Load().state.Tenants }

// Onboarded returns the tenants as they are kept, ordered by id.
func (s *Site) Onboarded() []Tenant { return s.current.Load().tenants }

// EnableTenant lets a tenant's tokens in, or with enabled false keeps them out. Devices keep their record, but the site's tokens that came by a
// disabled tenant are refused at once.
func (s *Site) EnableTenant(ctx context.Context, id string, enabled bool, by, why string) error {
	if err := signed(by, why); err != nil {
		return err
	}
	action := map[bool]string{true: "tenant.enable", false: "tenant.disable"}[enabled]
	return s.changeTenant(ctx, id, func(tx Tx, t Tenant) (bool, error) {
		if t.Disabled == !enabled {
			return false, nil
		}
		t.Disabled = !enabled
		if err := tx.PutTenant(t); err != nil {
			return false, err
		}
		return true, s.trust(tx, by, action, t.ID, map[string]string{"why": why})
	})
}

// RemoveTenant takes a tenant away, with its keys. The effect is that of disabling it.
func (s *Site) RemoveTenant(ctx context.Context, id, by, why string) error {
	if err := signed(by, why); err != nil {
		return err
	}
	return s.changeTenant(ctx, id, func(tx Tx, t Tenant) (bool, error) {
		if err := tx.DeleteTenant(t.ID); err != nil {
			return false, err
		}
		return true, s.trust(tx, by, "tenant.remove", t.ID, map[string]string{"why": why})
	})
}

func (s *Site) changeTenant(ctx context.Context, id string, change func(Tx, Tenant) (bool, error)) error {
	id = strings.ToLower(strings.TrimSpace(id))
	err := s.update(ctx, func(tx Tx) (bool, error) {
		tenant, err := tx.Tenant(id)
		if err != nil {
			return false, err
		}
		return change(tx, tenant)
	})
	if errors.Is(err, ErrNotFound) {
		return catalog.Errorf(catalog.NotFound, "no tenant has the id %+.60q; `postern tenant list` shows them", id)
	}
	return err
}

// SetTenantKeys keeps a tenant's key set (JWKS) as its provider gave it at that time, nil to withdraw one that is too old. The keys say whose tokens
// are believed, so a change raises the epoch and is in the trust log; the time of a fetch without news is written now and then. An answer older than
// the one that is kept, of a node that did not reach the provider since, changes nothing, except that such a node may withdraw keys that nobody has
// fetched for seven days, and that an answer from the future gives way to any other. A tenant that is gone is no error.
func (s *Site) SetTenantKeys(ctx context.Context, id string, keys json.RawMessage, fetched time.Time) error {
	keys, names, err := readKeySet(keys)
	if err != nil {
		return err
	}
	id, fetched = strings.ToLower(id), fetched.UTC().Truncate(time.Microsecond)
	for _, t := range s.Onboarded() {
		if t.ID == id && bytes.Equal(t.Keys, keys) && fetched.Sub(t.KeysFetched) < fetchedEvery {
			return nil // mostly there is nothing to write
		}
	}
	err = s.update(ctx, func(tx Tx) (bool, error) {
		listed, err := tx.Tenants()
		if err != nil {
			return false, err
		}
		at := slices.IndexFunc(listed, func(t Tenant) bool { return t.ID == id })
		if at < 0 {
			return false, nil
		}
		t := listed[at]
		ahead := t.KeysFetched.After(s.now().Add(tokenLeeway)) // as that node's clock was: it must not keep the keys of the others out
		older := fetched.Before(t.KeysFetched) && !(ahead && len(keys) > 0)
		if older && (len(keys) > 0 || s.now().Sub(t.KeysFetched) < keysLife) {
			return false, nil
		}
		changed := !bytes.Equal(t.Keys, keys)
		t.Keys = keys
		if !older {
			t.KeysFetched = fetched
		}
		listed[at] = t
		if size := keysSize(listed); changed && size > maxAllTenantKeys {
			return false, catalog.Errorf(catalog.TenantInvalid, "the keys of all tenants have %d bytes with those of %s; at most %d are allowed", size, id, maxAllTenantKeys)
		}
		if err := tx.PutTenant(t); err != nil || !changed {
			return false, err
		}
		return true, s.trust(tx, actorSite, "tenant.keys", id, map[string]string{"keys": strings.Join(names, " "), "count": strconv.Itoa(len(names))})
	})
	if err != nil {
		return err
	}
	return s.Refresh(ctx)
}

func keysSize(tenants []Tenant) (size int) {
	for _, t := range tenants {
		size += len(t.Keys)
	}
	return size
}

// readKeySet checks a key set and returns it without blanks, with the ids of its keys. The keys themselves have been judged by who fetched them.
func readKeySet(raw json.RawMessage) (json.RawMessage, []string, error) {
	if len(raw) == 0 {
		return nil, nil, nil
	}
	if len(raw) > maxTenantKeys {
		return nil, nil, catalog.Errorf(catalog.TenantInvalid, "the key set has %d bytes; at most %d are allowed", len(raw), maxTenantKeys)
	}
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
		} `json:"keys"`
	}
	var plain bytes.Buffer
	if json.Unmarshal(raw, &set) != nil || json.Compact(&plain, raw) != nil {
		return nil, nil, catalog.Errorf(catalog.TenantInvalid, "the key set is not JSON with a list of keys")
	}
	names := make([]string, 0, len(set.Keys))
	for _, key := range set.Keys {
		names = append(names, shown(key.ID))
	}
	return plain.Bytes(), names, nil
}

// Fetch says how the last fetch of a tenant's keys went, on this node since it started.
type Fetch struct {
	At  time.Time // of the last good answer; zero: none yet
	Err error     // of the last try; nil when it was good
}

// NoteFetch remembers how the last fetch of a tenant's keys went, for who lists the tenants.
func (s *Site) NoteFetch(id string, fetch Fetch) { s.fetches.Store(strings.ToLower(id), fetch) }

// LastFetch returns what NoteFetch noted last; ok is false when this process fetches no keys.
func (s *Site) LastFetch(id string) (fetch Fetch, ok bool) {
	noted, ok := s.fetches.Load(strings.ToLower(id))
	if !ok {
		return Fetch{}, false
	}
	return noted.(Fetch), true
}

// admits reports why what came by a tenant counts no more: it was removed, it is disabled, or it has dropped the issuer.
func (t Tenant) admits(issuer string) error {
	switch {
	case t.Disabled:
		return catalog.Errorf(catalog.EntraTenantDisabled, "tenant %s is disabled", t.ID)
	case issuer != "" && !slices.Contains(t.Issuers, issuer):
		return catalog.Errorf(catalog.EntraTenantDisabled, "tenant %s has no issuer %s any more", t.ID, shown(issuer))
	}
	return nil
}

func goneTenant(id string) error {
	return catalog.Errorf(catalog.EntraTenantDisabled, "tenant %s is not onboarded any more", shown(id))
}

// cloudAdmitted is asked at every request, so it answers from memory.
func (now *snapshot) cloudAdmitted(cloud *proof.Cloud) error {
	if cloud == nil {
		return nil
	}
	at, found := slices.BinarySearchFunc(now.tenants, cloud.Tenant, func(t Tenant, id string) int { return strings.Compare(t.ID, id) })
	if !found {
		return goneTenant(cloud.Tenant)
	}
	return now.tenants[at].admits(cloud.Issuer)
}

// cloudStillAdmitted asks the database: between the token and the act that it is for, another node may have disabled the tenant.
func cloudStillAdmitted(tx Tx, cloud *proof.Cloud) error {
	if cloud == nil {
		return nil
	}
	tenant, err := tx.Tenant(cloud.Tenant)
	if errors.Is(err, ErrNotFound) {
		return goneTenant(cloud.Tenant)
	}
	if err != nil {
		return err
	}
	return tenant.admits(cloud.Issuer)
}
