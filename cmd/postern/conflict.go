package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/ccm"
	"postern/site"
)

func newConflict(s *session) *cobra.Command {
	return addSiteFlags(s, group("conflict", "Devices that may be one computer, and keys that may be on two", newConflictList(s), newConflictShow(s),
		newConflictDecision(s, "merge", site.ConflictMerged, "One computer: the existing record becomes obsolete",
			"The newcomer keeps its client id and what its own proof gave it; nothing is inherited. The existing record becomes obsolete and its key is refused.\nWhere one key was on two hardware ids, the device gets its approval back.",
			`  postern conflict merge 3f2a9c01d4e5b677 --why "set up anew on Monday"`),
		newConflictDecision(s, "new", site.ConflictNew, "Two computers: both stay, each with what its own proof gave", "", `  postern conflict new 3f2a9c01d4e5b677 --why "two of one batch with one serial number"`),
		newConflictDecision(s, "block", site.ConflictBlocked, "A stranger: the newcomer is blocked", "", `  postern conflict block 3f2a9c01d4e5b677 --why "nobody knows it"`)))
}

// conflictJSON is a conflict for scripts.
type conflictJSON struct {
	ID       string             `json:"id"`
	Kind     site.ConflictKind  `json:"kind"`
	State    site.ConflictState `json:"state"`
	Newcomer ccm.ClientID       `json:"newcomer"`
	Existing ccm.ClientID       `json:"existing"`
	Hardware string             `json:"hardware_id,omitempty"`
	Hint     bool               `json:"hint"`
	Evidence map[string]string  `json:"evidence,omitempty"`
	Rule     string             `json:"rule"`
	By       string             `json:"by,omitempty"`
	Why      string             `json:"why,omitempty"`
	Created  time.Time          `json:"created"`
	Decided  time.Time          `json:"decided,omitzero"`
}

func conflictView(c site.Conflict) conflictJSON {
	return conflictJSON{c.ID, c.Kind, c.State, c.Newcomer, c.Existing, c.Hardware, c.Hint, c.Evidence, c.Rule, c.By, c.Why, c.Created, c.Decided}
}

func newConflictList(s *session) *cobra.Command {
	var all bool
	var filter site.ConflictFilter
	var device string
	c := &cobra.Command{
		Use: "list", Short: "List conflicts that wait for a person", Args: cobra.NoArgs,
		Long: `Lists the conflicts that wait for a person. With --all also those that are decided: with conflict.resolution automatic, the default, the site itself leaves
two records that no proof tells apart as two devices, and a person may still merge them.`,
		Example: "  postern conflict list\n  postern conflict list --all --limit 50\n  postern conflict list --all --device LAPTOP-7 --json",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
			if !all {
				filter.State = site.ConflictWaiting
			}
			if device != "" {
				d, err := st.FindDevice(ctx, device)
				if err != nil {
					return err
				}
				filter.Device = d.ClientID
			}
			conflicts, err := st.Conflicts(ctx, filter)
			if err != nil {
				return err
			}
			views := make([]conflictJSON, 0, len(conflicts))
			for _, c := range conflicts {
				views = append(views, conflictView(c))
			}
			return s.print(views, func(w io.Writer) {
				table(w, "ID\tKIND\tSTATE\tNEWCOMER\tEXISTING\tSAME\tSINCE", func(row func(...any)) {
					for _, c := range conflicts {
						row(c.ID, c.Kind, c.State, orDash(c.Evidence["newcomer-name"]), orDash(c.Evidence["existing-name"]), orDash(c.Evidence["same"]), stamp(c.Created))
					}
				})
			})
		}),
	}
	c.Flags().BoolVar(&all, "all", false, "also conflicts that are decided")
	c.Flags().StringVar(&device, "device", "", "only conflicts of this device")
	c.Flags().IntVar(&filter.Limit, "limit", 0, "at most so many, the newest first")
	c.Flags().StringVar(&filter.After, "after", "", "continue after the conflict with this id")
	return c
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func newConflictShow(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a conflict: both devices, what they have in common, what was decided", Args: cobra.ExactArgs(1), Example: "  postern conflict show 3f2a9c01d4e5b677",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			c, err := st.Conflict(ctx, arguments[0])
			if err != nil {
				return err
			}
			return s.print(conflictView(c), func(w io.Writer) { showConflict(w, c) })
		}),
	}
}

func showConflict(w io.Writer, c site.Conflict) {
	line := aligned(w, "hardware id", c.Evidence)
	line("conflict", c.ID)
	line("kind", c.Kind)
	line("state", c.State)
	line("rule", c.Rule)
	line("newcomer", c.Newcomer)
	line("existing", c.Existing)
	line("hardware id", c.Hardware)
	for _, name := range slices.Sorted(maps.Keys(c.Evidence)) {
		line("  "+name, c.Evidence[name])
	}
	line("since", stamp(c.Created))
	if c.By != "" {
		line("decided by", strings.TrimSpace(fmt.Sprintf("%s at %s %s", c.By, stamp(c.Decided), c.Why)))
	}
	if c.State == site.ConflictWaiting {
		fmt.Fprintf(w, "\nDecide it:\n  postern conflict merge %[1]s --why TEXT    # one computer\n", c.ID)
		if c.Kind != site.ConflictKey {
			fmt.Fprintf(w, "  postern conflict new %s --why TEXT      # two computers\n", c.ID)
		}
		fmt.Fprintf(w, "  postern conflict block %s --why TEXT    # a stranger\n", c.ID)
	}
}

func newConflictDecision(s *session, verb string, verdict site.ConflictState, short, long, example string) *cobra.Command {
	var why string
	var wait *waiter
	c := &cobra.Command{
		Use: verb + " ID...", Short: short, Long: strings.TrimSpace(short + ".\n\n" + long), Example: example,
		Args: func(_ *cobra.Command, ids []string) error {
			if len(ids) == 0 {
				return usageError{fmt.Errorf("name the conflict; `postern conflict list` shows which wait")}
			}
			return nil
		},
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, ids []string) error {
			if err := wait.check(); err != nil {
				return err
			}
			began := time.Now()
			for _, id := range ids {
				c, err := st.DecideConflict(ctx, id, verdict, s.actor, why)
				if err != nil {
					return err
				}
				if err := s.print(conflictView(c), func(w io.Writer) { fmt.Fprintf(w, "Conflict %s: %s.\n", c.ID, c.State) }); err != nil {
					return err
				}
			}
			if wait.most == 0 {
				return nil
			}
			return wait.finish(ctx, st, began, nil, func(io.Writer) {})
		}),
	}
	wait = s.addWait(c)
	c.Flags().StringVar(&why, "why", "", "the reason, needed; kept with the conflict and in the trust log")
	return c
}
