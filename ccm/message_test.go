package ccm

import (
	"bytes"
	"compress/zlib"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"postern/catalog"
)

const plainMsg = `<Msg ReplyCompression="none" SchemaVersion="1.1"><Body Type="ByteRange" Length="%d" Offset="%d"/><ID>{1}</ID>%s<TargetEndpoint>MP_X</TargetEndpoint></Msg>`

// buildMessage writes a message with a header and a payload as they are given.
func buildMessage(header string, payload []byte) []byte {
	return joinParts("", append([]byte{0xFF, 0xFE}, encodeUTF16(header)...), payload)
}

func readBuilt(header string, payload []byte) (*Message, error) {
	return ReadMessage(multipartType, bytes.NewReader(buildMessage(header, payload)), Limits{})
}

// capturedMessages returns the names of every captured request that is a message.
func capturedMessages(t testing.TB) []string {
	t.Helper()
	var names []string
	root := filepath.Join("testdata", "captures")
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		name, found := strings.CutSuffix(filepath.ToSlash(path), ".request.http")
		if found && !strings.Contains(name, "fsp-") && bytes.Contains(captureBytes(t, strings.TrimPrefix(filepath.ToSlash(path), "testdata/captures/")), []byte("ultipart")) {
			names = append(names, strings.TrimPrefix(name, "testdata/captures/"))
		}
		return err
	})
	if err != nil || len(names) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	return names
}

func TestReadCapturedMessages(t *testing.T) {
	signers := map[string]*rsa.PublicKey{
		"sdk-":           capturedKey(t, "sdk-registration/01-registration"),
		"python-client-": capturedKey(t, "python-client-anonymous-http/01-registration"),
	}
	read, verified := 0, 0
	for _, name := range capturedMessages(t) {
		t.Run(name, func(t *testing.T) {
			_, m := openCapture(t, name)
			if m == nil {
				return // the empty body of an authentication step
			}
			read++
			if !strings.HasPrefix(m.Header.TargetEndpoint, "MP_") && m.Header.TargetEndpoint != "StatusReceiver" || m.Header.ID == "" || m.Header.SchemaVersion != "1.1" {
				t.Errorf("header %+v", m.Header)
			}
			text := m.Text()
			if strings.HasPrefix(text, "<") {
				if _, err := parseXML(text, DefaultLimits()); err != nil {
					t.Errorf("body %.60q: %v", text, err)
				}
			}
			if text == "" || strings.ContainsAny(text, "\x00\uFFFD\u0a0d") {
				t.Errorf("body %q", text)
			}
			if int64(len(m.Body)) != m.Header.BodyLength {
				t.Errorf("body of %d bytes, the header says %d", len(m.Body), m.Header.BodyLength)
			}
			if m.Header.ClientAuth == nil {
				if err := m.Verify(signers["sdk-"]); catalog.CodeOf(err) != catalog.SignatureMissing {
					t.Errorf("an unsigned message verifies: %v", err)
				}
				return
			}
			verified++
			for client, key := range signers {
				err := m.Verify(key)
				if mine := strings.HasPrefix(name, client); mine && err != nil || !mine && catalog.CodeOf(err) != catalog.SignatureMismatch {
					t.Errorf("verified with the key of %s: %v", client, err)
				}
			}
			if !m.Header.ClientAuth.PublicKey.Equal(signers["sdk-"]) && !m.Header.ClientAuth.PublicKey.Equal(signers["python-client-"]) {
				t.Error("the key in the hook is not the registered one")
			}
		})
	}
	if read < 20 || verified < 8 {
		t.Errorf("read %d messages and verified %d, want at least 20 and 8", read, verified)
	}
}

func TestAttachmentsAreRangesOfThePayload(t *testing.T) {
	_, m := openCapture(t, "sdk-uploads/01-ddr")
	if got := m.Header.Attachments; len(got) != 2 || got[0].Offset != 0 || got[1].Offset != 1672 || got[1].Length != 6530 {
		t.Errorf("attachments %+v", got)
	}
	body, attachment := "<Report>é</Report>", "<Attached/>"
	first := append([]byte{0xFF, 0xFE}, encodeUTF16Z(attachment)...)
	payload := append(append(first, '\r', '\n'), encodeUTF16Z(body)...)
	header := fmt.Sprintf(plainMsg, len(encodeUTF16Z(body)), len(first)+2, `<Attachment Offset="0" Length="9"/>`)
	m, err := readBuilt(header, append(payload, '\r', '\n'))
	if err != nil || m.Text() != body {
		t.Errorf("the body behind an attachment: %q, %v", m.Text(), err)
	}
}

