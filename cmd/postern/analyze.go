package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/client"
	"postern/connector"
	"postern/diag"
	"postern/diag/analyze"
	"postern/gateway"
	"postern/internal/role"
	"postern/site"
)

// analyzeFlags are what a person says beside the address.
type analyzeFlags struct {
	options analyze.Options

	site                          bool
	configs                       []string
	caFile, clientRoots           string
	tokenFile, stateDir           string
	certificateFile, certificateK string
}

func newAnalyze(s *session) *cobra.Command {
	var f analyzeFlags
	c := &cobra.Command{
		Use: "analyze https://GATEWAY | --site", Short: "Go a device's way to a gateway step by step, ours or Microsoft's, and name the step that fails", Args: cobra.MaximumNArgs(1),
		Long: `The connection analyzer: name, connection, proxy, TLS, certificate, revocation, versions, ServiceMetadata, clock, tenant, token, client certificate,
management points through the gateway, and that request at every hop. Each check says pass, warning, failure or why it was not made, how long it took,
and what to do. GATEWAY may have the path of CCMHOSTNAME, which tells the id of the management point.

Where a proxy is set for this machine (HTTPS_PROXY), it goes through it like any client here, and says whether the proxy opens TLS.

It works against Microsoft's gateway too. A token is sent only over a connection whose certificate was found good, only to a gateway of ours, and never
printed. With --state it asks as that device, whose folder may get a renewed token; nothing else changes anywhere.

--site looks from the other side: what the roles of the given configurations say of themselves, whether the management points answer, which connectors
there are, whether each gateway has confirmed what the site says, and whether each can be reached from here.

Exit status 1 when something fails; warnings and what could not be told are 0. docs/analyze.md explains every check.`,
		Example: `  postern analyze https://gw.contoso.example --resolver 1.1.1.1
  postern analyze https://gw.contoso.example/CCM_Proxy_MutualAuth/72057594037937995 --certificate wk01.pem --certificate-key wk01.key
  postern analyze https://gw1.contoso.example --root-key 9f86d0... --token-file token --tenant 7b0c3806-d28c-4a45-adb2-fb9f94a462f8
  postern analyze https://gw1.contoso.example --state /var/lib/postern-client --logs /var/lib/postern/gateway/logs
  postern analyze --site --config site/mp.yaml --config gateway/gateway.yaml`,
		RunE: func(c *cobra.Command, arguments []string) error {
			switch {
			case f.options.Timeout <= 0:
				return usageError{fmt.Errorf("--timeout is %s; each answer needs some time", f.options.Timeout)}
			case f.site == (len(arguments) == 1):
				return usageError{errors.New("give the address of a gateway, or --site; see `postern analyze --help`")}
			case f.site:
				site, err := f.fromSite(c.Context())
				if err != nil {
					return err
				}
				return s.diagnose(c.Context(), "from the site's seat", analyze.NewSite(site))
			}
			f.options.Gateway = arguments[0]
			if err := f.fill(s); err != nil {
				return err
			}
			return s.diagnose(c.Context(), "the way to "+diag.Printable(arguments[0])+", from here", analyze.New(f.options))
		},
	}
	flags := c.Flags()
	flags.BoolVar(&f.site, "site", false, "from the site's seat: its roles, gateways, connectors")
	flags.StringArrayVar(&f.configs, "config", nil, "with --site: configuration of a role on this machine (may be given several times; default as for other commands)")
	flags.StringArrayVar(&f.options.Resolvers, "resolver", nil, "DNS server whose answer to compare with this machine's, host[:port] (may be given several times)")
	flags.Uint64Var(&f.options.RoleID, "role", 0, "id of the management point behind the gateway, as in CCMHOSTNAME")
	flags.StringVar(&f.options.RootKey, "root-key", "", "hash of the site root, for a gateway whose certificate the site issued (default: that of --state)")
	flags.StringVar(&f.caFile, "ca-file", "", "PEM file with the authorities of the gateway's certificate (default: the system's)")
	flags.StringVar(&f.options.TenantID, "tenant", "", "id of an Entra tenant: is it onboarded?")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with a token to explain; - for standard input")
	flags.StringVar(&f.certificateFile, "certificate", "", "PEM file with a client's certificate and chain")
	flags.StringVar(&f.certificateK, "certificate-key", "", "PEM file with its key, when it is not in the same file")
	flags.StringVar(&f.clientRoots, "client-roots", "", "PEM file with the authorities that the site allows for clients")
	flags.StringVar(&f.stateDir, "state", "", "state folder of a postern client: ask as that device")
	flags.StringArrayVar(&f.options.Logs, "logs", nil, "log folder of a role, in which the request is looked for (may be given several times)")
	flags.DurationVar(&f.options.Timeout, "timeout", diag.Patience, "how long to wait for each answer")
	flags.BoolVar(&s.asJSON, "json", false, "print JSON")
	c.MarkFlagsMutuallyExclusive("root-key", "ca-file")
	return c
}

