package kerberos

import (
	"slices"
	"strings"

	"postern/catalog"
)

const (
	transitCompressed = 1 // DOMAIN-X500-COMPRESS
	maxTransit        = 2048
	maxTransited      = 32
)

// transitedRealms returns the realms between the client's and the service's (RFC 4120
// 3.3.3.2). Whether the KDC checked them is no matter: Windows does not, and its flag may
// not be trusted (MS-KILE 3.4.5), so each must be in our own list.
func (t ticket) transitedRealms(serviceRealm string) ([]string, error) {
	if len(t.transit) == 0 {
		return nil, nil
	}
	if t.transitKind != transitCompressed || len(t.transit) > maxTransit {
		return nil, unreadableTransit(t.realm)
	}
	subfields, ok := splitTransit(string(t.transit))
	if !ok {
		return nil, unreadableTransit(t.realm)
	}
	var realms []string
	previous, gap := t.realm, false
	for _, subfield := range subfields {
		if subfield == "" {
			gap = true
			continue
		}
		realm := expandTransit(subfield, previous)
		if gap {
			realms = append(realms, between(previous, realm)...)
		}
		realms, previous, gap = append(realms, realm), realm, false
	}
	if gap {
		realms = append(realms, between(previous, serviceRealm)...)
	}
	if len(realms) > maxTransited || slices.Contains(realms, "") {
		return nil, unreadableTransit(t.realm)
	}
	return realms, nil
}

func unreadableTransit(realm string) error {
	return catalog.Errorf(catalog.KerberosTransitNotTrusted, "the realms by which the ticket came from %.100q cannot be read", realm)
}

// splitTransit splits at commas; a backslash takes the meaning from what follows. It says
// no to a backslash at the end.
func splitTransit(text string) (subfields []string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == ',':
			subfields = append(subfields, b.String())
			b.Reset()
			continue
		case text[i] == '\\':
			if i++; i == len(text) {
				return nil, false
			}
		}
		b.WriteByte(text[i])
	}
	return append(subfields, b.String()), true
}

// expandTransit undoes the compression: EDU,MIT.,ATHENA. is EDU, MIT.EDU, ATHENA.MIT.EDU.
func expandTransit(subfield, previous string) string {
	switch {
	case strings.HasPrefix(subfield, " "):
		return subfield[1:]
	case strings.HasSuffix(subfield, "."):
		return subfield + previous
	case strings.HasPrefix(subfield, "/"):
		return previous + subfield
	}
	return subfield
}

// between returns the realms on the way up and down the tree of names, without the ends:
// what an empty subfield stands for.
func between(from, to string) []string {
	up, down := ancestry(from), ancestry(to)
	var top []string
	for len(up) > 0 && len(down) > 0 && up[len(up)-1] == down[len(down)-1] {
		top = up[len(up)-1:]
		up, down = up[:len(up)-1], down[:len(down)-1]
	}
	slices.Reverse(down)
	way := slices.Concat(up, top, down)
	if len(way) <= 2 {
		return nil
	}
	return way[1 : len(way)-1]
}

// ancestry returns a realm and the realms above it: A.B.C, B.C, C.
func ancestry(realm string) []string {
	var names []string
	for name, found := realm, true; found && len(names) <= maxTransited; _, name, found = strings.Cut(name, ".") {
		names = append(names, name)
	}
	return names
}
