package explain

import (
	"net/http"
	"regexp"
	"slices"
	"strings"

	"postern/catalog"
	"postern/logfile"
)

// mark is what a line says: the code of a symptom, or one of the words below.
type mark string

// What lines say that is no symptom. The first group is work that went well.
const (
	registered mark = "registered"        // a client has its id
	cached     mark = "token cached"      // a client has its token
	issued     mark = "token issued"      // a token service gave one
	entraToken mark = "Entra token"       // a tenant gave one
	replied    mark = "reply"             // a message was answered
	forwarded  mark = "forwarded"         // a connection point got a 200
	answered   mark = "answered"          // a server of ours, or a web server, answered
	usableCert mark = "certificate found" // a connection point has a certificate to show
	recorded   mark = "registration kept" // a management point wrote a registration record
	installed  mark = "installed"         // ccmsetup ended with 0
	firstLeg   mark = "first leg"         // a 401 of Windows authentication and its 200

	refusal     mark = "refusal"      // a client was answered with a status that no symptom is made of
	companion   mark = "companion"    // belongs to another line that says more
	askedEntra  mark = "asked Entra"  // a client asked the gateway for its tenant's properties
	entraAsking mark = "Entra asking" // ... and has them
	fallback    mark = "fallback"     // a client tries a user's token
	setupFailed mark = "setup failed" // ccmsetup ended with something else than 0
	linked      mark = "linked"       // gateway and connector have each other
)

// good are the marks that show that something works.
var good = []mark{firstLeg, registered, cached, issued, entraToken, replied, forwarded, answered, usableCert, recorded, installed}

// look says which lines have a mark: those that hold all of the texts, one of any and none of the others, and pass the
// test. A look without a text is for access lines and events.
type look struct {
	mark mark
	all  []string
	any  []string
	none []string
	test func(*line) bool
}

func (k *look) matches(l *line) bool {
	for _, text := range k.all {
		if !strings.Contains(l.text, text) {
			return false
		}
	}
	if len(k.any) > 0 && !slices.ContainsFunc(k.any, func(text string) bool { return strings.Contains(l.text, text) }) {
		return false
	}
	for _, text := range k.none {
		if strings.Contains(l.text, text) {
			return false
		}
	}
	return k.test == nil || k.test(l)
}

func says(code catalog.Code, all ...string) look { return look{mark: mark(code), all: all} }

func (k look) unless(none ...string) look {
	k.none = none
	return k
}

func (k look) when(test func(*line) bool) look {
	k.test = test
	return k
}

