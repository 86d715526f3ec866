package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/client/entra"
	"postern/client/kerberos"
	"postern/logfile"
	"postern/revocation"
)

// clientFlags are common to the client's commands.
type clientFlags struct {
	dir, name, rootKey, tokenFile, caFile string
	trustFirstUse                         bool

	kerberos   kerberos.Config
	noKerberos bool

	certificates, keys []string // of the company, in pairs
	crlCheck           string
	crlSources         []string

	joinState string
	noEntra   bool
	ask       bool // a person may be asked to sign in
}

func newClient(s *session) *cobra.Command {
	var f clientFlags
	c := group("client", "The device's side: enrol, look, send, renew, run", newClientEnrol(s, &f), newClientStatus(s, &f), newClientSend(s, &f), newClientRenew(s, &f), newClientRun(s, &f), newClientRotateKey(s, &f), s.joinState())
	c.PersistentFlags().StringVar(&f.dir, "dir", clientDir(), "state folder of the client, for its owner only")
	c.PersistentFlags().BoolVar(&s.asJSON, "json", false, "print JSON")
	c.PersistentFlags().StringVar(&f.joinState, "join-state", "", "join state file (default: POSTERN_JOIN_STATE, else the system's)")
	c.PersistentFlags().BoolVar(&f.noEntra, "no-entra", false, "do not prove the device by its tenant of Entra")
	return c
}

// clientDir is where the client keeps its state when nobody says otherwise.
func clientDir() string {
	if os.Getuid() == 0 {
		return "/var/lib/postern-client"
	}
	if config, err := os.UserConfigDir(); err == nil {
		return filepath.Join(config, "postern-client")
	}
	return "postern-client"
}

func (f *clientFlags) open(s *session) (*client.Agent, error) {
	logs := logfile.NewFolder(filepath.Join(f.dir, "logs"), logfile.Options{})
	config := client.Config{Dir: f.dir, Logs: logs, Say: func(text string) { fmt.Fprintln(s.err, "warning:", text) }}
	if !f.noKerberos {
		config.Negotiator = f.machine()
	}
	var agent *client.Agent
	if !f.noEntra {
		config.Entra = sync.OnceValues(func() (client.Entra, error) { return f.tenant(s, agent, logs) })
	}
	if !s.asJSON {
		config.Observe = func(step client.Step) { fmt.Fprintln(s.err, clientLine(step)) }
	}
	agent, err := client.Open(config)
	return agent, err
}

// tenant gives the device's way to tokens of its tenant once it is needed.
func (f *clientFlags) tenant(s *session, agent *client.Agent, logs *logfile.Folder) (client.Entra, error) {
	read := entra.PlatformJoinState
	if f.joinState != "" {
		read = func() (entra.JoinState, error) { return entra.ReadJoinState(f.joinState) }
	}
	join, err := read()
	if err != nil {
		return nil, err
	}
	config := entra.Config{Join: join, Log: logs.Log(entra.LogFile())}
	config.Key, config.File = agent.Keep("entra.sealed")
	if f.ask {
		config.SignIn = func(p entra.Prompt) {
			fmt.Fprintf(s.err, "Sign in: open %s and enter the code %s (until %s)\n", p.Address, p.Code, stamp(p.Expires))
		}
	}
	broker, err := entra.New(config)
	if err != nil {
		return nil, err
	}
	return broker.ForClient(), nil
}

// machine gives the machine's credential once it is needed, and then the same one.
func (f *clientFlags) machine() func() (client.Negotiator, error) {
	return sync.OnceValues(func() (client.Negotiator, error) {
		m, err := kerberos.New(f.kerberos)
		if err != nil {
			return nil, err // not m: a nil *Machine in the interface would be no nil
		}
		return m, nil
	})
}

func clientLine(step client.Step) string {
	if step.OK {
		return fmt.Sprintf("ok   %6.0f ms  %s", float64(step.Took.Microseconds())/1000, step.What)
	}
	return fmt.Sprintf("FAIL %6.0f ms  %s: %s", float64(step.Took.Microseconds())/1000, step.What, step.Error)
}

