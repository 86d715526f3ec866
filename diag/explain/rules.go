package explain

import (
	"fmt"
	"slices"
	"time"

	"postern/catalog"
)

// rule is what a symptom means beside others.
type rule struct {
	code catalog.Code
	sure Sure // how sure the lines of the symptom make it; Certain when empty
	// follows are the symptoms of which this one is a consequence when they are there too.
	follows []catalog.Code
	// partOf are the symptoms of which this one is only another sight: a line before, a line of another server.
	partOf []catalog.Code
	// with are the symptoms without one of which the lines mean nothing.
	with  []catalog.Code
	found []catalog.Code // ... or one of these, which several lines make
	// over are marks after which, on the same machine, the symptom is history.
	over []mark
	// calm are marks that say so only when they come quietTime after it: other work, which the symptom would have disturbed.
	calm []mark
	// weak says that the symptom only tells that something ended badly: whatever else is there is the reason. The larger, the weaker.
	weak int
	// own says that a code of our own servers at the same time is the reason of this symptom.
	own bool
}

// quietTime is how long a symptom has to be away for other work to show that it is over.
const quietTime = 30 * time.Minute

// renewed are marks of what is got anew by itself when it ends: that it ends again and again is its life.
var renewed = []mark{cached, entraToken, registered, installed}

// working are marks after which a client's way to its site works.
var working = []mark{replied, cached, registered, delivered, downloaded, installed}

// flagCodes are the reasons for which TLS fails.
var flagCodes = []catalog.Code{
	catalog.SymptomServerRootUntrusted, catalog.SymptomRevocationCheckFailed, catalog.SymptomServerNameMismatch, catalog.SymptomServerCertificateDate,
	catalog.SymptomServerCertificateRevoked, catalog.SymptomServerCertificateInvalid, catalog.SymptomServerCertificateUse, catalog.SymptomTLSChannel,
	catalog.SymptomTLSNumber, catalog.SymptomNoCRLCheckTooShort,
}

// numberedCodes are the flags that a number of its own stands for as well (E053).
var numberedCodes = flagCodes[:8]

// wayCodes are the reasons for which a client does not get through to its gateway.
var wayCodes = append([]catalog.Code{
	catalog.SymptomGatewayNameNotResolved, catalog.SymptomNameNotResolved, catalog.SymptomCannotConnect, catalog.SymptomConnectionLost,
	catalog.SymptomInvalidAnswer, catalog.SymptomTLSFailed,
}, flagCodes...)

// The layers of the way to a server. What one of a later layer says of a server shows that the layers before it are passed.
var (
	nameCodes    = []catalog.Code{catalog.SymptomGatewayNameNotResolved, catalog.SymptomNameNotResolved}
	connectCodes = []catalog.Code{catalog.SymptomCannotConnect, catalog.SymptomConnectionLost}
	tlsCodes     = append([]catalog.Code{catalog.SymptomTLSFailed}, flagCodes...)
)

// passed are the marks of what shows that a layer is passed.
func passed(code catalog.Code) (all []mark) {
	layers := [][]catalog.Code{nameCodes, connectCodes, tlsCodes}
	at := slices.IndexFunc(layers, func(layer []catalog.Code) bool { return slices.Contains(layer, code) })
	if at < 0 {
		return nil
	}
	for _, layer := range layers[at+1:] {
		for _, later := range layer {
			all = append(all, mark(later))
		}
	}
	return append(all, reached)
}

// ofWay says whether a mark shows how far the way to its own server goes, and nothing else.
func ofWay(m mark) bool {
	return m == reached || slices.Contains(connectCodes, catalog.Code(m)) || slices.Contains(tlsCodes, catalog.Code(m))
}

// gatewayDownCodes are the reasons for which a gateway takes no connection or leaves it without an answer.
var gatewayDownCodes = []catalog.Code{catalog.SymptomStoppedByThreshold, catalog.SymptomRoleCertificateMissing, catalog.SymptomConnectorCannotReachGateway,
	catalog.SymptomProxyRequired, catalog.SymptomPortsUsedUp}

