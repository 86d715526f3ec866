package lab

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"postern/catalog"
	"postern/client"
	"postern/client/kerberos"
	"postern/internal/realms"
	"postern/logfile"
	"postern/mp"
	"postern/proof"
)

func kdcTools() (tools []Tool) {
	for _, program := range []string{"krb5kdc", "kdb5_util", "kadmin.local"} {
		tools = append(tools, Tool{program, realms.Install})
	}
	return tools
}

// startRealms starts two domains, parent and child, and gives the management point the parent's keytab.
func startRealms(ctx context.Context, options *Options) (stop func(), err error) {
	r, err := realms.Start(ctx, realms.Options{Folder: options.Dir})
	if err != nil {
		return nil, err
	}
	options.Realms = r
	return func() { r.Stop() }, nil
}

// tellKerberos is seeds S0 and S1: a computer of a child domain is approved by the parent domain's management point.
func tellKerberos(ctx context.Context, l *Lab) error {
	for _, tell := range []func(context.Context) error{l.tellRealms, l.tellOwnComputer, l.tellTickets, l.tellEvidence, l.tellWorkgroup} {
		if err := tell(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) tellRealms(ctx context.Context) error {
	l.trail.add(Step{Hop: "domains", OK: true, What: fmt.Sprintf("two KDCs run: %s, and its child %s", l.realms.Parent, l.realms.Child)})
	return l.trail.tell("administrator", func() (string, error) {
		return "trusts the computers of " + l.realms.Child + ": approval.trusted-realms", l.Site().Set(ctx, "approval.trusted-realms", l.realms.Child, "lab")
	})
}

// tellOwnComputer enrols the child domain's computer with the machine's own keytab.
func (l *Lab) tellOwnComputer(ctx context.Context) error {
	machine := kerberos.Config{Keytab: l.realms.ComputerKeytab(l.realms.Child), Config: l.realms.ClientConfig()}
	name := strings.TrimSuffix(realms.Computer, "$") + "." + strings.ToLower(l.realms.Child)
	return l.enrolInside(ctx, name, func() (client.Negotiator, error) { return kerberos.New(machine) })
}

// enrolInside enrols a device that reaches the management point itself, with a proof of its domain or without.
func (l *Lab) enrolInside(ctx context.Context, name string, negotiator func() (client.Negotiator, error)) error {
	dir := filepath.Join(l.Dir, "device-"+name)
	logs := logfile.NewFolder(filepath.Join(dir, "logs"), logfile.Options{Now: l.now})
	agent, err := client.Open(client.Config{Dir: dir, Now: l.now, Logs: logs, Observe: l.trail.device(name), Negotiator: negotiator, Dial: l.dial})
	if err != nil {
		return err
	}
	defer agent.Close()
	err = agent.Enrol(ctx, client.Setup{ManagementPoint: l.insideURL(), SiteCode: SiteCode, RootKey: l.SiteRoot, Name: name})
	if err != nil && catalog.CodeOf(err) != catalog.ClientWaitsForApproval {
		return fmt.Errorf("enrol %s: %w", name, err)
	}
	return nil
}

// insideURL is the management point by the name that its domain knows.
func (l *Lab) insideURL() string {
	return "https://" + net.JoinHostPort(l.realms.Host("mp"), portOf(l.ManagementPoint.Addresses["https"]))
}

// Checks are arguments of `postern kerberos check`, and the KRB5_CONFIG that goes with them, for the lab's computer and for its management point.
// The lab's names are in no DNS.
func (l *Lab) Checks() (configuration, client, server string) {
	server = fmt.Sprintf("--seat server --keytab %s --server %s --address 127.0.0.1 --ldap none", l.realms.MPKeytab(), l.realms.Host("mp"))
	client = fmt.Sprintf("--keytab %s --server %s --address 127.0.0.1 --ldap none", l.realms.ComputerKeytab(l.realms.Child), l.insideURL())
	return l.realms.ClientConfig(), client, server
}

// dial finds the names of the lab's domains on loopback; there is no DNS here.
func (l *Lab) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", portOf(address)))
}

// tellTickets shows the referral as the two KDCs logged it (S0, frames 13 to 16).
func (l *Lab) tellTickets(context.Context) error {
	for _, realm := range []string{l.realms.Child, l.realms.Parent} {
		for line := range strings.Lines(l.realms.KDCLog(realm)) {
			_, ticket, found := strings.Cut(line, "}, ")
			if strings.Contains(line, "TGS_REQ") && strings.Contains(line, "ISSUE") && found {
				l.trail.add(Step{Hop: "KDC " + realm, OK: true, What: "gave a ticket: " + strings.TrimSpace(ticket)})
			}
		}
	}
	return nil
}

// tellEvidence shows what the site keeps of the approval.
func (l *Lab) tellEvidence(ctx context.Context) error {
	return l.trail.tell("site", func() (string, error) {
		found, err := l.Site().FindDevice(ctx, strings.TrimSuffix(realms.Computer, "$"))
		if err != nil {
			return "", err
		}
		a := found.Approval
		if a.Status != 1 {
			return "", catalog.Errorf(catalog.InternalError, "the device has approval status %d: %s", a.Status, a.Rule)
		}
		return fmt.Sprintf("approved %s, level %s, by rule %q; evidence: %s", found.ClientID, a.Level, a.Rule, evidenceText(a.Evidence)), nil
	})
}

func evidenceText(evidence map[string]string) string {
	var parts []string
	for _, name := range []string{"account", "realm", "service", "key-version", "encryption-type", "pac"} {
		if value := evidence[name]; value != "" {
			parts = append(parts, name+" "+value)
		}
	}
	return strings.Join(parts, ", ")
}

// tellWorkgroup: a device without a domain is stored, waits, and a person approves it.
func (l *Lab) tellWorkgroup(ctx context.Context) error {
	if err := l.enrolInside(ctx, "KIOSK7", nil); err != nil {
		return err
	}
	return l.trail.tell("administrator", func() (string, error) {
		found, err := l.Site().FindDevice(ctx, "KIOSK7")
		if err != nil {
			return "", err
		}
		waited := found.Approval
		if _, err = l.Site().Approve(ctx, found.ClientID, proof.LevelManaged, "lab", "the kiosk in the hall"); err != nil {
			return "", err
		}
		return fmt.Sprintf("found KIOSK7 waiting (approval status %d, rule %q) and approved it: postern device approve KIOSK7 --why 'the kiosk in the hall'", waited.Status, waited.Rule), nil
	})
}

// windowsAuthStep tells one leg of Windows authentication as the access log has it.
func windowsAuthStep(e mp.Exchange) Step {
	s := stepOf("management point", "", e.Duration, e.Err)
	s.Trace = e.TraceID
	if catalog.CodeOf(e.Err) == catalog.NegotiateRequired {
		s.OK, s.Code, s.Error = true, "", "" // the healthy first leg (S0)
		s.What = fmt.Sprintf("%s: %d %d %d, no credentials yet; the access log's first line", e.Route, e.Status.Code, e.Status.SubStatus, e.Status.Windows)
		return s
	}
	s.What = fmt.Sprintf("%s: %d %d %d, ticket of %s verified; %s", e.Route, e.Status.Code, e.Status.SubStatus, e.Status.Windows, e.Proof.Account, e.Act)
	return s
}