func newClientEnrol(s *session, f *clientFlags) *cobra.Command {
	c := &cobra.Command{
		Use:   "enrol [ccmsetup parameters and properties]",
		Short: "Enrol this device: through a gateway by its tenant, a certificate or a token, or inside by the machine's Kerberos credential",
		Long: `Makes the device's keys, registers it and gets its tokens and policies. Running it again goes on where it stopped and never makes a second device.

It understands ccmsetup's documented parameters (/mp:, /regtoken:, /nocrlcheck, ...) and properties (CCMHOSTNAME=, SMSSITECODE=, SMSMP=, ...).
The token is best given in a file, or on standard input with --token-file -. On the command line it works too, with a warning, since other processes can read it there.
--root-key is the hash of the site root: without it, or a file of authorities (--ca-file), the internet path and plain HTTP are refused.

What proves the device is tried in this order: a valid certificate of the company (--certificate, or /UsePKICert and a store), its tenant of Entra
(the device's own token, then a user's), the token. What is used is told as a step. The gateway says for which applications the tenant is asked, unless
AADTENANTID=, AADCLIENTAPPID= and AADRESOURCEURI= do; "postern client join-state" shows what the device knows of its tenant.

Under --ca-file, or the system's authorities, it is looked whether the server's certificate is revoked. /nocrlcheck leaves that out for this run;
--crl-check says what counts from then on. Name and authority are always checked.

Inside, SMSMP= or /mp: names the management point to ask first; it is asked which others there are, and one of the site's is used, https before http.
The device proves itself with the machine's keytab (HOST$) when there is one, and is approved if the site trusts its domain. Without, or when Kerberos fails, it says so and waits for an administrator.
--trust-first-use takes the site root from the first management point that answers. Whoever answers decides what the device trusts from then on; use it only where you would type "yes" to an unknown SSH key.`,
		Example: `  postern client enrol CCMHOSTNAME=gw.example.net/CCM_Proxy_MutualAuth/72057594037927937 SMSSITECODE=P01 --root-key 9f86d0... --token-file token
  postern client enrol CCMHOSTNAME=gw.example.net/CCM_Proxy_MutualAuth/72057594037927937 SMSSITECODE=P01 --root-key 9f86d0...     # a device that has joined a tenant
  postern client enrol CCMHOSTNAME=... SMSSITECODE=P01 --root-key 9f86d0... --certificate device.pem --certificate-key device.key
  postern client enrol /mp:https://mp.corp.example SMSSITECODE=P01 --root-key 9f86d0...     # inside; the machine's keytab proves the device
  postern client enrol SMSMP=https://mp.corp.example --root-key 9f86d0... --no-kerberos     # inside; waits for an administrator`,
		RunE: func(c *cobra.Command, arguments []string) error {
			setup, err := f.setup(s, arguments)
			if err != nil {
				return err
			}
			for _, warning := range setup.Warnings {
				fmt.Fprintln(s.err, "warning:", warning)
			}
			for _, note := range setup.Notes {
				fmt.Fprintln(s.err, "note:", note)
			}
			f.ask = true
			agent, err := f.open(s)
			if err != nil {
				return err
			}
			defer agent.Close()
			if err := agent.Enrol(c.Context(), setup); err != nil {
				return err
			}
			return s.printStatus(agent)
		},
	}
	c.Flags().StringVar(&f.rootKey, "root-key", "", "hash of the site root: the trust anchor")
	c.Flags().StringVar(&f.caFile, "ca-file", "", "PEM file with the authorities of the gateway's certificate, where it is not the site's")
	c.Flags().StringArrayVar(&f.certificates, "certificate", nil, "PEM file with a certificate of the company for this device; of several the first valid one is used")
	c.Flags().StringArrayVar(&f.keys, "certificate-key", nil, "PEM file with its key, when it is not in the same file")
	c.Flags().StringVar(&f.crlCheck, "crl-check", "", "from then on: require, prefer or off, for revocation lists of servers' certificates (default: require)")
	c.Flags().StringArrayVar(&f.crlSources, "crl", nil, "where to ask besides what the server's certificate says: an address of a list, or ocsp:ADDRESS")
	c.Flags().StringVar(&f.tokenFile, "token-file", "", "file with the bulk registration token; - for standard input")
	c.Flags().BoolVar(&f.trustFirstUse, "trust-first-use", false, "inside, without --root-key: take the site root of the first management point that answers, say so, and pin it")
	c.Flags().StringVar(&f.kerberos.Keytab, "keytab", "", "keytab with the machine's key (default: KRB5_KTNAME, krb5.conf, /etc/krb5.keytab)")
	c.Flags().StringVar(&f.kerberos.CCache, "ccache", "", "credential cache in a file, instead of a keytab")
	c.Flags().StringVar(&f.kerberos.Config, "krb5-config", "", "krb5.conf (default: KRB5_CONFIG, /etc/krb5.conf)")
	c.Flags().StringVar(&f.kerberos.Principal, "principal", "", "the machine's principal (default: the keytab's first that ends in $)")
	c.Flags().BoolVar(&f.noKerberos, "no-kerberos", false, "do not prove the device by Kerberos")
	c.MarkFlagsMutuallyExclusive("keytab", "ccache")
	for _, name := range []string{"keytab", "ccache", "krb5-config", "principal"} {
		c.MarkFlagsMutuallyExclusive("no-kerberos", name)
	}
	c.Flags().StringVar(&f.name, "name", "", "name of the device (default: this machine's host name)")
	return c
}

