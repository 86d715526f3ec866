package site

import (
	"cmp"
	"net/netip"
	"path"
	"slices"
	"strings"

	"postern/catalog"
)

// Budgets of what limits a bulk registration token (C46).
const (
	maxNetworks = 64
	maxPattern  = 255
)

// limits reads where a new token may be used, and by computers of which names.
func (ask NewBulk) limits() (networks []netip.Prefix, pattern string, err error) {
	if len(ask.Networks) > maxNetworks {
		return nil, "", catalog.Errorf(catalog.BulkNetworkInvalid, "%d networks were given; at most %d are allowed", len(ask.Networks), maxNetworks)
	}
	for _, text := range ask.Networks {
		network, err := parseNetwork(strings.TrimSpace(text))
		if err != nil {
			return nil, "", err
		}
		if !slices.Contains(networks, network) {
			networks = append(networks, network)
		}
	}
	if len(ask.NamePattern) > maxPattern || strings.ContainsFunc(ask.NamePattern, notOfPattern) {
		return nil, "", catalog.Errorf(catalog.BulkNamePatternInvalid, "the pattern is %q", shown(ask.NamePattern))
	}
	return networks, ask.NamePattern, nil
}

// parseNetwork reads a prefix, or an address alone. What could be meant in two ways is refused: bits of a host, an address of IPv4 within IPv6, a zone.
func parseNetwork(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil && address.Zone() == "" && !address.Is4In6() {
		return address.Prefix(address.BitLen())
	}
	network, err := netip.ParsePrefix(text)
	switch {
	case err != nil || network.Addr().Is4In6():
		return network, catalog.Errorf(catalog.BulkNetworkInvalid, "%q is no network like 192.0.2.0/24", shown(text))
	case network != network.Masked():
		return network, catalog.Errorf(catalog.BulkNetworkInvalid, "%s names a host; its network is %s", text, network.Masked())
	}
	return network, nil
}

func notOfPattern(r rune) bool {
	return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_.*?", r))
}

// admitsAddress refuses a caller outside the token's networks. An address that cannot be read is outside. Which networks those are is for those who
// administrate the site: whoever found a token is not told what to try next.
func (t BulkToken) admitsAddress(text string) error {
	if len(t.Networks) == 0 {
		return nil
	}
	address, err := netip.ParseAddr(text)
	address = address.Unmap().WithZone("")
	if err != nil || !slices.ContainsFunc(t.Networks, func(n netip.Prefix) bool { return n.Contains(address) }) {
		return catalog.Errorf(catalog.BulkOutsideNetwork, "the address %s is in none of the networks of bulk registration token %s", cmp.Or(shown(text), "(not known)"), t.ID)
	}
	return nil
}

func (t BulkToken) networks() string {
	var texts []string
	for _, network := range t.Networks {
		texts = append(texts, network.String())
	}
	return strings.Join(texts, ", ")
}

// admitsName refuses a computer whose names do not fit the token's pattern. The pattern is compared, without regard to case, with the NetBIOS name and the
// host part of the DNS name, and with the whole DNS name when it has a dot itself. Every name that the computer gives must be of the one computer that fits,
// so that none can show a name that the pattern allows and be listed by another.
func (t BulkToken) admitsName(netbios, fqdn string) error {
	if t.NamePattern == "" {
		return nil
	}
	fqdn = strings.TrimSuffix(fqdn, ".")
	host, _, _ := strings.Cut(fqdn, ".")
	name := cmp.Or(host, netbios)
	if strings.Contains(t.NamePattern, ".") {
		name = fqdn
	}
	fits := name != "" && matches(t.NamePattern, name)
	if host != "" && netbios != "" && !shortens(netbios, host) {
		fits = false
	}
	if !fits {
		return catalog.Errorf(catalog.BulkNameOutsidePattern, "the computer calls itself %q and %q, which is no name for bulk registration token %s", shown(netbios), shown(fqdn), t.ID)
	}
	return nil
}

// matches compares a name with a pattern of [NewBulk]. No pattern has the other signs of path.Match, and a name with a slash fits none.
func matches(pattern, name string) bool {
	fits, err := path.Match(upperASCII(pattern), upperASCII(name))
	return err == nil && fits
}