// diagnose runs checks and prints each finding as it comes, or all as JSON. It ends with status 1 when one failed, or when not all were made.
func (s *session) diagnose(ctx context.Context, headline string, checks []diag.Check) error {
	tell := func(f diag.Finding) { diag.Write(s.out, f) }
	if s.asJSON {
		tell = nil
	} else {
		fmt.Fprintf(s.out, "%s\n\n", headline)
	}
	findings := diag.Run(ctx, checks, tell)
	if err := s.print(findings, func(w io.Writer) { fmt.Fprintf(w, "\n%s\n", diag.Summary(findings)) }); err != nil {
		return err
	}
	if diag.Failed(findings) || ctx.Err() != nil {
		return exitError{exitFailed}
	}
	return nil
}

// fill reads the files that were named.
func (f *analyzeFlags) fill(s *session) (err error) {
	o := &f.options
	if o.RootKey != "" {
		if o.RootKey, err = client.ParseRootKey(o.RootKey); err != nil {
			return err
		}
	}
	if o.Authorities, err = pemCertificates(f.caFile); err != nil {
		return err
	}
	if o.ClientRoots, err = pemCertificates(f.clientRoots); err != nil {
		return err
	}
	if o.Certificate, err = readPair(f.certificateFile, f.certificateK); err != nil {
		return err
	}
	if o.Token, err = readToken(s.in, f.tokenFile); err != nil || f.stateDir == "" {
		return err
	}
	return f.device()
}

// device lets the analyzer ask as the device of a folder. A folder that is none is not made.
func (f *analyzeFlags) device() error {
	if _, err := os.Stat(filepath.Join(f.stateDir, "state.json")); err != nil {
		return catalog.Wrap(catalog.ClientNotEnrolled, err, "%s is not the state folder of a client", f.stateDir)
	}
	f.options.Device = func(observe func(client.Step)) (*client.Agent, error) {
		return client.Open(client.Config{Dir: f.stateDir, Observe: observe})
	}
	agent, err := f.options.Device(nil)
	if err != nil {
		return err
	}
	defer agent.Close()
	if key, ok := strings.CutPrefix(agent.Status().Anchor, "site root "); ok && f.options.RootKey == "" && f.caFile == "" {
		f.options.RootKey = key
	}
	return nil
}

// maxPEM bounds a file of certificates.
const maxPEM = 4 << 20

func readLimited(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return content, err
}

func pemCertificates(path string) (list []*x509.Certificate, err error) {
	if path == "" {
		return nil, nil
	}
	content, err := readLimited(path, maxPEM)
	if err != nil {
		return nil, catalog.Wrap(catalog.ClientCAFile, err, "%s", path)
	}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, catalog.Wrap(catalog.ClientCAFile, err, "%s", path)
		}
		list = append(list, certificate)
	}
	if len(list) == 0 {
		return nil, catalog.Errorf(catalog.ClientCAFile, "%s holds no certificate in PEM form", path)
	}
	return list, nil
}

// readPair reads a certificate and, where there is one, its key. No key is no error: that is one of the things to find out.
func readPair(certificate, key string) (*tls.Certificate, error) {
	if certificate == "" {
		return nil, nil
	}
	chain, err := pemCertificates(certificate)
	if err != nil {
		return nil, catalog.Wrap(catalog.ClientCertificateUnusable, err, "%s", certificate)
	}
	pair, err := tls.LoadX509KeyPair(certificate, cmp.Or(key, certificate))
	if err == nil {
		return &pair, nil
	}
	if key != "" {
		return nil, catalog.Wrap(catalog.ClientCertificateUnusable, err, "%s with the key %s", certificate, key)
	}
	without := &tls.Certificate{}
	for _, c := range chain {
		without.Certificate = append(without.Certificate, c.Raw)
	}
	return without, nil
}