// looks is the table of what lines say. A line may say several things.
var looks = []look{
	// Windows authentication (S0, S1).
	says(catalog.SymptomClockSkew, "KRB_AP_ERR_SKEW"),
	says(catalog.SymptomClockSkew, "Clock skew too great"),
	says(catalog.SymptomTicketModified, "KRB_AP_ERR_MODIFIED"),
	says(catalog.SymptomServiceUnknown, "KDC_ERR_S_PRINCIPAL_UNKNOWN"),
	says(catalog.SymptomServiceUnknown, "Server not found in Kerberos database"),
	says(catalog.SymptomNotApproved, "Client is registered.", "Approval status 0"),

	// Statuses of connection point and gateway (S4).
	says(catalog.SymptomClientCertificateRequired, "CMGConnector_Clientcertificaterequired").unless("Received response"),
	says(catalog.SymptomConnectorClientCertificateRequired, "Received response", "CMGConnector_Clientcertificaterequired"),
	says(catalog.SymptomConnectorWebException, "Web exception for message", "(403) Forbidden"),
	says(catalog.SymptomNoClientCertificateLeft, "Filtered cert count with client auth: 0"),
	says(catalog.SymptomNotClientAuthCertificate, "Not client auth cert: "),
	says(catalog.SymptomNotAllowedCertificate, "Not allowed cert: "),
	says(catalog.SymptomNotAllowedCertificate, "Filtered cert count with allowed root CA: 0"),
	says(catalog.SymptomNoPrivateKeyCertificate, "No private key cert: "),
	says(catalog.SymptomNoPrivateKeyCertificate, "Filtered cert count with private key: 0"),
	says(catalog.SymptomConnectorForbidden, "CMGConnector_Forbidden"),
	says(catalog.SymptomConnectorRevocationUnknown, "status: RevocationStatusUnknown"),
	says(catalog.SymptomConnectorRevocationUnknown, "status: OfflineRevocation"),
	says(catalog.SymptomAccessClientCertificateMissing).when(refused(403, 7)),
	says(catalog.SymptomAccessHTTPSRequired).when(refused(403, 4)),
	says(catalog.SymptomCertificateMappingDenied).when(refused(403, 12, 13)),
	says(catalog.SymptomCertificateUntrusted).when(refused(403, 16)),
	says(catalog.SymptomCertificateOutOfDate).when(refused(403, 17)),
	says(catalog.SymptomGatewayInvalidToken, "CMGService_Invalid_Token"),
	says(catalog.SymptomConnectorUnauthorized, "CMGConnector_Unauthorized"),
	says(catalog.SymptomConnectorUnauthorized, "RetrieveTokenFromStsServerImpl failed with error 0x87d0027e"),
	says(catalog.SymptomNothingToAuthenticateWith, "Failed to get CCM access token and client doesn't have PKI issued cert"),
	says(catalog.SymptomDownloadUnauthenticated, "DownloadFileByWinHTTP failed with error 0x87d00455"),
	says(catalog.SymptomRootNotInTrustList, "terminated in a root certificate not trusted per ConfigMgr CTL"),
	says(catalog.SymptomConnectorInternalServerError, "CMGConnector_InternalServerError"),
	says(catalog.SymptomTokenLibraryMismatch, "FileLoadException", "System.IdentityModel.Tokens.Jwt"),

	// TLS and the way to the gateway (S4, S3).
	says(catalog.SymptomTLSFailed, "ERROR_WINHTTP_SECURE_FAILURE"),
	says(catalog.SymptomTLSFailed, "WINHTTP_CALLBACK_STATUS_SECURE_FAILURE"),
	says(catalog.SymptomTLSFailed, "Code=12175,").unless("ERROR_WINHTTP_SECURE_FAILURE"),
	says(catalog.SymptomTLSFailed, "0x80072f8f"),
	says(catalog.SymptomTLSFailed, "0x80072F8F"),
	says(catalog.SymptomRevocationCheckFailed, "STATUS_FLAG_CERT_REV_FAILED"),
	says(catalog.SymptomServerCertificateInvalid, "STATUS_FLAG_INVALID_CERT"),
	says(catalog.SymptomServerCertificateRevoked, "STATUS_FLAG_CERT_REVOKED"),
	says(catalog.SymptomServerRootUntrusted, "STATUS_FLAG_INVALID_CA"),
	says(catalog.SymptomServerNameMismatch, "STATUS_FLAG_CERT_CN_INVALID"),
	says(catalog.SymptomServerCertificateDate, "STATUS_FLAG_CERT_DATE_INVALID"),
	says(catalog.SymptomServerCertificateUse, "STATUS_FLAG_CERT_WRONG_USAGE"),
	says(catalog.SymptomTLSChannel, "STATUS_FLAG_SECURITY_CHANNEL_ERROR"),
	says(catalog.SymptomRevocationCheckFailed, "lpvStatusInformation is 0x").when(flagged(0x1)),
	says(catalog.SymptomServerCertificateInvalid, "lpvStatusInformation is 0x").when(flagged(0x2)),
	says(catalog.SymptomServerCertificateRevoked, "lpvStatusInformation is 0x").when(flagged(0x4)),
	says(catalog.SymptomServerRootUntrusted, "lpvStatusInformation is 0x").when(flagged(0x8)),
	says(catalog.SymptomServerNameMismatch, "lpvStatusInformation is 0x").when(flagged(0x10)),
	says(catalog.SymptomServerCertificateDate, "lpvStatusInformation is 0x").when(flagged(0x20)),
	says(catalog.SymptomServerCertificateUse, "lpvStatusInformation is 0x").when(flagged(0x40)),
	says(catalog.SymptomTLSChannel, "lpvStatusInformation is 0x").when(flagged(0x80000000)),
	{mark: flagNumber, all: []string{"lpvStatusInformation is 0x"}},
	network(catalog.SymptomGatewayNameNotResolved, "12007", "0x80072ee7", "NAME_NOT_RESOLVED").when(towardGateway),
	network(catalog.SymptomNameNotResolved, "12007", "0x80072ee7", "NAME_NOT_RESOLVED").when(not(towardGateway)),
	network(catalog.SymptomCannotConnect, "12029", "0x80072efd", "ERROR_WINHTTP_CANNOT_CONNECT"),
	network(catalog.SymptomConnectionLost, "12002", "0x80072ee2", "ERROR_WINHTTP_TIMEOUT"),
	network(catalog.SymptomConnectionLost, "12030", "0x80072efe", "ERROR_WINHTTP_CONNECTION_ERROR"),
	network(catalog.SymptomClientCertificateUnusable, "12044", "0x80072f0c", "ERROR_WINHTTP_CLIENT_AUTH_CERT_NEEDED"),
	says(catalog.SymptomClientCertificateUnusable, "Code=12185,"),
	says(catalog.SymptomClientCertificateUnusable, "Code=12186,"),
	network(catalog.SymptomInvalidAnswer, "12152", "0x80072f78", "ERROR_WINHTTP_INVALID_SERVER_RESPONSE"),
	says(catalog.SymptomAnalyzerNameResolution, "Unexpected response status code is NameResolutionError"),

	// Tokens and Entra (S2, S4).
	says(catalog.SymptomTokenLifetimeOver, "IDX10223"),
	says(catalog.SymptomTokenLifetimeOver, "SecurityTokenExpiredException"),
	{mark: lifetimePart, all: []string{"ValidTo: '"}},
	{mark: lifetimePart, all: []string{"Current time: '"}},
	says(catalog.SymptomDeviceTokenNotObtained, "WAM token request failed"),
	says(catalog.SymptomDeviceTokenNotObtained, "D0090016"),
	says(catalog.SymptomDeviceTokenNotObtained, "Failed to get AAD token"),
	says(catalog.SymptomDeviceTokenNotObtained, "0xd0090016").unless("Failed to get AAD token"),
	{mark: mark(catalog.SymptomNotJoined), any: []string{"cert", "AzureAdJoined", "joined"}, test: notJoined},
	says(catalog.SymptomTenantNotOnboarded, "[CCMHTTP] ERROR: URL=", "/AADAuthInfo", "CCM_E_BAD_HTTP_STATUS_CODE"),
	says(catalog.SymptomTenantNotOnboarded, "Failed to get AAD info"),
	says(catalog.SymptomNoDeviceManagement, "Failed to GetDeviceManagementConfigInfo"),
	says(catalog.SymptomEntraResourceUnknown, "AADSTS50001"),
	says(catalog.SymptomEntraSecretExpired, "AADSTS7000222"),
	says(catalog.SymptomEntraTenantUnknown, "AADSTS90002"),
	says(catalog.SymptomEntraInteraction, "AADSTS50076"),
	says(catalog.SymptomEntraInteraction, "0x8018002a"),
	says(catalog.SymptomTokenAudienceUnknown, "There is no appropriate token validator"),

	// Registration, management point, connection point, deployment.
	says(catalog.SymptomRegistrationBodyInvalid, "MP Reg: Registration request body is invalid."),
	says(catalog.SymptomRegistrationBodyInvalid, "MP Reg: Registration failed."),
	says(catalog.SymptomRegistrationPending, "[RegTask] - Registration of", "is pending"),
	says(catalog.SymptomRegistrationReset, "Server rejected registration 2"),
	says(catalog.SymptomRegistrationRejected, "Server rejected registration 3"),
	says(catalog.SymptomStateNotSaved, "SetRegistrationState failed (0x80071770)"),
	says(catalog.SymptomClientCertificateExpired, "CD(SMSID=", "certificate has expired"),
	says(catalog.SymptomCertificateRevoked, "Certificate for client GUID:", "is revoked"),
	says(catalog.SymptomPostFailed500, "Post to ", "failed with 0x87d00231"),
	says(catalog.SymptomPostFailed500).when(refused(500, 19)),
	says(catalog.SymptomDatabaseLogin, "MPDB ERROR - CONNECTION PARAMETERS"),
	says(catalog.SymptomDatabaseLogin, "MPDB", "Login timeout expired"),
	says(catalog.SymptomInboxSource, "Cannot connect to the inbox source"),
	says(catalog.SymptomConnectorCannotReachGateway, "Failed to build Tcp connection"),
	says(catalog.SymptomConnectorCannotReachGateway, "TCP CONNECTION: Failed to authenticate with proxy server"),
	says(catalog.SymptomRoleCertificateMissing, "missing role certificate. reload in next cycle"),
	says(catalog.SymptomBackendDown, "Web exception for message", "remote name could not be resolved"),
	says(catalog.SymptomBackendDown, "Web exception for message", "Unable to connect to the remote server"),
	says(catalog.SymptomProviderNotRegistered, "The subscription is not registered to use namespace"),
	says(catalog.SymptomProvisionFailed, "Failed to provision cloud service"),
	says(catalog.SymptomVaultNameTaken, "The vault name", "is already in use"),

	// What went well.
	{mark: registered, all: []string{"Client is registered. Server assigned ClientID is"}, none: []string{"Approval status 0"}},
	{mark: cached, all: []string{"Cached encrypted token for"}},
	{mark: cached, all: []string{"Received self-prove token"}},
	{mark: issued, all: []string{"Issued token"}},
	{mark: entraToken, all: []string{"Retrieved AAD token for"}},
	{mark: replied, all: []string{"' got reply message '"}},
	{mark: forwarded, all: []string{"ResponseHeader: HTTP/1.1 200"}},
	{mark: usableCert, all: []string{"Filtered cert count with client auth: "}, none: []string{"client auth: 0"}},
	{mark: recorded, all: []string{"MP Reg: DDR file written to"}},
	{mark: answered, test: success},
	{mark: answered, all: []string{"RequestUri: "}, test: served},
	{mark: linked, test: events("connected to gateway", "connector connected", "site state applied", "site state")},
	{mark: installed, all: []string{"exiting with return code"}, test: setupEnded(true)},
	{mark: setupFailed, all: []string{"exiting with return code"}, test: setupEnded(false)},

	// What only belongs to something.
	{mark: refusal, all: []string{"StatusCode="}, test: plainRefusal},
	{mark: companion, all: []string{"Text=CCM_E_BAD_HTTP_STATUS_CODE"}},
	{mark: companion, all: []string{"Web exception for message", "The remote server returned an error"}},
	{mark: askedEntra, all: []string{"Getting AAD info from CMG"}},
	{mark: entraAsking, all: []string{"Getting AAD ("}},
	{mark: fallback, all: []string{"Falling back to get user"}},
}

