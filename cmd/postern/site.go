package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/role"
	"postern/site"
)

// addSiteFlags gives a command the flags of every act on a site.
func addSiteFlags(s *session, c *cobra.Command) *cobra.Command {
	c.PersistentFlags().StringVar(&s.config, "config", "", "configuration of the management point (default: $POSTERN_CONFIG, mp.yaml, site/mp.yaml, /etc/postern/mp.yaml)")
	c.PersistentFlags().BoolVar(&s.asJSON, "json", false, "print JSON")
	return c
}

// group makes a command that only holds others.
func group(use, short string, members ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(members...)
	return c
}

func newSite(s *session) *cobra.Command {
	return addSiteFlags(s, group("site", "A site: make one, list its gateways and connectors, rotate its keys",
		newSiteInit(s), newSiteShow(s), newSiteGateway(s), newSiteConnector(s), keyGroup(s), newSiteSet(s)))
}

func newSiteInit(s *session) *cobra.Command {
	var ask role.NewSite
	c := &cobra.Command{
		Use:   "init --code P01 --dir site",
		Short: "Make a site: its root, its keys, its store and the management point's configuration",
		Example: `  postern site init --code P01 --dir site
  postern site init --code P01 --dir site --name mp.corp.example --https 0.0.0.0:8444
  postern site init --code LAB --dir site --http 127.0.0.1:8080      # plain HTTP too, for old clients and client developers`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			protection, err := role.ProtectionFromEnvironment()
			if err != nil {
				return err
			}
			ask.Actor = s.actor
			made, err := role.InitSite(c.Context(), ask, protection, time.Now)
			if err != nil {
				return err
			}
			return s.print(made, func(w io.Writer) {
				fmt.Fprintf(w, "Site %s is made.\n\n", made.SiteCode)
				fmt.Fprintf(w, "  site root      %s\n  configuration  %s\n  key file       %s  (keep a copy apart from the store; without it the keys cannot be opened)\n\n", made.SiteRoot, made.Config, made.KeyFile)
				fmt.Fprintf(w, "Next:\n  postern serve mp --config %s\n  postern gateway init --name HOST --site-root %s --dir gateway\n", made.Config, made.SiteRoot)
			})
		},
	}
	c.Flags().StringVar(&ask.Code, "code", "", "site code, three letters or digits")
	c.Flags().StringVar(&ask.Dir, "dir", "site", "folder for the site")
	c.Flags().StringVar(&ask.Name, "name", "localhost", "host name of the management point, as connectors and inside clients use it")
	c.Flags().StringVar(&ask.HTTPS, "https", "127.0.0.1:8444", "where the management point listens (enhanced HTTP)")
	c.Flags().StringVar(&ask.HTTP, "http", "", "also listen for plain HTTP here (mixed mode)")
	c.Flags().StringVar(&ask.Store, "store", "", "store instead of site.db in the folder: a path, postgres://..., or @FILE that holds the address")
	c.MarkFlagRequired("code")
	return c
}

// siteView is `postern site show` for scripts.
type siteView struct {
	SiteCode         string                 `json:"site_code"`
	Hierarchy        string                 `json:"hierarchy"`
	SiteRoot         string                 `json:"site_root"`
	Epoch            uint64                 `json:"epoch"`
	Approval         string                 `json:"approval"` // in force now
	Settings         map[string]string      `json:"settings"`
	LegacyKeys       bool                   `json:"legacy_keys"`
	AES256           bool                   `json:"aes256"`
	ManagementPoints []site.ManagementPoint `json:"management_points"`
}

