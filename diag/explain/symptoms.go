package explain

import (
	"net/http"
	"slices"
	"strings"

	"postern/catalog"
)

// looks is the table of what lines say. A line may say several things. Rows of the catalogue without a line here are found in
// several lines together (found.go), or no log shows them, which their entry says.
var looks = settled([]look{
	// Windows authentication (S0, S1).
	says(catalog.SymptomClockSkew).or("krb_ap_err_skew", "clock skew too great"),
	failure(catalog.SymptomClockSkew, clocksApart, timeDifference),
	says(catalog.SymptomTicketModified, "krb_ap_err_modified"),
	failure(catalog.SymptomTicketModified, wrongPrincipal).when(has("kerberos", "spn", "ticket", "negotiate", "sspi", "windowsauth", "gss")),
	says(catalog.SymptomTicketModified).or("duplicate spn found", "groups of duplicate spns", "group of duplicate spns").unless("found 0 group"),
	says(catalog.SymptomTicketModified, "kdc").or("encountered duplicate names", "doppelte namen", "noms en double", "noms dupliqu").unless("no duplicate"),
	sees(listedTwice, "http/").when(fits(`^\s*http/[a-z0-9.-]+(?::[0-9]+)? [^/]{4,60}:\s*$`)),
	sees(listing).or("processing entry ", "traitement de l", "wird verarbeitet").when(fits(`(?:entry|entr.{1,2}e|eintrag) [0-9]+`)),
	says(catalog.SymptomServiceUnknown).or("kdc_err_s_principal_unknown", "server not found in kerberos database"),
	failure(catalog.SymptomServiceUnknown, targetUnknown),
	sees(listedName, "http/").when(fits(`^\s*http/[a-z0-9.-]+\s*$`)),
	sees(listedName, "cn=").when(fits(`(?:^|\s)cn=[^,]+,(?:cn|ou|dc)=[^:]*:?\s*$`)),
	sees(poolUser, "<processmodel", `username="`),
	sees(listing).or("checking domain dc=", "existing spn found", "registered serviceprincipalnames"),
	says(catalog.SymptomKernelMode, "<windowsauthentication", `usekernelmode="true"`).unless(`useapppoolcredentials="true"`, `enabled="false"`),
	says(catalog.SymptomNotApproved, "client is registered.", "approval status 0"),
	says(catalog.SymptomDuplicateIdentity).or("duplicate guid", "duplicate client guid", "duplicate clientid"),
	sees(hardware).or("hardwareid=", "hardware id =", "hardware id:"),

	// Statuses of connection point and gateway (S4).
	says(catalog.SymptomClientCertificateRequired, "cmgconnector_clientcertificaterequired").unless("received response"),
	says(catalog.SymptomConnectorClientCertificateRequired, "received response", "cmgconnector_clientcertificaterequired"),
	says(catalog.SymptomConnectorWebException, "web exception for message", "(403)"),
	says(catalog.SymptomNoClientCertificateLeft, "filtered cert count with client auth: 0"),
	says(catalog.SymptomNotClientAuthCertificate, "not client auth cert: "),
	says(catalog.SymptomNotAllowedCertificate, "not allowed cert: "),
	says(catalog.SymptomNotAllowedCertificate, "filtered cert count with allowed root ca: 0"),
	says(catalog.SymptomNoPrivateKeyCertificate, "no private key cert: "),
	says(catalog.SymptomNoPrivateKeyCertificate, "filtered cert count with private key: 0"),
	says(catalog.SymptomConnectorForbidden, "cmgconnector_forbidden"),
	says(catalog.SymptomConnectorRevocationUnknown).or("status: revocationstatusunknown", "status: offlinerevocation"),
	failure(catalog.SymptomConnectorRevocationUnknown, revocationOff, revocationNone).when(not(ofClient)),
	request(catalog.SymptomAccessClientCertificateMissing, refused(403, 7)),
	request(catalog.SymptomAccessHTTPSRequired, refused(403, 4)),
	request(catalog.SymptomClockSkew, logonError(0x80090324)),
	request(catalog.SymptomTicketModified, logonError(0x80090322)),
	request(catalog.SymptomCertificateMappingDenied, refused(403, 12, 13)),
	request(catalog.SymptomCertificateUntrusted, refused(403, 16)),
	request(catalog.SymptomCertificateOutOfDate, refused(403, 17)),
	look{mark: serverError, request: true, test: func(l *line) bool {
		return l.access.Status == 500 && l.access.SubStatus != 19 && ofManagementPoint(l.access.Stem)
	}},
	request(catalog.SymptomRequestFiltered, filtered),
	look{mark: redirected, request: true, test: func(l *line) bool {
		return l.access.Status/100 == 3 && l.access.Status != http.StatusNotModified && containsAny(strings.ToLower(l.access.Stem), []string{"/ccm_sts", "/ccm_system"})
	}},
	request(catalog.SymptomPropfindRefused, propfindRefused),
	request(catalog.SymptomTooManyRequests, func(l *line) bool { return ofAdministration(l) && (l.access.Status == 429 || l.access.Status == 503) }),
	says(catalog.SymptomPropfindRefused, "propfind", "405").unless("ccmsetup"),
	says(catalog.SymptomPropfindRefused, "dav request", "http code 405").when(not(of("ccmsetup"))),
	says(catalog.SymptomGatewayInvalidToken, "cmgservice_invalid_token"),
	says(catalog.SymptomConnectorUnauthorized, "cmgconnector_unauthorized"),
	says(catalog.SymptomConnectorUnauthorized, "retrievetokenfromstsserverimpl failed", "0x87d0027e"),
	sees(noTokenCode).or("0x87d0027e", "-2016411010"),
	says(catalog.SymptomNothingToAuthenticateWith, "failed to get ccm access token", "pki issued cert"),
	says(catalog.SymptomDownloadUnauthenticated, "0x87d00455"),
	says(catalog.SymptomIntermediateMissing).or("partialchain", "0x800b010a", "intermediate ca", "intermediate cert").when(of("cmgservice", "cmghttphandler", "locationservices"),
		has("client cert", "chain", "intermediate"), not(has("found", "success"))),
	says(catalog.SymptomRootNotInTrustList, "not trusted per configmgr ctl"),
	says(catalog.SymptomConnectorInternalServerError, "cmgconnector_internalservererror"),
	says(catalog.SymptomTokenLibraryMismatch, "fileloadexception", "system.identitymodel.tokens.jwt"),
	says(catalog.SymptomTokenLibraryMismatch, "0x80131040", "system.identitymodel"),
	says(catalog.SymptomTokenLibraryMismatch, "failed to get configmgr token with azure ad token", "cmgconnector_internalservererror"),

	// TLS and the way to the gateway (S4, S3).
	failure(catalog.SymptomTLSFailed, securityFailure),
	says(catalog.SymptomTLSFailed, "winhttp_callback_status_secure_failure"),
	says(catalog.SymptomRevocationCheckFailed, "status_flag_cert_rev_failed"),
	says(catalog.SymptomServerCertificateInvalid, "status_flag_invalid_cert"),
	says(catalog.SymptomServerCertificateRevoked, "status_flag_cert_revoked"),
	says(catalog.SymptomServerRootUntrusted, "status_flag_invalid_ca"),
	says(catalog.SymptomServerNameMismatch, "status_flag_cert_cn_invalid"),
	says(catalog.SymptomServerCertificateDate, "status_flag_cert_date_invalid"),
	says(catalog.SymptomServerCertificateUse, "status_flag_cert_wrong_usage"),
	says(catalog.SymptomTLSChannel, "status_flag_security_channel_error"),
	says(catalog.SymptomRevocationCheckFailed, "lpvstatusinformation is 0x").when(flagged(0x1)),
	says(catalog.SymptomServerCertificateInvalid, "lpvstatusinformation is 0x").when(flagged(0x2)),
	says(catalog.SymptomServerCertificateRevoked, "lpvstatusinformation is 0x").when(flagged(0x4)),
	says(catalog.SymptomServerRootUntrusted, "lpvstatusinformation is 0x").when(flagged(0x8)),
	says(catalog.SymptomServerNameMismatch, "lpvstatusinformation is 0x").when(flagged(0x10)),
	says(catalog.SymptomServerCertificateDate, "lpvstatusinformation is 0x").when(flagged(0x20)),
	says(catalog.SymptomServerCertificateUse, "lpvstatusinformation is 0x").when(flagged(0x40)),
	says(catalog.SymptomTLSChannel, "lpvstatusinformation is 0x").when(flagged(0x80000000)),
	sees(flagNumber, "lpvstatusinformation is 0x"),
	failure(catalog.SymptomTLSNumber, numberDate, numberName, numberCA, numberRev, numberChannel, numberInvalid, numberRevoked, numberUse),
	failure(catalog.SymptomServerCertificateDate, textDate, certExpired).when(not(ofServer), not(has("client cert", "smsid"))),
	failure(catalog.SymptomServerNameMismatch, textName).when(not(ofServer)),
	failure(catalog.SymptomServerNameMismatch, wrongPrincipal).when(not(has("kerberos", "spn", "ticket", "negotiate", "sspi", "windowsauth", "gss"))),
	failure(catalog.SymptomServerRootUntrusted, textRoot, chainRoot).when(not(ofServer)),
	failure(catalog.SymptomServerCertificateRevoked, textRevoked, trustRevoked).when(not(ofServer), not(has("for client guid"))),
	failure(catalog.SymptomRevocationCheckFailed, revocationOff, revocationNone, revocationError).when(ofClient),
	failure(catalog.SymptomServerCertificateUse, wrongUse).when(not(ofServer)),
	failure(catalog.SymptomTLSChannel, noAlgorithm, illegalMessage).when(not(ofServer), not(has("system.net", "system.componentmodel", "schannel"))),
	failure(catalog.SymptomOldTLSOfServer, noAlgorithm, illegalMessage).when(either(ofServer, has("system.net", "system.componentmodel", "schannel"))),
	says(catalog.SymptomOldTLSOfServer).or("aadauthenticationexception", "could not create ssl/tls secure channel", "tzter ssl/tls-kanal", "canal s\u00e9curis\u00e9 ssl/tls", "canal s\xe9curis\xe9 ssl/tls",
		"ssl/tls-kanal erstellt"),
	says(catalog.SymptomOldTLSOfServer, "schannel", "36874"),
	says(catalog.SymptomOldTLSOfServer).or(" 36874", "=36874", ":36874", "(36874").when(has("tls", "event", "ereignis", "schannel"), not(ofOtherNumber)),
	failure(catalog.SymptomGatewayNameNotResolved, nameNotResolved, hostUnknown).when(not(ofServer), towardGateway),
	failure(catalog.SymptomNameNotResolved, nameNotResolved, hostUnknown).when(not(ofServer), not(towardGateway), not(has("web exception"))),
	failure(catalog.SymptomCannotConnect, cannotConnect, refusedByHost).when(not(ofServer), not(has("web exception"))),
	failure(catalog.SymptomConnectionLost, timedOut, connectionEnd, connectionReset).when(not(ofServer), not(has("web exception"))),
	failure(catalog.SymptomClientCertificateUnusable, certNeeded, certNoKey, certNoAccess),
	says(catalog.SymptomClientCertificateUnusable, "doesn't have private key or caller doesn't have access to private key"),
	failure(catalog.SymptomInvalidAnswer, invalidAnswer),
	says(catalog.SymptomFilteredOnTheWay).or("the requested url was rejected", "application gateway", "application firewall", "azure-application-gateway").when(not(has("allowed", "passed"))),
	says(catalog.SymptomFilteredOnTheWay, "statuscode=").when(refusedWith("405", "501"), toward("ccm_proxy", "cmg", "cloudapp"), not(has("propfind", "webdav", "dav request"))),
	says(catalog.SymptomAnalyzerNameResolution, "unexpected response status code is nameresolution"),
	says(catalog.SymptomMetered, "metered").when(not(allowedMetered), not(has("not metered", "non-metered", "not on a metered", "is not on", "metered: 0", "metered = 0", "unmetered", "metered=false", "metered: false"))),
	says(catalog.SymptomMetered, "ccmsetup").when(setupEnded(true, "329")),
	sees(noCRLCheck, "/nocrlcheck"),
	says(catalog.SymptomGatewayThrottled, "throttl").or("cmg", "cloud", "gateway", "failures").unless("not throttl", "no longer throttl", "throttling disabled", "throttled: 0"),

	// Tokens and Entra (S2, S4).
	says(catalog.SymptomTokenLifetimeOver).or("idx10223", "securitytokenexpiredexception"),
	says(catalog.SymptomTokenLifetimeOver, "lifetime validation failed", "expired"),
	sees(lifetimePart, "validto").when(fits(`validto[^']{0,10}: ?'`)),
	sees(lifetimePart, "current time").when(fits(`current time[^']{0,10}: ?'`)),
	says(catalog.SymptomDeviceTokenNotObtained).or("wam token request failed", "d0090016", "failed to get aad token", "failed to get aad device token"),
	says(catalog.SymptomNotJoined).or("wpj cert", "workplace join cert", "azureadjoined", "joined").when(notJoined),
	sees(joinedDevice).or("azureadjoined : yes", "device is aad joined", "device is microsoft entra joined", "device is azure ad joined", "aadtenantid=", "client is aad joined"),
	says(catalog.SymptomTenantNotOnboarded, "url=", "/aadauthinfo", "ccmhttp"),
	says(catalog.SymptomTenantNotOnboarded, "failed to get aad ").or("info", "properties", "auth info"),
	says(catalog.SymptomTenantNotOnboarded, "aadauthinfo").or("empty", "no properties", "not onboarded", "returned nothing"),
	says(catalog.SymptomTenantNotOnboarded, "tenant", "not onboarded"),
	says(catalog.SymptomNoDeviceManagement, "getdevicemanagementconfiginfo"),
	says(catalog.SymptomEntraResourceUnknown, "aadsts50001").when(fits(`aadsts50001(1)?(\D|$)`)),
	says(catalog.SymptomEntraSecretExpired, "aadsts7000222"),
	says(catalog.SymptomEntraTenantUnknown, "aadsts90002").when(fits(`aadsts90002(\D|$)`)),
	says(catalog.SymptomEntraInteraction).or("aadsts50076", "aadsts50079", "0x8018002a"),
	says(catalog.SymptomConditionalAccess).or("aadsts53000", "aadsts53001", "aadsts53002", "aadsts53003", "blocked by conditional access"),
	says(catalog.SymptomUserUnknown, "user").or("not found in the site", "not found in site", "is not in the site database", "not found in database", "not found in the database", "not discovered",
		"could not find user", "failed to find user", "unable to find user", "unknown user").when(either(of("ccm_sts", "mp_", "ccmmessaging", "clientidmanager"), has("aad", "entra", "userid", "0x87d00231"))),
	says(catalog.SymptomUserUnknown, "0x87d00231").or("user").unless("post to"),
	says(catalog.SymptomUserUnknown, "authorization_requestdenied").when(either(of("discovery"), has("discovery", "user"))),
	sees(transient, "0x87d00231"),
	sees(workgroup).or("workgroup client is in", "is in a workgroup", "is a workgroup client", "error_no_sitename"),
	sees(entraUser, "using aad auth"),
	says(catalog.SymptomTokenAudienceUnknown).or("no appropriate token validator", "idx10214", "idx10205", "audience validation failed", "issuer validation failed"),
	says(catalog.SymptomTokenBlocked, "token").or("is blocked", "was blocked", "has been blocked", "blocked token", "token blocked", "token is in the block").unless("not blocked", "conditional access", "firewall", "[p"),
	says(catalog.SymptomAllTokensRejected).or("idx10501", "idx10503", "idx10500", "idx10511", "securitytokensignaturekeynotfound", "securitytokeninvalidsignature"),
	sees(regToken, "/regtoken"),
	sees(mpAndToken, "/regtoken", "/mp:"),
	sees(usePKICert, "/usepkicert"),
	sees(autoSite, "smssitecode=", "ccmhostname").when(fits(`smssitecode="?auto\b`)),
	says(catalog.SymptomGatewayNotAllowed).or("cloud management gateway", "cloud proxy", "cloud gateway", " allowed", "disabled", "not enabled", "turned off", "prohibited", "not permitted", "may not").when(
		fits(`(cmg|cloud (management )?(gateway|proxy))\b.{0,60}\b(not allowed|isn't allowed|disabled|not enabled|turned off|prohibited)|\b(not allowed|disallowed|may not|not permitted|not enabled)\b.{0,40}\b(cmg|cloud (management )?(gateway|proxy))\b`),
		not(has("application", "cert", "not disabled", "content"))),
	says(catalog.SymptomTokenToolPassive, "passive").or("bulkregistrationtool", "bulk registration", "registration token"),
	says(catalog.SymptomHTTPSPointsFiltered, "not allowed to use or doesn't have pki cert while talking to https server"),
	says(catalog.SymptomHTTPSPointsFiltered, "https").or("filter", "ignore", "ignori", "skippe", "skippi", "exclud", "discard").when(fits(`\bmps?\b|management point`), not(has("filtered cert", "skipping update", "crl", "proxy bypass", "revocation"))),
	says(catalog.SymptomCommandLineCut).or("longer than 1024", "longer than 1,024", "exceeds 1024", "exceeds 1,024", "1024 characters", "1,024 characters", "command line is too long", "command line was truncated"),
	failure(catalog.SymptomPropertySyntax, commandLine).when(not(has("exit code 0")), not(of("appenforce", "appdiscovery", "execmgr", "updatesdeployment"))),
	says(catalog.SymptomMediaTokenExpired, "0x87d00215").when(either(of("tsmbootstrap", "tsmedia", "tspxe", "smsts", "tsmanager", "tsboot", "tspolicy"), has("token", "media"))),
	says(catalog.SymptomMediaKeyInformation, "requestmpkeyinformation", "failed"),

	// Registration.
	says(catalog.SymptomRegistrationBodyInvalid, "mp reg:").or("request body is invalid", "registration failed"),
	says(catalog.SymptomRegistrationPending, "regtask").or("is pending"),
	says(catalog.SymptomRegistrationPending, "registration").or("registration is pending", "registration status 1", "registration status: 1", "status 1 (pending)"),
	says(catalog.SymptomRegistrationPending, "server rejected registration").when(fits(`server rejected registration\D{0,20}1\b`)),
	says(catalog.SymptomRegistrationReset, "server rejected registration").when(fits(`server rejected registration\D{0,20}2\b`)),
	says(catalog.SymptomRegistrationReset, "registration status").when(fits(`registration status\D{0,4}2\b`)),
	says(catalog.SymptomRegistrationRejected, "server rejected registration").when(fits(`server rejected registration\D{0,20}3\b`)),
	says(catalog.SymptomRegistrationRejected, "registration status").when(fits(`registration status\D{0,4}3\b`)),
	failure(catalog.SymptomStateNotSaved, notEncrypted),
	says(catalog.SymptomStateNotSaved, "setregistrationstate failed"),
	says(catalog.SymptomRecordBad).or("clientidentity is not a hex string", "bad rdr", "registration record is not valid"),
	says(catalog.SymptomRegistrationQueue, "regreq").when(fits(`\b([1-9][0-9]{2,}|[1-9][0-9]{0,2}[,.][0-9]{3}) ([a-z.*]+ ){0,3}(files|dateien|fichiers)|(backlog|files|count|queue)[ :=]{1,3}[1-9][0-9]{2,}\b`)),
	says(catalog.SymptomWeakSignature).or("id 5443", "id: 5443", "id=5443", "message 5443", "status 5443", "event 5443", "e (5443").when(fits(`(message|messageid|id|status|event)[ :=(]{1,4}5443\b`), not(ofOtherNumber)),
	says(catalog.SymptomWeakSignature, "signature algorithm").or("weak", "not sha-256", "not allowed", "requires sha-256"),
	says(catalog.SymptomClientCertificateExpired, "rejected the request because", "expired"),
	says(catalog.SymptomClientCertificateExpired, "smsid", "certificate", "expired").when(fits(`cd ?\( ?smsid`)),
	says(catalog.SymptomClientCertificateExpired).or("id 5446", "id: 5446", "id=5446", "message 5446", "status 5446", "event 5446", "e (5446").when(fits(`(message|messageid|id|status|event)[ :=(]{1,4}5446\b`), not(ofOtherNumber)),
	says(catalog.SymptomRegistrationBodyInvalid, "certificate [", "has expired").when(of("mp_reg")),
	says(catalog.SymptomCertificateRevoked, "certificate for client", "revoked"),
	says(catalog.SymptomDeviceBlocked, "guid:", "blocked").when(not(has("token", "not blocked", "[p", "unblocked"))),
	says(catalog.SymptomConflictingRecord, "conflicting record").unless("0 conflicting", "no conflicting"),
	says(catalog.SymptomSharedHardware, "duplicate hardware id").unless("no duplicate"),
	says(catalog.SymptomRecordObsolete, "obsolete").or("client", "record", "guid").when(of("ddm", "data_discovery", "discovery_data"), not(has("not obsolete", "no obsolete"))),
	says(catalog.SymptomTrustedRootKey, "trusted root key").or("mismatch", "not match", "fail", "invalid", "unable", "different", "differs").unless("0x00000000"),
	says(catalog.SymptomTrustedRootKey, "signature").or("reply could not be verified", "failed to verify signature", "signature of the reply", "verify the signature of the reply", "verify message signature").
		when(ofClientOrPlain, not(has("succe"))),

	// Management point.
	sees(postFailed, "post to ", "failed with 0x87d0"),
	sees(serverFailed, "statuscode").when(fits(`statuscode ?= ?500\b`)).unless("cmgconnector"),
	sees(reached, "statuscode").when(fits(`statuscode ?= ?([1-35][0-9]{2}|4(0[0-689]|[1-9][0-9]))\b`)),
	request(catalog.SymptomPostFailed500, refused(500, 19)),
	says(catalog.SymptomManagementPointDown500, "windows management framework").or("500", "fail"),
	says(catalog.SymptomDatabaseLogin).or("mpdb error - connection parameters", "mpdb error - extended information"),
	failure(catalog.SymptomDatabaseLogin, loginTimeout).when(either(of("mp_", "sms_mp"), has("mpdb", "sql server", "odbc"))),
	says(catalog.SymptomLocationDiscarded).or("mp lm: message discarded"),
	says(catalog.SymptomLocationDiscarded, "error connecting to the data source"),
	says(catalog.SymptomSelfTest, "http test request failed"),
	says(catalog.SymptomSelfTest, "httpsendrequestsync failed"),
	says(catalog.SymptomRoleCertificateAbsent, "sms role ssl certificate").or("missing", "not found", "cannot find", "could not find", "failed to find", "does not exist", "doesn't exist", "no sms role ssl"),
	says(catalog.SymptomRoleCertificateAwaited, "sms role ssl certificate").or("not yet", "waiting", "being generated", "still generating", "pending", "not ready", "will be generated"),
	says(catalog.SymptomInboxSource, "cannot connect to the inbox source"),
	says(catalog.SymptomReplyTooLong, "body length is too long"),
	failure(catalog.SymptomRuntimeNewer, otherVersion).when(has("vc_redist", "vcredist", "visual c++", "vc++", "c++")),
	says(catalog.SymptomRuntimeNewer).or("vc_redist", "vcredist", "visual c++").when(has("1638", "0x80070666", "newer version", "another version")),
	says(catalog.SymptomDiscoveryDate, "sqlexception").or("date", "datum", "conver", "conversion").when(either(of("azuread", "aad", "discovery"), has("azuread", "azure ad", "discovery"))),
	says(catalog.SymptomDiscoveryDate, "sqlexception").when(of("azuread_discovery", "aad_discovery")),

	// Connection point.
	says(catalog.SymptomConnectorCannotReachGateway).or("failed to build tcp connection", "failed to authenticate with proxy server", "failed to build http connection"),
	says(catalog.SymptomRoleCertificateMissing, "missing role certificate"),
	says(catalog.SymptomBackendDown, "web exception").or("could not be resolved", "unable to connect to the remote server", "(500)", "(502)", "(503)", "(504)", "konnte nicht aufgel", "verbindung mit dem remoteserver",
		"connecter au serveur distant", "nom distant", "serveur distant n"),
	says(catalog.SymptomBackendDown, "webexception", "returned an error").when(ofConnector, not(fits(`\([1-4][0-9]{2}\)`)), not(has("failed to build"))),
	says(catalog.SymptomBackendDown, "webexception").or("could not be resolved", "unable to connect to the remote server").when(ofConnector, not(has("failed to build"))),
	failure(catalog.SymptomPortsUsedUp, socketUsage, noBuffers),
	says(catalog.SymptomPortsUsedUp).or("id 4227", "id: 4227", "id=4227", "event 4227", "id 4231", "id: 4231", "id=4231", "event 4231", "tcpip 42", "ephemeral port").when(fits(`\b42(27|31)\b|ephemeral`), has("tcp")),
	says(catalog.SymptomProxyRequired).or(": (407)", "error (407", "status 407", "proxy authentication required", "proxyauthentifizierung erforderlich", "authentification proxy requise"),

	// Deployment.
	says(catalog.SymptomProviderNotRegistered).or("is not registered to use namespace", "missingsubscriptionregistration"),
	says(catalog.SymptomProvisionFailed, "failed to provision"),
	says(catalog.SymptomServiceNameForm, "name").or("alphanumeric", "lower-case letters only", "lowercase letters only", "letters and numbers", "letters and digits", "accountnameinvalid", "not a valid storage account name").
		when(has("service name", "storage account", "accountname", "dns name")),
	says(catalog.SymptomStorageNameTaken, "storage").or("already taken", "already exists", "alreadytaken", "alreadyexists", "already in use").unless("vault").when(has("already taken", "alreadytaken", "error", "fail", "already in use")),
	says(catalog.SymptomVaultNameTaken, "vault").or("is already in use", "vaultalreadyexists", "already exists").unless("not already").when(has("already in use", "vaultalreadyexists", "error", "fail")),
	says(catalog.SymptomResourceGroup).or("invalidresourcegrouplocation", "invalid resource group location"),
	says(catalog.SymptomResourceGroup, "resource group").or("already exists in location", "different region", "different location", "location is invalid", "location does not match"),
	says(catalog.SymptomSizeNotOffered).or("vm size", "skunotavailable", "vmsize").when(has("not available", "skunotavailable", "unavailable", "not offered")),
	says(catalog.SymptomExtensionFailed, "vmextensionprovisioningerror"),
	says(catalog.SymptomMaintenanceZone, "failed to perform maintenance").or("availability zone", "availabilityzone", "public ip", "publicip"),
	says(catalog.SymptomConsoleSignIn, "msaluirequiredexception"),
	says(catalog.SymptomKeyNotExportable, "private key for the remote desktop certificate"),
	says(catalog.SymptomFrameworkOld, "typeloadexception").or("itracesourcestringprovider"),
	says(catalog.SymptomConfigurationChange, "changedeploymentconfigurationoperationfailed"),
	says(catalog.SymptomStaleService, "index (zero based) must be greater than or equal to zero"),
	says(catalog.SymptomRenewalName, "certificate").or("common name", "subject name").when(fits(`(common|subject) name.{0,80}(does not match|doesn't match|differ|must match|must be the same|not the same|mismatch)`), not(has("host name"))),
	says(catalog.SymptomCannotConvert, "convert", "cloudapp.net"),
	says(catalog.SymptomNoRight).or("authorizationfailed", "does not have authorization to perform action", "linkedauthorizationfailed"),
	says(catalog.SymptomStoppedByThreshold, "threshold").or("stop").when(fits(`(exceed|reach).{0,120}stop|stop.{0,120}(exceed|reach)`), not(has("not exceed", "not been exceeded", "not reach", "not been reached", "not be stopped", "won't be stopped", "if the threshold"))),
	says(catalog.SymptomSigningCertificate, "service signing certificate").or("fail"),
	says(catalog.SymptomSigningCertificate).or("id 9605", "id: 9605", "id=9605", "message 9605", "status 9605", "event 9605", "e (9605", "id 9607", "id: 9607", "id=9607", "message 9607", "status 9607", "event 9607", "e (9607").when(fits(`(message|messageid|id|status)[ :=(]{1,4}960[57]\b`), not(ofOtherNumber)),

	// Content.
	says(catalog.SymptomContentName).or("getdirectorylist failed", "ccm_e_no_client_pki_cert", "0x87d00454").when(toward("cloudapp.net", "cloudapp.azure.com")),
	sees(contentFailed).or("getdirectorylist failed", "ccm_e_no_client_pki_cert", "0x87d00454", "error retrieving manifest"),
	says(catalog.SymptomSetupPropfind, "405").or("webdav", "dav request").when(either(of("ccmsetup"), has("webdav https request", "ccmsetup"))),
	says(catalog.SymptomContentRequest500, "sending dav request", "500"),
	says(catalog.SymptomAlternateProvider, "alternate content provider").or("fail", "error", "unable", "cannot"),
	says(catalog.SymptomClientCrash, "ccmexec.exe").or("faulting application", "fehlerhafte", "application d\u00e9faillante", "application d\xe9faillante", "terminated unexpectedly", "unerwartet beendet"),
	says(catalog.SymptomContentToken, "statuscode=").when(refusedWith("401", "403"), toward("downloadrestservice", "getcontentxmlsecure")),
	says(catalog.SymptomContentToken).or("downloadrestservice", "getcontentxmlsecure").when(fits(`\b(401|403)\b`), has("status", "fail", "error", "http code", "unauthorized", "forbidden"), not(has("statuscode=200"))),
	says(catalog.SymptomContentToken).or("content token", "content access token").when(fits(`content (access )?token.{0,60}(reject|refus|expired|invalid|denied|not valid)`)),
	says(catalog.SymptomNoCloudSource).or("empty distribution points list", "no cloud distribution point", "no cloud source", "no cloud-based source", "no cloud based source", "with 0 locations", "no cloud dp"),

	// Administration service and installer.
	says(catalog.SymptomAdministrationDenied, "access denied", "wmi query"),
	says(catalog.SymptomAdministrationLogon, "adminservice").when(fits(`\b401\b`), has("unauthorized", "status", "error", "fail")),
	says(catalog.SymptomTooManyRequests).or("too many requests", "rate limit").when(either(of("adminservice", "rest_provider"), has("adminservice"))),
	says(catalog.SymptomODataResponse, "failed to get a response for odata query"),
	says(catalog.SymptomODataArray, "odataparameterreader"),
	says(catalog.SymptomSetupEnded, "ccmsetup").when(setupEnded(true, "6", "7", "8", "9", "10")),

	// What went well.
	sees(registered, "client is registered. server assigned clientid is").unless("approval status 0"),
	sees(cached, "cached encrypted token for"),
	sees(cached, "received self-prove token"),
	sees(issued, "issued token"),
	sees(issued, "return token to client"),
	sees(entraToken, "retrieved aad token"),
	sees(entraToken).or("token acquired", "token obtained", "token received", "acquired an", "acquired the", "acquired aad", "acquired azure", "obtained an", "obtained the", "obtained aad", "received aad").when(
		fits(`\b(aad|azure ad|entra( id)?)( access)? token (was |has been )?(successfully )?(acquired|obtained|received)|(acquired|obtained|received)( an?| the)?( new)? (aad|azure ad|(microsoft )?entra( id)?)( access)? token`),
		not(has("not acquired", "not obtained", "not received", "not been", "no token", "failed"))),
	sees(replied, "' got reply message '"),
	sees(delivered).or("delivered successfully to host", "found a valid online mp", "successfully queued event on http/https success", "client is online",
		"successfully refreshed", "received reply of type", "successfully retrieved", "received message '<").unless("not ", "failure", "failed", "error"), // what was only sent is not answered
	sees(delivered, "statuscode=").when(fits(`statuscode= ?200\b`)),
	sees(downloaded).or("successfully completed download", "status : success", "download completed", "successfully downloaded", "state 'downloadeddata'", "completed successfully").unless("0 files"),
	sees(forwarded, "responseheader: http/1.1 200"),
	sees(notForwarded, "web exception for message").unless("(403)", "(500)", "(502)", "(503)", "(504)"),
	sees(notForwarded).or("responseheader: http/1.1 4", "responseheader: http/1.1 5", "responseheader: http/1.0 4", "responseheader: http/1.0 5"),
	sees(notForwarded, "responsecount: 0 ").unless("requestcount: 0 "),
	sees(connected).or("successfully built", "connection established with", "connected to the gateway", "connected to cmg").unless("not connected"),
	sees(tested).or("succeeded for port", "http test request succeeded", "successfully performed management point availability check"),
	sees(tested, "status code is 200"),
	sees(answered, "completed request", "response code [2").when(of("rest_provider", "adminservice")),
	sees(answered, "status code 200").when(of("rest_provider", "adminservice")),
	sees(fine, "is rantocompletion"),
	sees(usableCert, "filtered cert count with client auth: ").unless("client auth: 0"),
	sees(recorded, "mp reg:").or("ddr file written to", "processing completed", "reply message sent"),
	sees(recorded, "mp reg:", "successful"),
	sees(recorded, "processed ", "successfully").when(of("mp_")),
	sees(moved, "inbox").or("successfully moved", "moved file", "~moved", "connected to the inbox source", "copied file"),
	sees(moved).or("moved ", "moving ").when(fits(`\.(rdr|mif|ddr|smx|svf)\b`)).unless("cannot", "fail"),
	sees(provided).or("successfully provisioned", "deployment succeeded", "provisioning completed"),
	sees(provided, "taskmanager: task [", "] succeeded"),
	sees(ready).or("service is ready", "state: ready", "state is ready", "status: ready", "is readyrole", "state to ready"),
	look{mark: answered, test: success, request: true},
	sees(answered, `"msg":"request `).when(success),
	sees(answered, "requesturi: ").when(served),
	sees(linked, `"msg":"`).when(events("connected to gateway", "connector connected", "site state applied", "site state")),
	sees(installed, "ccmsetup").when(setupEnded(true, "0")),
	sees(installed).or("installation succeeded", "installation was successful"),
	sees(setupFailed, "ccmsetup").when(setupEnded(false, "0", "7")),
	sees(fine).or("successfully", "succeeded", "erfolgreich", "avec succ").when(has("register", "connect", "download", "complet", "perform", "install", "retriev", "receiv", "refresh", "obtain", "validat", "upload", "process", "initializ", "verif", "configur", "updat", "publish", "registrier", "verbunden", "abgeschlossen", "inscri", "termin"),
		not(has("not success", "un"+"success", "nicht erfolgreich"))),
	sees(fine).or("current management point is", "new management point [", "client is already registered", "retrieved local management point", "retrieved management point"),
	sees(fine).or("validated aad token", "policy agent", "synchronization complete", "full sync", "delta sync").when(fits(`validated aad token|(full|delta) sync.{0,30}(complete|success)|synchronization complete`)),

	// What only belongs to something.
	sees(refusal, "statuscode=").when(plainRefusal),
	sees(companion, "ccm_e_bad_http_status_code"),
	sees(companion, "web exception"),
	sees(companion).or("[ccmhttp] error", "will retry", "retrying", "wird wiederholt", "nouvelle tentative", "sleeping for", "asynccallback()"),
	sees(companion, "failed").or("post to ", "failed to send location", "failed to get mp list", "failed to refresh", "raising event"),
	sees(companion, "[ccmhttp]"),
	sees(message).or("sending remote sync message '", "forwarding proxy message", "messageid: ", "remote async message", "sending registration request for guid:", "processing registration request from client"),
	sees(tokenEnded, "ccm token for '", "expire"),
	sees(askedEntra, "getting aad info from cmg"),
	sees(entraAsking, "getting aad ("),
	sees(fallback, "falling back to get user"),

	// What a line of trouble looks like; see troubled.
	sees(troubleLine, `type="3"`).when(never),
	sees(troubleLine, `"level":"error"`).when(never),
	sees(troubleWord).or(troubleWords...).when(never),
	sees(troubleLine, `"code":"p`).when(never),
	sees(troubleLine, `type="2"`).when(never),
	sees(troubleLine, "  code: p").when(never),
	sees(troubleLine, "failed to keep the connection").when(never),
})

