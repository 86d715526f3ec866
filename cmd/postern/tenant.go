package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth/entra"
	"postern/site"
	"postern/token"
)

func newTenant(s *session) *cobra.Command {
	return addSiteFlags(s, group("tenant", "Entra tenants, and realms of other OpenID providers, whose devices may prove themselves",
		newTenantAdd(s), newTenantList(s), newTenantEnable(s, "disable", false), newTenantEnable(s, "enable", true), newTenantRemove(s)))
}

func newTenantAdd(s *session) *cobra.Command {
	var ask token.Tenant
	c := &cobra.Command{
		Use: "add ID", Short: "Onboard a tenant, or change one that is onboarded", Args: cobra.ExactArgs(1),
		Long: `Onboards a tenant. ID is the directory's GUID, or for another OpenID provider a name of your choice, which its tokens may carry as tid.

For a GUID the issuers are Entra's two (version 1.0 and 2.0 tokens) unless others are given: national clouds have their own. An
issuer is compared as it is, each character. The audience is the resource, and with a client app also api://CLIENT-APP and, for a
GUID, the client app itself.

For a tenant that is onboarded already, what is given replaces what it had, and the rest stays: to add an issuer or an audience,
give all of them. Whether it is disabled stays too. Keys are fetched by the management point; see them with "postern tenant list".`,
		Example: `  postern tenant add 2ca9a796-a1a6-43ec-88f1-5935b32155c5 --client-app 6a1d5d8e-0000-4000-8000-000000000001
  postern tenant add corp --issuer https://id.corp.example/realms/corp --audience https://ConfigMgrService`,
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			for _, issuer := range ask.Issuers {
				if err := entra.CheckIssuer(issuer, st.Settings().LoopbackHTTP); err != nil {
					return err
				}
			}
			ask.ID = arguments[0]
			tenant, err := st.AddTenant(ctx, ask, s.actor)
			if err != nil {
				return err
			}
			return s.print(viewTenant(st, tenant), func(w io.Writer) {
				fmt.Fprintf(w, "Tenant %s is onboarded.\n", tenant.ID)
				showTenant(w, viewTenant(st, tenant))
			})
		}),
	}
	c.Flags().StringArrayVar(&ask.Issuers, "issuer", nil, "issuer of its tokens, an https address; may be repeated, and a client begins at the first")
	c.Flags().StringArrayVar(&ask.Audiences, "audience", nil, "audience of tokens for this site; may be repeated")
	c.Flags().StringVar(&ask.ClientApp, "client-app", "", "client id of the application that asks for tokens (AADCLIENTAPPID); others are refused")
	c.Flags().StringVar(&ask.Resource, "resource", "", "what clients ask a token for (AADRESOURCEURI), "+site.DefaultResource+" unless told otherwise")
	return c
}

// tenantJSON is a tenant for scripts.
type tenantJSON struct {
	ID          string    `json:"id"`
	Disabled    bool      `json:"disabled"`
	Issuers     []string  `json:"issuers"`
	Audiences   []string  `json:"audiences"`
	ClientApp   string    `json:"client_app"`
	Resource    string    `json:"resource"`
	Keys        []string  `json:"keys"` // their ids
	KeysFetched time.Time `json:"keys_fetched,omitzero"`
	FetchError  string    `json:"fetch_error,omitempty"` // of the last try of the management point that answers
	Created     time.Time `json:"created"`
	By          string    `json:"by"`
}

func viewTenant(st *site.Site, t site.Tenant) tenantJSON {
	view := tenantJSON{t.ID, t.Disabled, t.Issuers, t.Audiences, t.ClientApp, t.Resource, keyNames(t.Keys), t.KeysFetched, "", t.Created, t.By}
	if fetch, ok := st.LastFetch(t.ID); ok {
		if fetch.At.After(view.KeysFetched) {
			view.KeysFetched = fetch.At
		}
		if fetch.Err != nil {
			view.FetchError = fetch.Err.Error()
		}
	}
	return view
}

func keyNames(keys json.RawMessage) []string {
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
		} `json:"keys"`
	}
	names := []string{}
	if json.Unmarshal(keys, &set) == nil {
		for _, key := range set.Keys {
			names = append(names, key.ID)
		}
	}
	return names
}