func TestBodyIsFoundWhateverTheHeaderSays(t *testing.T) {
	const body = "<Body><a/></Body>"
	z := encodeUTF16Z(body)
	n := int64(len(z))
	tests := []struct {
		name           string
		payload        []byte
		offset, length int64
	}{
		{"right", append(z[:n:n], '\r', '\n'), 0, n},
		{"without the NUL", z, 0, n - 2},
		{"everything", append(z[:n:n], '\r', '\n'), 0, n + 2},
		{"too short", z, 0, 10},
		{"an odd length", z, 0, n - 1},
		{"zero", z, 0, 0},
		{"negative", z, 0, -5},
		{"too long", z, 0, 728},
		{"beyond everything", z, 0, 1 << 62},
		{"an offset beyond everything", z, 1 << 62, 5},
		{"a negative offset", z, -1, n},
		{"an odd tail of zeros", append(encodeUTF16(body+"\r\n"), 0, 0, 0), 0, 728},
		{"a long tail of zeros", append(z[:n:n], make([]byte, 5001)...), 0, 728},
		{"a short range and a long tail", append(z[:n:n], make([]byte, 5001)...), 0, 20},
		{"a byte order mark and a short range", append([]byte{0xFF, 0xFE}, z...), 0, 12},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m, err := readBuilt(fmt.Sprintf(plainMsg, test.length, test.offset, ""), test.payload)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Text(); got != body {
				t.Errorf("got %q, want %q", got, body)
			}
		})
	}
}

func TestBodyThatIsNotXMLIsKeptAsItsRange(t *testing.T) {
	m, err := readBuilt(fmt.Sprintf(plainMsg, 8, 0, ""), encodeUTF16("textmore"))
	if err != nil || m.Text() != "text" {
		t.Errorf("got %q, %v", m.Text(), err)
	}
}

func TestReadMessageIsLenientAboutFraming(t *testing.T) {
	const header, body = `<Msg><ID/><TargetEndpoint>E</TargetEndpoint></Msg>`, "<B/>"
	h, p := string(append([]byte{0xFF, 0xFE}, encodeUTF16(header)...)), string(encodeUTF16Z(body))
	tests := []struct{ name, contentType, data string }{
		{"a boundary of its own", "multipart/mixed; boundary=------------8d9", "--------------8d9\r\nContent-Disposition: form-data; name=\"Msg\"\r\nContent-Type: text/plain; charset=UTF-16\r\n\r\n" + h +
			"\r\n--------------8d9\r\nContent-Disposition: form-data; name=\"RequestAssignments\"\r\n\r\n" + p + "\r\n--------------8d9--\r\n"},
		{"no header lines at all", `multipart/mixed; boundary="b"`, "--b\r\n\r\n" + h + "\r\n--b\r\n\r\n" + p + "\r\n--b--"},
		{"another multipart", `Multipart/Form-Data; charset=x; boundary=b`, "--b\r\n\r\n" + h + "\r\n--b\r\n\r\n" + p + "\r\n--b--\r\n\r\n"},
		{"a preamble", `multipart/mixed; boundary=b`, "hello\r\n--b\r\n\r\n" + h + "\r\n--b\r\n\r\n" + p + "\r\n--b--"},
		{"blanks behind the boundary", `multipart/mixed; boundary=b`, "--b \t\r\n\r\n" + h + "\r\n--b \r\n\r\n" + p + "\r\n--b--"},
		{"no line end before the last boundary", `multipart/mixed; boundary=b`, "--b\r\n\r\n" + h + "\r\n--b\r\n\r\n" + p + "--b--\r\n"},
		{"no byte order mark", `multipart/mixed; boundary=b`, "--b\r\n\r\n" + h[2:] + "\r\n--b\r\n\r\n" + p + "\r\n--b--"},
		{"a header padded with NULs", `multipart/mixed; boundary=b`, "--b\r\n\r\n" + h + "\x00\x00\x00\r\n--b\r\n\r\n" + p + "\r\n--b--"},
		{"the boundary's text inside a part", `multipart/mixed; boundary=b`, "--b\r\n\r\n" + h + "\r\n--b\r\n\r\n" + p + "\r\n--bx--b--\r\n--b--"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m, err := ReadMessage(test.contentType, iotest.OneByteReader(strings.NewReader(test.data)), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if m.Header.TargetEndpoint != "E" || m.Text() != body {
				t.Errorf("got %+v, %q", m.Header, m.Text())
			}
		})
	}
}