func newSiteShow(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the site: code, root, settings, management points", Args: cobra.NoArgs,
		Example: "  postern site show\n  postern site show --json | jq -r .site_root",
		RunE: s.siteVerb(func(_ context.Context, st *site.Site, _ []string) error {
			settings := st.Settings()
			view := siteView{string(st.SiteCode()), st.Hierarchy(), st.RootPin(), st.Epoch(), string(settings.ApprovalAt(time.Now())), settingValues(settings), settings.LegacyKeys, settings.AES256, st.ManagementPoints()}
			return s.print(view, func(w io.Writer) {
				fmt.Fprintf(w, "site code    %s\nhierarchy    %s\nsite root    %s\nstate epoch  %d\napproval     %s\n\n", view.SiteCode, view.Hierarchy, view.SiteRoot, view.Epoch, approvalText(settings, time.Now()))
				table(w, "SETTING\tVALUE", func(row func(...any)) {
					for _, setting := range site.SettingNames() {
						row(setting.Name, orDash(view.Settings[setting.Name]))
					}
				})
				fmt.Fprintln(w)
				table(w, "MANAGEMENT POINT\tROLE ID\tADDRESS\tPLAIN HTTP", func(row func(...any)) {
					for _, m := range view.ManagementPoints {
						row(m.FQDN, m.RoleID, m.InternalURL, m.HTTP)
					}
				})
			})
		}),
	}
}

func settingValues(settings site.Settings) map[string]string {
	values := map[string]string{}
	for _, setting := range site.SettingNames() {
		values[setting.Name] = settings.Value(setting.Name)
	}
	return values
}

// approvalText says which approval mode is in force, and since when or until when another one is not.
func approvalText(settings site.Settings, now time.Time) string {
	mode := settings.ApprovalAt(now)
	switch {
	case settings.Approval != site.ApproveEveryone:
		return string(mode)
	case mode == site.ApproveEveryone:
		return fmt.Sprintf("%s until %s: whoever reaches the management point is approved", mode, stamp(settings.EveryoneUntil))
	}
	return fmt.Sprintf("%s (everyone ended at %s)", mode, stamp(settings.EveryoneUntil))
}

func newSiteGateway(s *session) *cobra.Command {
	add := &cobra.Command{
		Use: "add URL PIN", Short: "List a gateway by its address and the pin that `postern gateway init` printed", Args: cobra.ExactArgs(2),
		Example: "  postern site gateway add https://gw.example.net 3f2a...",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			gateway, err := st.AddGateway(ctx, arguments[0], arguments[1], s.actor)
			if err != nil {
				return err
			}
			return s.print(gateway, func(w io.Writer) {
				fmt.Fprintf(w, "Gateway %s is listed; connectors dial it from now on.\n", gateway.Name)
			})
		}),
	}
	list := &cobra.Command{
		Use: "list", Short: "List gateways and what each has acknowledged", Args: cobra.NoArgs,
		Example: "  postern site gateway list",
		RunE: s.siteVerb(func(_ context.Context, st *site.Site, _ []string) error {
			gateways, epoch := st.Gateways(), st.Epoch()
			return s.print(gateways, func(w io.Writer) {
				table(w, "GATEWAY\tADDRESS\tHEARD\tEPOCH\tPIN", func(row func(...any)) {
					for _, g := range gateways {
						row(g.Name, g.URL, stamp(g.Heard), fmt.Sprintf("%d of %d", g.Acknowledged, epoch), g.Pin)
					}
				})
			})
		}),
	}
	var why string
	remove := &cobra.Command{
		Use: "remove NAME --why TEXT", Short: "Take a gateway off the list", Args: cobra.ExactArgs(1),
		Long:    "Takes a gateway off the list. Connectors leave it with the next line of the site state, and devices are not told of it any more.",
		Example: "  postern site gateway remove gw.example.net --why \"replaced by gw2\"",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			if err := st.RemoveGateway(ctx, arguments[0], s.actor, why); err != nil {
				return err
			}
			return s.print(map[string]string{"removed": arguments[0]}, func(w io.Writer) { fmt.Fprintf(w, "Gateway %s is removed.\n", arguments[0]) })
		}),
	}
	remove.Flags().StringVar(&why, "why", "", "the reason, needed; kept in the trust log")
	return group("gateway", "Gateways that belong to the site", add, list, remove)
}

