package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/ccm"
	"postern/diag"
	"postern/proof"
	"postern/site"
)

func newDevice(s *session) *cobra.Command {
	return addSiteFlags(s, group("device", "Registered devices: list, show, why, approve, reject, block, release", newDeviceList(s), newDeviceShow(s), newDeviceWhy(s),
		newDeviceAct(s, site.ActApprove, "Approve devices: level managed, or secrets", `  postern device approve LAPTOP-7 --why "seen at the help desk"
  postern device approve GUID:... --level secrets --why "needs the network access account"
  postern device approve --status 0 --domain corp.example --name-like 'WK*' --why "the new floor" --dry-run
  postern device approve --status 0 --domain corp.example --name-like 'WK*' --why "the new floor" --yes`),
		newDeviceAct(s, site.ActReject, "Take devices' approval away: level known", "  postern device reject LAPTOP-7 --why \"not ours\"\n  postern device reject --method bulk-token --registered-since 24h --why \"the token leaked\" --yes"),
		newDeviceAct(s, site.ActBlock, "Refuse devices everywhere", "  postern device block LAPTOP-7 --why stolen --wait\n  postern device block --name-like 'JUNK-*' --why flood --yes"),
		newDeviceAct(s, site.ActUnblock, "Let blocked devices in again", "  postern device unblock LAPTOP-7 --why found"),
		newDeviceAct(s, site.ActRelease, "Let devices out of quarantine, at the approval that they have", "  postern device list --quarantined\n  postern device release LAPTOP-7 --why \"back from leave\"\n  postern device release --quarantined --yes --why \"the whole branch office\"")))
}

// deviceFilter is the flags that choose devices.
type deviceFilter struct {
	filter                               site.DeviceFilter
	status, level, method, since, before string
	blocked                              bool
	quarantined                          bool
}

// add gives a command the flags; levels also --level, which means something else where a level is given to devices.
func (f *deviceFilter) add(c *cobra.Command, levels bool) {
	flags := c.Flags()
	flags.StringVar(&f.filter.Name, "name", "", "only devices with this NetBIOS name or FQDN")
	flags.StringVar(&f.filter.NameLike, "name-like", "", "only devices whose NetBIOS name or FQDN fits this pattern: * is any text, ? any character")
	flags.StringVar(&f.status, "status", "", "only devices with this approval status: 0, 1, 2, 3")
	if levels {
		flags.StringVar(&f.level, "level", "", "only devices of this level: known, managed, secrets")
	}
	flags.StringVar(&f.filter.Realm, "realm", "", "only devices that have proved an account of this Kerberos realm, or a device of this tenant")
	flags.StringVar(&f.filter.Domain, "domain", "", "only devices whose FQDN is in this DNS domain")
	flags.StringVar(&f.method, "method", "", "only devices that came by this proof: message-signature, bulk-token, kerberos, pki-certificate, entra")
	flags.StringVar(&f.since, "registered-since", "", "only devices registered then or later: a time, a date, or how long ago, as 24h")
	flags.BoolVar(&f.quarantined, "quarantined", false, "only devices that came back after a long absence and have not proved themselves afresh")
	flags.StringVar(&f.before, "registered-before", "", "only devices registered before: a time, a date, or how long ago")
}

// read returns the filter that the flags make, and whether there is one at all.
func (f *deviceFilter) read(now time.Time) (filter site.DeviceFilter, any bool, err error) {
	filter = f.filter
	if f.level != "" {
		l, err := proof.ParseLevel(f.level)
		if err != nil {
			return filter, false, usageError{err}
		}
		filter.Level = &l
	}
	if f.status != "" {
		n, err := strconv.Atoi(f.status)
		if err != nil || n < int(ccm.ApprovalNone) || n > int(ccm.ApprovalEntra) {
			return filter, false, usageError{fmt.Errorf("--status %q: want 0, 1, 2 or 3", f.status)}
		}
		a := ccm.ApprovalStatus(n)
		filter.Status = &a
	}
	if f.method != "" {
		if !slices.Contains(proof.Methods(), proof.Method(f.method)) {
			return filter, false, usageError{fmt.Errorf("--method %q: want one of %v", f.method, proof.Methods())}
		}
		filter.Method = proof.Method(f.method)
	}
	if filter.Since, err = momentOf("registered-since", f.since, now); err != nil {
		return filter, false, err
	}
	if filter.Before, err = momentOf("registered-before", f.before, now); err != nil {
		return filter, false, err
	}
	if f.blocked {
		filter.Blocked = &f.blocked
	}
	if f.quarantined {
		filter.Quarantined = &f.quarantined
	}
	return filter, filter != site.DeviceFilter{}, nil
}

