package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"postern/ccm"
	"postern/proof"
	"postern/site"
)

func newDevice(s *session) *cobra.Command {
	act := func(c *cobra.Command, do func(ctx context.Context, st *site.Site, id ccm.ClientID, why string) (site.Device, error)) *cobra.Command {
		var why string
		c.Args = cobra.MinimumNArgs(1)
		c.Flags().StringVar(&why, "why", "", "the reason, kept in the trust log")
		c.RunE = s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			for _, who := range arguments {
				device, err := st.FindDevice(ctx, who)
				if err != nil {
					return err
				}
				if device, err = do(ctx, st, device.ClientID, why); err != nil {
					return err
				}
				if err := s.print(deviceView(device), func(w io.Writer) { fmt.Fprintln(w, deviceLine(device)) }); err != nil {
					return err
				}
			}
			return nil
		})
		return c
	}
	var level string
	approve := act(&cobra.Command{Use: "approve DEVICE...", Short: "Approve a device: level managed, or secrets", Example: "  postern device approve LAPTOP-7 --why \"seen at the help desk\"\n  postern device approve GUID:... --level secrets --why \"needs the network access account\""},
		func(ctx context.Context, st *site.Site, id ccm.ClientID, why string) (site.Device, error) {
			wanted, err := proof.ParseLevel(level)
			if err != nil {
				return site.Device{}, usageError{err}
			}
			return st.Approve(ctx, id, wanted, s.actor, why)
		})
	approve.Flags().StringVar(&level, "level", "managed", "managed, or secrets (the only level that reads a secret)")
	return addSiteFlags(s, group("device", "Registered devices", newDeviceList(s), newDeviceShow(s), approve,
		act(&cobra.Command{Use: "reject DEVICE...", Short: "Take a device's approval away: level known"}, func(ctx context.Context, st *site.Site, id ccm.ClientID, why string) (site.Device, error) {
			return st.Reject(ctx, id, s.actor, why)
		}),
		act(&cobra.Command{Use: "block DEVICE...", Short: "Refuse a device everywhere", Example: "  postern device block LAPTOP-7 --why stolen"}, func(ctx context.Context, st *site.Site, id ccm.ClientID, why string) (site.Device, error) {
			return st.Block(ctx, id, s.actor, why)
		}),
		act(&cobra.Command{Use: "unblock DEVICE...", Short: "Let a blocked device in again"}, func(ctx context.Context, st *site.Site, id ccm.ClientID, why string) (site.Device, error) {
			return st.Unblock(ctx, id, s.actor, why)
		})))
}

func newDeviceList(s *session) *cobra.Command {
	var filter site.DeviceFilter
	var level, status string
	var blocked bool
	c := &cobra.Command{
		Use: "list", Short: "List devices", Args: cobra.NoArgs,
		Example: "  postern device list\n  postern device list --status 0        those that wait for a person\n  postern device list --blocked --json",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
			if level != "" {
				l, err := proof.ParseLevel(level)
				if err != nil {
					return usageError{err}
				}
				filter.Level = &l
			}
			if status != "" {
				n, err := strconv.Atoi(status)
				if err != nil {
					return usageError{fmt.Errorf("--status %q: want 0, 1, 2 or 3", status)}
				}
				a := ccm.ApprovalStatus(n)
				filter.Status = &a
			}
			if blocked {
				filter.Blocked = &blocked
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
						row(d.Name(), d.ClientID, int(d.Approval.Status), d.Approval.Level, stamp(d.LastSeen), blockText(d))
					}
				})
			})
		}),
	}
	c.Flags().StringVar(&filter.Name, "name", "", "only devices with this NetBIOS name or FQDN")
	c.Flags().StringVar(&level, "level", "", "only devices of this level: known, managed, secrets")
	c.Flags().StringVar(&status, "status", "", "only devices with this approval status: 0, 1, 2, 3")
	c.Flags().BoolVar(&blocked, "blocked", false, "only blocked devices")
	c.Flags().IntVar(&filter.Limit, "limit", 0, "at most so many")
	return c
}

func blockText(d site.Device) string {
	if d.Blocked() {
		return "blocked"
	}
	return "-"
}

func deviceLine(d site.Device) string {
	return fmt.Sprintf("%s  %s  approval status %d, level %s%s", d.Name(), d.ClientID, d.Approval.Status, d.Approval.Level, map[bool]string{true: ", blocked"}[d.Blocked()])
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
	Hardware string            `json:"hardware_id,omitempty"`
	Version  string            `json:"version,omitempty"`
	Created  string            `json:"registered"`
	LastSeen string            `json:"last_seen"`
}

func deviceView(d site.Device) deviceJSON {
	return deviceJSON{
		ClientID: d.ClientID, Name: d.Name(), Key: string(d.Key), Status: int(d.Approval.Status), Level: d.Approval.Level.String(), Method: string(d.Approval.Method),
		Rule: d.Approval.Rule, Evidence: d.Approval.Evidence, By: d.Approval.By, Why: d.Approval.Why, Blocked: d.Blocked(), BlockBy: d.Block.By, BlockWhy: d.Block.Why,
		Hardware: d.Record.HardwareID1, Version: d.Record.Version, Created: stamp(d.Created), LastSeen: stamp(d.LastSeen),
	}
}

func newDeviceShow(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "show DEVICE", Short: "Show a device: its record, how it was approved and on what evidence, what happened to it", Args: cobra.ExactArgs(1),
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
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

func showDevice(w io.Writer, d site.Device, events []site.Event) {
	line := func(name string, value any) {
		if text := fmt.Sprint(value); text != "" {
			fmt.Fprintf(w, "%-18s %s\n", name, text)
		}
	}
	line("name", d.Name())
	line("client id", d.ClientID)
	line("approval status", int(d.Approval.Status))
	line("level", d.Approval.Level)
	line("decided by", strings.TrimSpace(fmt.Sprintf("%s, %s (%s) %s", d.Approval.By, d.Approval.Rule, d.Approval.Method, d.Approval.Why)))
	line("decided at", stamp(d.Approval.At))
	for _, name := range slices.Sorted(maps.Keys(d.Approval.Evidence)) {
		line("  "+name, d.Approval.Evidence[name])
	}
	if d.Blocked() {
		line("blocked", fmt.Sprintf("by %s at %s: %s", d.Block.By, stamp(d.Block.At), d.Block.Why))
	}
	line("NetBIOS name", d.Record.NetbiosName)
	line("FQDN", d.Record.FQDName)
	line("agent version", d.Record.Version)
	line("hardware id", d.Record.HardwareID1)
	line("certificate", fmt.Sprintf("%s, %s to %s", d.Record.Thumbprint, stamp(d.Record.ValidFrom), stamp(d.Record.ValidTo)))
	line("encryption", d.Record.EncThumbprint)
	line("registered", stamp(d.Created))
	line("last seen", stamp(d.LastSeen))
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
