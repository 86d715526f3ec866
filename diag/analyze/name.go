package analyze

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"postern/catalog"
	"postern/diag"
)

// Budgets of one look-up.
const (
	maxAliases   = 8
	maxAddresses = 16
)

// Answer is what one DNS server says of a name.
type Answer struct {
	Server    string   // host:port
	Chain     []string // the name, then each alias that it leads to
	Addresses []netip.Addr
	Err       error // why there is no answer; nil with no address is "no such name"
}

// String is the way from the name to its addresses.
func (a Answer) String() string {
	way := strings.Join(a.Chain, " -> ")
	switch {
	case a.Err != nil:
		return way + ": no answer: " + Reason(a.Err)
	case len(a.Addresses) == 0:
		return way + ": no address"
	}
	return way + " -> " + joined(a.Addresses)
}

func joined(addresses []netip.Addr) string {
	var text []string
	for _, a := range addresses {
		text = append(text, a.String())
	}
	return strings.Join(text, ", ")
}

// Ask asks one DNS server for the addresses of a name and follows its aliases. It returns
// within twice the timeout for each alias, or when ctx ends.
func Ask(ctx context.Context, server, name string, timeout time.Duration) Answer {
	answer := Answer{Server: withDNSPort(server), Chain: []string{strings.TrimSuffix(strings.ToLower(name), ".")}}
	for range maxAliases {
		before := len(answer.Chain)
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
			if answer.Err = answer.ask(ctx, kind, timeout); answer.Err != nil {
				return answer
			}
		}
		if len(answer.Addresses) > 0 || len(answer.Chain) == before {
			break // an address, or no further alias
		}
	}
	slices.SortFunc(answer.Addresses, netip.Addr.Compare)
	answer.Addresses = slices.Compact(answer.Addresses)
	return answer
}

func (a *Answer) ask(ctx context.Context, kind uint16, timeout time.Duration) error {
	question := new(dns.Msg).SetQuestion(dns.Fqdn(a.Chain[len(a.Chain)-1]), kind)
	question.SetEdns0(1232, false)
	got, _, err := (&dns.Client{Timeout: timeout}).ExchangeContext(ctx, question, a.Server)
	if err == nil && got.Truncated {
		got, _, err = (&dns.Client{Net: "tcp", Timeout: timeout}).ExchangeContext(ctx, question, a.Server)
	}
	switch {
	case err != nil:
		return err
	case got.Rcode != dns.RcodeSuccess && got.Rcode != dns.RcodeNameError:
		return fmt.Errorf("the server says %s", dns.RcodeToString[got.Rcode])
	}
	a.read(got.Answer)
	return nil
}

// read follows the aliases among the records and takes the addresses at their end.
func (a *Answer) read(records []dns.RR) {
	for range maxAliases {
		at, more := dns.Fqdn(a.Chain[len(a.Chain)-1]), false
		for _, record := range records {
			if alias, ok := record.(*dns.CNAME); ok && strings.EqualFold(alias.Hdr.Name, at) {
				next := strings.TrimSuffix(strings.ToLower(alias.Target), ".")
				if more = !slices.Contains(a.Chain, next) && len(a.Chain) <= maxAliases; more {
					a.Chain = append(a.Chain, next)
				}
				break
			}
		}
		if !more {
			break
		}
	}
	end := dns.Fqdn(a.Chain[len(a.Chain)-1])
	for _, record := range records {
		if !strings.EqualFold(record.Header().Name, end) || len(a.Addresses) >= maxAddresses {
			continue
		}
		switch record := record.(type) {
		case *dns.A:
			a.add(record.A)
		case *dns.AAAA:
			a.add(record.AAAA)
		}
	}
}

func (a *Answer) add(ip net.IP) {
	if address, ok := netip.AddrFromSlice(ip); ok {
		a.Addresses = append(a.Addresses, address.Unmap())
	}
}

func withDNSPort(server string) string {
	if _, _, err := net.SplitHostPort(server); err == nil {
		return server
	}
	return net.JoinHostPort(strings.Trim(server, "[]"), "53")
}

