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

func newRevocation(s *session) *cobra.Command {
	return addSiteFlags(s, group("revocation", "What is revoked, and outlives a restored backup", newRevocationList(s), newRevocationLift(s), newRevocationAccept(s)))
}

func newRevocationList(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List what is revoked: devices, tokens, connectors, keys, and what was taken off a list", Args: cobra.NoArgs,
		Example: "  postern revocation list\n  postern revocation list --json | jq '.[] | select(.recorded | not)'",
		RunE: s.siteVerb(func(_ context.Context, st *site.Site, _ []string) error {
			all := st.Revocations()
			return s.print(all, func(w io.Writer) {
				if len(all) == 0 {
					fmt.Fprintln(w, "Nothing is revoked.")
					return
				}
				table(w, "KIND\tID\tWHAT\tSINCE\tBY\tWHY\tRECORD", func(row func(...any)) {
					for _, r := range all {
						row(r.Kind, r.ID, orDash(r.Subject), stamp(r.At), orDash(r.By), orDash(r.Why), map[bool]string{true: "yes", false: "none: older than it"}[r.Recorded])
					}
				})
			})
		}),
	}
}

func newRevocationLift(s *session) *cobra.Command {
	var why string
	var wait *waiter
	c := &cobra.Command{
		Use: "lift KIND ID --why TEXT", Short: "Take back a revocation whose subject the store has no record of", Args: cobra.ExactArgs(2),
		Long: `Takes back a revocation whose subject the store has no record of, since a backup older than it was restored.

What the store has a record of is lifted there: postern device unblock, postern token unblock, postern site connector unblock, postern tenant enable.`,
		Example: "  postern revocation lift bulk-token ea2fc510-a3be-4cef-90b0-2a0515c4e40c --why \"it was blocked by mistake\"",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			if err := wait.check(); err != nil {
				return err
			}
			began := time.Now()
			kind, id := site.RevokedKind(strings.ToLower(arguments[0])), arguments[1]
			if err := st.LiftRevocation(ctx, kind, id, s.actor, why); err != nil {
				return err
			}
			return wait.finish(ctx, st, began, map[string]string{"kind": string(kind), "id": id}, func(w io.Writer) { fmt.Fprintf(w, "%s %s is not revoked any more.\n", kind, id) })
		}),
	}
	wait = s.addWait(c)
	c.Flags().StringVar(&why, "why", "", "the reason, needed; kept in the trust log")
	return c
}

func newRevocationAccept(s *session) *cobra.Command {
	var why string
	c := &cobra.Command{
		Use: "accept --why TEXT", Short: "Say that it is explained why revocations.log lacks its end", Args: cobra.NoArgs,
		Long:    "The store knows how far the management point's revocations.log went. When the file is shorter or gone, the health says so (P044) until a person has\nsaid why: the state folder was restored from a backup, or the role has moved.",
		Example: "  postern revocation accept --why \"the role moved to mp2, change 4711\"",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
			if err := st.AcceptRevocationLog(ctx, s.actor, why); err != nil {
				return err
			}
			return s.print(map[string]bool{"accepted": true}, func(w io.Writer) { fmt.Fprintln(w, "Accepted. The file counts as it is from now on.") })
		}),
	}
	c.Flags().StringVar(&why, "why", "", "the reason, needed; kept in the trust log")
	return c
}

// showAgain prints what a restore applied again.
func showAgain(w io.Writer, config role.Config, again []site.Revoked) {
	if len(again) == 0 {
		fmt.Fprintf(w, "Nothing was revoked since: %s knows of no more than the backup.\n", role.RevocationsFile(config))
		return
	}
	fmt.Fprintln(w, "Revoked since and APPLIED AGAIN:")
	table(w, "KIND\tID\tWHAT\tREVOKED\tBY\tWHY", func(row func(...any)) {
		for _, r := range again {
			row(r.Kind, r.ID, orDash(r.Subject), stamp(r.At), orDash(r.By), orDash(r.Why))
		}
	})
}
