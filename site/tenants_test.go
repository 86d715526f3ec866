package site_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/site"
	"postern/token"
)

func tenantStories() []story {
	return []story{
		{"onboarding with what is usual", tenantDefaults},
		{"adding a tenant again changes it", tenantChanges},
		{"tenants that are refused", tenantsRefused},
		{"a tenant's keys", tenantKeys},
		{"the keys of all tenants have a budget", tenantKeysBudget},
		{"how the last fetch went", tenantFetch},
	}
}

func (w *world) tenant(t testing.TB, id string) site.Tenant {
	t.Helper()
	for _, tenant := range w.Onboarded() {
		if tenant.ID == id {
			return tenant
		}
	}
	t.Fatalf("no tenant %s", id)
	return site.Tenant{}
}

func tenantDefaults(t *testing.T, w *world) {
	const id, app = "9aaf466a-3f40-4468-b3cd-f0010f21f05a", "d2b5b0a1-0000-4000-8000-000000000001"
	epoch := w.Epoch()
	var made site.Tenant
	entries := w.during(t, func() {
		var err error
		if made, err = w.AddTenant(t.Context(), token.Tenant{ID: strings.ToUpper(id), ClientApp: strings.ToUpper(app)}, "anna"); err != nil {
			t.Fatal(err)
		}
	})
	if got := actions(entries); got != "tenant.add" || entries[0].Subject != id || w.Epoch() <= epoch {
		t.Errorf("trust entries %s, epoch %d after %d", got, w.Epoch(), epoch)
	}
	if want := []string{"https://login.microsoftonline.com/" + id + "/v2.0", "https://sts.windows.net/" + id + "/"}; !slices.Equal(made.Issuers, want) {
		t.Errorf("issuers: got %q", made.Issuers)
	}
	if want := []string{"https://ConfigMgrService", "api://" + app, app}; !slices.Equal(made.Audiences, want) || made.Resource != want[0] || made.ClientApp != app || made.By != "anna" || !made.Created.Equal(begin) {
		t.Errorf("got %+v", made)
	}
	if state := w.opened(t); len(state.Tenants) != 2 || state.Tenants[1].ID != id || len(w.Tenants()) != 2 {
		t.Errorf("the state has %+v", state.Tenants)
	}
	other, err := w.AddTenant(t.Context(), token.Tenant{ID: "corp", Issuers: []string{"https://id.corp.example/realms/corp"}, ClientApp: "postern"}, "anna")
	if want := []string{"https://ConfigMgrService", "api://postern"}; err != nil || !slices.Equal(other.Audiences, want) {
		t.Errorf("another provider: %+v, %v", other, err)
	}
}

func tenantChanges(t *testing.T, w *world) {
	id := contoso().ID
	keys := json.RawMessage(`{"keys":[{"kid":"a"}]}`)
	if err := w.SetTenantKeys(t.Context(), id, keys, begin); err != nil {
		t.Fatal(err)
	}
	if err := w.EnableTenant(t.Context(), id, false, "anna", "try it"); err != nil {
		t.Fatal(err)
	}
	change := func(ask token.Tenant, wrote string) site.Tenant {
		t.Helper()
		ask.ID = id
		entries := w.during(t, func() {
			if _, err := w.AddTenant(t.Context(), ask, "bert"); err != nil {
				t.Fatal(err)
			}
		})
		if got := actions(entries); got != wrote {
			t.Errorf("trust entries %q, want %q", got, wrote)
		}
		return w.tenant(t, id)
	}
	if got := change(token.Tenant{}, ""); !got.Disabled || string(got.Keys) != string(keys) || got.By != "anna" {
		t.Errorf("nothing given: %+v", got)
	}
	if got := change(token.Tenant{ClientApp: "app"}, "tenant.change"); !got.Disabled || !slices.Equal(got.Audiences, []string{"https://ConfigMgrService", "api://app", "app"}) || len(got.Issuers) != 2 {
		t.Errorf("an app: %+v", got)
	}
	more := append(slices.Clone(contoso().Issuers), "https://login.partner.microsoftonline.cn/"+id+"/v2.0")
	if got := change(token.Tenant{Issuers: more}, "tenant.change"); len(got.Issuers) != 3 || string(got.Keys) != string(keys) {
		t.Errorf("an issuer more: %+v", got)
	}
	if got := change(token.Tenant{Issuers: more[2:]}, "tenant.change"); len(got.Issuers) != 1 || got.Keys != nil || !got.KeysFetched.IsZero() {
		t.Errorf("issuers less: %+v", got)
	}
	if got := change(token.Tenant{Audiences: []string{"api://x"}, Resource: "api://x"}, "tenant.change"); got.Resource != "api://x" || !slices.Equal(got.Audiences, []string{"api://x"}) || got.ClientApp != "app" {
		t.Errorf("an audience: %+v", got)
	}
}