func TestReadMessageRefusesFraming(t *testing.T) {
	good := string(buildMessage(fmt.Sprintf(plainMsg, 4, 0, ""), encodeUTF16Z("<B/>")))
	part := "--" + replyBoundary + "\r\ncontent-type: text/plain\r\n\r\nx\r\n"
	end := "--" + replyBoundary + "--"
	tests := []struct {
		name, contentType, data string
		want                    catalog.Code
	}{
		{"no content type", "", good, catalog.MessageContentType},
		{"not multipart", "text/xml", good, catalog.MessageContentType},
		{"no boundary", "multipart/mixed", good, catalog.MessageContentType},
		{"an endless content type", "multipart/mixed; boundary=" + strings.Repeat("x", 2000), good, catalog.MessageContentType},
		{"another boundary", "multipart/mixed; boundary=other", good, catalog.MessageTruncated},
		{"nothing", multipartType, "", catalog.MessageTruncated},
		{"cut in the payload", multipartType, good[:len(good)-40], catalog.MessageTruncated},
		{"cut in the last boundary", multipartType, good[:len(good)-2], catalog.MessageTruncated},
		{"only the last boundary", multipartType, end, catalog.MessageParts},
		{"one part", multipartType, part + end, catalog.MessageParts},
		{"three parts", multipartType, part + part + part + end, catalog.MessageParts},
		{"a message behind the message", multipartType, good + "\r\n" + good, catalog.MessageParts},
		{"a part without an end of its head", multipartType, "--" + replyBoundary + "\r\nx: y\r\n" + end, catalog.MessageParts},
		{"an endless part head", multipartType, "--" + replyBoundary + "\r\n" + strings.Repeat("x: y\r\n", 2000) + "\r\n\r\n" + part + end, catalog.MessageParts},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m, err := ReadMessage(test.contentType, strings.NewReader(test.data), Limits{})
			if got := catalog.CodeOf(err); got != test.want {
				t.Errorf("got %+v, %v; want code %s", m, err, test.want)
			}
		})
	}
	t.Run("too large", func(t *testing.T) {
		_, err := ReadMessage(multipartType, strings.NewReader(good), Limits{Body: int64(len(good)) - 1})
		if got := catalog.CodeOf(err); got != catalog.MessageTooLarge {
			t.Errorf("got %v", err)
		}
		if _, err := ReadMessage(multipartType, strings.NewReader(good), Limits{Body: int64(len(good))}); err != nil {
			t.Errorf("exactly the limit: %v", err)
		}
	})
	t.Run("broken off", func(t *testing.T) {
		_, err := ReadMessage(multipartType, io.MultiReader(strings.NewReader(good[:50]), iotest.ErrReader(errors.New("reset"))), Limits{})
		if got := catalog.CodeOf(err); got != catalog.MessageTruncated {
			t.Errorf("got %v", err)
		}
	})
}

