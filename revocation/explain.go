package revocation

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"

	"postern/catalog"
)

// Explanation is what the documents' logs and a person are told about a TLS connection that was not made.
type Explanation struct {
	Flags    Flags        // "lpvStatusInformation is 0x9" and the names below it
	Number   int          // "Code=12175"
	Text     string       // "Text=ERROR_WINHTTP_SECURE_FAILURE"
	Code     catalog.Code // ours
	Sentence string       // ours
}

// Explain maps the error of a TLS handshake, as a Go client gets it, to the flags, number and text of S4, a code and a
// sentence. It reads the errors of crypto/tls and crypto/x509, however deeply wrapped, and those of a [Checker]. It returns
// false for an error that TLS has no part in: a name that does not resolve, a connection that was refused, broke or took
// too long, a status of HTTP.
func Explain(err error) (Explanation, bool) {
	if err == nil {
		return Explanation{}, false
	}
	for _, known := range []func(error) (Explanation, bool){
		explainVerdict, explainCertificate, explainAlert, explainHandshake,
	} {
		if explanation, ok := known(err); ok {
			return explanation, true
		}
	}
	return Explanation{}, false
}

func secureFailure(flags Flags, code catalog.Code, sentence string) Explanation {
	return Explanation{Flags: flags, Number: SecureFailure, Text: SecureFailureText, Code: code, Sentence: sentence}
}

// explainVerdict reads an error of a Checker, with every flag, or any other error with one of our codes.
func explainVerdict(err error) (Explanation, bool) {
	if refused, ok := errors.AsType[*Refused](err); ok {
		v := refused.Verdict
		return secureFailure(v.Flags, v.Code, v.Sentence), true
	}
	if e, ok := asCatalog(err); ok && FlagsOf(e.Code) != 0 {
		return secureFailure(FlagsOf(e.Code), e.Code, e.Detail), true
	}
	return Explanation{}, false
}

func asCatalog(err error) (*catalog.Error, bool) { return errors.AsType[*catalog.Error](err) }

// explainCertificate reads what crypto/x509 says about the server's certificate.
func explainCertificate(err error) (Explanation, bool) {
	cause := certificateError(err)
	if cause == nil {
		return Explanation{}, false
	}
	fault := faultOfX509(cause)
	if verification, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && fault.Flag == FlagInvalidCA {
		fault = untrusted(endOf(verification.UnverifiedCertificates))
	}
	return secureFailure(fault.Flag, fault.Code, fault.Sentence), true
}

// certificateError returns the first error of crypto/x509 in a chain.
func certificateError(err error) error {
	for ; err != nil; err = errors.Unwrap(err) {
		switch err.(type) {
		case x509.HostnameError, x509.UnknownAuthorityError, x509.CertificateInvalidError, x509.InsecureAlgorithmError,
			x509.SystemRootsError, x509.UnhandledCriticalExtension, x509.ConstraintViolationError:
			return err
		case *tls.CertificateVerificationError:
			if errors.Unwrap(err) == nil || certificateError(errors.Unwrap(err)) == nil {
				return x509.ConstraintViolationError{}
			}
		}
	}
	return nil
}

// endOf follows the issuers of the first certificate among those that were shown with it.
func endOf(shown []*x509.Certificate) *x509.Certificate {
	if len(shown) == 0 {
		return &x509.Certificate{}
	}
	path, budget := []*x509.Certificate{shown[0]}, maxSignatures
	for len(path) <= maxChain {
		issuer := issuerAmong(shown[1:], path, path[len(path)-1], &budget)
		if issuer == nil {
			break
		}
		path = append(path, issuer)
	}
	return path[len(path)-1]
}

// alert is one refusal that the other side sends (RFC 8446 6.2), by the text that crypto/tls gives it: the type of those
// errors is not exported.
type alert struct {
	text     string
	client   bool // it is about the client's certificate
	sentence string
}

func alerts() []alert {
	return []alert{
		{"certificate required", true, "the server wants a client certificate and none was sent"},
		{"unknown certificate authority", true, "the server does not trust the authority of the client's certificate"},
		{"bad certificate", true, "the server refused the client's certificate"},
		{"unsupported certificate", true, "the server does not accept this kind of client certificate"},
		{"revoked certificate", true, "the server says that the client's certificate is revoked"},
		{"expired certificate", true, "the server says that the client's certificate has expired"},
		{"unknown certificate", true, "the server refused the client's certificate"},
		{"access denied", true, "the server refused the client's certificate"},
		{"protocol version not supported", false, "the server accepts none of the TLS versions that this client speaks"},
		{"handshake failure", false, "the server accepts none of the ciphers that this client speaks, or wants a client certificate"},
		{"insufficient security level", false, "the server wants stronger ciphers than this client offered"},
		{"unrecognized name", false, "the server has no certificate for the name that it was called by"},
		{"no application protocol", false, "the server speaks none of the application protocols that were offered"},
	}
}

// explainAlert reads a refusal that the server sent.
func explainAlert(err error) (Explanation, bool) {
	remote, ok := errors.AsType[*net.OpError](err)
	if !ok || remote.Op != "remote error" || remote.Err == nil {
		return Explanation{}, false
	}
	text := remote.Err.Error()
	for _, known := range alerts() {
		if !strings.HasSuffix(text, known.text) {
			continue
		}
		if known.client {
			return Explanation{Number: ClientCertificateNeeded, Text: ClientCertificateNeededText, Code: catalog.TLSChannelFailed, Sentence: known.sentence}, true
		}
		return secureFailure(FlagChannel, catalog.TLSChannelFailed, known.sentence), true
	}
	return secureFailure(FlagChannel, catalog.TLSChannelFailed, "the server ended the handshake: "+strings.TrimPrefix(text, "tls: ")), true
}

// explainHandshake reads the errors that this side of a handshake makes. Most are plain texts of crypto/tls.
func explainHandshake(err error) (Explanation, bool) {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return secureFailure(FlagChannel, catalog.TLSChannelFailed, "the other side does not speak TLS on this port"), true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return secureFailure(FlagChannel, catalog.TLSChannelFailed, "the handshake failed"), true
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return secureFailure(FlagChannel, catalog.TLSChannelFailed, "the other side speaks plain HTTP on this port"), true
	}
	text := innermost(err).Error()
	switch {
	case strings.HasPrefix(text, "x509: "), strings.HasPrefix(text, "tls: failed to parse"):
		fault := faultOf(unreadable(innermost(err)))
		return secureFailure(fault.Flag, fault.Code, fault.Sentence), true
	case strings.HasPrefix(text, "tls: "):
		return secureFailure(FlagChannel, catalog.TLSChannelFailed, "the handshake failed: "+strings.TrimPrefix(text, "tls: ")), true
	}
	return Explanation{}, false
}

// innermost is the last error of a chain, or the last that has a text of TLS.
func innermost(err error) error {
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner
		if text := inner.Error(); strings.HasPrefix(text, "tls: ") || strings.HasPrefix(text, "x509: ") {
			return inner
		}
	}
	return err
}