// selectionCodes are the reasons for which a connection point has no certificate to show.
var selectionCodes = []catalog.Code{catalog.SymptomConnectorRevocationUnknown, catalog.SymptomNoClientCertificateLeft, catalog.SymptomNotAllowedCertificate,
	catalog.SymptomNoPrivateKeyCertificate, catalog.SymptomNotClientAuthCertificate}

// carried are marks of requests that came through a gateway, whatever the management point said to them.
var carried = []mark{notForwarded, mark(catalog.SymptomConnectorForbidden), mark(catalog.SymptomConnectorClientCertificateRequired), mark(catalog.SymptomConnectorWebException)}

// oneActor are symptoms of what one part of the site does again and again: that it does it well for long shows that they are over. In the logs of others many
// devices have a part, and one that fails may only be silent.
var oneActor = []catalog.Code{
	catalog.SymptomProviderNotRegistered, catalog.SymptomVaultNameTaken, catalog.SymptomServiceNameForm, catalog.SymptomStorageNameTaken, catalog.SymptomResourceGroup,
	catalog.SymptomSizeNotOffered, catalog.SymptomNoRight, catalog.SymptomKeyNotExportable, catalog.SymptomFrameworkOld, catalog.SymptomConfigurationChange,
	catalog.SymptomStaleService, catalog.SymptomExtensionFailed, catalog.SymptomMaintenanceZone, catalog.SymptomSigningCertificate, catalog.SymptomStoppedByThreshold,
	catalog.SymptomRenewalName, catalog.SymptomCannotConvert, catalog.SymptomProvisionFailed, catalog.SymptomPortsUsedUp, catalog.SymptomDiscoveryDate,
	catalog.SymptomEntraSecretExpired, catalog.SymptomAdministrationDenied, catalog.SymptomODataResponse, catalog.SymptomODataArray,
}

// entraCodes are the reasons for which a tenant gives no token.
var entraCodes = []catalog.Code{
	catalog.SymptomNotJoined, catalog.SymptomTenantNotOnboarded, catalog.SymptomNoEntraToken, catalog.SymptomDeviceTokenNotObtained,
	catalog.SymptomEntraResourceUnknown, catalog.SymptomEntraSecretExpired, catalog.SymptomEntraTenantUnknown, catalog.SymptomEntraInteraction,
}

// ticketCodes are the reasons for which Kerberos fails.
var ticketCodes = []catalog.Code{catalog.SymptomClockSkew, catalog.SymptomTicketModified, catalog.SymptomServiceUnknown}

