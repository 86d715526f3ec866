package gateway

import (
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"strings"

	"postern/ccm"
)

// requestHeaders are the headers of a device that go inside; all others stay here
// (C88). They are the ones that the documents and known clients use (protocol.md 1.2,
// 4.4; product.md 1.1 row 20) and the site's own proofs.
func requestHeaders() []string {
	return []string{
		"Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Content-Encoding", "Content-Type",
		"Range", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "User-Agent",
		"Authorization", "DPoP", ccm.HeaderSignedReply,
		ccm.HeaderClientToken, ccm.HeaderClientTokenSignature,
		ccm.HeaderCCMClientID, ccm.HeaderCCMClientIDSignature, ccm.HeaderCCMClientTimestamp, ccm.HeaderCCMClientTimestampSignature,
		"CCMClientTimestampsSignature", "CCMAuthHeaderType", "CCMAuthHeaderTypeSignature",
	}
}

// responseHeaders are the headers of an answer that go to the device. Location is not
// among them: nothing inside has an address out here.
func responseHeaders() []string {
	return []string{
		"Accept-Ranges", "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Range", "Content-Type",
		"DPoP-Nonce", "ETag", "Expires", "Last-Modified", "Retry-After", "Vary", "WWW-Authenticate",
		ccm.HeaderSignedReply, ccm.HeaderSignedReplyChain,
	}
}

// pick copies the named headers.
func pick(from http.Header, names []string) http.Header {
	to := make(http.Header, 8)
	for _, name := range names {
		name = http.CanonicalHeaderKey(name)
		if values := from[name]; len(values) > 0 {
			to[name] = values
		}
	}
	return to
}

// inside returns the header with which a request goes inside: the device's own, as far
// as they are listed, then ours from one list, which nobody else can set.
func (x *exchange) inside(r *http.Request) http.Header {
	header := pick(r.Header, requestHeaders())
	ccm.StripHop(header)
	header.Set(ccm.HeaderClientAddress, x.address)
	header.Set(ccm.HeaderMessageID, x.id)
	header.Set(ccm.HeaderExternalHost, r.Host)
	header.Set("Traceparent", x.trace.Traceparent())
	if len(x.certificates) > 0 {
		header.Set(ccm.HeaderClientCertificate, certificateHeader(x.certificates))
	}
	return header
}

// maxShown is how many bytes of a device's chain go inside: what is left, in base64, of
// the 64 KiB that the tunnel has for a request's head, beside what the device sends.
const maxShown = 16 << 10

// certificateHeader writes a chain that was found good, leaf first, as far as there is
// room. The management point judges it again.
func certificateHeader(chain []*x509.Certificate) string {
	var texts []string
	room := maxShown
	for _, certificate := range chain {
		if room -= len(certificate.Raw); room < 0 {
			break
		}
		texts = append(texts, base64.StdEncoding.EncodeToString(certificate.Raw))
	}
	return strings.Join(texts, ",")
}
