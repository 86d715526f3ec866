package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/internal/role"
	"postern/site"
)

func newServe(s *session) *cobra.Command {
	c := &cobra.Command{
		Use:   "serve mp|gateway|connector --config FILE",
		Short: "Run a role until it is told to stop",
		Example: `  postern serve mp --config site/mp.yaml
  postern serve gateway --config gateway/gateway.yaml
  postern serve connector --config connector/connector.yaml`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: slices.Sorted(maps.Keys(roleWords())),
		RunE: func(c *cobra.Command, arguments []string) error {
			return s.serve(c.Context(), roleWords()[arguments[0]])
		},
	}
	c.Flags().StringVar(&s.config, "config", "", "configuration file of the role")
	c.MarkFlagRequired("config")
	return c
}

// roleWords are the words of the command line for the roles.
func roleWords() map[string]string {
	return map[string]string{"mp": role.ManagementPoint, "gateway": role.Gateway, "connector": role.Connector}
}

func (s *session) serve(ctx context.Context, wanted string) error {
	config, err := role.Load(s.config)
	if err != nil {
		return err
	}
	if config.Role != wanted {
		return catalog.Errorf(catalog.ConfigInvalid, "%s is the configuration of a %s, not of a %s", s.config, config.Role, wanted)
	}
	protection, err := role.ProtectionFromEnvironment()
	if err != nil {
		return err
	}
	if wanted == role.ManagementPoint {
		role.UseProcessors()
	}
	running, err := role.Start(ctx, config, role.Environment{Protection: protection, Verbs: verbs})
	if err != nil {
		return err
	}
	fmt.Fprintf(s.err, "%s %s is up.\n", config.Role, config.Name)
	for _, name := range slices.Sorted(maps.Keys(running.Addresses)) {
		fmt.Fprintf(s.err, "  %-6s %s\n", name, running.Addresses[name])
	}
	fmt.Fprintf(s.err, "  logs   %s\n", config.Logs)
	if running.Pin != "" {
		fmt.Fprintf(s.err, "  pin    %s\n", running.Pin)
	}
	fmt.Fprintln(s.err, "Ctrl-C stops it.")
	return running.Wait(ctx)
}

func verbs(st *site.Site, backup func(ctx context.Context, path string) error) role.RunVerb {
	return dispatch(st, backup)
}

func newGateway(s *session) *cobra.Command {
	var ask role.NewGateway
	init := &cobra.Command{
		Use:   "init --name HOST --site-root HASH",
		Short: "Make a gateway's key in place and print the pin to list it with",
		Example: `  postern gateway init --name gw.example.net --site-root 9f86d0... --listen 0.0.0.0:443 --dir gateway
  postern gateway init --name localhost --site-root 9f86d0...`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			protection, err := role.ProtectionFromEnvironment()
			if err != nil {
				return err
			}
			made, err := role.InitGateway(ask, protection)
			if err != nil {
				return err
			}
			return s.print(made, func(w io.Writer) {
				fmt.Fprintf(w, "Gateway %s is made.\n\n  address        %s\n  pin            %s\n  configuration  %s\n\n", made.Name, made.URL, made.Pin, made.Config)
				fmt.Fprintf(w, "Next, at the site:\n  postern site gateway add %s %s\nThen here:\n  postern serve gateway --config %s\n", made.URL, made.Pin, made.Config)
			})
		},
	}
	init.Flags().StringVar(&ask.Name, "name", "", "host name by which devices reach the gateway")
	init.Flags().StringVar(&ask.SiteRoot, "site-root", "", "hash of the site root, from postern site init")
	init.Flags().StringVar(&ask.Listen, "listen", "127.0.0.1:8443", "address to listen on")
	init.Flags().StringVar(&ask.Dir, "dir", "gateway", "folder for the gateway")
	init.Flags().StringVar(&ask.TLS.Certificate, "tls-certificate", "", "PEM file: certificate for devices from your own or a public authority; without it the site issues one")
	init.Flags().StringVar(&ask.TLS.Key, "tls-key", "", "PEM file: its private key")
	init.Flags().BoolVar(&s.asJSON, "json", false, "print JSON")
	init.MarkFlagRequired("name")
	init.MarkFlagRequired("site-root")
	return group("gateway", "A gateway: make one", init)
}