func tenantsRefused(t *testing.T, w *world) {
	good := func() token.Tenant {
		return token.Tenant{ID: "corp", Issuers: []string{"https://id.corp.example/"}}
	}
	many := func(n int) []string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("https://id%d.corp.example/", i))
		}
		return list
	}
	for name, change := range map[string]func(*token.Tenant){
		"no id":                     func(x *token.Tenant) { x.ID = "" },
		"an id with a slash":        func(x *token.Tenant) { x.ID = "a/b" },
		"an id with an at sign":     func(x *token.Tenant) { x.ID = "a@b" },
		"an id of another alphabet": func(x *token.Tenant) { x.ID = "cоrp" },
		"a long id":                 func(x *token.Tenant) { x.ID = strings.Repeat("a", 129) },
		"no GUID and no issuer":     func(x *token.Tenant) { x.Issuers = nil },
		"http":                      func(x *token.Tenant) { x.Issuers = []string{"http://id.corp.example/"} },
		"http on this machine":      func(x *token.Tenant) { x.Issuers = []string{"http://127.0.0.1:8080/"} },
		"no host":                   func(x *token.Tenant) { x.Issuers = []string{"https:///x"} },
		"no address":                func(x *token.Tenant) { x.Issuers = []string{"contoso"} },
		"a user":                    func(x *token.Tenant) { x.Issuers = []string{"https://a:b@id.corp.example/"} },
		"a query":                   func(x *token.Tenant) { x.Issuers = []string{"https://id.corp.example/?a"} },
		"an empty query":            func(x *token.Tenant) { x.Issuers = []string{"https://id.corp.example/?"} },
		"a fragment":                func(x *token.Tenant) { x.Issuers = []string{"https://id.corp.example/#a"} },
		"an empty fragment":         func(x *token.Tenant) { x.Issuers = []string{"https://id.corp.example/#"} },
		"a line end":                func(x *token.Tenant) { x.Issuers = []string{"https://id.corp.example/\n"} },
		"a long issuer":             func(x *token.Tenant) { x.Issuers = []string{"https://id.corp.example/" + strings.Repeat("a", 256)} },
		"nine issuers":              func(x *token.Tenant) { x.Issuers = many(9) },
		"seventeen audiences":       func(x *token.Tenant) { x.Audiences = many(17) },
		"an empty audience":         func(x *token.Tenant) { x.Audiences = []string{""} },
		"a control in the resource": func(x *token.Tenant) { x.Resource = "api://\x1b[2J" },
		"a blank in the client app": func(x *token.Tenant) { x.ClientApp = "a b" },
		"the issuer of another":     func(x *token.Tenant) { x.Issuers = contoso().Issuers[:1] },
	} {
		ask := good()
		change(&ask)
		_, err := w.AddTenant(t.Context(), ask, "anna")
		refused(t, name, err, catalog.TenantInvalid)
	}
	if len(w.Onboarded()) != 1 {
		t.Errorf("got %+v", w.Onboarded())
	}
	w.set(t, "tenant.loopback-http", "true")
	for issuer, want := range map[string]catalog.Code{"http://127.0.0.1:8080/": "", "http://[::1]/": "", "http://id.corp.example/": catalog.TenantInvalid, "http://localhost/": catalog.TenantInvalid} {
		_, err := w.AddTenant(t.Context(), token.Tenant{ID: "corp", Issuers: []string{issuer}}, "anna")
		if got := catalog.CodeOf(err); got != want {
			t.Errorf("%s: got %q, want %q", issuer, got, want)
		}
	}
	for i := len(w.Onboarded()); i < 64; i++ {
		if _, err := w.AddTenant(t.Context(), token.Tenant{ID: fmt.Sprint("t", i), Issuers: []string{fmt.Sprintf("https://t%d.example/", i)}}, "anna"); err != nil {
			t.Fatal(err)
		}
	}
	_, err := w.AddTenant(t.Context(), token.Tenant{ID: "one-more", Issuers: []string{"https://one-more.example/"}}, "anna")
	refused(t, "the 65th", err, catalog.TenantInvalid)
	if _, err := w.AddTenant(t.Context(), token.Tenant{ID: "corp", Resource: "api://x"}, "anna"); err != nil {
		t.Errorf("a change when all places are taken: %v", err)
	}
	refused(t, "enabling one that is not there", w.EnableTenant(t.Context(), "nobody", true, "anna", "try it"), catalog.NotFound)
}

