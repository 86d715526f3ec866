package mp

import (
	"cmp"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"postern/ccm"
	"postern/logfile"
)

// access writes the request's line in the access log and counts it.
func (v *visit) access() {
	taken := v.mp.now().Sub(v.began)
	status := v.status
	if v.w.status != 0 && v.w.status != status.Code {
		status = ccm.Status{Code: v.w.status}
	}
	if hook := v.mp.config.Hooks.Request; hook != nil {
		hook(v.exchangeDone(status, taken))
	}
	v.mp.config.AccessLog.Write(v.accessRecord(status, taken))
	v.event(status, taken)
}

// event is the same as an event with the ids of the request: always when it brought something about, otherwise only in verbose mode. Refusals have had theirs; dropped headers of a hop do not hide what the request did.
func (v *visit) event(status ccm.Status, taken time.Duration) {
	if v.refused != nil && v.act == "" {
		return
	}
	level := slog.LevelDebug
	if v.act != "" {
		level = slog.LevelInfo
	}
	v.mp.log.LogAttrs(v.r.Context(), level, "request answered", slog.String("route", v.routeName()), slog.Int("status", status.Code),
		slog.String("proof", string(v.proof.Method)), slog.String("act", v.act), slog.String("connector", v.hop.connector), slog.Duration("took", taken))
}

func (v *visit) accessRecord(status ccm.Status, taken time.Duration) logfile.AccessRecord {
	ip, port := v.localAddress()
	stem, _, _ := strings.Cut(v.r.RequestURI, "?")
	return logfile.AccessRecord{
		Time: v.began, ServerAddress: cmp.Or(v.mp.config.ServerIP, ip), Method: v.r.Method, Stem: withoutTokens(stem), Query: withoutTokens(v.loggedQuery()), Port: port,
		Username: v.userName(), ClientAddress: hostOnly(v.r.RemoteAddr), UserAgent: v.r.UserAgent(), Status: status.Code, SubStatus: status.SubStatus,
		Windows: status.Windows, Bytes: v.w.bytes, Taken: taken,
	}
}

// loggedQuery is the query where the protocol uses one. Elsewhere nothing is kept of it: it may hold what must not be in a log.
func (v *visit) loggedQuery() string {
	switch v.path.Endpoint {
	case ccm.EndpointMP, ccm.EndpointMPTokenAuth, ccm.EndpointMPAltAuth:
		return v.path.Query
	}
	return ""
}

// withoutTokens takes out what looks like a token (a JWT begins with {" in base64url): a client that puts one into an address is refused, and
// its mistake must not end in a log.
func withoutTokens(text string) string { return tokenLike.ReplaceAllString(text, "[token]") }

var tokenLike = regexp.MustCompile(`eyJ[A-Za-z0-9_.-]{16,}`)

func (v *visit) localAddress() (ip string, port int) {
	address, _ := v.r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if address == nil {
		return "", 0
	}
	host, text, _ := net.SplitHostPort(address.String())
	port, _ = strconv.Atoi(text)
	return host, port
}
