package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth/kerberos"
	"postern/catalog"
	"postern/internal/role"
	"postern/keyfile"
	"postern/site"
	"postern/token"
)

// finding is one thing that the doctor looked at.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warn, bad
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// check is one line of the doctor's table.
type check struct {
	name  string
	roles []string // nil: every role
	look  func(context.Context, *patient) finding
}

// patient is what the checks look at.
type patient struct {
	config role.Config
	door   *role.Door
	site   *site.Site // management point, when the store could be opened
	broken error      // why it could not
}

func good(text string, arguments ...any) finding {
	return finding{Result: "ok", Text: fmt.Sprintf(text, arguments...)}
}

func warn(remedy, text string, arguments ...any) finding {
	return finding{Result: "warn", Text: fmt.Sprintf(text, arguments...), Remedy: remedy}
}

func bad(remedy, text string, arguments ...any) finding {
	return finding{Result: "bad", Text: fmt.Sprintf(text, arguments...), Remedy: remedy}
}

// checks is everything that the doctor looks at, in the order it is told.
func checks() []check {
	mpOnly, gatewayOnly, connectorOnly := []string{role.ManagementPoint}, []string{role.Gateway}, []string{role.Connector}
	return []check{
		{"the role runs", nil, checkRuns},
		{"folders belong to one user", nil, checkFolders},
		{"plain HTTP", mpOnly, checkPlainHTTP},
		{"listens beyond this machine", nil, checkReach},
		{"the store opens", mpOnly, checkStore},
		{"trust log", mpOnly, checkTrustLog},
		{"weak clients", mpOnly, checkLegacy},
		{"keytab", mpOnly, checkKeytab},
		{"authorities of the providers", mpOnly, checkProviderRoots},
		{"approval", mpOnly, checkApproval},
		{"bulk registration tokens", mpOnly, checkBulk},
		{"gateways", mpOnly, checkGateways},
		{"connectors", mpOnly, checkConnectors},
		{"certificate for devices", gatewayOnly, checkGatewayCertificate},
		{"role certificate", connectorOnly, checkRoleCertificate},
		{"certificates of the company", connectorOnly, checkCompanyCertificates},
		{"keys at rest", nil, checkKeys},
	}
}

func newDoctor(s *session) *cobra.Command {
	c := &cobra.Command{
		Use: "doctor --config FILE", Short: "Say what is insecure or will not work in a role's configuration", Args: cobra.NoArgs,
		Long:    "Looks at a role's configuration, files and, when it runs, its health. Changes nothing: the store of an older\nversion is left as it is, and is only looked at once the management point has brought it forward. Exit status 1 when something is bad.",
		Example: "  postern doctor --config site/mp.yaml\n  postern doctor --config gateway/gateway.yaml --json",
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := s.configuration()
			if err != nil {
				return err
			}
			findings := examine(c.Context(), config)
			if err := s.print(findings, func(w io.Writer) { writeFindings(w, findings) }); err != nil {
				return err
			}
			for _, f := range findings {
				if f.Result == "bad" {
					return exitError{exitFailed}
				}
			}
			return nil
		},
	}
	return addSiteFlags(s, c)
}

func examine(ctx context.Context, config role.Config) []finding {
	p := &patient{config: config, door: role.Knock(config)}
	if config.Role == role.ManagementPoint {
		protection, err := role.ProtectionFromEnvironment()
		if err != nil {
			p.broken = err
		} else if opened, err := role.LookAtSite(ctx, config, protection); err != nil {
			p.broken = err
		} else {
			p.site = opened.Site
			defer opened.Close()
		}
	}
	var findings []finding
	for _, c := range checks() {
		if c.roles != nil && !slices.Contains(c.roles, config.Role) {
			continue
		}
		f := c.look(ctx, p)
		f.Check = c.name
		findings = append(findings, f)
	}
	return findings
}

func writeFindings(w io.Writer, findings []finding) {
	mark := map[string]string{"ok": "ok  ", "warn": "WARN", "bad": "BAD "}
	for _, f := range findings {
		fmt.Fprintf(w, "%s  %-28s %s\n", mark[f.Result], f.Check, f.Text)
		if f.Remedy != "" {
			fmt.Fprintf(w, "      do: %s\n", f.Remedy)
		}
	}
}

func checkRuns(ctx context.Context, p *patient) finding {
	if p.door == nil {
		return warn("postern serve", "nothing answers at its administration door")
	}
	health, err := p.door.Health(ctx)
	if err != nil {
		return bad("look at "+p.config.Logs, "%v", err)
	}
	if !health.OK {
		return bad("look at "+p.config.Logs, "%s", strings.Join(health.Problem, "; "))
	}
	if len(health.Problem) > 0 {
		return warn("look at "+p.config.Logs, "%s", strings.Join(health.Problem, "; "))
	}
	return good("up since %s", stamp(health.Since))
}

