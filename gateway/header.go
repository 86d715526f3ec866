package gateway

import (
	"net/http"

	"postern/ccm"
)

// requestHeaders are the headers of a device that go inside; all others stay here
// (C88). They are the ones that the documents and known clients use (protocol.md 1.2,
// 4.4; product.md 1.1 row 20) and the site's own proofs.
func requestHeaders() []string {
	return []string{
		"Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Content-Encoding", "Content-Type",
		"Range", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "User-Agent",
		"Authorization", "DPoP",
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
	return header
}