// momentOf reads a time, a date, or a duration before now; the zero time for nothing.
func momentOf(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if at, err := time.Parse(form, text); err == nil {
			return at, nil
		}
	}
	if ago, err := time.ParseDuration(text); err == nil && ago > 0 {
		return now.Add(-ago), nil
	}
	return time.Time{}, usageError{fmt.Errorf("--%s %q: want a time like 2026-12-01T18:00:00Z, a date like 2026-12-01, or a duration like 24h", flag, text)}
}

// deviceAct is one of approve, reject, block, unblock and release.
type deviceAct struct {
	s           *session
	act         site.Act
	choose      deviceFilter
	level, why  string
	yes, dryRun bool
	wait        *waiter
}

// actBatch is how many devices one transaction changes.
const actBatch = 500

func newDeviceAct(s *session, verb, short, example string) *cobra.Command {
	a := &deviceAct{s: s, act: site.Act{Verb: verb}}
	c := &cobra.Command{
		Use: verb + " [DEVICE...]", Short: short, Example: example,
		Long: short + `.

Devices are named by client id or name, or chosen by the filters, of which all must fit. Obsolete devices, and those that are so already, are not
chosen; nor, for an approval, those that a person blocked or rejected: name them. Where more than one would change, the command prints them and changes
nothing without --yes. Each change is in the trust log, with who and why: --why is needed.`,
		RunE: s.siteVerb(a.run),
	}
	a.choose.add(c, verb != site.ActApprove)
	a.wait = &waiter{s: s}
	if verb == site.ActBlock || verb == site.ActUnblock {
		a.wait = s.addWait(c)
	}
	c.Flags().StringVar(&a.why, "why", "", "the reason, needed; kept with the device and in the trust log")
	c.Flags().BoolVar(&a.yes, "yes", false, "change more than one device")
	c.Flags().BoolVar(&a.dryRun, "dry-run", false, "print what would change, and change nothing")
	if verb == site.ActApprove {
		c.Flags().StringVar(&a.level, "level", "managed", "level to give: managed, or secrets (the only level that reads a secret)")
	}
	return c
}

func (a *deviceAct) run(ctx context.Context, st *site.Site, names []string) (err error) {
	if a.act.Verb == site.ActApprove {
		if a.act.Level, err = proof.ParseLevel(a.level); err != nil {
			return usageError{err}
		}
	}
	if err := a.wait.check(); err != nil {
		return err
	}
	filter, any, err := a.choose.read(time.Now())
	switch {
	case err != nil:
		return err
	case any == (len(names) > 0):
		return usageError{fmt.Errorf("name devices, or choose them by filters; see `postern device %s --help`", a.act.Verb)}
	}
	if err := site.CheckReason(a.why); err != nil && !a.dryRun {
		return err
	}
	if any {
		return a.chosen(ctx, st, filter)
	}
	var devices []chosenDevice
	for _, who := range names {
		d, err := st.FindDevice(ctx, who)
		if err != nil {
			return err
		}
		devices = append(devices, chosen(d))
	}
	if len(devices) > 1 && !a.yes || a.dryRun {
		return a.plan(devices, 0, 0)
	}
	return a.execute(ctx, st, devices)
}

// chosenDevice is what a list of many devices needs to keep of each.
type chosenDevice struct {
	ClientID ccm.ClientID `json:"client_id"`
	Name     string       `json:"name"`
	Status   int          `json:"approval_status"`
	Level    string       `json:"level"`
}

func chosen(d site.Device) chosenDevice {
	return chosenDevice{d.ClientID, d.Name(), int(d.Status()), d.Level().String()}
}

// chosen acts on what the filter lets through.
func (a *deviceAct) chosen(ctx context.Context, st *site.Site, filter site.DeviceFilter) error {
	current, held, rejected := false, 0, 0
	filter.Obsolete = &current
	var devices []chosenDevice
	err := st.EachDevice(ctx, filter, func(d site.Device) {
		switch {
		case !a.changes(d):
		case a.act.Verb == site.ActApprove && d.Conflict != "":
			held++
		case a.act.Verb == site.ActApprove && d.Rejected():
			rejected++
		default:
			devices = append(devices, chosen(d))
		}
	})
	if err != nil {
		return err
	}
	if a.dryRun || len(devices) > 1 && !a.yes || len(devices) == 0 {
		return a.plan(devices, held, rejected)
	}
	return a.execute(ctx, st, devices)
}