func tenantKeys(t *testing.T, w *world) {
	id := contoso().ID
	set := func(keys string, fetched time.Time) (wrote string, moved bool) {
		t.Helper()
		epoch := w.Epoch()
		wrote = actions(w.during(t, func() {
			if err := w.SetTenantKeys(t.Context(), id, json.RawMessage(keys), fetched); err != nil {
				t.Fatal(err)
			}
		}))
		return wrote, w.Epoch() > epoch
	}
	w.clock.advance(3 * time.Hour)
	const one, two = `{"keys":[{"kid":"a"}]}`, `{"keys":[{"kid":"a"},{"kid":"b"}]}`
	for i, step := range []struct {
		name, keys string
		after      time.Duration
		changed    bool
		kept       string
		fetched    time.Duration
	}{
		{"the first keys", one, 0, true, one, 0},
		{"the same again", one, time.Minute, false, one, 0},
		{"the same with blanks", `{ "keys": [ {"kid":"a"} ] }`, time.Minute, false, one, 0},
		{"the same after an hour: only the time is written", one, time.Hour, false, one, time.Hour},
		{"others, as a node has them that did not reach the provider since", two, time.Minute, false, one, time.Hour},
		{"none, of such a node", "", 0, false, one, time.Hour},
		{"a rotation", two, 2 * time.Hour, true, two, 2 * time.Hour},
		{"too old everywhere", "", 2 * time.Hour, true, "", 2 * time.Hour},
		{"back again", one, 3 * time.Hour, true, one, 3 * time.Hour},
	} {
		wrote, moved := set(step.keys, begin.Add(step.after))
		if moved != step.changed || (wrote == "tenant.keys") != step.changed || !step.changed && wrote != "" {
			t.Errorf("%d %s: wrote %q, moved %t", i, step.name, wrote, moved)
		}
		got := w.tenant(t, id)
		if string(got.Keys) != step.kept || !got.KeysFetched.Equal(begin.Add(step.fetched)) {
			t.Errorf("%d %s: got %s of %s", i, step.name, got.Keys, got.KeysFetched)
		}
		if string(w.opened(t).Tenants[0].Keys) != step.kept {
			t.Errorf("%d %s: the state has %s", i, step.name, w.opened(t).Tenants[0].Keys)
		}
	}
	if got := string(w.node(t).Tenants()[0].Keys); got != one {
		t.Errorf("another node has %s", got)
	}
	for i, step := range []struct {
		name, keys, kept string
		fetched          time.Duration
	}{
		{"by a node whose clock is a month ahead", two, two, 30 * 24 * time.Hour},
		{"none, of a node that has just started", "", two, 0},
		{"a rotation, by a node whose clock is right", one, one, 3 * time.Hour},
	} {
		set(step.keys, begin.Add(step.fetched))
		if got := w.tenant(t, id); string(got.Keys) != step.kept {
			t.Errorf("%d %s: got %s of %s", i, step.name, got.Keys, got.KeysFetched)
		}
	}
	w.clock.set(begin.Add(3*time.Hour + 7*24*time.Hour - time.Second))
	if wrote, _ := set("", time.Time{}); wrote != "" {
		t.Errorf("withdrawn too early by a node that has just started: %s", wrote)
	}
	w.clock.advance(time.Second)
	if wrote, moved := set("", time.Time{}); wrote != "tenant.keys" || !moved || w.tenant(t, id).Keys != nil {
		t.Errorf("not withdrawn by a node that has just started: %q", wrote)
	}
	for name, keys := range map[string]string{"no JSON": "{", "a list": "[]", "a number for a name": `{"keys":[{"kid":1}]}`, "too many": `{"keys":[` + strings.Repeat(" ", 64<<10) + `]}`} {
		refused(t, name, w.SetTenantKeys(t.Context(), id, json.RawMessage(keys), begin.Add(5*time.Hour)), catalog.TenantInvalid)
	}
	if err := w.SetTenantKeys(t.Context(), "nobody", json.RawMessage(one), begin); err != nil {
		t.Errorf("a tenant that is gone: %v", err)
	}
}

func tenantKeysBudget(t *testing.T, w *world) {
	large := json.RawMessage(`{"keys":[{"kid":"` + strings.Repeat("a", 60<<10) + `"}]}`)
	n := 0
	for ; n < 63; n++ {
		id := fmt.Sprint("t", n)
		if _, err := w.AddTenant(t.Context(), token.Tenant{ID: id, Issuers: []string{"https://" + id + ".example/"}}, "anna"); err != nil {
			t.Fatal(err)
		}
		if err := w.SetTenantKeys(t.Context(), id, large, begin); err != nil {
			refused(t, "too much", err, catalog.TenantInvalid)
			break
		}
	}
	if n != 12 {
		t.Errorf("%d tenants had room", n)
	}
	if _, _, err := w.State(); err != nil {
		t.Error(err)
	}
}

func tenantFetch(t *testing.T, w *world) {
	if _, ok := w.LastFetch(contoso().ID); ok {
		t.Error("something was fetched")
	}
	away := errors.New("away")
	w.NoteFetch(strings.ToUpper(contoso().ID), site.Fetch{At: begin, Err: away})
	if got, ok := w.LastFetch(contoso().ID); !ok || got.Err != away || !got.At.Equal(begin) {
		t.Errorf("got %+v, %t", got, ok)
	}
}
