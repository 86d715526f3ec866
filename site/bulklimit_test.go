package site

import (
	"net/netip"
	"strings"
	"testing"

	"postern/catalog"
)

func TestBulkNamePattern(t *testing.T) {
	for _, c := range []struct {
		name, pattern, netbios, fqdn string
		fits                         bool
	}{
		{"no pattern", "", "", "", true},
		{"both names", "WK*", "WK1", "wk1.corp.example", true},
		{"NetBIOS name alone", "WK*", "WK1", "", true},
		{"DNS name alone", "WK*", "", "wk1.corp.example", true},
		{"a dot at the end", "*.corp.example", "WK1", "wk1.corp.example.", true},
		{"one character open", "wk-??", "WK-07", "", true},
		{"one character too many", "wk-??", "WK-007", "", false},
		{"no name", "*", "", "", false},
		{"another name", "WK*", "SRV1", "srv1.corp.example", false},
		{"a host name that fits, a NetBIOS name that does not", "WK*", "SRV1", "wk1.corp.example", false},
		{"a NetBIOS name that fits, a host name that does not", "WK*", "WK1", "srv1.corp.example", false},
		{"two computers whose names both fit", "WK*", "WK1", "wk2.corp.example", false},
		{"a NetBIOS name cut off at fifteen", "workstation-room-*", "WORKSTATION-ROO", "workstation-room-7.corp.example", true},
		{"no domain for a pattern with one", "*.corp.example", "WK1", "", false},
		{"the domain", "*.corp.example", "WK1", "wk1.corp.example", true},
		{"another domain", "*.corp.example", "WK1", "wk1.evil.example", false},
		{"the domain as a part of a longer one", "*.corp.example", "WK1", "wk1.corp.example.evil.example", false},
		{"a domain pattern, and a NetBIOS name of another computer", "*.corp.example", "DC1", "wk1.corp.example", false},
		{"letters of another alphabet", "WK*", "ＷＫ1", "", false},
		{"Kelvin is no K", "WK*", "W\u212a1", "", false},
		{"a slash", "WK*", "WK/1", "", false},
	} {
		token := BulkToken{ID: "t", NamePattern: c.pattern}
		err := token.admitsName(c.netbios, c.fqdn)
		if (err == nil) != c.fits || err != nil && catalog.CodeOf(err) != catalog.BulkNameOutsidePattern {
			t.Errorf("%s: got %v, want fitting: %v", c.name, err, c.fits)
		}
		if err != nil && c.pattern != "*" && strings.Contains(catalog.Public(err), c.pattern) {
			t.Errorf("%s: the refusal tells the pattern: %v", c.name, err)
		}
	}
}

func TestBulkNetworks(t *testing.T) {
	token := BulkToken{ID: "t", Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("fe80::/10")}}
	for address, inside := range map[string]bool{
		"192.0.2.0": true, "192.0.2.127": true, "192.0.2.128": false, "198.51.100.7": true, "198.51.100.8": false, "::ffff:192.0.2.9": true,
		"2001:db8::1": true, "2001:db9::1": false, "fe80::1%eth0": true, "": false, "192.0.2.9:443": false, "localhost": false, "192.0.2.009": false,
	} {
		err := token.admitsAddress(address)
		if (err == nil) != inside || err != nil && catalog.CodeOf(err) != catalog.BulkOutsideNetwork {
			t.Errorf("%q: got %v, want inside: %v", address, err, inside)
		}
		if err != nil && strings.Contains(catalog.Public(err), "/25") {
			t.Errorf("%q: the refusal tells the networks: %v", address, err)
		}
	}
	if err := (BulkToken{}).admitsAddress(""); err != nil {
		t.Errorf("a token without networks: %v", err)
	}
}

