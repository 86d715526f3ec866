package ccm

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
)

// Status is an answer's status as clients and administrators know it: besides the code
// a reason phrase, which clients log and act on, and what the access log says.
type Status struct {
	Code      int
	Reason    string // exactly as in the documents
	SubStatus int    // the access log's sc-substatus
	Windows   uint32 // the access log's sc-win32-status
}

// The statuses whose text or numbers are part of the protocol (protocol.md 1.5, 7.4).
var (
	// StatusClientCertificateRequired answers a request without client certificate where
	// one is needed. Clients compare the phrase.
	StatusClientCertificateRequired = Status{http.StatusForbidden, "Client certificate required", 7, 0}
	// StatusInvalidToken is the gateway's answer to a token that it does not accept.
	StatusInvalidToken = Status{http.StatusUnauthorized, "CMGService_Invalid_Token", 0, 0}
	// StatusUnauthorizedNegotiate asks for a ticket: SEC_E_NO_CREDENTIALS in the log (S0).
	StatusUnauthorizedNegotiate = Status{http.StatusUnauthorized, "Unauthorized", 2, 2148074254}
	// StatusForbidden answers plain HTTP where only HTTPS is served.
	StatusForbidden = Status{http.StatusForbidden, "Forbidden", 4, 0}
)

// HeaderStatus carries the reason phrase where HTTP has none: in HTTP/2 and through
// the tunnel.
const HeaderStatus = "Postern-Status"

// StatusOf returns the status with the code's usual phrase.
func StatusOf(code int) Status { return Status{Code: code, Reason: http.StatusText(code)} }

// ConnectorStatus returns what a connector makes of its management point's status:
// "CMGConnector_" and the phrase without its spaces (protocol.md 7.4).
func ConnectorStatus(mpStatus int, mpReason string) Status {
	if mpReason == "" {
		mpReason = http.StatusText(mpStatus)
	}
	return Status{Code: mpStatus, Reason: "CMGConnector_" + strings.ReplaceAll(mpReason, " ", "")}
}

// StatusFrom returns the status of an answer that came through the tunnel or HTTP/2:
// with the phrase of [HeaderStatus] when that has one, otherwise the code's usual one.
func StatusFrom(code int, header http.Header) Status {
	if reason := header.Get(HeaderStatus); validReason(reason) {
		return Status{Code: code, Reason: reason}
	}
	return StatusOf(code)
}

// Phrase is the text of a status line, "403 Client certificate required".
func (s Status) Phrase() string { return strconv.Itoa(s.Code) + " " + s.Reason }

// How long and how much of a request's body is read for a client that is still sending
// it: one that is reset while it sends never sees the status.
const (
	drainBytes = 256 << 10
	drainTime  = 2 * time.Second
	writeTime  = 10 * time.Second
)

// WriteStatus answers a request with a status, its reason phrase, headers and a whole
// body, and is the handler's last act. net/http cannot send a phrase of one's own, so on
// HTTP/1 such an answer is written on the connection itself, which is closed after it;
// elsewhere [HeaderStatus] carries the phrase. Headers with line ends or other control
// characters are left out; a phrase with them becomes the usual one.
func WriteStatus(w http.ResponseWriter, r *http.Request, s Status, header http.Header, body []byte) {
	if s.Code < 200 || s.Code > 599 {
		s = StatusOf(http.StatusInternalServerError)
	}
	if !validReason(s.Reason) {
		s.Reason = http.StatusText(s.Code)
	}
	header = cleanHeader(header)
	usual := s.Reason == http.StatusText(s.Code)
	if r.ProtoMajor == 1 && !usual && writeHijacked(w, r, s, header, body) {
		return
	}
	if r.ProtoMajor != 1 || !usual {
		header.Set(HeaderStatus, s.Reason)
	}
	for name, values := range header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(s.Code)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

// WriteError answers a request with a status and the catalogue's account of err as
// problem+json. A zero status takes the one of the catalogue's entry.
func WriteError(w http.ResponseWriter, r *http.Request, s Status, err error) {
	if s.Code == 0 {
		s = StatusOf(http.StatusInternalServerError)
		if entry, ok := catalog.Lookup(catalog.CodeOf(err)); ok && entry.Status != 0 {
			s = StatusOf(entry.Status)
		}
	}
	header := http.Header{"Content-Type": {"application/problem+json"}, "Cache-Control": {"no-store"}}
	WriteStatus(w, r, s, header, catalog.Problem(err, r.Header.Get(HeaderMessageID)))
}

// writeHijacked writes the answer on the connection and closes it. It reports false
// when there is no connection to take over.
func writeHijacked(w http.ResponseWriter, r *http.Request, s Status, header http.Header, body []byte) bool {
	control := http.NewResponseController(w)
	drained := drain(control, r)
	conn, buffered, err := control.Hijack()
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(writeTime))
	if _, err := conn.Write(responseBytes(r, s, mergeHeaders(w.Header(), header), body)); err != nil {
		return true
	}
	if !drained {
		linger(conn, buffered)
	}
	return true
}

// drain reads the rest of the body within bounds and reports whether that was all. A
// client that waits for "100 Continue" is not told to go on.
func drain(control *http.ResponseController, r *http.Request) bool {
	if r.Body == nil || r.Body == http.NoBody {
		return true
	}
	if strings.EqualFold(r.Header.Get("Expect"), "100-continue") {
		return false
	}
	control.SetReadDeadline(time.Now().Add(drainTime)) // without deadlines the size alone bounds it
	n, err := io.Copy(io.Discard, io.LimitReader(r.Body, drainBytes+1))
	return err == nil && n <= drainBytes
}

// linger ends our side and gives the client time to read the status before the
// connection goes: closing over unread bytes would reset it.
func linger(conn net.Conn, buffered io.Reader) {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	conn.SetReadDeadline(time.Now().Add(drainTime))
	io.Copy(io.Discard, io.LimitReader(buffered, drainBytes))
}

// responseBytes is the whole answer on the wire.
func responseBytes(r *http.Request, s Status, header http.Header, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.%d %s\r\n", min(r.ProtoMinor, 1), s.Phrase())
	if header.Get("Date") == "" {
		header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	header.Set("Connection", "close")
	header.Write(&b) // a buffer takes everything
	b.WriteString("\r\n")
	if r.Method != http.MethodHead {
		b.Write(body)
	}
	return b.Bytes()
}

// mergeHeaders returns what earlier handlers have set, and over it what the answer says.
func mergeHeaders(earlier, answer http.Header) http.Header {
	merged := cleanHeader(earlier)
	for name, values := range answer {
		merged[name] = values
	}
	return merged
}

// cleanHeader copies a header without what cannot be sent and what frames the answer.
func cleanHeader(header http.Header) http.Header {
	kept := make(http.Header, len(header)+4)
	for name, values := range header {
		for _, value := range values {
			if !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7F }) {
				kept.Add(name, value)
			}
		}
	}
	for _, framing := range []string{"Content-Length", "Transfer-Encoding", "Connection", "Trailer"} {
		kept.Del(framing)
	}
	return kept
}

func validReason(reason string) bool {
	return reason != "" && len(reason) <= 128 && !strings.ContainsFunc(reason, func(r rune) bool { return r < ' ' || r > '~' })
}