// maxTokenFile bounds a file with a token.
const maxTokenFile = 128 << 10

func readToken(in io.Reader, path string) (string, error) {
	if path == "" {
		return "", nil
	}
	var content []byte
	var err error
	if path == "-" {
		content, err = io.ReadAll(io.LimitReader(in, maxTokenFile))
	} else {
		content, err = readLimited(path, maxTokenFile)
	}
	text := strings.TrimSpace(string(content))
	if err != nil || text == "" {
		return "", catalog.Wrap(catalog.ClientTokenFile, err, "%s holds no token", path)
	}
	return text, nil
}

// fromSite asks each role at its administration door, and reads the site where a management point's configuration is among them.
func (f *analyzeFlags) fromSite(ctx context.Context) (analyze.Site, error) {
	site := analyze.Site{Timeout: f.options.Timeout}
	if len(f.configs) == 0 {
		path, err := (&session{}).findConfig()
		if err != nil {
			return site, err
		}
		f.configs = []string{path}
	}
	for _, path := range f.configs {
		config, err := role.Load(path)
		if err != nil {
			return site, err
		}
		site.Roles = append(site.Roles, func(ctx context.Context) analyze.Role { return askRole(ctx, config, path) })
		if config.Role == role.ManagementPoint {
			if err := readSite(ctx, config, &site); err != nil {
				return site, err
			}
		}
	}
	return site, nil
}

// readSite takes what the site has written down of its roles.
func readSite(ctx context.Context, config role.Config, into *analyze.Site) error {
	return lookAt(ctx, config, func(st *site.Site) error {
		into.Code, into.Epoch, into.RootKey = string(st.SiteCode()), st.Epoch(), st.RootPin()
		for _, p := range st.ManagementPoints() {
			into.ManagementPoints = append(into.ManagementPoints, analyze.Point{Name: p.Name, URL: p.InternalURL})
		}
		for _, g := range st.Gateways() {
			into.Gateways = append(into.Gateways, analyze.Gateway{Name: g.Name, URL: g.URL, Pin: g.Pin, Acknowledged: g.Acknowledged, Heard: g.Heard})
		}
		for _, c := range st.Connectors() {
			into.Connectors = append(into.Connectors, analyze.Connector{Name: c.Name, Expires: c.Expires, Blocked: c.Blocked})
		}
		return nil
	})
}

func askRole(ctx context.Context, config role.Config, path string) analyze.Role {
	r := analyze.Role{Role: config.Role, Name: config.Name, Config: path}
	door := role.Knock(config)
	if door == nil {
		r.Err = catalog.Errorf(catalog.AdminDoorClosed, "nothing answers at %s", role.DoorPath(config))
		return r
	}
	health, err := door.Health(ctx)
	if err != nil {
		r.Err = err
		return r
	}
	r.OK, r.Problems = health.OK, health.Problem
	r.Facts = append(facts(health), "up since "+stamp(health.Since))
	return r
}

// facts are the lines that tell most of a role's health.
func facts(health role.Health) []string {
	content, err := json.Marshal(health.Detail["status"])
	if err != nil {
		return nil
	}
	switch health.Role {
	case role.Gateway:
		var s gateway.Status
		if json.Unmarshal(content, &s) != nil {
			return nil
		}
		return []string{
			fmt.Sprintf("connections from connectors: %d; the site was last heard %s", len(s.Connectors), stamp(s.LastHeard)),
			fmt.Sprintf("epoch %d, confirmed to the site %d; devices see the certificate of the %s until %s", s.Epoch, s.Acknowledged, s.Certificate.Source, stamp(s.Certificate.NotAfter)),
		}
	case role.Connector:
		var s connector.Status
		if json.Unmarshal(content, &s) != nil {
			return nil
		}
		return []string{fmt.Sprintf("epoch %d, the site was last heard %s; gateways: %d", s.Epoch, stamp(s.LastHeard), len(s.Gateways))}
	}
	return []string{fmt.Sprintf("site %v, epoch %.0f, waiting in the inbox: %v", health.Detail["site_code"], health.Detail["epoch"], health.Detail["inbox_waiting"])}
}
