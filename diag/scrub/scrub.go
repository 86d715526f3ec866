// Package scrub takes secrets out of text that leaves the machine: logs, configuration and reports of a support bundle (users-and-threats.md C58).
//
// Start at [New], which is told the secrets that are known, such as the bytes of key files. [Scrubber.Text] takes those out, however they are written, and
// then whatever looks like a token, a key or a password. It would rather take out too much than too little. It is no redaction: names, addresses and ids of
// devices stay, since without them a bundle explains nothing.
package scrub

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Mark stands where something was left out.
const Mark = "(left out)"

const (
	window   = 16        // bytes in a row of a known secret that give it away
	shortest = 4         // bytes of a secret that is searched for at all
	fine     = 32 << 10  // bytes of all secrets up to which every window is kept
	most     = 512 << 10 // bytes of all secrets that are kept
	filter   = 1 << 20   // bits
)

// Scrubber takes out secrets. It is safe for concurrent use.
type Scrubber struct {
	windows map[[window]byte]struct{}
	filter  []uint64
	short   [][]byte // forms of less than a window, the longest first
}

// New returns a scrubber that knows these secrets: it finds them, and all pieces of 16 bytes or more, as they are, in UTF-16, in hexadecimal and in base64, and
// readable ones as JSON and addresses write them. Those that matter most come first: behind 32 KiB of them pieces of less than 24 bytes are not found, and what
// comes behind 512 KiB is not looked for at all. Neither are secrets of less than 4 bytes.
func New(secrets ...[]byte) *Scrubber {
	s := &Scrubber{windows: map[[window]byte]struct{}{}, filter: make([]uint64, filter/64)}
	total, stride := 0, 1
	for _, secret := range secrets {
		if total += len(secret); total > fine {
			stride = window / 2
		}
	}
	left := most
	for _, secret := range secrets {
		if len(secret) < shortest {
			continue
		}
		secret = secret[:min(len(secret), left)]
		left -= len(secret)
		for _, form := range forms(secret) {
			s.add(form, stride)
		}
	}
	slices.SortFunc(s.short, func(a, b []byte) int { return len(b) - len(a) })
	return s
}

// forms are the ways to write a secret.
func forms(secret []byte) (all [][]byte) {
	for _, plain := range [][]byte{secret, wide(secret, 0), wide(secret, 1)} {
		lower := []byte(hex.EncodeToString(plain))
		all = append(all, plain, lower, bytes.ToUpper(lower))
		for shift := range 3 {
			all = append(all, encoded(base64.RawStdEncoding, plain, shift), encoded(base64.RawURLEncoding, plain, shift))
		}
	}
	return append(all, escaped(secret)...)
}

// escaped are the forms that a readable secret takes in JSON and in addresses, where they differ from it.
func escaped(secret []byte) (all [][]byte) {
	if len(secret) > 1<<10 || !utf8.Valid(secret) {
		return nil
	}
	text := string(secret)
	for _, form := range []string{inQuotes(text, true), inQuotes(text, false), strconv.Quote(text)[1:], url.QueryEscape(text), url.PathEscape(text)} {
		if form = strings.TrimSuffix(form, `"`); form != text {
			all = append(all, []byte(form))
		}
	}
	return all
}

// inQuotes is a text as JSON has it, behind its opening quote; without html as log/slog writes it.
func inQuotes(text string, html bool) string {
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(html)
	_ = encoder.Encode(text) // a string always has a form
	return strings.TrimSpace(out.String())[1:]
}

// wide is a text in UTF-16, little endian for 0 and big endian for 1.
func wide(text []byte, order int) []byte {
	out := make([]byte, 2*len(text))
	for i, c := range text {
		out[2*i+order] = c
	}
	return out
}

// encoded is the base64 of a secret that stands behind so many other bytes, without the characters at both ends that others have a part in.
func encoded(encoding *base64.Encoding, secret []byte, shift int) []byte {
	text := encoding.EncodeToString(append(make([]byte, shift), secret...))
	if (shift+len(secret))%3 != 0 {
		text = text[:len(text)-1]
	}
	return []byte(text[min(len(text), []int{0, 2, 3}[shift]):])
}