func newSiteConnector(s *session) *cobra.Command {
	invite := &cobra.Command{
		Use: "invite NAME", Short: "Print a one-time code with which a connector may join", Args: cobra.ExactArgs(1),
		Long:    "Prints a code that is good for one connector and for 24 hours. Its second part is the hash of the site root, so that the connector knows whom it joins.\nThe code alone is printed on standard output.",
		Example: "  postern site connector invite dc1",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			code, err := st.Invite(ctx, arguments[0], s.actor)
			if err != nil {
				return err
			}
			whole := code + "." + st.RootPin()
			return s.print(map[string]any{"name": arguments[0], "code": whole, "expires": time.Now().Add(site.InvitationLife).UTC()}, func(w io.Writer) {
				fmt.Fprintln(w, whole)
				fmt.Fprintf(s.err, "Good once, within %d hours:\n  postern connector join --mp %s --dir connector --code CODE\n", int(site.InvitationLife.Hours()), addressOf(st))
			})
		}),
	}
	list := &cobra.Command{
		Use: "list", Short: "List connectors and their certificates", Args: cobra.NoArgs,
		Example: "  postern site connector list",
		RunE: s.siteVerb(func(_ context.Context, st *site.Site, _ []string) error {
			connectors := st.Connectors()
			return s.print(connectors, func(w io.Writer) {
				table(w, "CONNECTOR\tADMITTED\tCERTIFICATE ENDS\tPIN", func(row func(...any)) {
					for _, c := range connectors {
						row(c.Name, !c.Blocked, stamp(c.Expires), c.Pin)
					}
				})
			})
		}),
	}
	block := func(verb string, blocked bool) *cobra.Command {
		var why string
		var wait *waiter
		c := &cobra.Command{
			Long:    "A blocked connector is dropped by every gateway and refused by the management point. A gateway that it was the last way to does not hear of an\nunblocking: join a new connector there.",
			Example: "  postern site connector " + verb + " dc1 --why \"" + map[bool]string{true: "its machine was stolen", false: "the machine is back"}[blocked] + "\" --wait",
			Use:     verb + " NAME --why TEXT", Short: strings.ToUpper(verb[:1]) + verb[1:] + " a connector at every gateway and management point", Args: cobra.ExactArgs(1),
			RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
				if err := wait.check(); err != nil {
					return err
				}
				began := time.Now()
				if err := st.BlockConnector(ctx, arguments[0], blocked, s.actor, why); err != nil {
					return err
				}
				return wait.finish(ctx, st, began, map[string]any{"name": arguments[0], "blocked": blocked}, func(w io.Writer) { fmt.Fprintf(w, "Connector %s: blocked %v.\n", arguments[0], blocked) })
			}),
		}
		wait = s.addWait(c)
		c.Flags().StringVar(&why, "why", "", "the reason, needed; kept in the trust log")
		return c
	}
	return group("connector", "Connectors that belong to the site", invite, list, block("block", true), block("unblock", false))
}

// addressOf is the address that a connector joins at.
func addressOf(st *site.Site) string {
	if points := st.ManagementPoints(); len(points) > 0 {
		return points[0].InternalURL
	}
	return "https://MANAGEMENT-POINT"
}

func newSiteSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "set SETTING VALUE", Short: "Change a setting of the site", Args: cobra.ExactArgs(2),
		Long:    "Settings:\n" + settingsHelp(),
		Example: "  postern site set approval.mode everyone:8h\n  postern site set approval.trusted-realms 'CORP.EXAMPLE,CHILD.CORP.EXAMPLE=CHILD;child.corp.example'\n  postern site set conflict.resolution manual",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			if err := st.Set(ctx, arguments[0], arguments[1], s.actor); err != nil {
				return err
			}
			value := st.Settings().Value(arguments[0])
			return s.print(map[string]string{arguments[0]: value}, func(w io.Writer) { fmt.Fprintf(w, "%s is %s.\n", arguments[0], orDash(value)) })
		}),
	}
}

func settingsHelp() string {
	var b strings.Builder
	for _, setting := range site.SettingNames() {
		fmt.Fprintf(&b, "  %-28s %s\n", setting.Name, setting.Meaning)
	}
	return b.String()
}