// changes reports whether the act changes the device at all.
func (a *deviceAct) changes(d site.Device) bool {
	switch a.act.Verb {
	case site.ActApprove:
		return !d.Block.Blocked && d.Level() < a.act.Level
	case site.ActReject:
		return d.Approval.Level > proof.LevelKnown || d.Approval.Status != ccm.ApprovalNone
	case site.ActBlock:
		return !d.Block.Blocked
	case site.ActRelease:
		return d.Quarantined()
	}
	return d.Block.Blocked
}

// shown is how many devices of a plan are printed for people.
const shown = 20

// deviceOutcome is what an act did, or would do, for scripts.
type deviceOutcome struct {
	Verb     string         `json:"verb"`
	Done     bool           `json:"done"`
	Count    int            `json:"count"`
	Held     int            `json:"held,omitempty"`     // left out, since a conflict waits for them
	Rejected int            `json:"rejected,omitempty"` // left out, since a person has rejected each
	Devices  []chosenDevice `json:"devices"`
}

// plan prints what would be done. It is an error unless that was all that was asked for.
func (a *deviceAct) plan(devices []chosenDevice, held, rejected int) error {
	out := deviceOutcome{Verb: a.act.Verb, Count: len(devices), Held: held, Rejected: rejected, Devices: append([]chosenDevice{}, devices...)}
	err := a.s.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "%s would change %d devices.\n", a.act.Verb, len(devices))
		if held > 0 {
			fmt.Fprintf(w, "%d more wait for the decision on a conflict (postern conflict list).\n", held)
		}
		if rejected > 0 {
			fmt.Fprintf(w, "%d more were rejected by a person; name them to approve them all the same.\n", rejected)
		}
		if len(devices) == 0 {
			return
		}
		table(w, "NAME\tCLIENT ID\tAPPROVAL\tLEVEL", func(row func(...any)) {
			for _, d := range devices[:min(shown, len(devices))] {
				row(d.Name, d.ClientID, d.Status, d.Level)
			}
		})
		if more := len(devices) - shown; more > 0 {
			fmt.Fprintf(w, "... and %d more\n", more)
		}
	})
	if err != nil || a.dryRun || len(devices) == 0 {
		return err
	}
	return catalog.Errorf(catalog.ActNotConfirmed, "%d devices would change", len(devices))
}

// execute changes the devices, a batch in each transaction.
func (a *deviceAct) execute(ctx context.Context, st *site.Site, devices []chosenDevice) error {
	began := time.Now()
	out := deviceOutcome{Verb: a.act.Verb, Done: true, Devices: []chosenDevice{}}
	for batch := range slices.Chunk(devices, actBatch) {
		ids := make([]ccm.ClientID, len(batch))
		for i, d := range batch {
			ids[i] = d.ClientID
		}
		changed, err := st.Act(ctx, ids, a.act, a.s.actor, a.why)
		if err != nil {
			return fmt.Errorf("after %d of %d devices: %w", out.Count, len(devices), err)
		}
		if len(devices) == 1 {
			return a.wait.finish(ctx, st, began, deviceView(changed[0]), func(w io.Writer) { fmt.Fprintln(w, deviceLine(changed[0])) })
		}
		for _, d := range changed {
			out.Devices = append(out.Devices, chosen(d))
		}
		out.Count += len(changed)
		if time.Since(began) > time.Second && out.Count < len(devices) {
			fmt.Fprintf(a.s.err, "%d of %d\n", out.Count, len(devices))
		}
	}
	return a.wait.finish(ctx, st, began, out, func(w io.Writer) {
		for _, d := range out.Devices[:min(shown, len(out.Devices))] {
			fmt.Fprintf(w, "%s  %s  approval status %d, level %s\n", diag.Printable(d.Name), d.ClientID, d.Status, d.Level)
		}
		fmt.Fprintf(w, "%s: %d devices changed.\n", a.act.Verb, out.Count)
	})
}

