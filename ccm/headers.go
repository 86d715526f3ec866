package ccm

import (
	"net/http"
	"strings"
)

// The headers that a gateway and a connector add for the next hop. Nobody believes
// them from anyone but a proved hop: see [StripHop].
const (
	HeaderClientAddress     = "Postern-Client-Address"     // the device's address as the gateway saw it
	HeaderMessageID         = "Postern-Message-Id"         // one id from client to management point
	HeaderExternalHost      = "Postern-External-Host"      // the host that the device asked for
	HeaderClientCertificate = "Postern-Client-Certificate" // the device's chain, leaf first, DER in base64, comma between
)

// The headers by which a client has an answer signed (ours): it sends a nonce, after
// "chain " when it does not know the signer yet, and gets the signature, and the chain
// of the role certificate that made it. They pass every hop.
const (
	HeaderSignedReply      = "Signed-Reply"
	HeaderSignedReplyChain = "Signed-Reply-Chain" // DER in base64, leaf first, comma between
)

// HopHeaders returns the names of the headers that one hop may set for the next.
func HopHeaders() []string {
	return []string{HeaderClientAddress, HeaderMessageID, HeaderExternalHost, HeaderClientCertificate}
}

// foreignHop lists what other proxies use to say the same: prefixes where they end in
// a hyphen, whole names otherwise. Nothing here reads them, and nothing behind may.
var foreignHop = [...]string{
	"postern-", "x-forwarded-", "x-arr-", "x-original-", "x-rewrite-", "x-client-cert-", "x-ssl-", "ssl-",
	"forwarded", "x-real-ip", "x-client-ip", "x-client-cert", "x-host", "client-cert", "client-cert-chain", "true-client-ip", "x-http-method-override",
}

// StripHop removes from a request everything with which its sender could pretend to be
// a hop: our own hop headers and those that other proxies use, in any case and with
// underscores for hyphens.
func StripHop(header http.Header) {
	for name := range header {
		if isHop(name) {
			delete(header, name)
		}
	}
}

func isHop(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	for _, pattern := range foreignHop {
		if name == pattern || strings.HasSuffix(pattern, "-") && strings.HasPrefix(name, pattern) {
			return true
		}
	}
	return false
}