// rules is the table of what symptoms mean, in the order of a diagnosis (product.md 5.11): the way, TLS, Entra and
// tokens, connection point, web server, token service, registration, approval. Where time does not order two symptoms,
// the first of the table is the first wrong thing.
var rules = []rule{
	{code: catalog.SymptomAnalyzerNameResolution},
	{code: catalog.SymptomGatewayNameNotResolved, over: working, own: true},
	{code: catalog.SymptomNameNotResolved, over: working, own: true},
	{code: catalog.SymptomCannotConnect, over: working, own: true, follows: gatewayDownCodes},
	{code: catalog.SymptomConnectionLost, over: working, own: true, follows: gatewayDownCodes},
	{code: catalog.SymptomInvalidAnswer, over: working, own: true},

	{code: catalog.SymptomServerRootUntrusted, over: working, own: true},
	{code: catalog.SymptomNoCRLCheckTooShort, sure: Likely},
	{code: catalog.SymptomServerNameMismatch, over: working, own: true, partOf: []catalog.Code{catalog.SymptomContentName}},
	{code: catalog.SymptomServerCertificateDate, over: working, own: true},
	{code: catalog.SymptomServerCertificateRevoked, over: working, own: true},
	{code: catalog.SymptomServerCertificateInvalid, over: working, own: true},
	{code: catalog.SymptomServerCertificateUse, over: working, own: true},
	{code: catalog.SymptomTLSChannel, over: working, own: true},
	{code: catalog.SymptomRevocationCheckFailed, partOf: []catalog.Code{catalog.SymptomServerRootUntrusted, catalog.SymptomNoCRLCheckTooShort}, over: working, own: true},
	{code: catalog.SymptomTLSNumber, over: working, own: true, partOf: numberedCodes},
	{code: catalog.SymptomOldTLSOfServer},
	{code: catalog.SymptomFilteredOnTheWay, sure: Likely, over: working},
	{code: catalog.SymptomMetered, sure: Likely, over: []mark{installed, registered}},
	{code: catalog.SymptomTLSFailed, partOf: flagCodes, over: working, own: true},
	{code: catalog.SymptomClientCertificateUnusable, over: working},

	{code: catalog.SymptomProviderNotRegistered},
	{code: catalog.SymptomVaultNameTaken},
	{code: catalog.SymptomServiceNameForm},
	{code: catalog.SymptomStorageNameTaken},
	{code: catalog.SymptomResourceGroup},
	{code: catalog.SymptomSizeNotOffered},
	{code: catalog.SymptomNoRight},
	{code: catalog.SymptomKeyNotExportable},
	{code: catalog.SymptomFrameworkOld},
	{code: catalog.SymptomConfigurationChange},
	{code: catalog.SymptomStaleService},
	{code: catalog.SymptomExtensionFailed},
	{code: catalog.SymptomMaintenanceZone},
	{code: catalog.SymptomSigningCertificate},
	{code: catalog.SymptomStoppedByThreshold, over: []mark{ready}},
	{code: catalog.SymptomConsoleSignIn},
	{code: catalog.SymptomRenewalName},
	{code: catalog.SymptomCannotConvert},
	{code: catalog.SymptomProvisionFailed, weak: 1},
	{code: catalog.SymptomRoleCertificateMissing, over: []mark{forwarded, usableCert, connected}},
	{code: catalog.SymptomProxyRequired, over: []mark{forwarded, connected}},
	{code: catalog.SymptomPortsUsedUp},
	{code: catalog.SymptomConnectorCannotReachGateway, over: append([]mark{forwarded, connected}, carried...), follows: []catalog.Code{catalog.SymptomProxyRequired, catalog.SymptomPortsUsedUp}},

	{code: catalog.SymptomCommandLineCut, sure: Likely},
	{code: catalog.SymptomPropertySyntax, over: []mark{installed}, partOf: []catalog.Code{catalog.SymptomCommandLineCut}},
	{code: catalog.SymptomAutomaticSite, sure: Likely},
	{code: catalog.SymptomManagementPointWithToken, sure: Likely, follows: []catalog.Code{catalog.SymptomTokenLifetimeOver, catalog.SymptomTokenBlocked,
		catalog.SymptomTokenAudienceUnknown, catalog.SymptomAllTokensRejected, catalog.SymptomGatewayInvalidToken}},
	{code: catalog.SymptomPKISwitchOnJoined, sure: Likely},
	{code: catalog.SymptomHTTPSPointsFiltered, sure: Likely, over: working, follows: []catalog.Code{catalog.SymptomPKISwitchOnJoined}},
	{code: catalog.SymptomGatewayNotAllowed, sure: Likely, over: []mark{cached, replied}},
	{code: catalog.SymptomTokenToolPassive},

	{code: catalog.SymptomNotJoined, over: []mark{entraToken, registered, cached, installed}},
	{code: catalog.SymptomTenantNotOnboarded, own: true, over: []mark{entraToken, entraAsking}, follows: wayCodes},
	{code: catalog.SymptomEntraTenantUnknown, over: []mark{entraToken}},
	{code: catalog.SymptomEntraResourceUnknown, over: []mark{entraToken}},
	{code: catalog.SymptomEntraSecretExpired, over: []mark{entraToken}},
	{code: catalog.SymptomEntraInteraction, over: []mark{entraToken}},
	{code: catalog.SymptomConditionalAccess, over: []mark{entraToken}},
	{code: catalog.SymptomUserUnknown, sure: Likely, over: []mark{registered}, follows: append(entraCodes[:len(entraCodes):len(entraCodes)], wayCodes...)},
	{code: catalog.SymptomDeviceTokenNotObtained, over: []mark{entraToken}, partOf: []catalog.Code{catalog.SymptomNoEntraToken},
		follows: []catalog.Code{catalog.SymptomNotJoined, catalog.SymptomEntraTenantUnknown, catalog.SymptomEntraResourceUnknown, catalog.SymptomEntraSecretExpired, catalog.SymptomEntraInteraction, catalog.SymptomConditionalAccess}},
	{code: catalog.SymptomNoEntraToken, over: []mark{entraToken},
		follows: []catalog.Code{catalog.SymptomNotJoined, catalog.SymptomEntraTenantUnknown, catalog.SymptomEntraResourceUnknown, catalog.SymptomEntraSecretExpired, catalog.SymptomEntraInteraction, catalog.SymptomConditionalAccess}},
	{code: catalog.SymptomTokenBlocked, own: true},
	{code: catalog.SymptomTokenLifetimeOver, own: true},
	{code: catalog.SymptomAllTokensRejected, own: true, sure: Likely},
	{code: catalog.SymptomAwayTooLong, sure: Likely},
	{code: catalog.SymptomMediaTokenExpired, sure: Likely},
	{code: catalog.SymptomMediaKeyInformation},
	{code: catalog.SymptomTokenAudienceUnknown, own: true},
	{code: catalog.SymptomTokenLibraryMismatch},
	{code: catalog.SymptomGatewayInvalidToken, over: []mark{cached}, own: true,
		partOf:  []catalog.Code{catalog.SymptomAwayTooLong},
		follows: []catalog.Code{catalog.SymptomTokenLifetimeOver, catalog.SymptomTokenBlocked, catalog.SymptomTokenAudienceUnknown, catalog.SymptomAllTokensRejected}},

	{code: catalog.SymptomConnectorRevocationUnknown, over: []mark{forwarded}},
	{code: catalog.SymptomIntermediateMissing, sure: Likely},
	{code: catalog.SymptomNotAllowedCertificate, own: true, follows: []catalog.Code{catalog.SymptomConnectorRevocationUnknown}},
	{code: catalog.SymptomNoPrivateKeyCertificate, own: true, follows: []catalog.Code{catalog.SymptomConnectorRevocationUnknown}},
	{code: catalog.SymptomNotClientAuthCertificate, own: true, follows: []catalog.Code{catalog.SymptomConnectorRevocationUnknown}},
	{code: catalog.SymptomNoClientCertificateLeft, own: true, follows: []catalog.Code{catalog.SymptomConnectorRevocationUnknown}},
	{code: catalog.SymptomClientCertificateRequired, own: true, over: append([]mark{forwarded}, working...),
		follows: selectionCodes},
	{code: catalog.SymptomConnectorClientCertificateRequired, own: true, over: []mark{forwarded}, partOf: []catalog.Code{catalog.SymptomClientCertificateRequired},
		follows: selectionCodes},
	{code: catalog.SymptomConnectorForbidden, own: true, over: append([]mark{forwarded}, working...)},
	{code: catalog.SymptomConnectorWebException, own: true, over: []mark{forwarded},
		partOf: []catalog.Code{catalog.SymptomClientCertificateRequired, catalog.SymptomConnectorClientCertificateRequired, catalog.SymptomConnectorForbidden},
		follows: append([]catalog.Code{catalog.SymptomAccessClientCertificateMissing,
			catalog.SymptomAccessHTTPSRequired, catalog.SymptomCertificateMappingDenied, catalog.SymptomCertificateUntrusted, catalog.SymptomCertificateOutOfDate}, selectionCodes...)},

	{code: catalog.SymptomAccessClientCertificateMissing, own: true,
		partOf:  []catalog.Code{catalog.SymptomClientCertificateRequired, catalog.SymptomConnectorClientCertificateRequired},
		follows: append(selectionCodes[:len(selectionCodes):len(selectionCodes)], catalog.SymptomClientCertificateUnusable)},
	{code: catalog.SymptomAccessHTTPSRequired, own: true},
	{code: catalog.SymptomCertificateMappingDenied, own: true},
	{code: catalog.SymptomCertificateUntrusted, own: true},
	{code: catalog.SymptomCertificateOutOfDate, own: true},
	{code: catalog.SymptomAccessLogonFailed, sure: Likely, own: true},
	{code: catalog.SymptomRequestFiltered, sure: Likely, own: true},
	{code: catalog.SymptomPropfindRefused, over: []mark{downloaded}},
	{code: catalog.SymptomSetupPropfind, over: []mark{downloaded, installed}},
	{code: catalog.SymptomManagementPointDown500, sure: Likely, follows: []catalog.Code{catalog.SymptomDatabaseLogin}},
	{code: catalog.SymptomRoleCertificateAbsent, over: []mark{tested}},
	{code: catalog.SymptomRoleCertificateAwaited, sure: Likely, over: []mark{tested}},
	{code: catalog.SymptomDatabaseLogin, over: []mark{recorded, tested}, calm: []mark{answered}},
	{code: catalog.SymptomLocationDiscarded, follows: []catalog.Code{catalog.SymptomDatabaseLogin}},
	{code: catalog.SymptomRuntimeNewer, over: []mark{installed}},
	{code: catalog.SymptomSelfTest, weak: 1, over: []mark{tested}},
	{code: catalog.SymptomReplyTooLong},
	{code: catalog.SymptomDiscoveryDate},
	{code: catalog.SymptomPostFailed500, sure: Likely, over: []mark{replied, delivered}, calm: []mark{answered}},
	{code: catalog.SymptomBackendDown, own: true, over: []mark{forwarded}, follows: []catalog.Code{catalog.SymptomDatabaseLogin, catalog.SymptomManagementPointDown500}},
	{code: catalog.SymptomConnectorInternalServerError, sure: Likely, own: true, over: append([]mark{forwarded}, working...), partOf: []catalog.Code{catalog.SymptomTokenLibraryMismatch},
		follows: []catalog.Code{catalog.SymptomDatabaseLogin, catalog.SymptomPostFailed500, catalog.SymptomBackendDown, catalog.SymptomTokenAudienceUnknown, catalog.SymptomManagementPointDown500}},
	{code: catalog.SymptomInboxSource, over: []mark{moved}},

	{code: catalog.SymptomConnectorUnauthorized, own: true, over: []mark{cached}, partOf: []catalog.Code{catalog.SymptomManagementPointWithToken},
		follows: []catalog.Code{catalog.SymptomTokenLifetimeOver, catalog.SymptomTokenAudienceUnknown, catalog.SymptomDatabaseLogin, catalog.SymptomMediaTokenExpired}},
	{code: catalog.SymptomNothingToAuthenticateWith, own: true, weak: 1, over: []mark{cached},
		follows: slices.Concat([]catalog.Code{catalog.SymptomGatewayInvalidToken, catalog.SymptomConnectorUnauthorized, catalog.SymptomTokenLifetimeOver, catalog.SymptomConnectorInternalServerError}, wayCodes, entraCodes)},
	{code: catalog.SymptomDownloadUnauthenticated, own: true, weak: 1, over: []mark{cached},
		follows: slices.Concat([]catalog.Code{catalog.SymptomNothingToAuthenticateWith, catalog.SymptomGatewayInvalidToken, catalog.SymptomConnectorUnauthorized,
			catalog.SymptomTokenLifetimeOver, catalog.SymptomConnectorInternalServerError}, wayCodes, entraCodes)},

	{code: catalog.SymptomClockSkew},
	{code: catalog.SymptomNameOnUserAccount},
	{code: catalog.SymptomTicketModified, follows: []catalog.Code{catalog.SymptomNameOnUserAccount}},
	{code: catalog.SymptomServiceUnknown},
	{code: catalog.SymptomKernelMode, sure: Likely, with: []catalog.Code{catalog.SymptomTicketModified}, found: []catalog.Code{catalog.SymptomNegotiateFailed}},
	{code: catalog.SymptomNegotiateFailed, own: true, follows: append([]catalog.Code{catalog.SymptomKernelMode, catalog.SymptomNameOnUserAccount}, ticketCodes...)},

	{code: catalog.SymptomRootNotInTrustList},
	{code: catalog.SymptomClientCertificateExpired},
	{code: catalog.SymptomCertificateRevoked, own: true},
	{code: catalog.SymptomRegistrationBodyInvalid, own: true,
		follows: []catalog.Code{catalog.SymptomRootNotInTrustList, catalog.SymptomClientCertificateExpired, catalog.SymptomCertificateRevoked}},
	{code: catalog.SymptomRegistrationRejected, own: true, over: []mark{registered},
		follows: []catalog.Code{catalog.SymptomCertificateRevoked, catalog.SymptomRegistrationBodyInvalid, catalog.SymptomRootNotInTrustList}},
	{code: catalog.SymptomRegistrationReset, own: true, over: []mark{registered}},
	{code: catalog.SymptomRegistrationPending, own: true, follows: []catalog.Code{catalog.SymptomRegistrationQueue}, over: []mark{registered, mark(catalog.SymptomNotApproved)}},
	{code: catalog.SymptomStateNotSaved},
	{code: catalog.SymptomTrustedRootKey, sure: Likely},
	{code: catalog.SymptomWeakSignature, sure: Likely},
	{code: catalog.SymptomDeviceBlocked, sure: Likely},
	{code: catalog.SymptomRecordBad},
	{code: catalog.SymptomRegistrationQueue, sure: Likely, over: []mark{}},
	{code: catalog.SymptomDuplicateIdentity, sure: Likely},
	{code: catalog.SymptomSharedHardware, sure: Likely},
	{code: catalog.SymptomConflictingRecord, sure: Likely},
	{code: catalog.SymptomRecordObsolete, sure: Likely, follows: []catalog.Code{catalog.SymptomSharedHardware, catalog.SymptomConflictingRecord, catalog.SymptomDuplicateIdentity}},

	{code: catalog.SymptomContentName},
	{code: catalog.SymptomContentToken, sure: Likely, over: []mark{downloaded}, follows: wayCodes},
	{code: catalog.SymptomContentRequest500, over: []mark{downloaded}},
	{code: catalog.SymptomAlternateProvider, sure: Likely, over: []mark{downloaded}},
	{code: catalog.SymptomNoCloudSource, sure: Likely, over: []mark{downloaded}},
	{code: catalog.SymptomClientCrash},

	{code: catalog.SymptomAdministrationDenied},
	{code: catalog.SymptomAdministrationLogon, sure: Likely},
	{code: catalog.SymptomODataArray},
	{code: catalog.SymptomODataResponse, follows: []catalog.Code{catalog.SymptomAdministrationDenied, catalog.SymptomAdministrationLogon, catalog.SymptomODataArray}},
	{code: catalog.SymptomTooManyRequests, sure: Likely},
	{code: catalog.SymptomGatewayThrottled, weak: 1},
	{code: catalog.SymptomSetupEnded, weak: 2, over: []mark{installed}},
	{code: catalog.SymptomNotApproved, over: []mark{registered}, own: true, follows: append([]catalog.Code{catalog.SymptomNegotiateFailed}, ticketCodes...)},
}

