package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"postern/catalog"
	"postern/site"
	"postern/token"
)

func newKey(s *session) *cobra.Command {
	return addSiteFlags(s, keyGroup(s))
}

// keyGroup is `postern key`, and `postern site key` as it was called at first.
func keyGroup(s *session) *cobra.Command {
	c := group("key", "The site's signing keys and its root: list, replace, declare compromised", newKeyList(s), newKeyRotate(s), newKeyCompromised(s))
	c.Long = `The site's keys: one for each kind of token (bulk, ccm, self-prove), the site signing key, and the site root.

A key of tokens is prepared, then active, then retired, and at last forgotten; one that was declared compromised is revoked. The setting
key.rotate-days says after how many days a token key is replaced by itself. The root is replaced by a person only.`
	return c
}

// keyView is one key for scripts.
type keyView struct {
	site.KeyRecord
	Pin      string   `json:"pin,omitempty"`       // of a root: what --root-key takes
	WaitsFor []string `json:"waits_for,omitempty"` // of a prepared key
}

func viewKey(ctx context.Context, st *site.Site, record site.KeyRecord) (keyView, error) {
	record.Private = nil
	view := keyView{KeyRecord: record}
	if record.Purpose == site.PurposeRoot {
		view.Pin = token.PinOf(record.Public)
	}
	var err error
	if record.State == token.KeyPrepared {
		view.WaitsFor, err = st.WaitsFor(ctx, record)
	}
	return view, err
}

// note is what a person should know of a key beside its state.
func (v keyView) note() string {
	switch {
	case v.State == token.KeyRevoked:
		return v.Why
	case v.State == token.KeyPrepared && len(v.WaitsFor) > 0:
		return "waits for " + strings.Join(v.WaitsFor, ", ")
	case v.State == token.KeyPrepared:
		return "signs once the management point runs"
	case v.State == token.KeyRetired && v.Purpose == site.PurposeRoot:
		return "certificates under it are good until " + stamp(v.Changed.Add(token.RootOverlap))
	case v.State == token.KeyRetired && v.Purpose != site.PurposeSiteSigning:
		return "verifies, signs no more"
	}
	return "-"
}

// since is when a key came into its state.
func (v keyView) since() time.Time {
	if v.Changed.IsZero() {
		return v.Created
	}
	return v.Changed
}

func newKeyList(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the site's keys; private halves are never shown", Args: cobra.NoArgs,
		Example: "  postern key list\n  postern key list --json | jq -r '.[] | select(.purpose == \"root\" and .state == \"active\") | .pin'",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
			records, err := st.SigningKeys(ctx)
			if err != nil {
				return err
			}
			views := make([]keyView, len(records))
			for i, record := range records {
				if views[i], err = viewKey(ctx, st, record); err != nil {
					return err
				}
			}
			return s.print(views, func(w io.Writer) {
				table(w, "PURPOSE\tSTATE\tSINCE\tENDS\tALGORITHM\tID\tNOTE", func(row func(...any)) {
					for _, v := range views {
						row(purposeName(v.Purpose), v.State, stamp(v.since()), stamp(v.NotAfter), v.Algorithm, v.ID, v.note())
					}
				})
			})
		}),
	}
}

// purposeName is a purpose as the commands take it.
func purposeName(purpose string) string { return strings.TrimPrefix(purpose, "token:") }

// rotateWait is a little more than a prepared key waits at most.
const rotateWait = 65 * time.Second

func newKeyRotate(s *session) *cobra.Command {
	var noWait bool
	c := &cobra.Command{
		Use: "rotate " + strings.Join(site.Purposes(), "|"), Short: "Replace a key; what the old one signed stays good until it ends", Args: cobra.ExactArgs(1),
		Long: `Replaces a key of the site, while everything runs and without a request that fails.

bulk, ccm, self-prove: the new key is prepared first and told to the gateways. It signs when each gateway that was heard lately has confirmed it,
after a minute at the latest. The command waits for that; --no-wait does not. The old key verifies until its last token has ended.

site-signing: SITESIGNCERT serves another certificate from now on.

root: the old root signs that the new one takes its place, and its private half is erased. Gateways, connectors and management points take certificates
under the new one by themselves. A device that meets one is led to the new root by that signature, however long it slept. Certificates under the old
root are good for another thirty days. Make a backup right after: one from before cannot bring the new root back.`,
		Example:   "  postern key rotate ccm\n  postern key rotate root\n  postern key rotate bulk --no-wait --json",
		ValidArgs: site.Purposes(),
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			record, err := st.Rotate(ctx, arguments[0], s.actor)
			if err != nil {
				return err
			}
			if record.State == token.KeyPrepared && !noWait && s.held == nil {
				if record, err = awaitActive(ctx, st, record); err != nil {
					return err
				}
			}
			view, err := viewKey(ctx, st, record)
			if err != nil {
				return err
			}
			return s.print(view, func(w io.Writer) { writeRotated(w, arguments[0], view) })
		}),
	}
	c.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until the gateways have confirmed the new key")
	return c
}

