package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/ccm"
	"postern/site"
)

func newToken(s *session) *cobra.Command {
	c := group("token", "Bulk registration tokens", newTokenNew(s), newTokenList(s), newTokenShow(s), newTokenBlock(s, "block", true), newTokenBlock(s, "unblock", false))
	c.Long = `Bulk registration tokens: whoever holds one may enrol devices until it ends, is used up or is blocked.

The options of BulkRegistrationTokenTool.exe are understood: /new, /lifetime MINUTES with it, /list, /? - in any case of letters.`
	c.Example = "  postern token new --uses 20\n  postern token /new /lifetime 60\n  postern token list"
	return addSiteFlags(s, c)
}

func newTokenNew(s *session) *cobra.Command {
	var minutes, uses int
	var label, pattern string
	var networks []string
	c := &cobra.Command{
		Use:   "new",
		Short: "Make a bulk registration token; it is shown once and kept nowhere",
		Long: `Makes a bulk registration token: whoever holds it may enrol devices until it ends, is used up or is blocked.

The token alone goes to standard output, everything else to standard error, so that
"postern token new > token" keeps it from the screen.`,
		Example: `  postern token new > token
  postern token new --uses 20 --lifetime 600 --label "Dublin laptops" > token
  postern token new --network 192.0.2.0/24 --network 2001:db8::/32 --name-pattern 'WK*' > token`,
		Args: cobra.NoArgs,
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
			raw, kept, err := st.NewBulkToken(ctx, site.NewBulk{Lifetime: time.Duration(minutes) * time.Minute, MaxUses: uses, Label: label, By: s.actor, Networks: networks, NamePattern: pattern})
			if err != nil {
				return err
			}
			answer := map[string]any{"id": kept.ID, "token": raw, "expires": kept.Expires}
			return s.print(answer, func(w io.Writer) {
				fmt.Fprintln(w, raw)
				fmt.Fprintf(s.err, "Bulk registration token %s\n  good until  %s\n  devices     %s\n", kept.ID, stamp(kept.Expires), usesText(kept))
				writeLimits(s.err, kept)
				fmt.Fprintf(s.err, "  enrol with  %s\n", enrolLine(st))
			})
		}),
	}
	c.Flags().IntVar(&minutes, "lifetime", int(site.BulkLifetime.Minutes()), fmt.Sprintf("life in minutes, at most %d", int(site.BulkMaxLifetime.Minutes())))
	c.Flags().IntVar(&uses, "uses", 0, "number of devices that may use it, 0 for any number")
	c.Flags().StringVar(&label, "label", "", "a note to find it by")
	c.Flags().StringArrayVar(&networks, "network", nil, "only from this network (192.0.2.0/24) or address, as the gateway sees the device; may be repeated")
	c.Flags().StringVar(&pattern, "name-pattern", "", "only for computers whose name fits: WK* for the NetBIOS name, *.corp.example for the DNS name; * is any text, ? any character")
	return c
}

// enrolLine is the whole line to give to a device, except for the token itself, which goes through a file or standard input.
func enrolLine(st *site.Site) string {
	gateways, points := st.Gateways(), st.ManagementPoints()
	if len(gateways) == 0 || len(points) == 0 {
		return "(list a gateway first: postern site gateway add URL PIN; and start the management point once)"
	}
	path := ccm.ExternalPath(ccm.DoorMutualAuth, points[0].RoleID, "")
	return fmt.Sprintf("postern client enrol CCMHOSTNAME=%s%s SMSSITECODE=%s --root-key %s --token-file token", gateways[0].Name, path, st.SiteCode(), st.RootPin())
}

func usesText(t site.BulkToken) string {
	if t.MaxUses == 0 {
		return fmt.Sprintf("%d so far, any number", t.Uses)
	}
	return fmt.Sprintf("%d of %d", t.Uses, t.MaxUses)
}

func newTokenList(s *session) *cobra.Command {
	var uses string
	c := &cobra.Command{
		Use: "list", Short: "List bulk registration tokens: never the tokens themselves", Args: cobra.NoArgs,
		Example: "  postern token list\n  postern token list --uses ea2fc510-a3be-4cef-90b0-2a0515c4e40c",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
			if uses != "" {
				return s.printUses(ctx, st, uses)
			}
			tokens, err := st.BulkTokens(ctx)
			if err != nil {
				return err
			}
			return s.print(tokens, func(w io.Writer) {
				table(w, "ID\tSTATE\tUSED\tLAST USED\tENDS\tLABEL", func(row func(...any)) {
					for _, t := range tokens {
						row(t.ID, tokenState(t, time.Now()), usesText(t), stamp(t.LastUsed), stamp(t.Expires), t.Label)
					}
				})
			})
		}),
	}
	c.Flags().StringVar(&uses, "uses", "", "show which devices used the token with this id")
	return c
}

func tokenState(t site.BulkToken, now time.Time) string {
	switch {
	case t.Blocked:
		return "blocked"
	case now.After(t.Expires):
		return "ended"
	case t.MaxUses > 0 && t.Uses >= t.MaxUses:
		return "used up"
	}
	return "good"
}

func (s *session) printUses(ctx context.Context, st *site.Site, id string) error {
	uses, err := st.TokenUses(ctx, id, 1000)
	if err != nil {
		return err
	}
	return s.print(uses, func(w io.Writer) {
		table(w, "WHEN\tDEVICE\tFROM\tKEY", func(row func(...any)) {
			for _, u := range uses {
				row(stamp(u.At), u.ClientID, u.Address, u.Key)
			}
		})
	})
}

