package kerberos

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"

	"postern/catalog"
	"postern/diag"
)

// checkName resolves the management point's name as clients do.
func (r *run) checkName(ctx context.Context) []diag.Finding {
	if r.host == "" {
		return r.noName()
	}
	if net.ParseIP(r.host) != nil {
		return []diag.Finding{diag.Found(diag.Fail, catalog.CheckNameNotResolved, "%s is an address: Kerberos needs the name that the service is registered under", r.host)}
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	addresses, err := r.Resolver.LookupHost(ctx, r.host)
	if err != nil {
		return []diag.Finding{r.unresolved(err)}
	}
	slices.Sort(addresses)
	addresses = slices.Compact(addresses)
	findings := []diag.Finding{diag.Good("the name resolves", "%s is %s", r.host, strings.Join(addresses, ", "))}
	if alias := r.alias(ctx); alias != "" {
		findings = append(findings, r.elsewhere("%s is an alias of %s: many clients ask a ticket for HTTP/%s", r.host, alias, alias))
	}
	if others := r.reverse(ctx, addresses); len(others) > 0 {
		findings = append(findings, r.judgeReverse(others))
	}
	if len(addresses) > 1 {
		findings = append(findings, severalAddresses(r.host, addresses))
	}
	return findings
}

func (r *run) noName() []diag.Finding {
	if r.broken != nil {
		return []diag.Finding{diag.FromError(diag.Fail, r.broken, catalog.CheckNameNotResolved)}
	}
	return []diag.Finding{diag.NotLooked("no server was named: give --server")}
}

// unresolved is a warning where the person gave the address: the rest can be tried.
func (r *run) unresolved(err error) diag.Finding {
	if r.Address != "" {
		return diag.Found(diag.Warn, catalog.CheckNameNotResolved, "%s: %v; the address %s was given instead", r.host, shortDNS(err), r.Address)
	}
	return diag.Found(diag.Fail, catalog.CheckNameNotResolved, "%s: %v", r.host, shortDNS(err))
}

func shortDNS(err error) error {
	var failed *net.DNSError
	if errors.As(err, &failed) {
		return errors.New(failed.Err)
	}
	return err
}

// alias returns the name at the end of a chain of CNAME records, "" when there is none.
func (r *run) alias(ctx context.Context) string {
	canonical, err := r.Resolver.LookupCNAME(ctx, r.host+".")
	canonical = strings.ToLower(strings.TrimSuffix(canonical, "."))
	if err != nil || canonical == r.host {
		return ""
	}
	return canonical
}

// reverse returns the names of the addresses when none of them is the host's.
func (r *run) reverse(ctx context.Context, addresses []string) (others []string) {
	for _, address := range addresses[:min(len(addresses), 8)] {
		names, err := r.Resolver.LookupAddr(ctx, address)
		if err != nil {
			continue
		}
		for _, name := range names {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			if name == r.host {
				return nil
			}
			others = append(others, address+" is "+name)
		}
	}
	return others
}

// elsewhere is a warning: the name works for some clients and not for others.
func (r *run) elsewhere(words string, arguments ...any) diag.Finding {
	return diag.Found(diag.Warn, catalog.CheckNameElsewhere, words, arguments...)
}

// judgeReverse: Windows does not follow reverse names, MIT Kerberos does unless told
// otherwise.
func (r *run) judgeReverse(others []string) diag.Finding {
	list := strings.Join(others, ", ")
	if r.Options.Config != "" && (!r.config.LibDefaults.RDNS || !r.config.LibDefaults.DNSCanonicalizeHostname) {
		return diag.Good("the reverse name is another one, which krb5.conf says not to follow", "%s", list)
	}
	return r.elsewhere("%s, not %s: clients with MIT Kerberos ask a ticket for the reverse name, Windows does not", list, r.host)
}

func severalAddresses(host string, addresses []string) diag.Finding {
	finding := diag.Found(diag.Pass, catalog.CheckLoadBalanced, "%s: %s", host, strings.Join(addresses, ", "))
	finding.Remedy = nil
	return finding
}