func newDeviceList(s *session) *cobra.Command {
	var choose deviceFilter
	var groups, obsolete, held bool
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "List devices, or groups of them", Args: cobra.NoArgs,
		Example: `  postern device list
  postern device list --status 0 --groups     # what waits for a person, in groups: a flood of names hides nobody
  postern device list --domain corp.example --registered-since 24h
  postern device list --blocked --json`,
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
			filter, _, err := choose.read(time.Now())
			if err != nil {
				return err
			}
			filter.Limit = limit
			if obsolete {
				filter.Obsolete = &obsolete
			}
			if held {
				filter.Held = &held
			}
			if groups {
				return s.printGroups(ctx, st, filter)
			}
			devices, err := st.Devices(ctx, filter)
			if err != nil {
				return err
			}
			views := make([]deviceJSON, 0, len(devices))
			for _, d := range devices {
				views = append(views, deviceView(d))
			}
			return s.print(views, func(w io.Writer) {
				table(w, "NAME\tCLIENT ID\tAPPROVAL\tLEVEL\tLAST SEEN\tSTATE", func(row func(...any)) {
					for _, d := range devices {
						row(d.Name(), d.ClientID, int(d.Status()), d.Level(), stamp(d.LastSeen), stateText(d))
					}
				})
			})
		}),
	}
	choose.add(c, true)
	c.Flags().BoolVar(&choose.blocked, "blocked", false, "only blocked devices")
	c.Flags().BoolVar(&obsolete, "obsolete", false, "only devices that another record replaced")
	c.Flags().BoolVar(&held, "conflict", false, "only devices that wait for the decision on a conflict")
	c.Flags().BoolVar(&groups, "groups", false, "print groups: by proof, realm or bulk token, and pattern of the name")
	c.Flags().IntVar(&limit, "limit", 0, "at most so many")
	return c
}

func (s *session) printGroups(ctx context.Context, st *site.Site, filter site.DeviceFilter) error {
	if filter.Obsolete == nil {
		current := false
		filter.Obsolete = &current
	}
	groups, err := st.DeviceGroups(ctx, filter)
	if err != nil {
		return err
	}
	return s.print(groups, func(w io.Writer) {
		table(w, "DEVICES\tNAMES\tPROOF\tFROM\tFIRST\tLAST\tEXAMPLE", func(row func(...any)) {
			for _, g := range groups {
				row(g.Count, g.Pattern, g.Method, g.Origin, stamp(g.First), stamp(g.Last), g.Example)
			}
		})
	})
}

// stateText is what is special about a device.
func stateText(d site.Device) string {
	switch {
	case d.Block.Blocked:
		return "blocked"
	case d.Superseded():
		return "OBSOLETE"
	case d.Conflict != "":
		return "CONFLICT"
	case d.Quarantined():
		return "QUARANTINE"
	}
	return "-"
}

func deviceLine(d site.Device) string {
	state := ""
	if text := stateText(d); text != "-" {
		state = ", " + text
	}
	return fmt.Sprintf("%s  %s  approval status %d, level %s%s", diag.Printable(d.Name()), d.ClientID, d.Status(), d.Level(), state)
}

// deviceJSON is a device for scripts.
type deviceJSON struct {
	ClientID ccm.ClientID      `json:"client_id"`
	Name     string            `json:"name"`
	Key      string            `json:"key"`
	Status   int               `json:"approval_status"`
	Level    string            `json:"level"`
	Method   string            `json:"method"`
	Rule     string            `json:"rule"`
	Evidence map[string]string `json:"evidence,omitempty"`
	By       string            `json:"by"`
	Why      string            `json:"why,omitempty"`
	Blocked  bool              `json:"blocked"`
	BlockBy  string            `json:"blocked_by,omitempty"`
	BlockWhy string            `json:"blocked_why,omitempty"`
	Proved   string            `json:"proved,omitempty"` // account@REALM
	Conflict string            `json:"conflict,omitempty"`
	Obsolete string            `json:"replaced_by,omitempty"`
	ObsWhy   string            `json:"replaced_why,omitempty"`
	Hardware string            `json:"hardware_id,omitempty"`
	Version  string            `json:"version,omitempty"`
	Created  string            `json:"registered"`
	LastSeen string            `json:"last_seen"`
	Accepted string            `json:"last_accepted,omitempty"` // of a device that is refused

	Quarantine    string `json:"quarantined,omitempty"` // since when
	QuarantineWhy string `json:"quarantined_why,omitempty"`
	Effective     string `json:"effective_level"` // level, or known at most in quarantine
}

