package explain

import (
	"strings"
	"sync"
)

// matcher finds which looks can match a text in one pass over it, however many looks there are: every look with a text has
// an anchor that must be there, and three bytes of an anchor are looked up at each place.
type matcher struct {
	begins [1 << 16 / 64]uint64 // hashes with which an anchor begins
	at     map[uint16][]anchor  // the anchors of a hash
	always []int                // looks without a text
}

type anchor struct {
	text string
	look int
}

// anchorBytes is how much of an anchor is hashed.
const anchorBytes = 3

// candidates is a set of looks.
type candidates [4]uint64

func (c *candidates) add(look int) { c[look>>6] |= 1 << (look & 63) }

// theMatcher is the matcher of the table of looks.
var theMatcher = sync.OnceValue(func() *matcher { return newMatcher(looks) })

func newMatcher(looks []look) *matcher {
	m := &matcher{at: map[uint16][]anchor{}}
	for i := range looks {
		anchors := looks[i].anchors()
		if len(anchors) == 0 {
			m.always = append(m.always, i)
		}
		for _, text := range anchors {
			h := hash(text[0], text[1], text[2])
			m.begins[h>>6] |= 1 << (h & 63)
			m.at[h] = append(m.at[h], anchor{text, i})
		}
	}
	return m
}

// anchors returns texts of which one must be there for the look to match; nil when it has none.
func (k *look) anchors() []string {
	if len(k.any) > 0 {
		return k.any
	}
	longest := ""
	for _, text := range k.all {
		if len(text) > len(longest) {
			longest = text
		}
	}
	if len(longest) < anchorBytes {
		return nil
	}
	return []string{longest}
}

func hash(a, b, c byte) uint16 { return uint16(a) ^ uint16(b)<<5 ^ uint16(c)<<10 }

// find returns the looks that may match a text.
func (m *matcher) find(text string) (found candidates) {
	for _, i := range m.always {
		found.add(i)
	}
	for i := 0; i+anchorBytes <= len(text); i++ {
		h := hash(text[i], text[i+1], text[i+2])
		if m.begins[h>>6]&(1<<(h&63)) == 0 {
			continue
		}
		for _, a := range m.at[h] {
			if strings.HasPrefix(text[i:], a.text) {
				found.add(a.look)
			}
		}
	}
	return found
}
