package main

import (
	"cmp"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/diag"
	"postern/diag/kerberos"
	"postern/internal/role"
)

func newKerberos(s *session) *cobra.Command {
	c := &cobra.Command{Use: "kerberos", Short: "Say why Windows authentication does not work, and what to do about it", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(newKerberosCheck(s))
	return c
}

func newKerberosCheck(s *session) *cobra.Command {
	var options kerberos.Options
	var seat string
	c := &cobra.Command{
		Use: "check [--server HOST|URL]", Short: "Go through a computer's Kerberos login at a management point step by step", Args: cobra.NoArgs,
		Long: `Goes through the steps by which a computer proves its account to a management point, and names the one that fails.

From a client's seat: the name, the KDC, the clocks, the login, the ticket with the realms on the way, the request itself.
From a server's seat: the keytab, the name, the KDC, the clocks, and whether the KDC's present key is in the keytab.
Both ask the directory (LDAP, with this machine's own ticket) who owns the service name and which trusts there are; where
that cannot be asked, the command to run by hand is named. Nothing is changed anywhere. It talks to the server, to the
KDCs of the realms on the way and to the realm's directory server, or the one of --ldap, and to nobody else.

Without --keytab and --ccache it uses what Kerberos programs use: KRB5_KTNAME or /etc/krb5.keytab (readable by root), then
KRB5CCNAME or the user's cache in /tmp. Exit status 1 when something fails; warnings and what could not be told are 0.`,
		Example: `  postern kerberos check --server mp.corp.example
  postern kerberos check --server https://mp.corp.example:8443 --ccache /tmp/krb5cc_0 --ldap dc1.corp.example
  postern kerberos check --server https://mpcluster.corp.example --address 10.0.0.12
  postern kerberos check --seat server --config site/mp.yaml --server mp.corp.example
  postern kerberos check --seat server --keytab mp.keytab --server mp.corp.example --json`,
		RunE: func(c *cobra.Command, _ []string) error {
			options.Seat = kerberos.Seat(seat)
			if seat != "" && options.Seat != kerberos.Client && options.Seat != kerberos.Server {
				return usageError{fmt.Errorf("--seat is client or server, not %q", seat)}
			}
			if options.Timeout <= 0 {
				return usageError{fmt.Errorf("--timeout is %s; each answer needs some time", options.Timeout)}
			}
			if err := fillKerberosFiles(&options, s.config); err != nil {
				return err
			}
			headline := fmt.Sprintf("from a %s's seat%s", kerberos.SeatOf(options), map[bool]string{true: ", server " + diag.Printable(options.Server)}[options.Server != ""])
			return s.diagnose(c.Context(), headline, kerberos.New(options))
		},
	}
	f := c.Flags()
	f.StringVar(&options.Server, "server", "", "the management point: host, host:port or URL")
	f.StringVar(&options.Address, "address", "", "connect to this address instead of where the name leads: one node behind a load balancer")
	f.StringVar(&seat, "seat", "", "client or server (guessed from the keytab)")
	f.StringVar(&options.Keytab, "keytab", "", "keytab of this seat")
	f.StringVar(&options.ServerKeytab, "server-keytab", "", "on a client's seat: also try the server's keytab on the ticket")
	f.StringVar(&options.Cache, "ccache", "", "credential cache to use")
	f.StringVar(&options.Principal, "principal", "", "which account of the keytab, as NAME@REALM")
	f.StringVar(&options.Config, "krb5-config", "", "krb5.conf (default KRB5_CONFIG or /etc/krb5.conf)")
	f.StringVar(&options.Directory, "ldap", "", "directory server to ask, or none (default: what DNS or krb5.conf gives for the realm)")
	f.StringVar(&s.config, "config", "", "a management point's configuration: its keytab, from a server's seat")
	f.DurationVar(&options.Timeout, "timeout", diag.Patience, "how long to wait for each answer")
	f.BoolVar(&s.asJSON, "json", false, "print JSON")
	return c
}

// fillKerberosFiles puts the files that Kerberos programs use where none were named.
func fillKerberosFiles(options *kerberos.Options, configuration string) error {
	if configuration != "" {
		keytab, err := keytabOf(configuration)
		if err != nil {
			return err
		}
		options.Keytab = cmp.Or(options.Keytab, keytab)
		options.Seat = cmp.Or(options.Seat, kerberos.Server)
	}
	options.Keytab, options.Cache = strings.TrimPrefix(options.Keytab, "FILE:"), strings.TrimPrefix(options.Cache, "FILE:")
	options.Config = cmp.Or(options.Config, firstExisting(strings.Split(os.Getenv("KRB5_CONFIG"), ":")[0], "/etc/krb5.conf"))
	options.Realm = os.Getenv("USERDNSDOMAIN") // on Windows
	if options.Keytab == "" && options.Cache == "" {
		options.Keytab = firstReadable(strings.TrimPrefix(os.Getenv("KRB5_KTNAME"), "FILE:"), "/etc/krb5.keytab")
	}
	if options.Keytab == "" && options.Cache == "" {
		options.Cache = firstReadable(strings.TrimPrefix(os.Getenv("KRB5CCNAME"), "FILE:"), fmt.Sprintf("/tmp/krb5cc_%d", os.Getuid()))
	}
	return nil
}

func keytabOf(path string) (string, error) {
	configuration, err := role.Load(path)
	if err != nil {
		return "", err
	}
	if configuration.Kerberos.Keytab == "" {
		return "", catalog.Errorf(catalog.ConfigInvalid, "%s has no kerberos.keytab: this management point does not offer Windows authentication", path)
	}
	return configuration.Kerberos.Keytab, nil
}

func firstExisting(paths ...string) string {
	for _, path := range paths {
		if _, err := os.Stat(path); path != "" && err == nil {
			return path
		}
	}
	return ""
}

// firstReadable passes over what is no file: in /tmp anybody may have put a pipe there.
func firstReadable(paths ...string) string {
	for _, path := range paths {
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if file, err := os.Open(path); err == nil {
			file.Close()
			return path
		}
	}
	return ""
}