// Parts of a symptom that stand on lines of their own in a copy.
const (
	flagNumber   mark = "number of TLS flags"
	lifetimePart mark = "times of a token"
)

func not(test func(*line) bool) func(*line) bool { return func(l *line) bool { return !test(l) } }

// refused tests an access line of a management point for a status with one of the sub-statuses.
func refused(status int, subStatuses ...int) func(*line) bool {
	return func(l *line) bool {
		return l.access != nil && l.access.Status == status && slices.Contains(subStatuses, l.access.SubStatus) && ofManagementPoint(l.access.Stem)
	}
}

var managementPointFolders = []string{"/sms_mp", "/ccm_", "/bgb", "/sms_"}

func ofManagementPoint(stem string) bool {
	stem = strings.ToLower(stem)
	return slices.ContainsFunc(managementPointFolders, func(folder string) bool { return strings.HasPrefix(stem, folder) })
}

func success(l *line) bool {
	switch {
	case l.access != nil:
		return l.access.Status/100 == 2 && ofManagementPoint(l.access.Stem)
	case l.event != nil:
		return l.event.Status/100 == 2 && (l.event.Msg == "request answered" || l.event.Msg == "request forwarded")
	}
	return false
}

// served tests for a line of the gateway's statistics.
func served(l *line) bool {
	return strings.HasPrefix(l.text, "RequestUri: ") && strings.Contains(l.text, "ResponseCount: ") && !strings.Contains(l.text, "ResponseCount: 0 ")
}

