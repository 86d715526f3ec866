package connector

import (
	"net/http"
	"net/textproto"
	"strings"

	"postern/ccm"
)

// forwarded are the request headers that are passed on to a management point; no other
// is. The last group is set by the gateway alone, which strips what devices send.
var forwarded = canonical([]string{
	"Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "Content-Encoding", "Content-Range", "Content-Type",
	"If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Range", "User-Agent",

	// The device's own proofs (RFC 9449; protocol.md 4.4; product.md 1.1 row 20).
	"Authorization", "DPoP", "ClientToken", "ClientTokenSignature", "CCMAuthHeaderType", "CCMAuthHeaderTypeSignature",
	"CCMClientID", "CCMClientIDSignature", "CCMClientTimestamp", "CCMClientTimestampSignature", "CCMClientTimestampsSignature",

	// PROPFIND and BITS uploads.
	"Depth", "Translate", "Content-Name", "BITS-Packet-Type", "BITS-Session-Id", "BITS-Protocol", "BITS-Supported-Protocols",

	"Traceparent", "Tracestate", ccm.HeaderSignedReply,
}, ccm.HopHeaders())

// withheld are the headers of an answer that stay inside: they speak of one connection,
// name internal hosts, or are ours to set.
var withheld = canonical([]string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Te", "Trailer", "Proxy-Authenticate",
	"Location", "Content-Location", "Alt-Svc", ccm.HeaderStatus,
}, ccm.HopHeaders())

// methods are those that clients of the protocol use (product.md 1.1 row 20).
var methods = map[string]bool{"GET": true, "HEAD": true, "POST": true, "CCM_POST": true, "BITS_POST": true, "PROPFIND": true}

func canonical(lists ...[]string) map[string]bool {
	names := map[string]bool{}
	for _, list := range lists {
		for _, name := range list {
			names[textproto.CanonicalMIMEHeaderKey(name)] = true
		}
	}
	return names
}

// requestHeader returns what of a request's header is passed on, as a map of its own.
func requestHeader(h http.Header) http.Header {
	out := make(http.Header, len(h))
	for name, values := range h {
		if forwarded[name] && len(values) > 0 {
			out[name] = values
		}
	}
	if out["User-Agent"] == nil {
		out["User-Agent"] = nil // keeps net/http from adding its own
	}
	return out
}

func copyAnswerHeader(to, from http.Header) {
	for name, values := range from {
		if !withheld[name] {
			to[name] = values
		}
	}
}

// phrase returns what goes into ccm.HeaderStatus for a management point's answer
// (protocol.md 7.4), or "" when the code's own text will do. What the management point
// says in the gateway's or connector's name stays as it is.
func phrase(answer *http.Response) string {
	_, reason, _ := strings.Cut(answer.Status, " ")
	reason = strings.Map(printable, reason)
	switch {
	case answer.StatusCode < 400:
		return ""
	case strings.HasPrefix(reason, "CMG"):
		return reason
	case rewritten[answer.StatusCode]:
		return ccm.ConnectorStatus(answer.StatusCode, reason).Reason
	}
	return ""
}

// rewritten are the statuses whose text the documents show with "CMGConnector_".
var rewritten = map[int]bool{http.StatusUnauthorized: true, http.StatusForbidden: true, http.StatusInternalServerError: true}

func printable(r rune) rune {
	if r < ' ' || r > '~' {
		return -1
	}
	return r
}
