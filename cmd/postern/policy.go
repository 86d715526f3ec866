package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

func newPolicy(s *session) *cobra.Command {
	return addSiteFlags(s, group("policy", "Policy documents for devices", newPolicyAdd(s), newPolicyList(s), newPolicyRemove(s)))
}

func newPolicyAdd(s *session) *cobra.Command {
	var ask site.NewPolicy
	var file, level string
	var devices []string
	var flags uint32
	var secret, requiresAuth bool
	c := &cobra.Command{
		Use:   "add --file FILE --all",
		Short: "Add a policy document, or the next version of one",
		Long: `Adds a document (UTF-8 XML) that devices get with their assignments. A document with a secret is sealed at rest and goes only to
devices of level secrets, each time sealed to that device's own encryption certificate.`,
		Example: `  postern policy add --file settings.xml --all
  postern policy add --id "{c6fe32fb-7e9c-4776-abe3-2a6d107447f1}" --category NAAConfig --secret --file naa.xml --all
  postern policy add --file kiosk.xml --device KIOSK-1 --device KIOSK-2`,
		Args:        cobra.NoArgs,
		Annotations: map[string]string{inputAnnotation: "file"},
	}
	add := s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
		body, err := io.ReadAll(io.LimitReader(s.in, maxInput+1))
		if err != nil {
			return fmt.Errorf("read the document: %w", err)
		}
		ask.Body, ask.By = body, s.actor
		ask.Flags = policyFlags(flags, secret, requiresAuth)
		if level != "" {
			if ask.Level, err = proof.ParseLevel(level); err != nil {
				return usageError{err}
			}
		}
		for _, who := range devices {
			d, err := st.FindDevice(ctx, who)
			if err != nil {
				return err
			}
			ask.Targets = append(ask.Targets, d.ClientID)
		}
		policy, err := st.AddPolicy(ctx, ask)
		if err != nil {
			return err
		}
		return s.print(policyView(policy), func(w io.Writer) {
			fmt.Fprintf(w, "Policy %s version %s is for %s, from level %s.\n", policy.ID, policy.Version, targetText(policy), policy.Level)
		})
	})
	c.RunE = func(c *cobra.Command, arguments []string) error {
		if file == "-" {
			return add(c, arguments)
		}
		document, err := os.Open(file)
		if err != nil {
			return catalog.Wrap(catalog.InvalidArgument, err, "the document %s cannot be read", file)
		}
		defer document.Close()
		s.in = document
		if err := c.Flags().Set("file", "-"); err != nil {
			return err
		}
		return add(c, arguments)
	}
	c.Flags().StringVar(&file, "file", "", "the document; - for standard input")
	c.Flags().StringVar(&ask.ID, "id", "", "policy id; without it a new GUID")
	c.Flags().StringVar(&ask.Category, "category", "", "category, such as NAAConfig")
	c.Flags().BoolVar(&secret, "secret", false, "it holds a secret: level secrets only, always sealed")
	c.Flags().BoolVar(&requiresAuth, "requires-auth", false, "the download must prove the device")
	c.Flags().Uint32Var(&flags, "flags", 0, "further policy flags as a number: 8 intranet only, 16 persist whole policy, ...")
	c.Flags().StringVar(&level, "level", "", "least level that gets it: known, managed, secrets")
	c.Flags().BoolVar(&ask.All, "all", false, "for every device")
	c.Flags().StringArrayVar(&devices, "device", nil, "for this device; may be repeated")
	c.MarkFlagRequired("file")
	return c
}

func policyFlags(flags uint32, secret, requiresAuth bool) ccm.PolicyFlags {
	f := ccm.PolicyFlags(flags)
	if secret {
		f |= ccm.PolicySecret | ccm.PolicyRequiresAuth
	}
	if requiresAuth {
		f |= ccm.PolicyRequiresAuth
	}
	return f
}

func targetText(p site.Policy) string {
	if p.All {
		return "all devices"
	}
	return fmt.Sprintf("%d devices", len(p.Targets))
}

func policyView(p site.Policy) map[string]any {
	return map[string]any{
		"id": p.ID, "version": p.Version, "category": p.Category, "flags": p.Flags, "level": p.Level.String(), "secret": p.Flags&ccm.PolicySecret != 0,
		"all": p.All, "devices": p.Targets, "hash": p.Hash, "created": stamp(p.Created), "by": p.By,
	}
}

func newPolicyList(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List policy documents; their content is never shown", Args: cobra.NoArgs,
		Example: "  postern policy list",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
			policies, err := st.Policies(ctx)
			if err != nil {
				return err
			}
			views := make([]map[string]any, 0, len(policies))
			for _, p := range policies {
				views = append(views, policyView(p))
			}
			return s.print(views, func(w io.Writer) {
				table(w, "ID\tVERSION\tCATEGORY\tFLAGS\tLEVEL\tFOR", func(row func(...any)) {
					for _, p := range policies {
						row(p.ID, p.Version, cmp.Or(p.Category, "-"), flagText(p.Flags), p.Level, targetText(p))
					}
				})
			})
		}),
	}
}

// flagText writes policy flags by name (protocol.md 4.3).
func flagText(f ccm.PolicyFlags) string {
	names := []struct {
		bit  ccm.PolicyFlags
		name string
	}{{1, "task-sequence"}, {2, "requires-auth"}, {4, "secret"}, {8, "intranet-only"}, {16, "persist-whole"}, {32, "authorized-dynamic-download"}, {64, "compressed"}}
	var set []string
	for _, n := range names {
		if f&n.bit != 0 {
			set = append(set, n.name)
		}
	}
	return cmp.Or(strings.Join(set, ","), "-")
}

func newPolicyRemove(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "remove ID", Short: "Remove all versions of a policy document", Args: cobra.ExactArgs(1),
		Example: "  postern policy remove \"{c6fe32fb-7e9c-4776-abe3-2a6d107447f1}\"",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			if err := st.RemovePolicy(ctx, arguments[0], s.actor); err != nil {
				return err
			}
			return s.print(map[string]string{"removed": arguments[0]}, func(w io.Writer) { fmt.Fprintf(w, "Policy %s is removed.\n", arguments[0]) })
		}),
	}
}
