package realms

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// ClientConfig is the clients' krb5.conf. It has no [domain_realm], so that a client has to ask its own realm's KDC and follow the referral, as
// Windows does.
func (r *Realms) ClientConfig() string { return filepath.Join(r.Folder, "client.conf") }

// HintedConfig is a clients' krb5.conf with [domain_realm], for clients that cannot follow referrals and for the external trust.
func (r *Realms) HintedConfig() string { return filepath.Join(r.Folder, "hinted.conf") }

// Environment is what a client program needs: the configuration and a credential cache that is shared by all that use it. Login gives a
// private one.
func (r *Realms) Environment() []string {
	return []string{"KRB5_CONFIG=" + r.ClientConfig(), "KRB5CCNAME=FILE:" + filepath.Join(r.Folder, "ccache")}
}

// Session is an account on a client machine: a configuration and a credential cache, which is empty before Login.
type Session struct {
	Config string // the krb5.conf
	Cache  string // the credential cache's file
}

// Login logs a principal in by a keytab.
func (s *Session) Login(ctx context.Context, principal, keytab string) error {
	if out, err := s.Command(ctx, "kinit", "-k", "-t", keytab, principal).CombinedOutput(); err != nil {
		return fmt.Errorf("kinit %s: %w: %s", principal, err, out)
	}
	return nil
}

// Login logs an account of a realm in by a keytab, into a credential cache of its own.
func (r *Realms) Login(ctx context.Context, realm, name, keytab string) (*Session, error) {
	s := &Session{Config: r.ClientConfig(), Cache: filepath.Join(r.Folder, fmt.Sprintf("ccache%d", r.logins.Add(1)))}
	return s, s.Login(ctx, name+"@"+realm, keytab)
}

// LoginComputer logs [Computer] of a realm in.
func (r *Realms) LoginComputer(ctx context.Context, realm string) (*Session, error) {
	return r.Login(ctx, realm, Computer, r.ComputerKeytab(realm))
}

// Environment is what a program needs to act as the account.
func (s *Session) Environment() []string {
	return []string{"KRB5_CONFIG=" + s.Config, "KRB5CCNAME=FILE:" + s.Cache}
}

// Command prepares a program that acts as the account.
func (s *Session) Command(ctx context.Context, program string, arguments ...string) *exec.Cmd {
	path := find(program)
	if path == "" {
		path = program
	}
	c := exec.CommandContext(ctx, path, arguments...)
	c.Env = append(cleanEnvironment(), s.Environment()...)
	return c
}

// Ticket gets a ticket for HTTP on a host and returns its server principal, e.g. HTTP/mp.a2003.vm.local@A2003.VM.LOCAL.
func (s *Session) Ticket(ctx context.Context, host string) (server string, err error) {
	if out, err := s.Command(ctx, "kvno", "-S", "HTTP", host).CombinedOutput(); err != nil {
		return "", fmt.Errorf("kvno HTTP/%s: %w: %s", host, err, out)
	}
	out, err := s.Command(ctx, "klist").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("klist: %w: %s", err, out)
	}
	return serverOf(string(out), "HTTP/"+host), nil
}

// serverOf finds in klist's list which server a ticket is for. A ticket that came by referral has an empty realm there and the true name in a
// line of its own.
func serverOf(list, service string) (server string) {
	for line := range strings.Lines(list) {
		if name, found := strings.CutPrefix(strings.TrimSpace(line), "Ticket server: "); found && strings.HasPrefix(name, service+"@") {
			return name
		}
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, service+"@") && !strings.HasSuffix(word, "@") {
				server = word
			}
		}
	}
	return server
}