// rank is the place of a code in the table; codes of our own come first, because they are the most exact.
func rank(code catalog.Code) int {
	return slices.IndexFunc(rules, func(r rule) bool { return r.code == code })
}

// ruleOf returns the rule of a code; one of our own codes has none of its own.
func ruleOf(code catalog.Code) rule {
	if i := rank(code); i >= 0 {
		return rules[i]
	}
	return rule{code: code}
}

// finding is a symptom that the timeline shows.
type finding struct {
	code  catalog.Code
	sure  Sure
	lines []line
	last  line
	count int
	over  *line // what showed later that it is history

	because catalog.Code // of which it is another sight
}

// linkPatience is how long a link between roles may be down before that is a symptom: links end when a role stops.
const linkPatience = time.Minute

func linkTroubles(t *timeline) (found []finding) {
	for _, trouble := range t.links {
		s := trouble.lines
		if s.last.time.Sub(s.lines[0].time) >= linkPatience {
			found = append(found, finding{code: trouble.code, sure: Likely, lines: s.lines, last: s.last, count: s.count})
		}
	}
	slices.SortFunc(found, func(a, b finding) int { return earlier(a.lines[0], b.lines[0]) })
	return found
}

// disagreement finds flags that the number before them does not contain (S4:L61-64).
func disagreement(t *timeline) []finding {
	numbers := t.sightings(flagNumber)
	named := t.sightings(mark(catalog.SymptomServerNameMismatch))
	if len(numbers) == 0 || !onlyBesideNumber(t, named) {
		return nil
	}
	return []finding{{code: catalog.SymptomFlagsDisagree, sure: Certain, lines: append(cut(numbers[0].lines[:1]), named[0].lines[0]), last: named[0].last, count: 1}}
}

