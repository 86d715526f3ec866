package connector

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"postern/catalog"
	"postern/ccm"
)

// The lines of SMS_CLOUD_PROXYCONNECTOR.log, as the documents have them (protocol.md
// 8.3; S2, S4). A line break stands where they print "~~".
const (
	switchedToInternal = "Switched to internal URL. Replaced '%s' in   '%s' with '%s' and got '%s"
	forwardingMessage  = "Forwarding proxy message %s to URL: %s"
	messageAnswered    = "MessageID: %s RequestURI: %s EndpointName: %s ResponseHeader: HTTP/1.1 %d %s \n ResponseBodySize: %d ElapsedTime: %d ms"
	webException       = "Web exception for message %s: System.Net.WebException: %s"
	receivedResponse   = "Received response %s for message %s: HTTP/1.1 %d %s"

	maintainingConnections = "Maintaining connections..."

	filteredSignature  = "Filtered cert count with digital signature: %d"
	notAllowed         = "Not allowed cert: %s"
	noPrivateKey       = "No private key cert: %s"
	filteredRoot       = "Filtered cert count with allowed root CA: %d"
	filteredPrivateKey = "Filtered cert count with private key: %d"
	notClientAuth      = "Not client auth cert: %s"
	filteredClientAuth = "Filtered cert count with client auth: %d"
)

// Lines of our own in the same file.
const (
	connectionOpened = "Connected to gateway %s at %s"
	connectionFailed = "Failed to keep the connection to gateway %s at %s: %v"
)

// logForwarding says where a message goes (verbose).
func (x *exchange) logForwarding() {
	if !x.cfg.Log.Verbose() {
		return
	}
	external, internal := x.external(), x.internal()
	x.cfg.Log.Verbosef(switchedToInternal, external, external, internal, internal)
	x.cfg.Log.Verbosef(forwardingMessage, x.MessageID, internal)
}

// logAnswer says that a management point refused; what it granted is said at the end.
func (x *exchange) logAnswer(status int, text string) {
	if status < 400 {
		return
	}
	x.cfg.Log.Warningf(webException, x.MessageID, remoteReturned(status))
	x.cfg.Log.Warningf(receivedResponse, x.internal(), x.MessageID, status, orText(text, status))
}

// logRefusal says that the connector itself answers.
func (x *exchange) logRefusal(status ccm.Status, err error) {
	x.cfg.Log.Errorf(webException, x.MessageID, exceptionText(x, status, err))
	x.cfg.Log.Errorf(receivedResponse, x.internal(), x.MessageID, status.Code, status.Reason)
	x.cfg.Events.WarnContext(x.request.Context(), "request refused", "gateway", x.Gateway,
		"code", x.Code, "status", status.Code, "error", err)
}

// logEnd says how a message that a management point answered has ended.
func (x *exchange) logEnd() {
	if x.Status == 0 {
		x.cfg.Events.WarnContext(x.request.Context(), "answer broke off", "gateway", x.Gateway,
			"backend", x.Backend, "sent", x.Sent, "error", x.err)
		return
	}
	x.cfg.Events.DebugContext(x.request.Context(), "request forwarded", "gateway", x.Gateway, "endpoint", x.Endpoint, "backend", x.Backend,
		"status", x.Status, "took", x.Elapsed)
	if x.Status < 400 {
		x.cfg.Log.Infof(messageAnswered, x.MessageID, x.internal(), x.endpointName(), x.Status, http.StatusText(x.Status), x.Sent, x.Elapsed.Milliseconds())
	}
}

func remoteReturned(status int) string {
	return fmt.Sprintf("The remote server returned an error: (%d) %s.", status, http.StatusText(status))
}

// exceptionText is what the original's platform says of such a failure; administrators
// search for these sentences (product.md 5.7 E121).
func exceptionText(x *exchange, status ccm.Status, err error) string {
	text := remoteReturned(status.Code)
	_, noName := errors.AsType[*net.DNSError](err)
	switch code := catalog.CodeOf(err); {
	case noName:
		text = fmt.Sprintf("The remote name could not be resolved: '%s'", x.target.Hostname())
	case code == catalog.BackendUnreachable:
		text = "Unable to connect to the remote server"
	case code == catalog.BackendTimeout:
		text = "The operation has timed out"
	case code == catalog.BackendCertificate:
		text = "Could not establish trust relationship for the SSL/TLS secure channel."
	}
	return strings.TrimSuffix(text, ".") + ". [" + string(catalog.CodeOf(err)) + "]"
}

func orText(text string, status int) string {
	if text == "" {
		return http.StatusText(status)
	}
	return text
}