// checkName asks this machine, as every program here does, and each resolver that was named.
func (r *run) checkName(ctx context.Context) []diag.Finding {
	if r.broken != nil {
		return []diag.Finding{diag.FromError(diag.Fail, r.broken, catalog.InvalidArgument)}
	}
	if address, err := netip.ParseAddr(r.host); err == nil {
		r.addresses = []netip.Addr{address}
		return []diag.Finding{diag.Good("an address was given, no name", "%s; a gateway's certificate is for a name", address)}
	}
	others := make([]Answer, len(r.Resolvers))
	for i, server := range r.Resolvers {
		others[i] = Ask(ctx, server, r.host, r.Timeout)
	}
	here, err := r.lookUp(ctx)
	findings := []diag.Finding{r.straightOnly(r.fromHere(ctx, here, err, others))}
	for _, other := range others {
		findings = append(findings, compare(here, other))
	}
	if len(others) == 0 {
		findings = append(findings, diag.NotLooked("whether others get the same answer; name a resolver, such as --resolver 1.1.1.1, to see what devices on the internet get"))
	}
	return findings
}

func (r *run) lookUp(ctx context.Context) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*r.Timeout)
	defer cancel()
	found, err := r.Resolver.LookupNetIP(ctx, "ip", r.host)
	for i := range found {
		found[i] = found[i].Unmap()
	}
	slices.SortFunc(found, netip.Addr.Compare)
	found = slices.Compact(found)
	r.addresses = found[:min(len(found), maxAddresses)]
	return r.addresses, err
}

// fromHere tells this machine's answer. When it has none and another resolver has, the
// company's own zone is the suspect (S3).
func (r *run) fromHere(ctx context.Context, here []netip.Addr, err error, others []Answer) diag.Finding {
	if err == nil && len(here) > 0 {
		return diag.Good("the name leads to an address", "this machine: %s%s", r.chain(ctx), joined(here))
	}
	elsewhere := slices.IndexFunc(others, func(a Answer) bool { return len(a.Addresses) > 0 })
	if elsewhere >= 0 {
		return diag.Found(diag.Fail, catalog.SymptomAnalyzerNameResolution, "this machine: %s: %s\n%s: %s\nthe name exists and this machine's resolver does not know it (split DNS)", r.host, Reason(err), others[elsewhere].Server, others[elsewhere])
	}
	return diag.Found(diag.Fail, catalog.ClientNameNotResolved, "this machine: %s: %s", r.host, Reason(err))
}

// chain is the way by which this machine's DNS server leads to the addresses; "" when it
// cannot be asked or is not needed.
func (r *run) chain(ctx context.Context) string {
	server := r.Nameserver
	if server == "" {
		config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil || len(config.Servers) == 0 || !strings.Contains(r.host, ".") {
			return r.host + " -> "
		}
		server = net.JoinHostPort(config.Servers[0], config.Port)
	}
	answer := Ask(ctx, server, r.host, r.Timeout)
	if answer.Err != nil || len(answer.Addresses) == 0 {
		return r.host + " -> (not by DNS, or by another server) "
	}
	return strings.Join(answer.Chain, " -> ") + " -> "
}

func compare(here []netip.Addr, other Answer) diag.Finding {
	switch {
	case other.Err != nil:
		f := diag.NotLooked("%s does not answer: %s", other.Server, Reason(other.Err))
		f.Title = "the resolver was not heard"
		return f
	case len(here) == 0 && len(other.Addresses) > 0:
		return diag.Good("the other resolver knows the name", "%s: %s", other.Server, other)
	case slices.Equal(here, other.Addresses) && len(here) > 0:
		return diag.Good("the other resolver agrees", "%s: %s", other.Server, other)
	case len(here) == 0:
		return diag.Found(diag.Fail, catalog.ClientNameNotResolved, "%s: %s", other.Server, other)
	}
	detail := fmt.Sprintf("this machine: %s\n%s: %s", joined(here), other.Server, other)
	switch inner, outer := slices.ContainsFunc(here, netip.Addr.IsPrivate), slices.ContainsFunc(other.Addresses, netip.Addr.IsPrivate); {
	case inner && !outer:
		detail += "\nthe answer here is an inner address: split DNS"
	case outer && !inner:
		detail += "\nthe answer there is an inner address: split DNS"
	}
	return diag.Found(diag.Warn, catalog.ResolversDiffer, "%s", detail)
}

// Reason is an error of the network in a few words, without what is said already.
func Reason(err error) string {
	var name *net.DNSError
	var op *net.OpError
	var call *os.SyscallError
	switch {
	case err == nil:
		return "no answer"
	case errors.As(err, &name) && name.IsNotFound:
		return "no such name"
	case isTimeout(err):
		return "no answer in time"
	case errors.As(err, &call):
		return call.Err.Error()
	case errors.As(err, &op):
		return op.Err.Error()
	}
	return err.Error()
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}
