package ccm

import (
	"bytes"
	"io"
	"mime"
	"strings"

	"postern/catalog"
)

const (
	// replyBoundary is the one that every client sends, and that some take for granted
	// in replies (protocol.md 2.7, 12).
	replyBoundary = "aAbBcCdDv1234567890VxXyYzZ"

	multipartType = `multipart/mixed; boundary="` + replyBoundary + `"`

	maxContentType = 1 << 10
	maxPartHead    = 8 << 10
	maxParts       = 2
)

// readParts reads a multipart body and returns the contents of its parts, of which
// there is at least one. Attachments lie inside the payload part (protocol.md 12), so
// a third part is refused.
func readParts(contentType string, body io.Reader, lim Limits) ([][]byte, error) {
	boundary, err := boundaryOf(contentType)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(body, lim.Body+1))
	if int64(len(data)) > lim.Body {
		return nil, catalog.Errorf(catalog.MessageTooLarge, "more than %d bytes", lim.Body)
	}
	if err != nil {
		return nil, catalog.Wrap(catalog.MessageTruncated, err, "the message broke off after %d bytes", len(data))
	}
	return splitParts(boundary, data)
}

// boundaryOf takes the boundary from a Content-Type; clients use several.
func boundaryOf(contentType string) (string, error) {
	if len(contentType) > maxContentType {
		return "", catalog.Errorf(catalog.MessageContentType, "a Content-Type of %d bytes", len(contentType))
	}
	mediaType, parameters, err := mime.ParseMediaType(contentType)
	if err != nil || !strings.HasPrefix(mediaType, "multipart/") {
		return "", catalog.Wrap(catalog.MessageContentType, err, "the Content-Type is not multipart/mixed")
	}
	boundary := parameters["boundary"]
	if boundary == "" || len(boundary) > 200 || strings.ContainsFunc(boundary, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", catalog.Errorf(catalog.MessageContentType, "the boundary is missing or unusable")
	}
	return boundary, nil
}

// splitParts cuts a multipart body (RFC 2046, 5.1.1) at its boundaries.
func splitParts(boundary string, data []byte) ([][]byte, error) {
	d := delimiters{mark: []byte("--" + boundary), data: data}
	_, closing, ok := d.next() // what comes before the first boundary is a preamble
	var parts [][]byte
	for ok && !closing {
		if len(parts) == maxParts {
			return nil, catalog.Errorf(catalog.MessageParts, "more than %d parts", maxParts)
		}
		var part []byte
		if part, closing, ok = d.next(); !ok {
			break
		}
		content, err := cutPartHead(part)
		if err != nil {
			return nil, err
		}
		parts = append(parts, content)
	}
	switch {
	case !ok:
		return nil, catalog.Errorf(catalog.MessageTruncated, "no closing boundary in %d bytes", len(data))
	case len(parts) == 0:
		return nil, catalog.Errorf(catalog.MessageParts, "no part at all")
	case len(bytes.Trim(d.data[d.at:], " \t\r\n\x00")) > 0:
		return nil, catalog.Errorf(catalog.MessageParts, "data after the closing boundary")
	}
	return parts, nil
}

// cutPartHead drops the header lines of a part; what they say is already known.
func cutPartHead(part []byte) ([]byte, error) {
	if bytes.HasPrefix(part, []byte("\r\n")) {
		return part[2:], nil
	}
	end := bytes.Index(part[:min(len(part), maxPartHead)], []byte("\r\n\r\n"))
	if end < 0 {
		return nil, catalog.Errorf(catalog.MessageParts, "a part without an end of its header lines")
	}
	return part[end+4:], nil
}

// delimiters walks the boundary lines of a multipart body.
type delimiters struct {
	mark []byte // "--boundary"
	data []byte
	at   int // just behind the last boundary line
}

// next returns what lies before the next boundary line, and whether that one closes.
func (d *delimiters) next() (before []byte, closing, ok bool) {
	start := d.at
	for from := start; ; {
		i := bytes.Index(d.data[from:], d.mark)
		if i < 0 {
			return nil, false, false
		}
		i += from
		from = i + 1
		end, closing, isLine := d.lineEnd(i + len(d.mark))
		if !isLine {
			continue
		}
		contentEnd := i
		switch {
		case i == 0 && start == 0:
		case i-2 >= start && d.data[i-2] == '\r' && d.data[i-1] == '\n':
			contentEnd = i - 2
		case closing && len(bytes.Trim(d.data[end:], "\r\n")) == 0: // the line end before it was forgotten
		default:
			continue
		}
		d.at = end
		return d.data[start:contentEnd], closing, true
	}
}

// lineEnd reads what follows a mark: "--" when it closes, otherwise blanks and a line end.
func (d *delimiters) lineEnd(at int) (end int, closing, ok bool) {
	rest := d.data[at:]
	if bytes.HasPrefix(rest, []byte("--")) {
		return at + 2, true, true
	}
	blank := len(rest) - len(bytes.TrimLeft(rest, " \t"))
	rest = rest[blank:]
	switch {
	case bytes.HasPrefix(rest, []byte("\r\n")):
		return at + blank + 2, false, true
	case bytes.HasPrefix(rest, []byte("\n")):
		return at + blank + 1, false, true
	}
	return 0, false, false
}

// joinParts writes parts as clients need them: the constant boundary, one header line
// for each part (protocol.md 2.7, 12).
func joinParts(ending string, header, payload []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(header) + len(payload) + 256)
	writePart := func(contentType string, content []byte) {
		b.WriteString("--" + replyBoundary + "\r\ncontent-type: " + contentType + "\r\n\r\n")
		b.Write(content)
		b.WriteString("\r\n")
	}
	writePart("text/plain; charset=UTF-16", header)
	if payload != nil {
		writePart("application/octet-stream", payload)
	}
	b.WriteString("--" + replyBoundary + "--" + ending)
	return b.Bytes()
}