func TestReadMessageRefusesHeaders(t *testing.T) {
	blob := upperHex(MarshalPublicKeyBlob(&testKey().PublicKey))
	hook := func(properties string) string {
		return `<Msg><Hooks><Hook2 Name="clientauth">` + properties + `</Hook2></Hooks></Msg>`
	}
	tests := []struct {
		name, header string
		want         catalog.Code
	}{
		{"no XML", "hello", catalog.XMLMalformed},
		{"an entity bomb", `<!DOCTYPE Msg [<!ENTITY a "b">]><Msg>&a;</Msg>`, catalog.XMLForbidden},
		{"another root", "<msg/>", catalog.MessageHeader},
		{"two senders", "<Msg><SourceID>GUID:0EAD457A-7EE3-4E90-B8BF-6144266E6823</SourceID><SourceID/></Msg>", catalog.MessageHeader},
		{"two bodies", "<Msg><Body/><Body/></Msg>", catalog.MessageHeader},
		{"a property twice", `<Msg><Property Name="a" Value="1"/><Property Name="a" Value="2"/></Msg>`, catalog.MessageHeader},
		{"a line end in a value", "<Msg><SourceHost>a&#10;b</SourceHost></Msg>", catalog.MessageHeader},
		{"an endless value", "<Msg><SourceHost>" + strings.Repeat("x", 3000) + "</SourceHost></Msg>", catalog.MessageHeader},
		{"many attachments", "<Msg>" + strings.Repeat("<Attachment/>", 300) + "</Msg>", catalog.MessageHeader},
		{"an endless header", "<Msg>" + strings.Repeat(" ", maxHeaderPart) + "</Msg>", catalog.MessageTooLarge},
		{"SQL as sender", "<Msg><SourceID>GUID:x' OR 1=1--</SourceID></Msg>", catalog.ClientIDMalformed},
		{"another prefix as sender", "<Msg><SourceID>XUID:0EAD457A-7EE3-4E90-B8BF-6144266E6823</SourceID></Msg>", catalog.ClientIDMalformed},
		{"an encrypted body", `<Msg><Hooks><Hook2 Name="encrypt"/></Hooks></Msg>`, catalog.MessageHook},
		{"the old compression", `<Msg><Hooks><Hook Name="compress"/></Hooks></Msg>`, catalog.MessageHook},
		{"two clientauth hooks", `<Msg><Hooks><Hook2 Name="clientauth"/><Hook2 Name="clientauth"/></Hooks></Msg>`, catalog.MessageHeader},
		{"a signature twice", hook(`<Property Name="PayloadSignature">AB</Property><Property Name="PayloadSignature">CD</Property>`), catalog.MessageHeader},
		{"a signature with an odd digit", hook(`<Property Name="PayloadSignature">ABC</Property>`), catalog.SignatureMalformed},
		{"a signature that is no hexadecimal", hook(`<Property Name="ClientIDSignature">XY</Property>`), catalog.SignatureMalformed},
		{"an endless signature", hook(`<Property Name="ClientIDSignature">` + strings.Repeat("00", 1025) + `</Property>`), catalog.SignatureMalformed},
		{"a key that is no hexadecimal", hook(`<Property Name="PublicKey">XY</Property>`), catalog.KeyMalformed},
		{"a key that is cut", hook(`<Property Name="PublicKey">` + blob[:len(blob)-2] + `</Property>`), catalog.KeyMalformed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m, err := readBuilt(test.header, encodeUTF16Z("<B/>"))
			if got := catalog.CodeOf(err); got != test.want {
				t.Errorf("got %+v, %v; want code %s", m, err, test.want)
			}
		})
	}
}

// Two texts that differ in such units alone would read the same (C103).
func TestHalfASurrogatePairIsRefused(t *testing.T) {
	const mark = "HERE"
	header := func(host string) string {
		return `<Msg><ID/><SourceHost>` + host + `</SourceHost><Body Type="ByteRange" Length="0" Offset="0"/></Msg>`
	}
	with := func(text string, units ...byte) []byte { // units in the place of the mark
		before, after, _ := strings.Cut(text, mark)
		return slices.Concat(encodeUTF16(before), units, encodeUTF16(after))
	}
	const body = "<a>" + mark + "</a>"
	tests := []struct {
		name            string
		header, payload []byte
		want            catalog.Code
	}{
		{"the first half in the header", with(header(mark), 0x3D, 0xD8), with(body), catalog.XMLMalformed},
		{"the second half in the header", with(header(mark), 0x00, 0xDE), with(body), catalog.XMLMalformed},
		{"the first half in the body", with(header("a")), with(body, 0x3D, 0xD8), catalog.XMLMalformed},
		{"the wrong half first in the body", with(header("a")), with(body, 0x00, 0xDE, 0x3D, 0xD8), catalog.XMLMalformed},
		{"behind a byte order mark", with(header("a")), append([]byte{0xFF, 0xFE}, with(body, 0x3D, 0xD8)...), catalog.XMLMalformed},
		{"a pair", with(header(mark), 0x3D, 0xD8, 0x00, 0xDE), with(body, 0x3D, 0xD8, 0x00, 0xDE), ""},
		{"behind the body", with(header("a")), append(with(body), 0, 0, 0x3D, 0xD8), ""},
		{"in a body that is no XML", with(header("a")), with("x"+mark, 0x3D, 0xD8), ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m, err := ReadMessage(multipartType, bytes.NewReader(joinParts("\r\n", test.header, test.payload)), DefaultLimits())
			if got := catalog.CodeOf(err); got != test.want {
				t.Errorf("got %q (%v), want %q", got, err, test.want)
			}
			if inBody := strings.Contains(test.name, "in the body"); inBody && (m == nil || m.Body != nil) {
				t.Errorf("got %+v, want the message without a body", m)
			}
		})
	}
}