func deviceView(d site.Device) deviceJSON {
	quarantined := ""
	if d.Quarantined() {
		quarantined = stamp(d.Quarantine.Since)
	}
	return deviceJSON{
		Quarantine: quarantined, QuarantineWhy: d.Quarantine.Why, Effective: d.Level().String(),
		ClientID: d.ClientID, Name: d.Name(), Key: string(d.Key), Status: int(d.Approval.Status), Level: d.Approval.Level.String(), Method: string(d.Approval.Method),
		Rule: d.Approval.Rule, Evidence: d.Approval.Evidence, By: d.Approval.By, Why: d.Approval.Why, Blocked: d.Block.Blocked, BlockBy: d.Block.By, BlockWhy: d.Block.Why,
		Proved: d.Proved, Conflict: d.Conflict, Obsolete: string(d.Obsolete.By), ObsWhy: d.Obsolete.Why,
		Hardware: d.Record.HardwareID1, Version: d.Record.Version, Created: stamp(d.Created), LastSeen: stamp(d.LastSeen), Accepted: strings.TrimPrefix(revokedLine(d), "last accepted request at "),
	}
}

func newDeviceShow(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "show DEVICE", Short: "Show a device: its record, how it was approved and on what evidence, what happened to it", Args: cobra.ExactArgs(1),
		Example: "  postern device show LAPTOP-7\n  postern device show GUID:... --json",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			st.Flush(ctx) // what was seen within the last seconds
			d, err := st.FindDevice(ctx, arguments[0])
			if err != nil {
				return err
			}
			events, err := st.Events(ctx, site.EventFilter{Subject: string(d.ClientID), Limit: 20})
			if err != nil {
				return err
			}
			whole := struct {
				deviceJSON
				Record site.Record  `json:"record"`
				Events []site.Event `json:"events"`
			}{deviceView(d), d.Record, events}
			return s.print(whole, func(w io.Writer) { showDevice(w, d, events) })
		}),
	}
}

// revokedLine says of a device that is refused when its last request was accepted; "" of others.
func revokedLine(d site.Device) string {
	if !d.Blocked() {
		return ""
	}
	return "last accepted request at " + stamp(d.LastSeen)
}

func showDevice(w io.Writer, d site.Device, events []site.Event) {
	line := aligned(w, "approval status", d.Approval.Evidence)
	line("name", d.Name())
	line("client id", d.ClientID)
	line("approval status", int(d.Approval.Status))
	line("level", d.Approval.Level)
	line("decided by", strings.TrimSpace(fmt.Sprintf("%s, %s (%s) %s", d.Approval.By, d.Approval.Rule, d.Approval.Method, d.Approval.Why)))
	line("decided at", stamp(d.Approval.At))
	for _, name := range slices.Sorted(maps.Keys(d.Approval.Evidence)) {
		line("  "+name, d.Approval.Evidence[name])
	}
	line("has proved", d.Proved)
	if d.Superseded() {
		line("OBSOLETE", fmt.Sprintf("replaced by %s at %s: %s", d.Obsolete.By, stamp(d.Obsolete.At), d.Obsolete.Why))
	}
	if d.Conflict != "" {
		line("CONFLICT", d.Conflict+" waits (postern conflict show "+d.Conflict+")")
	}
	if d.Block.By != "" {
		line(map[bool]string{true: "blocked", false: "unblocked"}[d.Block.Blocked], fmt.Sprintf("by %s at %s: %s", d.Block.By, stamp(d.Block.At), d.Block.Why))
	}
	if d.Quarantined() {
		line("QUARANTINE", fmt.Sprintf("since %s: %s; level %s until it is lifted", stamp(d.Quarantine.Since), d.Quarantine.Why, d.Level()))
	}
	line("NetBIOS name", d.Record.NetbiosName)
	line("FQDN", d.Record.FQDName)
	line("agent version", d.Record.Version)
	line("hardware id", d.Record.HardwareID1)
	line("certificate", fmt.Sprintf("%s, %s to %s", d.Record.Thumbprint, stamp(d.Record.ValidFrom), stamp(d.Record.ValidTo)))
	line("encryption", d.Record.EncThumbprint)
	line("registered", stamp(d.Created))
	line("last seen", stamp(d.LastSeen))
	line("revoked", revokedLine(d))
	if len(events) == 0 {
		return
	}
	fmt.Fprintln(w, "\nWhat happened, newest first:")
	table(w, "WHEN\tCODE\tWHAT", func(row func(...any)) {
		for _, e := range events {
			row(stamp(e.At), e.Code, e.Detail)
		}
	})
}
