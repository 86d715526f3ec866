package explain

import (
	"encoding/binary"
	mathbits "math/bits"
	"strings"
	"sync"
)

// matcher finds which looks can match a text in one pass over it, however many looks there are: every look with a text
// has an anchor that must be there, and the text is searched for all anchors at once (Wu and Manber: a table of how far
// one may skip after three bytes). Letters are compared without their case. No regular expression is tried on a line
// without an anchor.
type matcher struct {
	shortest int                   // bytes of the shortest anchor
	skip     [1 << hashBits]uint8  // how far to go on after three bytes; 0 where an anchor may end its first part
	first    [1 << hashBits]uint16 // index into chain of the anchors of these three bytes, 0 for none
	chain    []anchor
	always   candidates // looks without a text
	words    candidates // looks for words of trouble
}

type anchor struct {
	text   string // lower case
	look   int
	window int // where in the text the part is that is searched for
	next   uint16
}

// anchorBytes is how much of a text is hashed; no anchor may be shorter.
const (
	anchorBytes = 3
	hashBits    = 15
)

// candidates is a set of looks.
type candidates [10]uint64

func (c *candidates) add(look int) { c[look>>6] |= 1 << (look & 63) }

func (c *candidates) remove(other *candidates) {
	for word := range c {
		c[word] &^= other[word]
	}
}

func (c *candidates) none() bool { return *c == candidates{} }

// each calls act with every look of the set, in the order of the table.
func (c *candidates) each(act func(look int)) {
	for word, bits := range c {
		for ; bits != 0; bits &= bits - 1 {
			act(word<<6 | mathbits.TrailingZeros64(bits))
		}
	}
}

// theMatcher is the matcher of the table of looks.
var theMatcher = sync.OnceValue(func() *matcher { return newMatcher(looks) })

func newMatcher(looks []look) *matcher {
	m := &matcher{shortest: 255, chain: make([]anchor, 1)}
	for i := range looks {
		if looks[i].request { // tried on access records only
			continue
		}
		if looks[i].mark == troubleWord {
			m.words.add(i)
		}
		anchors := looks[i].anchors()
		if len(anchors) == 0 {
			m.always.add(i)
		}
		for _, text := range anchors {
			m.shortest = min(m.shortest, len(text))
			m.chain = append(m.chain, anchor{text: text, look: i})
		}
	}
	m.index()
	return m
}

func (m *matcher) index() {
	far := uint8(m.shortest - anchorBytes + 1)
	common := commonness()
	for i := range m.skip {
		m.skip[i] = far
	}
	for i := 1; i < len(m.chain); i++ {
		m.chain[i].window = rarest(m.chain[i].text, m.shortest, common)
		text := m.chain[i].text[m.chain[i].window:]
		for at := 0; at+anchorBytes <= m.shortest; at++ {
			h := hash(three(text, at))
			m.skip[h] = min(m.skip[h], uint8(m.shortest-anchorBytes-at))
		}
		end := m.shortest - anchorBytes
		h := hash(three(text, end))
		m.chain[i].next = m.first[h]
		m.first[h] = uint16(i)
	}
}

// anchors returns texts of which one must be there for the look to match; nil when it has none.
func (k *look) anchors() []string {
	longest, fit := "", len(k.any) > 0
	for _, text := range k.all {
		if len(text) > len(longest) {
			longest = text
		}
	}
	for _, text := range k.any {
		fit = fit && len(text) >= shortestAnchor
	}
	switch {
	case len(longest) < goodAnchor && fit:
		return k.any
	case len(longest) >= shortestAnchor:
		return []string{longest}
	}
	return nil
}

// What a text must have to be searched for: the shorter the shortest anchor, the slower the search.
// A good one is rare enough to be better than several.
const (
	shortestAnchor = 6
	goodAnchor     = 8
)

// hash is of three bytes, the first the lowest, without regard to case.
func hash(bytes uint32) uint32 {
	return ((bytes&0xffffff | 0x202020) * 0x9e3779b1) >> (32 - hashBits)
}

func three(text string, at int) uint32 {
	return uint32(text[at]) | uint32(text[at+1])<<8 | uint32(text[at+2])<<16
}

// find adds the looks whose anchors a text has.
func (m *matcher) find(text []byte, found *candidates) {
	for i := m.shortest - 1; i < len(text); {
		var h uint32
		if i+1 < len(text) { // four bytes at once, of which three count
			h = hash(binary.LittleEndian.Uint32(text[i-2:]))
		} else {
			h = hash(uint32(text[i-2]) | uint32(text[i-1])<<8 | uint32(text[i])<<16)
		}
		if skip := m.skip[h]; skip > 0 {
			i += int(skip)
			continue
		}
		m.compare(text, i-m.shortest+1, h, found)
		i++
	}
}

// compare adds the looks with an anchor whose window is at a place of a text.
func (m *matcher) compare(text []byte, at int, h uint32, found *candidates) {
	for next := m.first[h]; next != 0; next = m.chain[next].next {
		if a := &m.chain[next]; at >= a.window && begins(text[at-a.window:], a.text) {
			found.add(a.look)
		}
	}
}

// usual is what most lines of logs are made of: an anchor is searched for by the part of it that is least like this.
const usual = `<![log[[ccmhttp] error: url=https://, port=443, options=, code=, text=ccm_e_bad_http_status_code]log]!><time=":00.000+000" date="03-11-2024" component="` +
	`locationservices" context="" type="1" thread="4242" file="ccmmessaging.cpp:100"> successfully sending message to host endpoint client policy request response server ` +
	`status statuscode= statustext= messageid: requesturi: https:// endpointname: responseheader: http/1.1 200 ok ~~ responsebodysize: elapsedtime: ms~~  $$<sms_cloud_proxyconnector>` +
	`<03-11-2024 09:15:00.000+00><thread=4992 (0x1380)> registration certificate for the failed connection to location management point service token is in of and not with this that`

// commonness counts the hashes of usual.
func commonness() map[uint32]int {
	counts := map[uint32]int{}
	for at := 0; at+anchorBytes <= len(usual); at++ {
		counts[hash(three(usual, at))]++
	}
	return counts
}

// rarest returns where the part of a text begins that is to be searched for: of all parts of a size the one whose end is rarest.
func rarest(text string, size int, common map[uint32]int) (window int) {
	least := 1 << 30
	for at := 0; at+size <= len(text); at++ {
		count := 16 * common[hash(three(text, at+size-anchorBytes))]
		for i := at; i+anchorBytes <= at+size; i++ {
			count += common[hash(three(text, i))]
		}
		if count < least {
			least, window = count, at
		}
	}
	return window
}

// begins says whether a text begins with an anchor, in whatever case.
func begins(text []byte, anchor string) bool {
	if len(text) < len(anchor) {
		return false
	}
	for i := range len(anchor) {
		c := text[i]
		if c-'A' < 26 {
			c |= 0x20
		}
		if c != anchor[i] {
			return false
		}
	}
	return true
}

// lower is a text with its ASCII letters in lower case; other bytes stay, whatever encoding they are in.
func lower(text string) string {
	for i := range len(text) {
		if text[i]-'A' < 26 {
			b := []byte(text)
			for ; i < len(b); i++ {
				if b[i]-'A' < 26 {
					b[i] |= 0x20
				}
			}
			return string(b)
		}
	}
	return text
}

// contains is strings.Contains for many texts.
func containsAny(text string, texts []string) bool {
	for _, t := range texts {
		if strings.Contains(text, t) {
			return true
		}
	}
	return false
}