func TestInflateHasABudget(t *testing.T) {
	bomb := func(n int) []byte {
		var b bytes.Buffer
		w, _ := zlib.NewWriterLevel(&b, zlib.BestCompression)
		w.Write(make([]byte, n))
		w.Close()
		return b.Bytes()
	}
	tests := []struct {
		name   string
		packed []byte
		lim    Limits
		want   catalog.Code
	}{
		{"many zeros below the floor", bomb(RatioFloor), Limits{}, ""},
		{"many zeros above it", bomb(RatioFloor + 1), Limits{}, catalog.InflateBudget},
		{"a bomb", bomb(50 << 20), Limits{}, catalog.InflateBudget},
		{"above the limit in bytes", bomb(2000), Limits{Inflated: 1999}, catalog.InflateBudget},
		{"no stream", []byte("hello"), Limits{}, catalog.InflateMalformed},
		{"nothing", nil, Limits{}, catalog.InflateMalformed},
		{"cut off", bomb(100)[:10], Limits{}, catalog.InflateMalformed},
		{"a wrong checksum", func() []byte { b := bomb(100); b[len(b)-1] ^= 1; return b }(), Limits{}, catalog.InflateMalformed},
		{"something behind it", append(bomb(100), 1, 2, 3), Limits{}, ""},
		{"a preset dictionary", []byte{0x78, 0xBB, 0, 0, 0, 1}, Limits{}, catalog.InflateMalformed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := inflate(test.packed, test.lim.withDefaults())
			if got := catalog.CodeOf(err); got != test.want {
				t.Errorf("got %v, want code %q", err, test.want)
			}
		})
	}
}