// onlyBesideNumber says whether the name flag is set on lines of its own only, each in a file whose numbers lack it.
func onlyBesideNumber(t *timeline, named []*sighting) bool {
	for _, s := range named {
		number := slices.ContainsFunc(t.logs[generations(s.last.file)], func(f *logFile) bool { return f.seen[flagNumber] != nil })
		inNumber := slices.ContainsFunc(s.lines, func(l line) bool { n, ok := flags(l.low); return ok && n&0x10 != 0 })
		if !number || inNumber {
			return false
		}
	}
	return len(named) > 0
}

// noEntraToken finds a client that also got no user's token after its own failed (S2:L47).
func noEntraToken(t *timeline) (found []finding) {
	for _, tried := range t.sightings(fallback) {
		for _, failed := range t.later(&tried.last, mark(catalog.SymptomDeviceTokenNotObtained)) {
			found = append(found, finding{code: catalog.SymptomNoEntraToken, sure: Certain, lines: []line{tried.last, failed.last}, last: failed.last, count: 1})
		}
	}
	return found
}

// tenantNotOnboarded finds a client that asked the gateway for its tenant's properties and stopped (S2:L26).
func tenantNotOnboarded(t *timeline) (found []finding) {
	for _, asked := range t.sightings(askedEntra) {
		if len(t.later(&asked.last, entraAsking, cached, entraToken)) > 0 {
			continue
		}
		for _, ended := range t.later(&asked.last, setupFailed) {
			found = append(found, finding{code: catalog.SymptomTenantNotOnboarded, sure: Likely, lines: []line{asked.last, ended.last}, last: ended.last, count: 1})
		}
	}
	return found
}