func events(messages ...string) func(*line) bool {
	return func(l *line) bool { return l.event != nil && slices.Contains(messages, l.event.Msg) }
}

var statusNumber = regexp.MustCompile(`lpvStatusInformation is 0x([0-9a-fA-F]{1,8})\b`)

func flags(text string) (uint64, bool) {
	found := statusNumber.FindStringSubmatch(text)
	if found == nil {
		return 0, false
	}
	return hexadecimal(found[1]), true
}

func flagged(flag uint64) func(*line) bool {
	return func(l *line) bool {
		number, ok := flags(l.text)
		return ok && number&flag != 0
	}
}

// network is a look for an error of WinHTTP by its number, its HRESULT or its name.
func network(code catalog.Code, number, result, name string) look {
	return look{mark: mark(code), any: []string{"Code=" + number + ",", result, "0x" + strings.ToUpper(result[2:]), name}}
}

var gatewayWords = regexp.MustCompile(`(?i)ccm_proxy_|cloudapp|\bcmg\b`)

func towardGateway(l *line) bool { return gatewayWords.MatchString(l.text) }

var notJoinedWords = regexp.MustCompile(`(?i)\b(WPJ|workplace join) cert[a-z]* *(isn't|is not|was not|not) (found|present)|AzureAdJoined *: *NO\b|device (isn't|is not) (AAD|Microsoft Entra|Azure AD) joined`)

