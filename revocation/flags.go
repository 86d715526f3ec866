package revocation

import (
	"strings"

	"postern/catalog"
)

// Flags are the reasons for which a TLS connection is refused, as WinHTTP reports them with
// WINHTTP_CALLBACK_STATUS_SECURE_FAILURE (S4: "lpvStatusInformation is 0x9"). Several may be set.
type Flags uint32

// The flags by the names of the documents, WINHTTP_CALLBACK_STATUS_FLAG_... (S4; product.md E040 to E047).
const (
	FlagRevocationFailed   Flags = 0x1        // CERT_REV_FAILED
	FlagInvalidCertificate Flags = 0x2        // INVALID_CERT
	FlagRevoked            Flags = 0x4        // CERT_REVOKED
	FlagInvalidCA          Flags = 0x8        // INVALID_CA
	FlagName               Flags = 0x10       // CERT_CN_INVALID
	FlagDate               Flags = 0x20       // CERT_DATE_INVALID
	FlagWrongUsage         Flags = 0x40       // CERT_WRONG_USAGE
	FlagChannel            Flags = 0x80000000 // SECURITY_CHANNEL_ERROR
)

// The number and text that the documents' logs give to every refused certificate, 0x2f8f (S4).
const (
	SecureFailure     = 12175
	SecureFailureText = "ERROR_WINHTTP_SECURE_FAILURE"
)

// The number and text of a server that wants a client certificate (product.md E052).
const (
	ClientCertificateNeeded     = 12044
	ClientCertificateNeededText = "ERROR_WINHTTP_CLIENT_AUTH_CERT_NEEDED"
)

// flagName is one flag with the end of its name and its own error number (product.md E053).
type flagName struct {
	flag   Flags
	name   string
	number int
}

// flagNames lists the flags in the order in which a log shows them.
func flagNames() []flagName {
	return []flagName{
		{FlagRevocationFailed, "CERT_REV_FAILED", 12057},
		{FlagInvalidCertificate, "INVALID_CERT", 12169},
		{FlagRevoked, "CERT_REVOKED", 12170},
		{FlagInvalidCA, "INVALID_CA", 12045},
		{FlagName, "CERT_CN_INVALID", 12038},
		{FlagDate, "CERT_DATE_INVALID", 12037},
		{FlagWrongUsage, "CERT_WRONG_USAGE", 12179},
		{FlagChannel, "SECURITY_CHANNEL_ERROR", 12157},
	}
}

// Names returns the whole name of each flag that is set, lowest first, as S4's log has them:
// "WINHTTP_CALLBACK_STATUS_FLAG_CERT_REV_FAILED".
func (f Flags) Names() (names []string) {
	for _, known := range flagNames() {
		if f&known.flag != 0 {
			names = append(names, "WINHTTP_CALLBACK_STATUS_FLAG_"+known.name)
		}
	}
	return names
}

// Numbers returns the error number that WinHTTP has for each flag that is set, lowest flag first (product.md E053).
func (f Flags) Numbers() (numbers []int) {
	for _, known := range flagNames() {
		if f&known.flag != 0 {
			numbers = append(numbers, known.number)
		}
	}
	return numbers
}

// String returns the short names joined by "|", or "none".
func (f Flags) String() string {
	if f == 0 {
		return "none"
	}
	names := f.Names()
	for i, name := range names {
		names[i] = strings.TrimPrefix(name, "WINHTTP_CALLBACK_STATUS_FLAG_")
	}
	return strings.Join(names, "|")
}

// FlagsOf returns the flag that the documents have for a code of this package, or 0 for any other code.
func FlagsOf(code catalog.Code) Flags {
	switch code {
	case catalog.CertificateUnreadable, catalog.CertificateNegativeSerial, catalog.CertificateWeak, catalog.CertificateConstraint:
		return FlagInvalidCertificate
	case catalog.CertificateIssuerMissing, catalog.CertificateRootUnknown:
		return FlagInvalidCA
	case catalog.CertificateName:
		return FlagName
	case catalog.CertificateDate:
		return FlagDate
	case catalog.CertificateUsage:
		return FlagWrongUsage
	case catalog.CertificateRevoked:
		return FlagRevoked
	case catalog.RevocationSourceMissing, catalog.RevocationUnreachable, catalog.RevocationListMalformed,
		catalog.RevocationListUnsupported, catalog.RevocationListForeign, catalog.RevocationListDate,
		catalog.RevocationAnswerRefused, catalog.RevocationAnswerNone:
		return FlagRevocationFailed
	case catalog.TLSChannelFailed:
		return FlagChannel
	}
	return 0
}