func (s *Scrubber) add(form []byte, stride int) {
	switch {
	case len(form) < shortest:
		return
	case len(form) < window:
		s.short = append(s.short, form)
		return
	}
	for at := 0; at+window <= len(form); at += stride {
		w := [window]byte(form[at : at+window])
		if commonplace(w[:]) {
			continue
		}
		s.windows[w] = struct{}{}
		bit := hashed(w[:])
		s.filter[bit/64] |= 1 << (bit % 64)
	}
}

// commonplace reports whether a piece says nothing: padding, or the frame of a PEM file.
func commonplace(w []byte) bool {
	different := map[byte]bool{}
	for _, c := range w {
		different[c] = true
	}
	return len(different) < 5 || bytes.Contains(w, []byte("-----"))
}

func hashed(b []byte) uint32 {
	return (uint32(b[0])*0x9E3779B1 ^ uint32(b[1])*0x85EBCA6B ^ uint32(b[2])*0xC2B2AE35 ^ uint32(b[3])*0x27D4EB2F) >> 12
}

// place is where a known secret begins and ends.
type place struct{ begin, end int }

// places finds the known secrets, in order; those that touch are one.
func (s *Scrubber) places(text []byte) (merged []place) {
	var all []place
	for at := 0; len(s.windows) > 0 && at+window <= len(text); at++ {
		bit := hashed(text[at:])
		if s.filter[bit/64]&(1<<(bit%64)) == 0 {
			continue
		}
		if _, known := s.windows[[window]byte(text[at:at+window])]; known {
			all = append(all, place{at, at + window})
		}
	}
	for _, form := range s.short {
		for from := 0; ; {
			at := bytes.Index(text[from:], form)
			if at < 0 {
				break
			}
			all = append(all, place{from + at, from + at + len(form)})
			from += at + len(form)
		}
	}
	slices.SortFunc(all, func(a, b place) int { return a.begin - b.begin })
	for _, p := range all {
		if n := len(merged); n > 0 && p.begin <= merged[n-1].end {
			merged[n-1].end = max(merged[n-1].end, p.end)
			continue
		}
		merged = append(merged, p)
	}
	return merged
}

// Holds reports whether the text holds a known secret, or a piece of one.
func (s *Scrubber) Holds(text []byte) bool { return len(s.places(text)) > 0 }

// Text returns the text without secrets, and how many places were left out.
func (s *Scrubber) Text(text []byte) (clean []byte, leftOut int) {
	text, leftOut = s.known(text)
	text = bytes.ReplaceAll(text, []byte{0}, nil) // what was UTF-16 can be read by the rules below
	text, more := s.known(text)
	leftOut += more
	for _, r := range blocks {
		if r.mayHold(text) {
			text = r.apply(text, &leftOut)
		}
	}
	out := make([]byte, 0, len(text))
	for line := range bytes.Lines(text) {
		out = append(out, lookThrough(line, &leftOut)...)
	}
	return out, leftOut
}

// lookThrough takes out of a line what looks like a secret.
func lookThrough(line []byte, leftOut *int) []byte {
	low := bytes.ToLower(line)
	for _, r := range looks {
		if r.mayHold(low) {
			line = r.apply(line, leftOut)
		}
	}
	line, more := blobs(line)
	*leftOut += more
	return line
}

func (r rule) mayHold(text []byte) bool {
	return slices.ContainsFunc(r.needs, func(word string) bool { return bytes.Contains(text, []byte(word)) })
}

func (r rule) apply(text []byte, leftOut *int) []byte {
	return r.looks.ReplaceAllFunc(text, func(found []byte) []byte {
		replaced := r.replace(found)
		if !bytes.Equal(replaced, found) {
			*leftOut++
		}
		return replaced
	})
}

// known takes out known secrets.
func (s *Scrubber) known(text []byte) (clean []byte, leftOut int) {
	places := s.places(text)
	if len(places) == 0 {
		return text, 0
	}
	var out bytes.Buffer
	at := 0
	for _, p := range places {
		out.Write(text[at:p.begin])
		out.WriteString(Mark)
		at = p.end
	}
	out.Write(text[at:])
	return out.Bytes(), len(places)
}
