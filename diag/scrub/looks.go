package scrub

import (
	"bytes"
	"regexp"
)

// rule is one thing that secrets look like.
type rule struct {
	needs   []string // one of these is in every line that can hold it, in lower case; of blocks, in the text as it is
	looks   *regexp.Regexp
	replace func(found []byte) []byte // returns found when it is no secret after all
}

// blocks are private keys in PEM, over several lines: whole, without their end, and without their begin.
var blocks = []rule{
	{[]string{"PRIVATE KEY"}, regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\z)`), all},
	{[]string{"PRIVATE KEY-----", "PRIVATE KEY BLOCK-----"}, regexp.MustCompile(`(?:[A-Za-z0-9+/=]+(?:\s|\\[rn])+)*-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----`), all},
}

// quoted is a string in quotes, its end perhaps cut off. In JSON within JSON the quotes have backslashes before them: it then goes on to the end of the outer
// string, which is too much and not too little.
const quoted = `\\*"(?:\\.|[^"\\\r\n])*"?`

// looks are tried on each line in order, each on what the ones before have left.
var looks = []rule{
	{[]string{"eyj"}, regexp.MustCompile(`eyJ[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){0,4}`), all}, // JOSE
	{[]string{"authorization", "dpop", "cookie", "x-api-key"},
		regexp.MustCompile(`(?i)\b(?:authorization|dpop|cookie|set-cookie|x-api-key)\\*["']?\s*[:=]\s*(?:\[(?:[\s,]*` + quoted + `)+|` + quoted + `|[^\r\n"]*(?:"[^"\r\n]*")?)`), value},
	{[]string{"bearer", "dpop", "negotiate", "basic", "ntlm", "kerberos"}, regexp.MustCompile(`(?i)\b(?:bearer|dpop|negotiate|basic|ntlm|kerberos)\s+[A-Za-z0-9._~+/=-]{8,}`), credential},
	{[]string{"regtoken"}, regexp.MustCompile(`(?i)/?\bregtoken[:=]\s*"?[^\s"]+`), value},
	{[]string{"pass", "pwd", "secret", "kennwort", "api", "private", "credential"},
		regexp.MustCompile(`(?i)(?:\bpass|pass[ _-]?wor[dt]|passwd|passphrase|passcode|pwd|secret|kennwort|mot[ _-]?de[ _-]?passe|api[_-]?key|private[_-]?key|credential)[a-z0-9_.-]*\\*["']?\s*[:=]\s*(?:` + quoted + `|'(?:\\.|[^'\\\r\n])*'?|[^\s"]+)`), value},
	{[]string{`"d`, `"k`}, regexp.MustCompile(`\\*"[dk]\\*"\s*:\s*\\*"[A-Za-z0-9_+/=-]{8,}`), value}, // the private part of a JWK
	{[]string{"token", "key", "assertion", "sig=", `sig"`, "nonce"}, regexp.MustCompile(`(?i)(?:token|key|assertion|sig|nonce)\\*["']?\s*[:=]\s*\\*["']?[A-Za-z0-9._~+/=-]{8,}`), named},
	{[]string{":/", `:\/`}, regexp.MustCompile(`:(?:\\?/){1,2}[^\s/@:"<>\\]*:[^\s"<>]*@`), userinfo},
}

func all([]byte) []byte { return []byte(Mark) }

// separator ends the name of a value.
var separator = regexp.MustCompile(`[:=]\s*`)

// value leaves the name of a value. One that was left out already, or is empty, stays.
func value(found []byte) []byte {
	at := separator.FindIndex(found)
	if rest := bytes.Trim(found[at[1]:], ` "'\`); len(rest) == 0 || bytes.HasPrefix(rest, []byte("(left")) {
		return found
	}
	return append(append([]byte{}, found[:at[1]]...), Mark...)
}

// credential leaves the scheme of an HTTP credential; a word behind the name of a scheme is none.
func credential(found []byte) []byte {
	at := bytes.LastIndexAny(found, " \t\r\n")
	if rest := found[at+1:]; len(rest) < 24 && !bytes.ContainsAny(rest, "0123456789=") {
		return found
	}
	return append(append([]byte{}, found[:at+1]...), Mark...)
}

var (
	digit = regexp.MustCompile(`[0-9]`)
	// public are the forms of ids and hashes by which a bundle is read: UUID, trace id, SHA-1, SHA-256, the thumbprint of a key, traceparent.
	public = regexp.MustCompile(`^(?:(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}|[0-9A-F]{32}|[0-9a-f]{40}|[0-9A-F]{40}|[0-9a-f]{64}|[A-Za-z0-9_-]{43}|00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})$`)
	hash   = regexp.MustCompile(`^(?:[0-9a-f]{32}|[0-9A-F]{32}|[0-9a-f]{40}|[0-9A-F]{40}|[0-9a-f]{64})$`)
	date   = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}`)
)

// named leaves out what a name says to be a token or a key, unless it has the form of an id or of a word.
func named(found []byte) []byte {
	at := separator.FindIndex(found)
	rest := bytes.Trim(found[at[1]:], ` "'\`)
	if bytes.HasPrefix(rest, []byte("(left")) || public.Match(rest) || date.Match(rest) || !digit.Match(rest) && len(rest) < 24 || bytes.HasPrefix(rest, []byte("/")) || bytes.Contains(rest, []byte(".key")) || bytes.Contains(rest, []byte(".pem")) {
		return found
	}
	return append(append([]byte{}, found[:at[1]]...), Mark...)
}

// userinfo leaves scheme and user of an address.
func userinfo(found []byte) []byte {
	at := bytes.IndexByte(found[1:], ':') + 2
	return append(append([]byte{}, found[:at]...), Mark+"@"...)
}

// blobs leaves out what can only be bytes in base64 or in hexadecimal, and is no hash or id.
func blobs(line []byte) (clean []byte, leftOut int) {
	at := 0
	for begin := 0; begin < len(line); begin++ {
		end := begin
		for end < len(line) && blobByte(line[end]) {
			end++
		}
		if end-begin >= 24 {
			padded := end
			for padded < min(len(line), end+2) && line[padded] == '=' {
				padded++
			}
			if blob(line[begin:padded]) {
				clean = append(append(clean, line[at:begin]...), Mark...)
				at, end = padded, padded
				leftOut++
			}
		}
		begin = end
	}
	if leftOut == 0 {
		return line, 0
	}
	return append(clean, line[at:]...), leftOut
}

func blobByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '+' || c == '/' || c == '-' || c == '_'
}

func blob(run []byte) bool {
	if public.Match(run) {
		return false
	}
	for piece := range bytes.FieldsFuncSeq(run, func(r rune) bool { return r == '/' || r == '-' || r == '_' || r == '=' }) {
		if len(piece) >= 16 && mixed(piece) {
			return true
		}
	}
	return false
}

// mixed reports whether a piece has digits among its letters, as words and paths have not: of both cases, or hexadecimal ones that are too many for a hash.
func mixed(piece []byte) bool {
	if hash.Match(piece) {
		return false
	}
	upper, lower, digits := 0, 0, 0
	for _, c := range piece {
		switch {
		case 'A' <= c && c <= 'Z':
			upper++
		case 'a' <= c && c <= 'z':
			lower++
		case '0' <= c && c <= '9':
			digits++
		}
	}
	return digits > 0 && upper > 1 && lower > 1 || digits > 2 && upper+lower > 2 && len(piece) > 32
}