func checkFolders(_ context.Context, p *patient) finding {
	for _, folder := range []string{p.config.State, filepath.Dir(p.config.Path())} {
		info, err := os.Stat(folder)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return bad("make it readable for the user that runs the role", "%v", err)
		}
		if info.Mode().Perm()&0o022 != 0 {
			return bad("chmod go-w "+folder, "%s may be written by others", folder)
		}
	}
	return good("%s", p.config.State)
}

func checkPlainHTTP(_ context.Context, p *patient) finding {
	if p.config.Listen.HTTP == "" {
		return good("off")
	}
	if loopback(p.config.Listen.HTTP) {
		return good("on, for this machine only (%s)", p.config.Listen.HTTP)
	}
	return warn("remove listen.http unless clients need mixed mode", "on at %s: messages are signed but anyone on the way can read them", p.config.Listen.HTTP)
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func checkReach(_ context.Context, p *patient) finding {
	address := cmp.Or(p.config.Listen.HTTPS, p.config.Listen.PKI.Address)
	switch {
	case address == "":
		return good("does not listen")
	case loopback(address):
		return warn("set listen.https to an address that others reach", "only this machine reaches %s", address)
	}
	return good("%s", address)
}

func checkStore(_ context.Context, p *patient) finding {
	switch {
	case p.site == nil && catalog.CodeOf(p.broken) == catalog.StoreOlderSchema:
		return warn("postern serve mp: it brings the store forward, and keeps a copy", "%v", p.broken)
	case p.site == nil:
		return bad("see the code in docs/errors.md", "%v", p.broken)
	}
	return good("site %s, epoch %d", p.site.SiteCode(), p.site.Epoch())
}

// unopened is what a check says that needs the store, which could not be opened.
func (p *patient) unopened() finding {
	if catalog.CodeOf(p.broken) == catalog.StoreOlderSchema {
		return warn("start the management point first", "not looked at")
	}
	return bad("open the store first", "not looked at")
}

func checkTrustLog(ctx context.Context, p *patient) finding {
	if p.site == nil {
		return p.unopened()
	}
	raws, unread := role.ReadCheckpoints(role.CheckpointFile(p.config))
	var seen []token.Checkpoint
	for _, raw := range raws {
		c, err := p.site.OpenCheckpoint(ctx, raw)
		if err != nil {
			unread = err
			continue
		}
		seen = append(seen, c)
	}
	report, err := p.site.Audit(ctx, seen)
	if err == nil {
		err = report.Err()
	}
	switch {
	case err != nil:
		return bad("postern audit verify; compare with a backup, find out who changed the database", "%v", err)
	case unread != nil && !errors.Is(unread, fs.ErrNotExist):
		return warn("postern audit verify", "%d entries, unbroken; not every checkpoint can be read: %v", report.Last, unread)
	case report.Fitting == 0:
		return good("%d entries, unbroken; there is no checkpoint yet", report.Last)
	}
	return good("%d entries, unbroken; %d checkpoints fit", report.Last, report.Fitting)
}

func checkLegacy(_ context.Context, p *patient) finding {
	if p.site == nil {
		return p.unopened()
	}
	if p.site.Settings().LegacyKeys {
		return warn("postern site set registration.legacy-keys false", "keys and signatures of 2007 are accepted, at level known")
	}
	return good("refused")
}

// checkApproval warns of what approves more than a person may think, and of what waits for one.
func checkApproval(ctx context.Context, p *patient) finding {
	if p.site == nil {
		return p.unopened()
	}
	settings := p.site.Settings()
	text := approvalText(settings, time.Now())
	if settings.Approval == site.ApproveEveryone {
		return warn("postern site set approval.mode trusted-domains", "%s", text)
	}
	waiting, err := p.site.Conflicts(ctx, site.ConflictFilter{State: site.ConflictWaiting, Limit: 100})
	if err != nil {
		return bad("see the code in docs/errors.md", "%v", err)
	}
	if len(waiting) > 0 {
		return warn("postern conflict list", "%s; conflicts that wait for a person: %d%s", text, len(waiting), map[bool]string{true: " or more"}[len(waiting) == 100])
	}
	return good("%s", text)
}

func checkBulk(ctx context.Context, p *patient) finding {
	if p.site == nil {
		return p.unopened()
	}
	tokens, err := p.site.BulkTokens(ctx)
	if err != nil {
		return bad("see the code in docs/errors.md", "%v", err)
	}
	unlimited := 0
	for _, t := range tokens {
		if tokenState(t, time.Now()) == "good" && t.MaxUses == 0 {
			unlimited++
		}
	}
	if unlimited > 0 {
		return warn("make tokens with --uses, and block those not needed", "%d good tokens may enrol any number of devices", unlimited)
	}
	return good("%d kept, none without a limit", len(tokens))
}

func checkGateways(_ context.Context, p *patient) finding {
	if p.site == nil {
		return p.unopened()
	}
	gateways := p.site.Gateways()
	if len(gateways) == 0 {
		return warn("postern site gateway add URL PIN", "none is listed")
	}
	for _, g := range gateways {
		if time.Since(g.Heard) > 2*time.Minute {
			return warn("see that it runs and that a connector reaches it", "%s was last heard %s", g.Name, stamp(g.Heard))
		}
	}
	return good("%d listed and heard", len(gateways))
}

func checkConnectors(_ context.Context, p *patient) finding {
	if p.site == nil {
		return p.unopened()
	}
	soon := time.Now().Add(30 * 24 * time.Hour)
	for _, c := range p.site.Connectors() {
		if !c.Blocked && c.Expires.Before(soon) {
			return warn("invite and join it again", "the certificate of %s ends %s", c.Name, stamp(c.Expires))
		}
	}
	if n := len(p.site.Connectors()); n < 2 {
		return warn("two connectors survive the loss of one", "%d joined", n)
	}
	return good("%d joined", len(p.site.Connectors()))
}

func checkGatewayCertificate(_ context.Context, p *patient) finding {
	if p.config.TLS.Certificate != "" {
		return certificateFinding(p.config.TLS.Certificate, "renew it with your authority")
	}
	return certificateFinding(filepath.Join(p.config.State, "role.crt"), "start the gateway and a connector: the site issues it by itself")
}

func checkRoleCertificate(_ context.Context, p *patient) finding {
	return certificateFinding(filepath.Join(p.config.State, "role.crt"), "invite and join the connector again")
}

func certificateFinding(path, remedy string) finding {
	content, err := os.ReadFile(path)
	if err != nil {
		return warn(remedy, "there is none yet")
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return bad(remedy, "%s holds no certificate", path)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	switch {
	case err != nil:
		return bad(remedy, "%v", err)
	case time.Now().After(leaf.NotAfter):
		return bad(remedy, "it ended %s", stamp(leaf.NotAfter))
	case time.Until(leaf.NotAfter) < 30*24*time.Hour:
		return warn(remedy, "it ends %s", stamp(leaf.NotAfter))
	}
	return good("good until %s", stamp(leaf.NotAfter))
}

// checkKeytab reads the keytab as the management point does, and tells what it found in it.
func checkKeytab(_ context.Context, p *patient) finding {
	path := p.config.Kerberos.Keytab
	if path == "" {
		return good("none is set: no Windows authentication")
	}
	keytab, err := kerberos.LoadKeytab(path)
	if err != nil {
		return bad("postern code "+string(catalog.CodeOf(err)), "%v", err)
	}
	audit := keytab.Audit()
	if len(audit.Findings) > 0 {
		var texts []string
		for _, f := range audit.Findings {
			texts = append(texts, string(f.Code)+" "+f.Detail)
		}
		return warn("postern code "+string(audit.Findings[0].Code), "%s: %s", path, strings.Join(texts, "; "))
	}
	return good("%s: %s", path, strings.Join(audit.Principals, ", "))
}

func checkProviderRoots(_ context.Context, p *patient) finding {
	path := p.config.Entra.Roots
	if path == "" {
		return good("those of the system")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return bad("correct entra.roots, or make the file readable for the user that runs the role", "%v", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(content) {
		return bad("correct entra.roots", "%s holds no certificate in PEM form", path)
	}
	return good("%s", path)
}

// checkCompanyCertificates wants at least one pair in the folder that can be used.
func checkCompanyCertificates(_ context.Context, p *patient) finding {
	folder := p.config.ClientCertificates
	if folder == "" {
		return good("none are shown")
	}
	if _, err := os.ReadDir(folder); err != nil {
		return bad("correct client_certificates, or make the folder readable for the user that runs the role", "%v", err)
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.pem"))
	if err != nil || len(files) == 0 {
		return warn("put the machine's certificate there as NAME.pem, its key as NAME.key", "%s holds no .pem file", folder)
	}
	for _, file := range files {
		if _, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, ".pem")+".key"); err != nil {
			return warn("put the certificate there as NAME.pem, its key as NAME.key, for the user that runs the role to read", "%s cannot be used: %v", file, err)
		}
	}
	return good("%d in %s", len(files), folder)
}

func checkKeys(_ context.Context, p *patient) finding {
	protection, err := role.ProtectionFromEnvironment()
	if err != nil {
		return bad("correct POSTERN_PASSPHRASE_FILE", "%v", err)
	}
	if protection.Passphrase == nil && protection.Credential == "" {
		return warn("give a passphrase (POSTERN_PASSPHRASE_FILE) or a systemd credential where the disk may be stolen", "whoever reads the key file reads the keys; it is for its owner only")
	}
	path := cmp.Or(p.config.SiteKey, filepath.Join(p.config.State, "state.key"))
	key, err := keyfile.Open(filepath.Dir(path), keyfile.Options{Name: filepath.Base(path), Passphrase: protection.Passphrase, Credential: protection.Credential})
	switch {
	case err != nil:
		return bad("see that the passphrase or credential is the one of this folder", "%v", err)
	case key.PassphraseUnused():
		return warn("hand the key over as a systemd credential (docs/operations.md), or make the folder anew with the passphrase", "%s", key.Protection())
	}
	return good("opened with a passphrase or credential: %s", key.Protection())
}
