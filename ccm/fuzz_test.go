package ccm

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"strings"
	"testing"
)

// fuzzLimits are small, so that a budget is within a fuzzer's reach.
func fuzzLimits() Limits {
	return Limits{Body: 1 << 16, Inflated: 1 << 17, Depth: 8, Elements: 200, Attributes: 8, Text: 1 << 14}
}

func FuzzReadMessage(f *testing.F) {
	for _, name := range []string{"sdk-policy/02-assignments-uncompressed", "sdk-uploads/01-ddr", "python-client-anonymous-http/01-registration"} {
		_, data, _ := bytes.Cut(captureBytes(f, name+".request.http"), []byte("\r\n\r\n"))
		f.Add(multipartType, data)
	}
	f.Fuzz(func(t *testing.T, contentType string, data []byte) {
		m, err := ReadMessage(contentType, bytes.NewReader(data), fuzzLimits())
		if err != nil {
			return
		}
		if text := m.Text(); strings.Contains(text, "\x00") {
			t.Errorf("text %q holds a NUL", text)
		}
		if len(m.Payload) > len(data) || len(m.Body) > 1<<17 {
			t.Errorf("payload of %d and body of %d bytes from %d", len(m.Payload), len(m.Body), len(data))
		}
		replyType, reply, err := EncodeReply(m.Header, Header{}, "<a/>")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := strictReply(replyType, reply, !strings.EqualFold(m.Header.ReplyCompression, "none")); err != nil {
			t.Error(err)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	for _, name := range []string{"sdk-policy/01-assignments-zlib", "sdk-policy/02-assignments-uncompressed", "sdk-uploads/01-ddr"} {
		_, data, _ := bytes.Cut(captureBytes(f, name+".stub-reply.http"), []byte("\r\n\r\n"))
		f.Add(multipartType, data)
	}
	f.Fuzz(func(t *testing.T, contentType string, data []byte) {
		m, err := DecodeReply(contentType, bytes.NewReader(data), fuzzLimits())
		if err == nil && m.NoReply() && len(m.Payload) > 0 {
			t.Error("no reply, and a payload")
		}
	})
}

func FuzzParsePath(f *testing.F) {
	for _, target := range []string{"/ccm_system/request", "/CCM_PROXY_MUTUALAUTH/3456/SMS_MP/.sms_aut?SITESIGNCERT", "/ccm_client/%2e%2e/x", "//x"} {
		f.Add(target)
	}
	f.Fuzz(func(t *testing.T, target string) {
		p, err := ParsePath(target)
		if err != nil {
			return
		}
		if strings.Contains(p.Rest, "..") && strings.Contains("/"+p.Rest+"/", "/../") || strings.Contains(p.Rest, "//") || strings.ContainsAny(p.Rest, "\\%\x00\r\n") {
			t.Errorf("%q has the rest %q", target, p.Rest)
		}
		again, err := ParsePath(ExternalPath(p.Door, p.RoleID, p.Internal()))
		if again.Original = p.Original; err != nil || again != p {
			t.Errorf("%q: %+v, again %+v, %v", target, p, again, err)
		}
	})
}

func FuzzParsePublicKeyBlob(f *testing.F) {
	f.Add(seedBytes(f, "publickey.hex"))
	f.Fuzz(func(t *testing.T, blob []byte) {
		key, err := ParsePublicKeyBlob(blob)
		if err != nil {
			return
		}
		again, err := ParsePublicKeyBlob(MarshalPublicKeyBlob(key))
		if err != nil || !again.Equal(key) {
			t.Errorf("does not read back: %v", err)
		}
	})
}

func FuzzParseCertificate(f *testing.F) {
	f.Add(seedBytes(f, "signing.hex"))
	f.Add(seedBytes(f, "encryption.hex"))
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := ParseCertificate(der)
		if err != nil {
			return
		}
		if checkKey(c.PublicKey) != nil || !bytes.Equal(c.DER, der) {
			t.Error("an unsuitable key or other bytes")
		}
		if theirs, err := x509.ParseCertificate(der); err == nil {
			if key, ok := theirs.PublicKey.(*rsa.PublicKey); !ok || !key.Equal(c.PublicKey) || !theirs.NotAfter.Equal(c.NotAfter) {
				t.Error("crypto/x509 reads another key or date")
			}
		}
	})
}

func FuzzXML(f *testing.F) {
	for _, source := range []string{`<?xml version="1.0"?><a b="&lt;">x<b/><![CDATA[y]]><!-- c --></a>`, "<!DOCTYPE a><a/>", "<a></b>"} {
		f.Add(source)
	}
	f.Fuzz(func(t *testing.T, source string) {
		lim := fuzzLimits()
		root, err := parseXML(source, lim)
		if err != nil {
			return
		}
		if end, err := xmlEnd(source, lim); err != nil || end != root.End {
			t.Errorf("ends at %d, %v; want %d", end, err, root.End)
		}
		again, err := parseXML(source[root.Start:root.End], lim)
		if err != nil || again.Name != root.Name || again.Text != root.Text || len(again.Children) != len(root.Children) {
			t.Errorf("the slice of the root reads otherwise: %v", err)
		}
	})
}