// troubleLine makes a line one that is looked at; the look itself never matches. A word of trouble does so only where the form of
// the line does not say how bad it is.
const (
	troubleLine mark = "trouble"
	troubleWord mark = "word of trouble"
)

func never(*line) bool { return false }

// Components of a client.
var ofClient = of("locationservices", "ccmsetup", "ccmmessaging", "clientidmanager", "clientlocation", "datatransfer", "adaloperation", "clientauth", "ccmexec", "certificatemaintenance",
	"notificationagent", "contenttransfer", "policyagent", "internetproxy")

// ofConnector tests for a line of a connection point.
var ofConnector = of("proxyconnector", "proxy_connector")

// ofContent tests for a line of what downloads content.
var ofContent = of("datatransfer", "contenttransfer", "contentaccess", "cas")

// ofClientOrPlain tests for a line of a client, or one that does not say of whom.
func ofClientOrPlain(l *line) bool { return l.component == "" || ofClient(l) }

// settled completes the table.
func settled(table []look) []look {
	last := slices.Concat(progress, []mark{fine}) // of which the last line matters
	for _, r := range rules {
		last = slices.Concat(last, r.over, r.calm)
	}
	for i := range table {
		k := &table[i]
		k.plain = !k.request && k.mark != registered && k.mark != mark(catalog.SymptomNotApproved) && k.mark != linked && k.mark != message && k.mark != troubleLine && k.mark != troubleWord &&
			k.mark != hardware && k.mark != listedName && k.mark != listedTwice && k.mark != lifetimePart
		k.well = goesWell(k.mark)
		k.enough = k.plain && slices.Contains(good, k.mark) && !slices.Contains(last, k.mark)
	}
	return table
}