func (f *clientFlags) setup(s *session, arguments []string) (client.Setup, error) {
	setup, err := client.ParseCommandLine(arguments)
	if err != nil {
		return setup, err
	}
	setup.TrustFirstUse = f.trustFirstUse
	setup.CRLCheck, setup.CRLSources = revocation.Policy(f.crlCheck), f.crlSources
	if len(f.keys) > 0 && len(f.keys) != len(f.certificates) {
		return setup, catalog.Errorf(catalog.ClientCommandConflict, "there are %d --certificate and %d --certificate-key", len(f.certificates), len(f.keys))
	}
	for i, file := range f.certificates {
		next := client.CertificateFile{Certificate: file}
		if len(f.keys) > 0 {
			next.Key = f.keys[i]
		}
		setup.Certificate.Files = append(setup.Certificate.Files, next)
	}
	setup.CAFile = cmp.Or(f.caFile, setup.CAFile)
	setup.RootKey = cmp.Or(f.rootKey, setup.RootKey)
	setup.Name = cmp.Or(f.name, setup.Name)
	setup.TokenFile = cmp.Or(f.tokenFile, setup.TokenFile)
	return setup, setup.ReadToken(s.in)
}

func (s *session) printStatus(agent *client.Agent) error {
	status := agent.Status()
	return s.print(status, func(w io.Writer) { writeStatus(w, status) })
}

// writeStatus prints a client's state for people.
func writeStatus(w io.Writer, status client.Status) {
	line := func(name string, value any) {
		if text := fmt.Sprint(value); text != "" && text != "-" {
			fmt.Fprintf(w, "%-16s %s\n", name, text)
		}
	}
	line("state", fmt.Sprintf("%s, since %s", status.State, stamp(status.Since)))
	line("waiting for", status.WaitingFor)
	line("next try", stamp(status.NextTry))
	if status.LastError != "" {
		line("last error", fmt.Sprintf("%s: %s (`postern code %s`)", status.LastError, status.ErrorText, status.LastError))
	}
	line("client id", status.ClientID)
	if status.ClientID != "" {
		line("approval", approvalLine(status))
		line("opens", status.Level)
	}
	line("proved by", status.Proof)
	line("not by Kerberos", status.NoKerberos)
	line("certificate", status.Certificate)
	line("tenant", status.Entra)
	line("name", status.Name)
	line("site", status.SiteCode)
	writeWay(line, status)
	line("gateway", status.Gateway)
	line("management point", status.ManagementPoint)
	line("chosen", status.Chosen)
	line("trusts", status.Anchor)
	line("trust", status.Trust)
	line("revocation", status.Revocation)
	for _, what := range status.Verified {
		line("verified", what)
	}
	line("key", status.Key)
	line("protected by", status.Protection)
	for _, t := range status.Tokens {
		text := fmt.Sprintf("%s, until %s", t.Kind, stamp(t.Expires))
		if !t.Renewal.IsZero() {
			text += ", renewed from " + stamp(t.Renewal) + " on"
		}
		line("token", text)
	}
	for _, p := range status.Policies {
		line("policy", fmt.Sprintf("%s version %s %s", p.PolicyID, p.Version, p.Category))
	}
	if status.ClockOffset != 0 {
		line("clock", fmt.Sprintf("the site's is %s ahead", status.ClockOffset))
	}
}

