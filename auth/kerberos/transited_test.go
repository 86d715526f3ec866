package kerberos

import (
	"slices"
	"testing"

	"postern/catalog"
)

// The examples of RFC 4120 3.3.3.2, and what could be made to deceive.
func TestTransitedRealms(t *testing.T) {
	tests := []struct {
		name, from, to, text string
		want                 []string
	}{
		{"none", child, parent, "", nil},
		{"one", "C.COM", "A.COM", "B.COM", []string{"B.COM"}},
		{"compressed domains", "X", "Y", "EDU,MIT.,ATHENA.,WASHINGTON.EDU,CS.", []string{"EDU", "MIT.EDU", "ATHENA.MIT.EDU", "WASHINGTON.EDU", "CS.WASHINGTON.EDU"}},
		{"compressed X.500", "X", "Y", "/COM/HP,/APOLLO, /COM/DEC", []string{"X/COM/HP", "X/COM/HP/APOLLO", "/COM/DEC"}},
		{"escaped comma and dot", "X", "Y", `A\,B.C,D\\E`, []string{"A,B.C", `D\E`}},
		{"all between, up and down", "A.B.COM", "D.C.COM", ",", []string{"B.COM", "COM", "C.COM"}},
		{"all between, down", "COM", "A.B.C.COM", ",", []string{"C.COM", "B.C.COM"}},
		{"all between, up", "A.B.C.COM", "COM", ",", []string{"B.C.COM", "C.COM"}},
		{"all between, without a common top", "A.COM", "B.ORG", ",", []string{"COM", "ORG"}},
		{"all between, neighbours", child, parent, ",", nil},
		{"a gap in the middle", "A.COM", "Z.ORG", "COM,,ORG", []string{"COM", "ORG"}},
		{"a gap after one", "A.COM", "A.B.ORG", "ORG,", []string{"ORG", "B.ORG"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ticket{realm: test.from, transitKind: 1, transit: []byte(test.text)}.transitedRealms(test.to)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
	for name, text := range map[string]string{"a backslash at the end": `A\`, "too long": string(make([]byte, maxTransit+1)), "an empty name": " "} {
		if _, err := (ticket{transitKind: 1, transit: []byte(text)}).transitedRealms(parent); catalog.CodeOf(err) != catalog.KerberosTransitNotTrusted {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
