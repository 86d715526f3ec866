package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/site"
)

func newAuthority(s *session) *cobra.Command {
	return addSiteFlags(s, group("authority", "The company's certificate authorities, under which client certificates are accepted",
		newAuthorityAdd(s), newAuthorityList(s), newAuthorityRemove(s), newAuthoritySet(s)))
}

// revocationFlags are the flags that say how revocation is judged; sources stay nil when none is given.
func revocationFlags(c *cobra.Command) func() site.Revocation {
	var rule site.Revocation
	c.Flags().StringVar(&rule.Policy, "revocation", "", "require (a certificate that nobody speaks for is refused; the default), prefer (it is let through with a warning) or off")
	c.Flags().StringArrayVar(&rule.Sources, "source", nil, "address of a revocation list, or ocsp:ADDRESS of a responder; may be repeated, replaces those before, and \"\" removes them. Nothing else is ever asked")
	return func() site.Revocation { return rule }
}

func newAuthorityAdd(s *session) *cobra.Command {
	var content string
	c := &cobra.Command{
		Use: "add FILE...", Short: "Upload root and intermediate authorities, in PEM or DER", Args: cobra.MinimumNArgs(1),
		Long: `Uploads certificate authorities. Files may hold PEM, with any number of certificates, or DER; - is standard input. What a
certificate is, root or intermediate, is told by the certificate. Upload the whole chain: devices often send only their own.`,
		Example: `  postern authority add root.cer issuing.cer --source http://crl.corp.example/issuing.crl
  postern authority add chain.pem --revocation prefer`,
		Annotations: map[string]string{inputAnnotation: "content"},
	}
	rule := revocationFlags(c)
	add := s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
		encoded, err := io.ReadAll(io.LimitReader(s.in, maxInput+1))
		if err != nil {
			return fmt.Errorf("read the certificates: %w", err)
		}
		added, err := st.AddAuthorities(ctx, encoded, rule(), s.actor)
		if err != nil {
			return err
		}
		for _, warning := range authorityWarnings(st, added, time.Now()) {
			fmt.Fprintf(s.err, "warning: %s\n", warning)
		}
		return s.print(added, func(w io.Writer) { authorityTable(w, added) })
	})
	c.RunE = func(c *cobra.Command, arguments []string) error {
		if content == "-" { // on the other side of the door: the files have been read
			return add(c, arguments)
		}
		all, err := readCertificates(s.in, arguments)
		if err != nil {
			return err
		}
		s.in = bytes.NewReader(all)
		if err := c.Flags().Set("content", "-"); err != nil {
			return err
		}
		return add(c, arguments)
	}
	c.Flags().StringVar(&content, "content", "", "")
	c.Flags().MarkHidden("content")
	return c
}

// readCertificates reads files of PEM or DER into one PEM. Nothing but certificates is taken from them, so that a private key in a file stays there.
func readCertificates(in io.Reader, files []string) (all []byte, err error) {
	for _, name := range files {
		source := in
		if name != "-" {
			file, err := os.Open(name)
			if err != nil {
				return nil, catalog.Wrap(catalog.AuthorityInvalid, err, "the file %s cannot be read", name)
			}
			defer file.Close()
			source = file
		}
		const most = 1 << 20
		content, err := io.ReadAll(io.LimitReader(source, most+1))
		if err != nil || len(content) > most {
			return nil, catalog.Wrap(catalog.AuthorityInvalid, err, "the file %s cannot be read, or has more than %d bytes", name, most)
		}
		blocks := []*pem.Block{{Type: "CERTIFICATE", Bytes: content}}
		if bytes.Contains(content, []byte("-----BEGIN")) {
			blocks = nil
			for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
				if block.Type == "CERTIFICATE" {
					blocks = append(blocks, &pem.Block{Type: block.Type, Bytes: block.Bytes})
				}
			}
		}
		if len(blocks) == 0 || len(content) == 0 {
			return nil, catalog.Errorf(catalog.AuthorityInvalid, "the file %s holds no certificate", name)
		}
		for _, block := range blocks {
			all = append(all, pem.EncodeToMemory(block)...)
		}
	}
	return all, nil
}