func notJoined(l *line) bool { return notJoinedWords.MatchString(l.text) }

var refusedStatus = regexp.MustCompile(`StatusCode= ?[45][0-9]{2} StatusText= ?(\S*)`)

// plainRefusal tests for a status of 400 or more without one of the texts of gateway and connection point.
func plainRefusal(l *line) bool {
	found := refusedStatus.FindStringSubmatch(l.text)
	return found != nil && !strings.HasPrefix(found[1], "CMG")
}

var setupEnd = regexp.MustCompile(`(?i)ccmsetup is exiting with return code (\d{1,10})`)

func setupEnded(well bool) func(*line) bool {
	return func(l *line) bool {
		found := setupEnd.FindStringSubmatch(l.text)
		return found != nil && (found[1] == "0" || found[1] == "7") == well
	}
}

// ownCode returns the code of our catalogue that a line of our own logs names as the reason of a failure, and whether
// it is about the link between roles, which comes and goes, and not about a request.
func ownCode(l *line) (code catalog.Code, ofLink, ok bool) {
	switch {
	case l.event != nil:
		code = catalog.Code(l.event.Code)
		ofLink = slices.Contains(linkMessages, l.event.Msg)
	case l.kind == clientLine && l.severity >= logfile.Warning, l.kind == serverLine && (strings.Contains(l.text, "  Code: P") || strings.Contains(l.text, "[P")):
		code = catalog.Code(ownCodeForm.FindString(l.text))
		ofLink = strings.HasPrefix(l.text, "Failed to keep the connection")
	}
	if !strings.HasPrefix(string(code), "P") {
		return "", false, false
	}
	entry, known := catalog.Lookup(code)
	return code, ofLink, known && entry.Severity != catalog.SeverityInfo
}

var ownCodeForm = regexp.MustCompile(`\bP[0-9]{3}\b`)

// linkMessages are events of the links between our roles. One is no incident: links end when a role stops.
var linkMessages = []string{"no gateway to connect to", "site state stream ended", "acknowledgement not taken", "site state is not followed",
	"connection to gateway ended", "connector dropped", "line of the site state is not used", "site state line refused"}

// troubled says whether a line looks like a failure although no rule knows it.
func troubled(l *line) bool {
	switch {
	case l.kind == clientLine:
		return l.severity == logfile.Error
	case l.event != nil:
		return l.severity == logfile.Error
	case l.access != nil:
		return l.access.Status >= http.StatusInternalServerError && ofManagementPoint(l.access.Stem)
	}
	return slices.ContainsFunc(troubleWords, func(word string) bool { return strings.Contains(l.text, word) })
}

var troubleWords = []string{"ERROR", "Error", "error:", "xception", "Failed", "failed", "Erreur", "erreur", "Fehler", "fehlgeschlagen"}

func hexadecimal(digits string) (n uint64) {
	for _, digit := range strings.ToLower(digits) {
		n = n<<4 | uint64(strings.IndexRune("0123456789abcdef", digit))
	}
	return n
}
