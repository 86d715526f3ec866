package client

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"postern/catalog"
	"postern/ccm"
)

// ServerError is in the chain of every refusal that came over HTTP.
type ServerError struct {
	Host       string
	Status     int
	Phrase     string        // "CMGService_Invalid_Token": the text that logs show (protocol.md 7.4)
	Code       string        // as the server wrote it, known or not; "" when there was none
	Request    string        // the server's id of this request, for its logs
	RetryAfter time.Duration // 0 when the server did not say
}

// Error says status and phrase.
func (e *ServerError) Error() string {
	text := fmt.Sprintf("%s answered %d %s", e.Host, e.Status, e.Phrase)
	if e.Request != "" {
		text += " (request " + e.Request + ")"
	}
	return text
}

// problem is what is read of RFC 9457 problem details.
type problem struct {
	Title    string `json:"title"`
	Detail   string `json:"detail"`
	Instance string `json:"instance"`
	Code     string `json:"code"`
}

// phrases are the texts by which servers without problem details say why (protocol.md
// 7.4).
func phrases() map[string]catalog.Code {
	return map[string]catalog.Code{
		"CMGService_Invalid_Token":                 catalog.SymptomGatewayInvalidToken,
		"CMGConnector_Clientcertificaterequired":   catalog.SymptomConnectorClientCertificateRequired,
		"CMGConnector_Forbidden":                   catalog.SymptomConnectorForbidden,
		"CMGConnector_Unauthorized":                catalog.SymptomConnectorUnauthorized,
		ccm.StatusClientCertificateRequired.Reason: catalog.SymptomClientCertificateRequired,
	}
}

// parseProblem makes an error of a refusal: with the code that the server gave, when it is
// one that servers answer with, otherwise with one for its status. What the server wrote
// is cleaned, cut, and freed of anything that looks like a token.
func parseProblem(host string, status ccm.Status, header http.Header, body []byte, sent string) error {
	p := readProblem(header.Get("Content-Type"), body)
	refusal := &ServerError{
		Host: host, Status: status.Code, Phrase: harmless(status.Reason, 128, sent), Code: harmless(p.Code, 16, sent),
		Request: harmless(p.Instance, 64, sent), RetryAfter: retryAfter(header.Get("Retry-After")),
	}
	if refusal.Request == "" {
		refusal.Request = harmless(header.Get(ccm.HeaderMessageID), 64, sent)
	}
	detail := harmless(p.Detail, 400, sent)
	code := catalog.Code(p.Code)
	if entry, known := catalog.Lookup(code); !known || entry.Status == 0 {
		code = codeOf(status, p)
		if p.Code != "" {
			detail = strings.TrimSpace(refusal.Code + " " + harmless(p.Title, 100, sent) + " " + detail)
		}
	}
	if detail == "" {
		detail = fmt.Sprintf("%d %s", refusal.Status, refusal.Phrase)
	}
	return catalog.Wrap(code, refusal, "%s", detail)
}

func readProblem(contentType string, body []byte) problem {
	mediaType, _, err := mime.ParseMediaType(contentType)
	var p problem
	if err != nil || mediaType != "application/problem+json" && mediaType != "application/json" || json.Unmarshal(body, &p) != nil {
		return problem{}
	}
	return p
}

func codeOf(status ccm.Status, p problem) catalog.Code {
	if code, ok := phrases()[status.Reason]; ok && p.Code == "" {
		return code
	}
	switch {
	case busy(status.Code):
		return catalog.ClientServerBusy
	case status.Code >= 300 && status.Code < 400:
		return catalog.ClientRedirected
	}
	return catalog.ClientRefused
}

func busy(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// maxRetryAfter bounds what a server may ask for.
const maxRetryAfter = time.Hour

func retryAfter(text string) time.Duration {
	seconds, err := strconv.Atoi(text)
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(min(seconds, 1<<20))*time.Second, maxRetryAfter)
}

// tokenLike finds what looks like a token or an assertion.
var tokenLike = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*){0,2}`)

// harmless returns a server's text as it may stand in errors and logs: no token, no part
// of the one that was sent, no control or invisible characters, cut to a length.
func harmless(text string, most int, sent string) string {
	if len(text) > 4096 {
		text = text[:4096]
	}
	text = tokenLike.ReplaceAllString(clean(text, len(text)), "[token]")
	if repeats(text, sent) {
		return "[withheld: the server repeated the token]"
	}
	return clean(text, most)
}

// window is the length from which a part of a token counts as one.
const window = 12

// repeats reports whether a part of a token stands in a text.
func repeats(text, sent string) bool {
	if len(sent) < window || len(text) < window {
		return false
	}
	parts := make(map[string]bool, len(sent))
	for i := range len(sent) - window + 1 {
		parts[sent[i:i+window]] = true
	}
	for i := range len(text) - window + 1 {
		if parts[text[i:i+window]] {
			return true
		}
	}
	return false
}

// clean replaces what cannot be printed and cuts to most bytes.
func clean(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return strings.TrimSpace(text)
}