func TestEncodeRequestReadsBackAndVerifies(t *testing.T) {
	key := testKey()
	h := Header{SourceID: "guid:0ead457a-7ee3-4e90-b8bf-6144266e6823", SourceHost: "WK-ü", TargetEndpoint: "MP_PolicyManager", ReplyTo: "direct:WK:SccmMessaging",
		SentTime: "2026-11-21T20:49:08Z", Properties: map[string]string{"b": "2", "a": "<1>"}, AllowRegistrationReset: true}
	const body = "<Request a=\"é\">\U0001F600</Request>"
	for _, h.Compressed = range []bool{true, false} {
		contentType, data, err := EncodeRequest(h, body, key)
		if err != nil {
			t.Fatal(err)
		}
		m, err := ReadMessage(contentType, bytes.NewReader(data), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if m.Text() != body || m.Header.SourceHost != h.SourceHost || m.Header.Properties["a"] != "<1>" || m.Header.Compressed != h.Compressed || !m.Header.AllowRegistrationReset {
			t.Errorf("got %+v, %q", m.Header, m.Text())
		}
		if err := m.Verify(&key.PublicKey); err != nil {
			t.Error(err)
		}
		if err := m.Verify(&otherKey().PublicKey); catalog.CodeOf(err) != catalog.SignatureMismatch {
			t.Errorf("another key: %v", err)
		}
		m.Payload[len(m.Payload)/2] ^= 1
		if err := m.Verify(&key.PublicKey); catalog.CodeOf(err) != catalog.SignatureMismatch {
			t.Errorf("a changed payload: %v", err)
		}
		m.Payload[len(m.Payload)/2] ^= 1
		m.Header.SourceID = "GUID:0EAD457A-7EE3-4E90-B8BF-6144266E6824"
		if err := m.Verify(&key.PublicKey); catalog.CodeOf(err) != catalog.SignatureMismatch {
			t.Errorf("another sender: %v", err)
		}
	}
	if _, _, err := EncodeRequest(Header{}, body, key); err == nil {
		t.Error("signed for nobody")
	}
}

// Every form in which known clients sign their id (protocol.md 2.4).
func TestVerifyAcceptsTheFormsOfTheSignedID(t *testing.T) {
	key := testKey()
	const id = "GUID:0ead457a-7EE3-4e90-b8bf-6144266e6823"
	payload := encodeUTF16Z("<B/>")
	payloadSignature, err := signReversed(key, crypto.SHA256, payload, true)
	if err != nil {
		t.Fatal(err)
	}
	for name, signed := range map[string][]byte{
		"upper case with NUL": encodeUTF16Z(strings.ToUpper(id)), "upper case": encodeUTF16(strings.ToUpper(id)),
		"as sent with NUL": encodeUTF16Z(id), "as sent": encodeUTF16(id),
	} {
		for _, digestInfo := range []bool{true, false} {
			signature, err := signReversed(key, crypto.SHA256, signed, digestInfo)
			if err != nil {
				t.Fatal(err)
			}
			m := &Message{Payload: payload, Header: Header{SourceID: id, ClientAuth: &ClientAuth{
				HashAlgorithm: hashSHA256WithRSA, ClientIDSignature: signature, PayloadSignature: payloadSignature}}}
			if err := m.Verify(&key.PublicKey); err != nil {
				t.Errorf("%s, DigestInfo %v: %v", name, digestInfo, err)
			}
		}
	}
}

// strictReply reads a reply as the strictest of the known clients do, all at once: it
// cuts the raw bytes at 0D 0A, wants the constant boundary, one header line in each
// part, zlib exactly when asked, and one final NUL (protocol.md 2.7, 12).
func strictReply(contentType string, data []byte, compressed bool) (header, body string, err error) {
	if contentType != `multipart/mixed; boundary="aAbBcCdDv1234567890VxXyYzZ"` {
		return "", "", fmt.Errorf("content type %q", contentType)
	}
	lines := bytes.Split(data, []byte("\r\n"))
	if len(lines) != 10 {
		return "", "", fmt.Errorf("%d lines, want 10: the content holds a line end", len(lines))
	}
	for i, want := range map[int]string{0: "--aAbBcCdDv1234567890VxXyYzZ", 1: "content-type: text/plain; charset=UTF-16", 2: "",
		4: "--aAbBcCdDv1234567890VxXyYzZ", 5: "content-type: application/octet-stream", 6: "", 8: "--aAbBcCdDv1234567890VxXyYzZ--", 9: ""} {
		if string(lines[i]) != want {
			return "", "", fmt.Errorf("line %d is %q, want %q", i, lines[i], want)
		}
	}
	if !bytes.HasPrefix(lines[3], []byte{0xFF, 0xFE}) {
		return "", "", errors.New("the header has no byte order mark")
	}
	payload := lines[7]
	if compressed {
		r, err := zlib.NewReader(bytes.NewReader(payload))
		if err != nil {
			return "", "", err
		}
		if payload, err = io.ReadAll(r); err != nil {
			return "", "", err
		}
	}
	if len(payload)%2 != 0 || !bytes.HasSuffix(payload, []byte{'>', 0, 0, 0}) && !bytes.HasSuffix(payload, []byte{' ', 0, 0, 0}) {
		return "", "", errors.New("the body does not end in one NUL")
	}
	return decodeUTF16(lines[3]), decodeUTF16(payload[:len(payload)-2]), nil
}

func TestEncodeReplySatisfiesStrictClients(t *testing.T) {
	for _, name := range capturedMessages(t) {
		_, m := openCapture(t, name)
		if m == nil {
			continue
		}
		t.Run(name, func(t *testing.T) {
			const body = `<ClientRegistrationResponse ResponseType="Registration" Status="0" SMSID="GUID:A670CC56-2308-4189-A826-4A4938AFE403"/>`
			contentType, data, err := EncodeReply(m.Header, Header{SourceHost: "mp.ü", SentTime: "2026-11-21T20:49:08Z"}, body)
			if err != nil {
				t.Fatal(err)
			}
			header, got, err := strictReply(contentType, data, m.Header.ReplyCompression != "none")
			if err != nil || strings.TrimRight(got, " ") != body {
				t.Errorf("got %q, %v", got, err)
			}
			if !strings.Contains(header, "<CorrelationID>"+m.Header.ID+"</CorrelationID>") {
				t.Errorf("header %s", header)
			}
			reply, err := DecodeReply(contentType, bytes.NewReader(data), Limits{})
			if err != nil || reply.Text() != body || reply.Header.SourceHost != "mp.ü" || reply.NoReply() {
				t.Errorf("decoded %+v, %v", reply, err)
			}
		})
	}
}

func TestCleanPieceCopiesNothingOfWhatIsThere(t *testing.T) {
	packed := make([]byte, 1000, 100_000)
	longer, n := cleanPiece(packed, []byte("piece"))
	if n != 5 || &longer[0] != &packed[0] {
		t.Errorf("%d of 5 bytes taken; the stream so far was copied", n)
	}
	if longer, _ := cleanPiece([]byte{0x78, '\r'}, []byte("piece")); !clean(longer) {
		t.Errorf("a line end where two pieces meet: %x", longer)
	}
}

func TestEncodeReplyNeverHoldsALineEnd(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	piecewise := 0
	for _, size := range []int{10, 1000, 30_000, 300_000} {
		for range max(2, 20_000/size) {
			var b strings.Builder
			for b.Len() < size {
				fmt.Fprintf(&b, "<a>%X</a>", random.Uint64())
			}
			body := "<r>" + b.String() + "</r>"
			if !clean(deflate(encodeUTF16Z(body))) {
				piecewise++
			}
			contentType, data, err := EncodeReply(Header{ID: "{1}"}, Header{}, body)
			if err != nil {
				t.Fatal(err)
			}
			if _, got, err := strictReply(contentType, data, true); err != nil || strings.TrimRight(got, " ") != body {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if limit := len(deflate(encodeUTF16Z(body))); len(data) > limit*3/2+3000 {
				t.Errorf("%d bytes became %d, compressed at once they are %d", size, len(data), limit)
			}
		}
	}
	if piecewise == 0 {
		t.Error("no reply of the test needed a second try")
	}
}

func TestEncodeReplyRefusesWhatXMLForbids(t *testing.T) {
	if _, _, err := EncodeReply(Header{}, Header{}, "<a>\x00</a>"); catalog.CodeOf(err) != catalog.ReplyUnencodable {
		t.Errorf("got %v", err)
	}
}

// What a request says must not break the framing of its reply.
func TestEncodeReplyKeepsHostileRequestsInside(t *testing.T) {
	hostile := "\u0a0d--" + replyBoundary + "--<x>&\u0d0d\u0a0a"
	contentType, data, err := EncodeReply(Header{ID: hostile, ReplyTo: "direct:" + hostile, SourceHost: hostile}, Header{}, "<a/>")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := strictReply(contentType, data, true); err != nil {
		t.Error(err)
	}
	m, err := DecodeReply(contentType, bytes.NewReader(data), Limits{})
	if err != nil || m.Header.CorrelationID != hostile || m.Header.TargetAddress != "direct:"+hostile {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestNoReply(t *testing.T) {
	contentType, data := NoReply()
	captured := captureBytes(t, "sdk-uploads/01-ddr.stub-reply.http")
	if !bytes.HasSuffix(captured, data) {
		t.Errorf("got %q, want the end of %q", data, captured)
	}
	m, err := DecodeReply(contentType, bytes.NewReader(data), Limits{})
	if err != nil || !m.NoReply() {
		t.Errorf("got %+v, %v", m, err)
	}
}

func TestDecodeCapturedReplies(t *testing.T) {
	for _, name := range []string{"python-client-anonymous-http/01-registration", "sdk-registration/01-registration", "sdk-policy/01-assignments-zlib",
		"sdk-policy/02-assignments-uncompressed", "sdk-location/03-content-location"} {
		t.Run(name, func(t *testing.T) {
			m := openCapturedReply(t, name)
			if root, err := parseXML(m.Text(), DefaultLimits()); err != nil || root == nil {
				t.Errorf("body %q: %v", m.Text(), err)
			}
		})
	}
}

func TestDecodeReplyIsLenientAndStrict(t *testing.T) {
	body := encodeUTF16Z("<B/>")
	t.Run("compressed without saying so, length as sent", func(t *testing.T) {
		packed := deflate(body)
		m, err := DecodeReply(multipartType, bytes.NewReader(buildMessage(fmt.Sprintf(plainMsg, len(packed), 0, ""), packed)), Limits{})
		if err != nil || m.Text() != "<B/>" {
			t.Errorf("got %+v, %v", m, err)
		}
	})
	t.Run("empty", func(t *testing.T) {
		if _, err := DecodeReply("", strings.NewReader(""), Limits{}); catalog.CodeOf(err) != catalog.ReplyEmpty {
			t.Errorf("got %v", err)
		}
	})
	t.Run("an error page", func(t *testing.T) {
		if _, err := DecodeReply("text/html", strings.NewReader("<html>"), Limits{}); catalog.CodeOf(err) != catalog.MessageContentType {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another single part", func(t *testing.T) {
		data := joinParts("", encodeUTF16("Reply"), nil)
		if _, err := DecodeReply(multipartType, bytes.NewReader(data), Limits{}); catalog.CodeOf(err) != catalog.MessageParts {
			t.Errorf("got %v", err)
		}
	})
}

func BenchmarkReadMessageAndVerify(b *testing.B) {
	key := capturedKey(b, "sdk-registration/01-registration")
	_, data, found := bytes.Cut(captureBytes(b, "sdk-policy/01-assignments-zlib.request.http"), []byte("\r\n\r\n"))
	if !found {
		b.Fatal("no body")
	}
	b.ReportAllocs()
	for b.Loop() {
		m, err := ReadMessage(multipartType, bytes.NewReader(data), Limits{})
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Verify(key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadRegistration(b *testing.B) {
	_, data, _ := bytes.Cut(captureBytes(b, "sdk-registration/01-registration.request.http"), []byte("\r\n\r\n"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadMessage(multipartType, bytes.NewReader(data), Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeReply(b *testing.B) {
	body := "<ReplyAssignments>" + strings.Repeat(`<Policy PolicyID="{22222222-2222-2222-2222-222222222222}"/>`, 20) + "</ReplyAssignments>"
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := EncodeReply(Header{ID: "{1}"}, Header{ID: "{2}"}, body); err != nil {
			b.Fatal(err)
		}
	}
}

// A client's own names are repeated in replies: no character of theirs may break a reader that splits the raw bytes at 0D 0A (protocol.md 12).
func TestUncompressedReplyHoldsNoLineEnd(t *testing.T) {
	request := Header{ID: "{1}", ReplyTo: "direct:x:y", ReplyCompression: "none"}
	const body = "<R name=\"\u0d05\u0a0d\u0d0a\">\u0d05\u010a</R>"
	_, reply, err := EncodeReply(request, Header{ID: "{2}"}, body)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(reply, []byte("\r\n")); n != 9 {
		t.Errorf("%d line ends, want those of the framing alone: %q", n, reply)
	}
	m, err := DecodeReply(multipartType, bytes.NewReader(reply), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	root, err := parseXML(m.Text(), DefaultLimits())
	if err != nil || root.Attr("name") != "\u0d05\u0a0d\u0d0a" || root.Text != "\u0d05\u010a" {
		t.Errorf("read back %+v, %v", root, err)
	}
}

// C104: what the end of a long payload would allow does not count for its beginning.
func TestABombEndsEarlyHoweverLongItIs(t *testing.T) {
	bomb := deflate(make([]byte, 64<<20))
	allocated := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := inflate(bomb, DefaultLimits()); catalog.CodeOf(err) != catalog.InflateBudget {
				b.Fatalf("got %v", err)
			}
		}
	}).AllocedBytesPerOp()
	if allocated > 1<<20 {
		t.Errorf("%d bytes allocated before a bomb of %d bytes was refused", allocated, len(bomb))
	}
}