func newTenantList(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List tenants: issuers, audiences, and how fresh their keys are", Args: cobra.NoArgs,
		Example: "  postern tenant list\n  postern tenant list --json | jq -r '.[] | select(.fetch_error) | .id'",
		RunE: s.siteVerb(func(_ context.Context, st *site.Site, _ []string) error {
			views := []tenantJSON{}
			for _, t := range st.Onboarded() {
				views = append(views, viewTenant(st, t))
			}
			return s.print(views, func(w io.Writer) {
				if len(views) == 0 {
					fmt.Fprintln(w, "No tenant is onboarded; `postern tenant add ID` does that.")
				}
				for _, view := range views {
					showTenant(w, view)
				}
			})
		}),
	}
}

func showTenant(w io.Writer, t tenantJSON) {
	state := ""
	if t.Disabled {
		state = "  disabled"
	}
	fmt.Fprintf(w, "%s%s\n", t.ID, state)
	line := func(name, value string) { fmt.Fprintf(w, "  %-11s %s\n", name, value) }
	for _, issuer := range t.Issuers {
		line("issuer", issuer)
	}
	for _, audience := range t.Audiences {
		line("audience", audience)
	}
	line("client app", orDash(t.ClientApp))
	line("resource", t.Resource)
	if len(t.Keys) == 0 {
		line("keys", "none yet: the management point fetches them while it runs")
	} else {
		line("keys", fmt.Sprintf("%d, fetched %s: %s", len(t.Keys), stamp(t.KeysFetched), shortened(t.Keys)))
	}
	if t.FetchError != "" {
		line("last fetch", t.FetchError)
	}
}

// shortened lists names on one line; what cannot be shown plainly is quoted.
func shortened(names []string) string {
	const most = 6
	plain := make([]string, 0, most)
	for _, name := range names[:min(len(names), most)] {
		plain = append(plain, strings.Trim(fmt.Sprintf("%+.40q", name), `"`))
	}
	if len(names) > most {
		plain = append(plain, "...")
	}
	return strings.Join(plain, " ")
}

func newTenantEnable(s *session, verb string, enabled bool) *cobra.Command {
	var why string
	var wait *waiter
	c := &cobra.Command{
		Use: verb + " ID --why TEXT", Short: map[bool]string{true: "Let a tenant's tokens in again", false: "Keep a tenant's tokens out, at once and everywhere"}[enabled], Args: cobra.ExactArgs(1),
		Example: "  postern tenant " + verb + " 2ca9a796-a1a6-43ec-88f1-5935b32155c5 --why \"" + map[bool]string{true: "no merger", false: "merger"}[enabled] + "\" --wait",
		Long:    "A disabled tenant stays onboarded. Its tokens are refused, and so are the site's own tokens that came by it, at gateways with the next line of the\nstate. Devices keep their record and may prove themselves in other ways.",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			if err := wait.check(); err != nil {
				return err
			}
			began := time.Now()
			if err := st.EnableTenant(ctx, arguments[0], enabled, s.actor, why); err != nil {
				return err
			}
			return wait.finish(ctx, st, began, map[string]any{"id": arguments[0], "disabled": !enabled}, func(w io.Writer) { fmt.Fprintf(w, "Tenant %s is %sd.\n", arguments[0], verb) })
		}),
	}
	wait = s.addWait(c)
	c.Flags().StringVar(&why, "why", "", "the reason, needed; kept in the trust log")
	return c
}

func newTenantRemove(s *session) *cobra.Command {
	var why string
	var wait *waiter
	c := &cobra.Command{
		Use: "remove ID --why TEXT", Short: "Take a tenant away, with its keys", Args: cobra.ExactArgs(1),
		Long:    "Removes a tenant. Its tokens, and the site's own tokens that came by it, are refused from now on. Devices keep their record.",
		Example: "  postern tenant remove corp --why \"sold\" --wait",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			if err := wait.check(); err != nil {
				return err
			}
			began := time.Now()
			if err := st.RemoveTenant(ctx, arguments[0], s.actor, why); err != nil {
				return err
			}
			return wait.finish(ctx, st, began, map[string]string{"removed": arguments[0]}, func(w io.Writer) { fmt.Fprintf(w, "Tenant %s is removed.\n", arguments[0]) })
		}),
	}
	wait = s.addWait(c)
	c.Flags().StringVar(&why, "why", "", "the reason, needed; kept in the trust log")
	return c
}