// approvalLine says what the site decided, and what is to be done when it has not.
func approvalLine(status client.Status) string {
	text := fmt.Sprintf("status %d, %s", status.ApprovalStatus, status.Approval)
	if status.ApprovalStatus == ccm.ApprovalNone {
		text = fmt.Sprintf("status 0, not approved yet; ask an administrator: postern device approve %s --why TEXT (`postern code %s`)", status.ClientID, catalog.ClientWaitsForApproval)
	}
	return text
}

func newClientStatus(s *session, f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Say what state the client is in, since when, what it waits for, which way it goes and why, and what protects its key", Args: cobra.NoArgs,
		Example: `  postern client status
  postern client status --json | jq -r .state`,
		RunE: func(*cobra.Command, []string) error {
			if _, err := os.Stat(f.dir); errors.Is(err, fs.ErrNotExist) { // to look makes no folder
				return catalog.Errorf(catalog.ClientNotEnrolled, "there is no folder %s", f.dir)
			}
			agent, err := f.open(s)
			if err != nil {
				return err
			}
			defer agent.Close()
			return s.printStatus(agent)
		},
	}
}

func newClientSend(s *session, f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "send ENDPOINT [FILE]", Short: "Send a signed message to an endpoint of the management point and print the reply", Args: cobra.RangeArgs(1, 2),
		Long:    "Sends the XML in FILE (standard input without one) as a synchronous message, signed with the device's key and with its CCM token.",
		Example: "  echo '<SiteInformationRequest SchemaVersion=\"1.00\"><SiteCode Name=\"P01\"/></SiteInformationRequest>' | postern client send MP_LocationManager",
		RunE: func(c *cobra.Command, arguments []string) error {
			in := s.in
			if len(arguments) == 2 {
				file, err := os.Open(arguments[1])
				if err != nil {
					return catalog.Wrap(catalog.InvalidArgument, err, "the message %s cannot be read", arguments[1])
				}
				defer file.Close()
				in = file
			}
			body, err := io.ReadAll(io.LimitReader(in, maxInput))
			if err != nil {
				return err
			}
			return f.with(s, c.Context(), func(ctx context.Context, agent *client.Agent) error {
				reply, err := agent.Send(ctx, arguments[0], strings.TrimSpace(string(body)))
				if err != nil {
					return err
				}
				return s.print(map[string]string{"reply": reply}, func(w io.Writer) { fmt.Fprintln(w, reply) })
			})
		},
	}
}

func newClientRenew(s *session, f *clientFlags) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "renew", Short: "Renew the client's tokens where it is time", Args: cobra.NoArgs,
		Long: "Renews what is due, once, by whichever way is open; a device without tokens asks for the site's gateways. `postern client run` does so by itself for as long as it runs.",
		Example: `  postern client renew
  postern client renew --force    # both tokens, due or not`,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.with(s, c.Context(), func(ctx context.Context, agent *client.Agent) error {
				if err := agent.Renew(ctx, force); err != nil {
					return err
				}
				return s.printStatus(agent)
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "renew even where it is not time")
	return c
}

func newClientRun(s *session, f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "Keep the client's tokens fresh until it is stopped", Args: cobra.NoArgs,
		Long: `Renews the tokens by a timer, each device at a time of its own, and goes the way that is open: to the management point, or through a gateway.
Run it as a service of the system. It ends with status 0 when it is told to stop, and with an error that a person must see to when waiting would not help.`,
		Example: `  postern client run
  postern client run --dir /var/lib/postern-client`,
		RunE: func(c *cobra.Command, _ []string) error {
			return f.with(s, c.Context(), func(ctx context.Context, agent *client.Agent) error { return agent.Run(ctx) })
		},
	}
}

func (f *clientFlags) with(s *session, ctx context.Context, act func(context.Context, *client.Agent) error) error {
	agent, err := f.open(s)
	if err != nil {
		return err
	}
	defer agent.Close()
	return act(ctx, agent)
}