func newConnector(s *session) *cobra.Command {
	var ask role.NewConnector
	join := &cobra.Command{
		Use:   "join --mp URL --code CODE",
		Short: "Make a connector's key in place and join it to a site",
		Long:  "Makes a connector's key in place and gets a certificate for it with the one-time code of `postern site connector invite`.\n--code - reads the code from standard input, so that no process list shows it.",
		Example: `  postern connector join --mp https://mp.corp.example:8444 --code "$CODE" --dir connector
  postern site connector invite dc1 | postern connector join --mp https://localhost:8444 --code -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if ask.Code == "-" {
				content, err := io.ReadAll(io.LimitReader(s.in, 4096))
				if err != nil {
					return err
				}
				ask.Code = oneLine(string(content))
			}
			protection, err := role.ProtectionFromEnvironment()
			if err != nil {
				return err
			}
			made, err := role.JoinConnector(c.Context(), ask, protection, time.Now)
			if err != nil {
				return err
			}
			return s.print(made, func(w io.Writer) {
				fmt.Fprintf(w, "Connector %s has joined site %s.\n\n  certificate ends  %s\n  configuration     %s\n\nNext:\n  postern serve connector --config %s\n", made.Name, made.SiteCode, stamp(made.Expires), made.Config, made.Config)
			})
		},
	}
	join.Flags().StringVar(&ask.ManagementPoint, "mp", "", "https address of the management point")
	join.Flags().StringVar(&ask.Code, "code", "", "one-time code from postern site connector invite; - for standard input")
	join.Flags().StringVar(&ask.Dir, "dir", "connector", "folder for the connector")
	join.Flags().BoolVar(&s.asJSON, "json", false, "print JSON")
	join.MarkFlagRequired("mp")
	join.MarkFlagRequired("code")
	return group("connector", "A connector: join one to a site", join)
}

// newLog switches verbose log lines of a running role.
func newLog(s *session) *cobra.Command {
	verbose := &cobra.Command{
		Use: "verbose on|off --config FILE", Short: "Switch verbose log lines of a running role on or off", Args: cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"on", "off"}, Example: "  postern log verbose on --config connector/connector.yaml",
		RunE: func(c *cobra.Command, arguments []string) error {
			door, config, err := s.door()
			if err != nil {
				return err
			}
			if err := door.SetVerbose(c.Context(), arguments[0] == "on"); err != nil {
				return err
			}
			return s.print(map[string]string{"role": config.Role, "verbose": arguments[0]}, func(w io.Writer) {
				fmt.Fprintf(w, "Verbose lines of %s %s are %s; the logs are in %s.\n", config.Role, config.Name, arguments[0], config.Logs)
			})
		},
	}
	metrics := &cobra.Command{
		Use: "metrics --config FILE", Short: "Print the metrics of a running role (Prometheus text)", Args: cobra.NoArgs,
		Example: "  postern log metrics --config gateway/gateway.yaml | grep refused",
		RunE: func(c *cobra.Command, _ []string) error {
			door, _, err := s.door()
			if err != nil {
				return err
			}
			return door.Metrics(c.Context(), s.out)
		},
	}
	g := group("log", "Log lines and metrics of a running role", verbose, metrics)
	g.PersistentFlags().StringVar(&s.config, "config", "", "configuration file of the role")
	g.PersistentFlags().BoolVar(&s.asJSON, "json", false, "print JSON")
	return g
}

// door opens the administration door of the role that --config names.
func (s *session) door() (*role.Door, role.Config, error) {
	config, err := s.configuration()
	if err != nil {
		return nil, config, err
	}
	door := role.Knock(config)
	if door == nil {
		return nil, config, catalog.Errorf(catalog.AdminDoorClosed, "nothing answers at %s", role.DoorPath(config))
	}
	return door, config, nil
}

func newBackup(s *session) *cobra.Command {
	return addSiteFlags(s, &cobra.Command{
		Use: "backup FILE", Short: "Copy the store while it is in use", Args: cobra.ExactArgs(1),
		Long:    "Writes a consistent copy of the store. The keys in it stay sealed: keep site.key too, and keep it somewhere else.",
		Example: "  postern backup /var/backups/site-$(date +%F).db",
		RunE: func(c *cobra.Command, arguments []string) error {
			if s.site == nil { // the caller's folder is not the role's
				if absolute, err := filepath.Abs(arguments[0]); err == nil {
					arguments[0] = absolute
				}
				if _, err := os.Stat(arguments[0]); err == nil {
					return catalog.Errorf(catalog.AlreadyExists, "%s exists already", arguments[0])
				}
			}
			return s.siteVerb(func(ctx context.Context, _ *site.Site, arguments []string) error {
				if err := s.takeBackup(ctx, arguments[0]); err != nil {
					return err
				}
				return s.print(map[string]string{"backup": arguments[0]}, func(w io.Writer) { fmt.Fprintf(w, "The store is copied to %s.\n", arguments[0]) })
			})(c, arguments)
		},
	})
}

func (s *session) takeBackup(ctx context.Context, path string) error {
	if s.backup != nil {
		return s.backup(ctx, path)
	}
	return s.held.Backup(ctx, path)
}

func newRestore(s *session) *cobra.Command {
	return addSiteFlags(s, &cobra.Command{
		Use: "restore FILE", Short: "Put a backup in the place of the store; the store that is there is kept beside it", Args: cobra.ExactArgs(1),
		Long: `The management point must be stopped. What was changed after the backup was taken is not in it; the command says how old it is.

What was revoked after the backup was taken stays revoked: the management point keeps it in revocations.log in its state folder, and the command applies it
again and prints it. What was unblocked since is blocked again, as it is in the backup.`,
		Example: "  postern restore /var/backups/site-2026-11-22.db --config site/mp.yaml",
		RunE: func(c *cobra.Command, arguments []string) error {
			config, err := s.configuration()
			if err != nil {
				return err
			}
			info, err := os.Stat(arguments[0])
			if err != nil {
				return catalog.Wrap(catalog.BackupFailed, err, "the backup %s cannot be read", arguments[0])
			}
			kept, err := role.Restore(config, arguments[0], time.Now())
			if err != nil {
				return err
			}
			var again []site.Revoked
			var problems []error
			if err := s.direct(c.Context(), config, func(st *site.Site) error {
				again, problems = st.AppliedAgain(), st.RevocationProblems()
				role.BringBackRoots(c.Context(), config, st) // so that the root of now signs what follows
				return noteRestore(c.Context(), st, config, s.actor)
			}); err != nil {
				fmt.Fprintf(s.err, "The backup is in place, and the site does not open with it. The store before it is %s.\n", cmp.Or(kept, "none"))
				return err
			}
			for _, problem := range problems {
				report(s.err, problem)
			}
			return s.print(map[string]any{"restored": config.Store, "kept": kept, "applied_again": append([]site.Revoked{}, again...)}, func(w io.Writer) {
				fmt.Fprintf(w, "Restored %s, as it was at %s.\nThe store before it is %s.\n", config.Store, stamp(info.ModTime()), cmp.Or(kept, "none"))
				showAgain(w, config, again)
			})
		},
	})
}

// noteRestore puts the restore into the trust log and a signed checkpoint beside it, so that the checkpoints of what was there before are no alarm.
func noteRestore(ctx context.Context, st *site.Site, config role.Config, by string) error {
	if err := st.Restored(ctx, by); err != nil {
		return err
	}
	signed, _, err := st.CheckpointAfterRestore(ctx)
	if err != nil {
		return err
	}
	return role.AppendCheckpoint(role.CheckpointFile(config), signed)
}
