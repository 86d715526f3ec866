package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/diag"
	"postern/diag/preflight"
)

func newPreflight(s *session) *cobra.Command {
	return group("preflight", "Say before anything is deployed whether it can be; nothing is changed", newPreflightGateway(s))
}

func newPreflightGateway(s *session) *cobra.Command {
	var o preflight.Options
	var certificate, key, caFile string
	c := &cobra.Command{
		Use: "gateway --name NAME --domain DOMAIN", Short: "Check name, DNS, certificate, port, clock, disk and the ways of a connector before a gateway is made", Args: cobra.NoArgs,
		Long: `Run it on the machine that will be the gateway, and once on the machine of the connector (with --management-point and --gateway).
Nothing is changed: a port is opened and closed again, names are looked up, files are read.

--azure is for Microsoft's gateway: then the name must also be free as storage account and key vault there.

Exit status 1 when something fails; warnings and what could not be told are 0. docs/analyze.md explains every check.`,
		Example: `  postern preflight gateway --name gw1 --domain contoso.example
  postern preflight gateway --name gw1 --domain contoso.example --certificate gw1.crt --certificate-key gw1.key --address 203.0.113.7 --resolver 1.1.1.1
  postern preflight gateway --name GraniteFalls --domain contoso.example --azure --region westeurope
  postern preflight gateway --name gw1 --domain contoso.example --management-point https://mp.corp.example --gateway https://gw1.contoso.example`,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			switch {
			case o.Name == "" || o.Domain == "":
				return usageError{errors.New("--name and --domain are needed; see `postern preflight gateway --help`")}
			case o.Timeout <= 0:
				return usageError{fmt.Errorf("--timeout is %s; each answer needs some time", o.Timeout)}
			}
			if o.Authorities, err = pemCertificates(caFile); err != nil {
				return err
			}
			if o.Certificate, err = readNamed(certificate, catalog.CertificateUnreadable); err != nil {
				return err
			}
			if o.Key, err = readNamed(cmp.Or(key, certificate), catalog.ServerKeyMismatch); err != nil {
				return err
			}
			if key == "" && !strings.Contains(string(o.Key), "PRIVATE KEY") {
				o.Key = nil
			}
			return s.diagnose(c.Context(), "before a gateway "+diag.Printable(o.Name+"."+o.Domain)+" is made, from here", preflight.New(o))
		},
	}
	f := c.Flags()
	f.StringVar(&o.Name, "name", "", "name of the service: 3 to 24 letters and digits")
	f.StringVar(&o.Domain, "domain", "", "domain that devices use after it")
	f.BoolVar(&o.Azure, "azure", false, "Microsoft's gateway in Azure is the target")
	f.StringVar(&o.Region, "region", "", "with --azure: the region, such as westeurope")
	f.StringArrayVar(&o.Resolvers, "resolver", nil, "DNS server whose answer to look at too, host[:port] (may be given several times)")
	f.StringVar(&o.Nameserver, "nameserver", "", "DNS server to use instead of this machine's, host[:port]")
	f.StringVar(&o.Address, "address", "", "public address that the name is to lead to")
	f.StringVar(&certificate, "certificate", "", "PEM file with the server's certificate: leaf first, then intermediates (default: the site issues it)")
	f.StringVar(&key, "certificate-key", "", "PEM file with its private key, when it is not in the same file")
	f.StringVar(&caFile, "ca-file", "", "PEM file with your own authorities (default: the system's)")
	f.StringVar(&o.Listen, "listen", ":443", "address that the gateway will listen on")
	f.StringVar(&o.State, "state", "/var/lib/postern", "folder that will hold the gateway's state and logs")
	f.StringVar(&o.TimeSource, "time-source", "", "NTP server, or a URL whose Date is used (default: the management point)")
	f.StringVar(&o.ManagementPoint, "management-point", "", "https address of the management point, on the connector's machine")
	f.StringVar(&o.Gateway, "gateway", "", "https address of a gateway that runs already, on the connector's machine")
	f.DurationVar(&o.Timeout, "timeout", diag.Patience, "how long to wait for each answer")
	f.BoolVar(&s.asJSON, "json", false, "print JSON")
	return c
}

func readNamed(path string, code catalog.Code) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	content, err := readLimited(path, maxPEM)
	if err != nil {
		return nil, catalog.Wrap(code, err, "%s", path)
	}
	return content, nil
}