// writeLimits tells where a token may be used and by computers of which names, when it is not everywhere and all.
func writeLimits(w io.Writer, t site.BulkToken) {
	for _, network := range t.Networks {
		fmt.Fprintf(w, "  only from   %s\n", network)
	}
	if t.NamePattern != "" {
		fmt.Fprintf(w, "  only for    computers named %s\n", t.NamePattern)
	}
}

// tokenView is `postern token show` for scripts.
type tokenView struct {
	site.BulkToken
	State string    `json:"state"`
	Used  []useView `json:"used"`
}

// useView is one use, with what the device that came by it is called now.
type useView struct {
	site.TokenUse
	Name string `json:"name"` // "" while the device has not registered
}

func newTokenShow(s *session) *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "show ID", Short: "Show a bulk registration token: its limits, and which devices used it last", Args: cobra.ExactArgs(1),
		Example: "  postern token show ea2fc510-a3be-4cef-90b0-2a0515c4e40c\n  postern token show ea2fc510-a3be-4cef-90b0-2a0515c4e40c --limit 500 --json",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			if limit < 1 || limit > maxListed {
				return usageError{fmt.Errorf("--limit %d: want 1 to %d", limit, maxListed)}
			}
			view, err := viewToken(ctx, st, strings.ToLower(arguments[0]), limit)
			if err != nil {
				return err
			}
			return s.print(view, func(w io.Writer) {
				fmt.Fprintf(w, "Bulk registration token %s, %s\n  label       %s\n  made        %s by %s\n  good until  %s\n  devices     %s\n",
					view.ID, view.State, orDash(view.Label), stamp(view.Created), view.CreatedBy, stamp(view.Expires), usesText(view.BulkToken))
				writeLimits(w, view.BulkToken)
				if len(view.Used) == 0 {
					return
				}
				fmt.Fprintln(w)
				table(w, "FIRST USED\tDEVICE\tNAME\tFROM\tKEY", func(row func(...any)) {
					for _, u := range view.Used {
						row(stamp(u.At), u.ClientID, cmp.Or(u.Name, "(not registered)"), u.Address, u.Key)
					}
				})
			})
		}),
	}
	c.Flags().IntVar(&limit, "limit", 20, "how many uses, the newest first")
	return c
}

func viewToken(ctx context.Context, st *site.Site, id string, limit int) (view tokenView, err error) {
	if view.BulkToken, err = st.BulkToken(ctx, id); err != nil {
		return view, err
	}
	view.State = tokenState(view.BulkToken, time.Now())
	uses, err := st.TokenUses(ctx, id, limit)
	if err != nil {
		return view, err
	}
	view.Used = make([]useView, 0, len(uses))
	for _, use := range uses {
		device, err := st.DeviceByKey(ctx, use.Key)
		if err != nil && !errors.Is(err, site.ErrNotFound) {
			return view, err
		}
		one := useView{TokenUse: use}
		if err == nil {
			one.ClientID, one.Name = device.ClientID, device.Name()
		}
		view.Used = append(view.Used, one)
	}
	return view, nil
}

func newTokenBlock(s *session, verb string, blocked bool) *cobra.Command {
	var why string
	var wait *waiter
	c := &cobra.Command{
		Use: verb + " ID", Short: strings.ToUpper(verb[:1]) + verb[1:] + " a bulk registration token; devices that registered with it stay", Args: cobra.ExactArgs(1),
		Example: "  postern token " + verb + " ea2fc510-a3be-4cef-90b0-2a0515c4e40c --wait --why \"" + map[bool]string{true: "it was mailed around", false: "found"}[blocked] + "\"",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			if err := wait.check(); err != nil {
				return err
			}
			began := time.Now()
			t, err := st.BlockBulkToken(ctx, strings.ToLower(arguments[0]), blocked, s.actor, why)
			if err != nil {
				return err
			}
			return wait.finish(ctx, st, began, t, func(w io.Writer) {
				fmt.Fprintf(w, "Bulk registration token %s is %s.\n", t.ID, tokenState(t, time.Now()))
			})
		}),
	}
	wait = s.addWait(c)
	c.Flags().StringVar(&why, "why", "", "the reason, kept in the trust log")
	return c
}

// newExplainCode prints one entry of the failure catalogue.
func newExplainCode(s *session) *cobra.Command {
	c := &cobra.Command{
		Use: "code CODE", Short: "Explain a code of the failure catalogue", Args: cobra.ExactArgs(1), Example: "  postern code P214",
		RunE: func(_ *cobra.Command, arguments []string) error {
			entry, known := catalog.Lookup(catalog.Code(strings.ToUpper(arguments[0])))
			if !known {
				return catalog.Errorf(catalog.NotFound, "the catalogue has no code %q; docs/errors.md lists them", arguments[0])
			}
			return s.print(entry, func(w io.Writer) {
				fmt.Fprintf(w, "%s  %s\n\n%s\n\n", entry.Code, entry.Title, oneLine(entry.Cause))
				for i, step := range entry.Remedy {
					fmt.Fprintf(w, "  %d. %s\n", i+1, oneLine(step))
				}
				fmt.Fprintf(w, "\nIt is solved when: %s\n", oneLine(entry.Confirm))
			})
		},
	}
	c.Flags().BoolVar(&s.asJSON, "json", false, "print JSON")
	return c
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