// awaitActive waits for a prepared key to sign.
func awaitActive(ctx context.Context, st *site.Site, record site.KeyRecord) (site.KeyRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, rotateWait)
	defer cancel()
	for {
		records, err := st.SigningKeys(ctx)
		if err != nil && ctx.Err() == nil {
			return record, err
		}
		for _, r := range records {
			if r.ID == record.ID {
				record = r
			}
		}
		if record.State != token.KeyPrepared {
			return record, nil
		}
		select {
		case <-ctx.Done():
			return record, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func writeRotated(w io.Writer, purpose string, v keyView) {
	switch {
	case v.Purpose == site.PurposeRoot:
		fmt.Fprintf(w, "The site root is %s from now on.\nThe one before is trusted for another thirty days, and has signed that this one takes its place.\nMake a backup now: postern backup FILE\n", v.Pin)
	case v.State == token.KeyPrepared:
		fmt.Fprintf(w, "New %s key %s is prepared: %s.\n", purpose, v.ID, v.note())
	default:
		fmt.Fprintf(w, "New %s key %s signs from now on.\n", purpose, v.ID)
	}
}

// confirmWord is what a person types to go on.
const confirmWord = "compromised"

func newKeyCompromised(s *session) *cobra.Command {
	var why string
	var yes, dryRun bool
	var wait *waiter
	c := &cobra.Command{
		Use: "compromised " + strings.Join(site.Purposes(), "|") + "|ID", Short: "Declare a key compromised: revoke it at once, and what it signed", Args: cobra.ExactArgs(1),
		Long: `Revokes all keys of a purpose, or the one with that id, and puts another in its place at once. Nothing that they signed is accepted any more, at the
gateways as soon as they hear of it. The consequences are printed first; the command acts only with --yes, or when the word is typed that it asks for.`,
		Example: "  postern key compromised ccm --why \"memory dump sent to a vendor\" --dry-run\n  postern key compromised ccm --why \"memory dump sent to a vendor\" --yes --wait\n  postern key compromised root --why \"backup medium lost\" --yes",
	}
	verb := s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
		if strings.TrimSpace(why) == "" {
			return catalog.Errorf(catalog.KeyWhyNeeded, "give --why")
		}
		if err := wait.check(); err != nil {
			return err
		}
		return s.compromise(ctx, st, wait, compromise{arguments[0], why, yes, dryRun})
	})
	c.RunE = func(c *cobra.Command, arguments []string) error {
		if yes || dryRun || s.site != nil || s.asJSON || strings.TrimSpace(why) == "" || !isTerminal(s.in) {
			return verb(c, arguments)
		}
		c.Flags().Set("dry-run", "true")
		if err := verb(c, arguments); err != nil {
			return err
		}
		fmt.Fprintf(s.err, "\nType %q to do it: ", confirmWord)
		if line, _ := bufio.NewReader(s.in).ReadString('\n'); strings.TrimSpace(line) != confirmWord {
			return catalog.Errorf(catalog.KeyNotConfirmed, "%q was not typed", confirmWord)
		}
		c.Flags().Set("dry-run", "false")
		c.Flags().Set("yes", "true")
		return verb(c, arguments)
	}
	wait = s.addWait(c)
	c.Flags().StringVar(&why, "why", "", "the reason, needed; kept with the key and in the trust log")
	c.Flags().BoolVar(&yes, "yes", false, "do it without being asked")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print the consequences and do nothing")
	return c
}

func isTerminal(r io.Reader) bool {
	file, ok := r.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// compromise is what was asked for.
type compromise struct {
	what, why   string
	yes, dryRun bool
}

func (s *session) compromise(ctx context.Context, st *site.Site, wait *waiter, ask compromise) error {
	consequences, err := st.Consequences(ctx, ask.what)
	if err != nil {
		return err
	}
	if !s.asJSON {
		writeConsequences(s.out, consequences)
	}
	switch {
	case ask.dryRun && s.asJSON:
		return s.print(consequences, nil)
	case ask.dryRun:
		return nil
	case !ask.yes:
		return catalog.Errorf(catalog.KeyNotConfirmed, "%s", ask.what)
	}
	began := time.Now()
	revoked, err := st.Compromise(ctx, ask.what, ask.why, s.actor)
	if err != nil {
		return err
	}
	answer := map[string]any{"consequences": consequences, "revoked": revoked, "site_root": st.RootPin(), "epoch": st.Epoch()}
	return wait.finish(ctx, st, began, answer, func(w io.Writer) {
		fmt.Fprintf(w, "\nDone: %d revoked, in force here now and at a gateway when it confirms epoch %d (postern site gateway list).\n", len(revoked), st.Epoch())
		if consequences.Purpose == site.PurposeRoot {
			fmt.Fprintf(w, "The site root is %s.\n", st.RootPin())
		}
	})
}

func writeConsequences(w io.Writer, c site.Consequences) {
	fmt.Fprintf(w, "%s: %d to be revoked\n", purposeName(c.Purpose), len(c.Keys))
	for _, k := range c.Keys {
		fmt.Fprintf(w, "  %-9s %s\n", k.State, k.ID)
	}
	fmt.Fprintln(w, "\nWhat follows:")
	for _, sentence := range c.Text {
		fmt.Fprintf(w, "  - %s\n", sentence)
	}
}