// flipping finds a client whose id goes forth and back, as with two machines of one image (S0:L25).
func flipping(t *timeline) []finding {
	byFolder := map[string][]assignment{}
	var folders []string
	for _, a := range t.assigned {
		folder := folderOf(a.l.file)
		if byFolder[folder] == nil {
			folders = append(folders, folder)
		}
		byFolder[folder] = append(byFolder[folder], a)
	}
	var found []finding
	for _, folder := range folders {
		all := byFolder[folder]
		slices.SortStableFunc(all, func(a, b assignment) int { return earlier(a.l, b.l) })
		for i := 2; i < len(all); i++ {
			if all[i].id == all[i-2].id && all[i].id != all[i-1].id {
				found = append(found, finding{code: catalog.SymptomDuplicateIdentity, sure: Likely,
					lines: []line{all[i-2].l, all[i-1].l, all[i].l}, last: all[i].l, count: 3})
				break
			}
		}
	}
	return found
}

// lifetimes is what is known of tokens that were met after their end.
func lifetimes(t *timeline) (sentences []string) {
	more := map[time.Time]int{} // by the end of the token
	for _, e := range t.ended {
		if more[e.until]++; more[e.until] > 1 {
			continue
		}
		if over := e.now.Sub(e.until); over > 0 {
			sentences = append(sentences, fmt.Sprintf("the token was good until %s and came at %s, %s too late (%s)",
				e.until.Format(stampLayout), e.now.Format(stampLayout), span(over), place(&e.l)))
			continue
		}
		sentences = append(sentences, fmt.Sprintf("the token was called expired although its end, %s, is later than the server's clock, %s (%s)",
			e.until.Format(stampLayout), e.now.Format(stampLayout), place(&e.l)))
	}
	return sentences
}