// authorityWarnings says what would keep certificates out although everything was accepted.
func authorityWarnings(st *site.Site, list []site.Authority, now time.Time) (warnings []string) {
	for _, a := range list {
		switch left := a.NotAfter.Sub(now); {
		case left <= 0:
			warnings = append(warnings, fmt.Sprintf("%s ended at %s; no certificate below it is accepted", a.Subject, stamp(a.NotAfter)))
		case left < 90*24*time.Hour:
			warnings = append(warnings, fmt.Sprintf("%s ends at %s, in %d days", a.Subject, stamp(a.NotAfter), int(left.Hours()/24)))
		}
	}
	rule := st.Revocation()
	switch {
	case st.Authorities() == nil:
		warnings = append(warnings, "no root is uploaded; no client certificate is accepted until one is")
	case rule.Policy == "require" && len(rule.Sources) == 0:
		warnings = append(warnings, "revocation must be checked and no --source says where; no client certificate is accepted until one does, or until `postern authority set --revocation prefer`")
	}
	return warnings
}

func authorityTable(w io.Writer, list []site.Authority) {
	table(w, "KIND\tSUBJECT\tENDS\tFINGERPRINT", func(row func(...any)) {
		for _, a := range list {
			row(map[bool]string{true: "root", false: "intermediate"}[a.Root], a.Subject, stamp(a.NotAfter), a.Fingerprint)
		}
	})
}

// authoritiesJSON is all of it for scripts.
type authoritiesJSON struct {
	Revocation  string           `json:"revocation"`
	Sources     []string         `json:"sources"`
	Authorities []site.Authority `json:"authorities"`
}

func newAuthorityList(s *session) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the authorities, and how revocation is judged", Args: cobra.NoArgs,
		Example: "  postern authority list\n  postern authority list --json | jq -r '.authorities[].fingerprint'",
		RunE: s.siteVerb(func(_ context.Context, st *site.Site, _ []string) error {
			rule, list := st.Revocation(), slices.Clone(st.UploadedAuthorities())
			slices.SortStableFunc(list, func(a, b site.Authority) int { // roots first
				return strings.Compare(fmt.Sprint(!a.Root, a.Subject), fmt.Sprint(!b.Root, b.Subject))
			})
			view := authoritiesJSON{rule.Policy, append([]string{}, rule.Sources...), append([]site.Authority{}, list...)}
			return s.print(view, func(w io.Writer) {
				authorityTable(w, list)
				showRevocation(w, rule)
				if len(list) > 0 {
					for _, warning := range authorityWarnings(st, list, time.Now()) {
						fmt.Fprintf(w, "warning     %s\n", warning)
					}
				}
			})
		}),
	}
}

func showRevocation(w io.Writer, rule site.Revocation) {
	fmt.Fprintf(w, "revocation  %s\n", rule.Policy)
	for _, source := range rule.Sources {
		fmt.Fprintf(w, "source      %s\n", source)
	}
}

func newAuthorityRemove(s *session) *cobra.Command {
	var why string
	var wait *waiter
	c := &cobra.Command{
		Use: "remove FINGERPRINT --why TEXT", Short: "Take an authority off the list; certificates below it are refused from now on", Args: cobra.ExactArgs(1),
		Long:    "Removes the authority with that fingerprint, or with one that begins with the given 8 or more digits. Devices keep their record.",
		Example: "  postern authority remove 3f2a91c4 --why \"renewed\"\n  postern authority remove 3f2a91c4 --why \"its key was stolen\" --wait",
		RunE: s.siteVerb(func(ctx context.Context, st *site.Site, arguments []string) error {
			if err := wait.check(); err != nil {
				return err
			}
			began := time.Now()
			a, err := st.RemoveAuthority(ctx, arguments[0], s.actor, why)
			if err != nil {
				return err
			}
			return wait.finish(ctx, st, began, a, func(w io.Writer) { fmt.Fprintf(w, "Authority %s is removed.\n", a.Subject) })
		}),
	}
	wait = s.addWait(c)
	c.Flags().StringVar(&why, "why", "", "the reason, needed; kept in the trust log")
	return c
}

func newAuthoritySet(s *session) *cobra.Command {
	c := &cobra.Command{
		Use: "set", Short: "Say how revocation of client certificates is judged, and where to ask", Args: cobra.NoArgs,
		Example: "  postern authority set --revocation require --source http://crl.corp.example/root.crl --source http://crl.corp.example/issuing.crl\n  postern authority set --source \"\"",
	}
	rule := revocationFlags(c)
	c.RunE = s.siteVerb(func(ctx context.Context, st *site.Site, _ []string) error {
		if err := st.SetRevocation(ctx, rule(), s.actor); err != nil {
			return err
		}
		now := st.Revocation()
		return s.print(map[string]any{"revocation": now.Policy, "sources": append([]string{}, now.Sources...)}, func(w io.Writer) { showRevocation(w, now) })
	})
	return c
}