func TestBulkLimits(t *testing.T) {
	for name, c := range map[string]struct {
		ask      NewBulk
		networks string
		want     catalog.Code
	}{
		"none":                      {NewBulk{}, "", ""},
		"networks":                  {NewBulk{Networks: []string{"192.0.2.0/24", " 2001:db8::/32 ", "198.51.100.7", "192.0.2.0/24"}}, "192.0.2.0/24, 2001:db8::/32, 198.51.100.7/32", ""},
		"everywhere":                {NewBulk{Networks: []string{"0.0.0.0/0", "::/0"}}, "0.0.0.0/0, ::/0", ""},
		"a host with a length":      {NewBulk{Networks: []string{"192.0.2.1/24"}}, "", catalog.BulkNetworkInvalid},
		"IPv4 within IPv6":          {NewBulk{Networks: []string{"::ffff:192.0.2.0/120"}}, "", catalog.BulkNetworkInvalid},
		"an address of that kind":   {NewBulk{Networks: []string{"::ffff:192.0.2.1"}}, "", catalog.BulkNetworkInvalid},
		"a zone":                    {NewBulk{Networks: []string{"fe80::1%eth0"}}, "", catalog.BulkNetworkInvalid},
		"a length that is too long": {NewBulk{Networks: []string{"192.0.2.0/33"}}, "", catalog.BulkNetworkInvalid},
		"a name":                    {NewBulk{Networks: []string{"branch"}}, "", catalog.BulkNetworkInvalid},
		"empty":                     {NewBulk{Networks: []string{""}}, "", catalog.BulkNetworkInvalid},
		"too many":                  {NewBulk{Networks: make([]string, 65)}, "", catalog.BulkNetworkInvalid},
		"a pattern":                 {NewBulk{NamePattern: "WK-*_?.corp.example"}, "", ""},
		"a class":                   {NewBulk{NamePattern: "WK[1]"}, "", catalog.BulkNamePatternInvalid},
		"an escape":                 {NewBulk{NamePattern: `WK\*`}, "", catalog.BulkNamePatternInvalid},
		"a slash":                   {NewBulk{NamePattern: "WK/*"}, "", catalog.BulkNamePatternInvalid},
		"a space":                   {NewBulk{NamePattern: "WK 1"}, "", catalog.BulkNamePatternInvalid},
		"a long pattern":            {NewBulk{NamePattern: strings.Repeat("*", 256)}, "", catalog.BulkNamePatternInvalid},
	} {
		networks, pattern, err := c.ask.limits()
		if catalog.CodeOf(err) != c.want || (BulkToken{Networks: networks}).networks() != c.networks || err == nil && pattern != c.ask.NamePattern {
			t.Errorf("%s: got %v, %q, %v, want %s and code %q", name, networks, pattern, err, c.networks, c.want)
		}
	}
}

// FuzzBulkLimits: whatever is asked for is refused with a code, or kept as it can be read again, and judging by it neither fails nor takes long.
func FuzzBulkLimits(f *testing.F) {
	f.Add("192.0.2.0/24", "WK*", "WK1", "wk1.corp.example", "192.0.2.1")
	f.Add("::/0", "*?*?*?*?*.*", "", "a.b", "fe80::1%x")
	f.Add("10.0.0.0/8", strings.Repeat("*a", 127), strings.Repeat("a", 256), "", "10.0.0.1")
	f.Fuzz(func(t *testing.T, network, pattern, netbios, fqdn, address string) {
		networks, kept, err := NewBulk{Networks: []string{network}, NamePattern: pattern}.limits()
		if err != nil {
			if catalog.CodeOf(err) == "" {
				t.Errorf("an error without a code: %v", err)
			}
			return
		}
		again, _, err := NewBulk{Networks: []string{networks[0].String()}}.limits()
		if err != nil || again[0] != networks[0] {
			t.Errorf("%s read again: %v, %v", networks[0], again, err)
		}
		token := BulkToken{Networks: networks, NamePattern: kept}
		if err := token.admitsAddress(networks[0].Addr().String()); err != nil {
			t.Errorf("the first address of %s: %v", networks[0], err)
		}
		_, _ = token.admitsAddress(address), token.admitsName(netbios, fqdn)
	})
}
