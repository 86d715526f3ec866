package explain

import (
	"net/http"
	"regexp"
	"slices"
	"strconv"
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
	delivered  mark = "delivered"         // a client reached a server of the site
	downloaded mark = "downloaded"        // content came
	forwarded  mark = "forwarded"         // a connection point got a 200
	connected  mark = "connected"         // a connection point has its gateway
	answered   mark = "answered"          // a server of ours, or a web server, answered
	tested     mark = "tested"            // a management point passed its own test
	usableCert mark = "certificate found" // a connection point has a certificate to show
	recorded   mark = "registration kept" // a management point wrote a registration record
	moved      mark = "moved"             // files went to the site
	provided   mark = "service made"      // a cloud service was made
	ready      mark = "service ready"     // ... and runs
	installed  mark = "installed"         // ccmsetup ended with 0
	firstLeg   mark = "first leg"         // a 401 of Windows authentication and its 200
	fine       mark = "fine"              // something else went well

	refusal       mark = "refusal"      // a client was answered with a status that no symptom is made of
	companion     mark = "companion"    // belongs to another line that says more
	message       mark = "message"      // names a message
	askedEntra    mark = "asked Entra"  // a client asked the gateway for its tenant's properties
	entraAsking   mark = "Entra asking" // ... and has them
	fallback      mark = "fallback"     // a client tries a user's token
	setupFailed   mark = "setup failed" // ccmsetup ended with something else than 0
	linked        mark = "linked"       // gateway and connector have each other
	flagNumber    mark = "number of TLS flags"
	lifetimePart  mark = "times of a token"
	noCRLCheck    mark = "switch /NoCRLCheck"
	usePKICert    mark = "switch /UsePKICert"
	regToken      mark = "switch /regtoken"
	mpAndToken    mark = "switches /mp and /regtoken"
	autoSite      mark = "SMSSITECODE=AUTO with CCMHOSTNAME"
	joinedDevice  mark = "joined device"
	entraUser     mark = "registers with Entra"
	transient     mark = "0x87d00231"
	noTokenCode   mark = "0x87d0027e"
	postFailed    mark = "post failed" // without a reason
	serverFailed  mark = "status 500"
	hardware      mark = "hardware id"
	listedName    mark = "name in the directory"
	listing       mark = "listing of the directory"
	serverError   mark = "500"
	tokenEnded    mark = "token ended"
	contentFailed mark = "content failed"
	reached       mark = "reached" // a server answered with an HTTP status, whichever
	listedTwice   mark = "name on several accounts"
	poolUser      mark = "account of an application pool"
	workgroup     mark = "computer of no domain"
	redirected    mark = "redirected"    // a web server sent a client elsewhere
	notForwarded  mark = "not forwarded" // a connection point got no good answer, and no symptom says why
)

// good are the marks that show that something works.
var good = []mark{firstLeg, registered, cached, issued, entraToken, replied, delivered, downloaded, forwarded, connected, answered, tested, usableCert, recorded, moved,
	provided, ready, installed, fine, mark(catalog.SymptomNoDeviceManagement)}

// progress are the marks of good that show that the work of a machine goes on.
var progress = []mark{registered, cached, replied, delivered, downloaded, forwarded, connected, answered, tested, recorded, moved, provided, ready, installed}

func goesWell(m mark) bool { return slices.Contains(progress, m) }

// look says which lines have a mark: those that hold all of the texts, one of any and none of the others, and pass the
// test. Texts are in lower case and compared without regard to case. A look for requests has a test alone.
type look struct {
	mark    mark
	all     []string
	any     []string
	none    []string
	test    func(*line) bool
	request bool // for records of a web server; the others are for all other lines
	enough  bool // ... and of some of these not even that
	well    bool // ... its mark shows that the work goes on
	plain   bool // nothing but the number of the lines and the last one matters when there are many
}

func (k *look) matches(l *line) bool {
	for _, text := range k.all {
		if !strings.Contains(l.low, text) {
			return false
		}
	}
	if len(k.any) > 0 && !containsAny(l.low, k.any) {
		return false
	}
	return !containsAny(l.low, k.none) && (k.test == nil || k.test(l))
}

func says(code catalog.Code, all ...string) look { return look{mark: mark(code), all: all} }

func sees(m mark, all ...string) look { return look{mark: m, all: all} }

func (k look) or(any ...string) look {
	k.any = any
	return k
}

func (k look) unless(none ...string) look {
	k.none = none
	return k
}

func (k look) when(tests ...func(*line) bool) look {
	if k.test != nil {
		tests = append([]func(*line) bool{k.test}, tests...)
	}
	k.test = func(l *line) bool {
		return !slices.ContainsFunc(tests, func(test func(*line) bool) bool { return !test(l) })
	}
	return k
}

// request is a look for records of a web server.
func request(code catalog.Code, test func(*line) bool) look {
	return look{mark: mark(code), test: test, request: true}
}

func not(test func(*line) bool) func(*line) bool { return func(l *line) bool { return !test(l) } }

func either(tests ...func(*line) bool) func(*line) bool {
	return func(l *line) bool {
		return slices.ContainsFunc(tests, func(test func(*line) bool) bool { return test(l) })
	}
}

func has(texts ...string) func(*line) bool {
	return func(l *line) bool { return containsAny(l.low, texts) }
}

func fits(expression string) func(*line) bool {
	form := regexp.MustCompile(expression)
	return func(l *line) bool { return form.MatchString(l.low) }
}

// allowedMetered says that ccmsetup was told that the network may cost money, and not that it was not told so.
func allowedMetered(l *line) bool {
	return has("allowmetered")(l) && !notAllowedMetered.MatchString(l.low)
}

var notAllowedMetered = regexp.MustCompile(`allowmetered\S*(?: switch| option| parameter)? (?:was|is) not|(?:without|no) \S{0,2}allowmetered`)

// of tests for the component that wrote a line, by a part of its name in lower case.
func of(components ...string) func(*line) bool {
	return func(l *line) bool { return l.component != "" && containsAny(strings.ToLower(l.component), components) }
}

// Components that are of the site and not of a client.
var ofServer = of("mp_", "ccm_sts", "mpcontrol", "proxyconnector", "proxy_connector", "cmgservice", "cloudmgr", "cloud_services", "ddm", "discovery", "sms_", "smsadminui")

// windowsError is an error of Windows in all forms in which logs have it: number, name, and the words of the system in English,
// German and French, of which only parts without accents are looked for, because logs come in many encodings.
type windowsError struct {
	number uint32 // of WinHTTP, or a whole HRESULT
	name   string
	texts  []string
}

// failure is a look for errors.
func failure(code catalog.Code, errors ...windowsError) look {
	k := look{mark: mark(code)}
	var numbers, words []string
	for _, e := range errors {
		if e.number != 0 {
			n, w := e.forms()
			numbers, words = append(numbers, n...), append(words, w...)
		}
		if e.name != "" {
			words = append(words, e.name)
		}
		words = append(words, e.texts...)
	}
	k.any = slices.Clone(words)
	for _, n := range numbers {
		if len(n) >= shortestAnchor {
			k.any = append(k.any, n)
			continue
		}
		for _, before := range []string{"e ", "r ", "e: ", "r: ", "e=", "r=", " (", ":(", "s ", "s=", "e = ", "r = ", "#"} {
			if anchor := before + n; len(anchor) >= shortestAnchor {
				k.any = append(k.any, anchor)
			}
		}
	}
	k.test = func(l *line) bool {
		return containsAny(l.low, words) || slices.ContainsFunc(numbers, func(n string) bool { return saysNumber(l.low, n) })
	}
	return k
}

// forms returns how an error's number is written: such as need a look at what is around, and such as do not.
func (e windowsError) forms() (numbers, words []string) {
	result := e.number
	if e.number < 1<<16 { // of WinHTTP or Win32
		result |= 0x80070000
		numbers = []string{strconv.Itoa(int(e.number)), "0x" + strconv.FormatUint(uint64(e.number), 16), "0x0000" + strconv.FormatUint(uint64(e.number), 16)}
	}
	return append(numbers, strconv.Itoa(int(int32(result)))), []string{"0x" + strconv.FormatUint(uint64(result), 16), " " + strconv.FormatUint(uint64(result), 16)}
}

// saysNumber says whether a number stands in a text as the number of an error.
func saysNumber(text, number string) bool {
	for from := 0; ; {
		at := strings.Index(text[from:], number)
		if at < 0 {
			return false
		}
		begin, end := from+at, from+at+len(number)
		from = end
		switch {
		case end < len(text) && isHexadecimal(text[end]), begin > 0 && (isHexadecimal(text[begin-1]) || text[begin-1] == '.'):
		case number[0] == '-', number[0] == '0', errorWord.MatchString(text[max(0, begin-24):begin]):
			return true
		}
	}
}

// errorWord is what stands before the number of an error.
var errorWord = regexp.MustCompile(`\b(?:code|[a-z]*error|errorcode|fehler|fehlercode|erreur|status|result|hresult|hr|rc|gle|winhttp|wininet|win32)[ :=(#'"]*(?:0x)?$|(?:error|fehler|erreur|status|winhttp|code)[ :=(#'"a-z]{0,12}\($|\($`)

func isHexadecimal(c byte) bool { return c-'0' < 10 || c-'a' < 6 }

// The errors of Windows that the table of symptoms uses.
var (
	nameNotResolved = windowsError{12007, "name_not_resolved", []string{"server name or address could not be resolved", "servername oder die serveradresse konnte nicht",
		"adresse du serveur n", "nom ou l'adresse du serveur", "nom ou l’adresse du serveur", "remote name could not be resolved", "remotename konnte nicht aufgel", "nom distant n"}}
	hostUnknown   = windowsError{11001, "wsahost_not_found", []string{"no such host is known", "host ist unbekannt", "te de ce type n"}}
	cannotConnect = windowsError{12029, "winhttp_cannot_connect", []string{"connection with the server could not be established", "internet_cannot_connect",
		"serververbindung konnte nicht hergestellt", "verbindung mit dem server konnte nicht hergestellt", "keine verbindung mit dem server",
		"tablir une connexion avec le serveur", "connexion avec le serveur n"}}
	refusedByHost = windowsError{10061, "wsaeconnrefused", []string{"target machine actively refused", "zielcomputer die verbindung verweigert", "ordinateur cible l"}}
	timedOut      = windowsError{12002, "winhttp_timeout", []string{"the operation timed out", "internet_timeout", "r den vorgang wurde erreicht", "ration a expir"}}
	connectionEnd = windowsError{12030, "winhttp_connection_error", []string{"connection with the server was terminated abnormally", "connection with the server was reset",
		"internet_connection_aborted", "serververbindung wurde", "verbindung mit dem server wurde", "connexion avec le serveur a", "connexion avec le serveur s"}}
	connectionReset = windowsError{12031, "connection_reset", nil}
	certNeeded      = windowsError{12044, "client_auth_cert_needed", []string{"certificate is required to complete client authentication", "um die clientauthentifizierung abzuschlie", "authentification du client est n"}}
	certNoKey       = windowsError{12185, "client_cert_no_private_key", nil}
	certNoAccess    = windowsError{12186, "client_cert_no_access_private_key", nil}
	invalidAnswer   = windowsError{12152, "invalid_server_response", []string{"invalid or unrecognized response", "oder nicht erkannte antwort", "oder unbekannte antwort", "ponse non valide ou non reconnue"}}
	securityFailure = windowsError{12175, "winhttp_secure_failure", []string{"a security error occurred", "sicherheitsfehler aufgetreten", "erreur de s\u00e9curit", "erreur de s\xe9curit", "decoding_failed"}}

	numberDate    = windowsError{12037, "sec_cert_date_invalid", nil}
	numberName    = windowsError{12038, "sec_cert_cn_invalid", nil}
	numberCA      = windowsError{12045, "winhttp_secure_invalid_ca", []string{"error_internet_invalid_ca"}}
	numberRev     = windowsError{12057, "sec_cert_rev_failed", []string{"winhttp_secure_cert_rev_failed"}}
	numberChannel = windowsError{12157, "security_channel_error", nil}
	numberInvalid = windowsError{12169, "sec_invalid_cert", []string{"winhttp_secure_invalid_cert"}}
	numberRevoked = windowsError{12170, "sec_cert_revoked", []string{"winhttp_secure_cert_revoked"}}
	numberUse     = windowsError{12179, "winhttp_secure_cert_wrong_usage", nil}

	textDate = windowsError{0x80090328, "sec_e_cert_expired", []string{"received certificate has expired", "empfangene zertifikat ist abgelaufen", "certificat re\u00e7u a expir", "certificat re\xe7u a expir",
		"date in the certificate is invalid or has expired", "datum im zertifikat ist ung", "date du certificat n"}}
	certExpired = windowsError{0x800b0101, "cert_e_expired", []string{"not within its validity period when verifying", "berschreitet die g", "certificat requis n"}}
	textName    = windowsError{0x800b010f, "cert_e_cn_no_match", []string{"cn name does not match the passed value", "cn-name des zertifikats stimmt nicht", "host name in the certificate is invalid or does not match",
		"hostname im zertifikat ist ung", "te du certificat n", "nom cn du certificat ne correspond pas"}}
	wrongPrincipal = windowsError{0x80090322, "sec_e_wrong_principal", []string{"target principal name is incorrect", "zielprinzipalname ist falsch", "nom principal de la cible", "nom du principal cible"}}
	textRoot       = windowsError{0x80090325, "sec_e_untrusted_root", []string{"issued by an authority that is not trusted", "rdigen zertifizierungsstelle ausgestellt", "autorit\u00e9 qui n", "autorit\xe9 qui n",
		"certificate authority is invalid or incorrect", "zertifizierungsstelle ist ung"}}
	chainRoot = windowsError{0x800b0109, "cert_e_untrustedroot", []string{"terminated in a root certificate which is not trusted by the trust provider", "rdig gilt",
		"certificat racine qui n"}}
	textRevoked     = windowsError{0x80092010, "crypt_e_revoked", []string{"the certificate is revoked", "das zertifikat wurde gesperrt", "certificat est r\u00e9voqu", "certificat est r\xe9voqu", "certificat a \u00e9t\u00e9 r\u00e9voqu"}}
	trustRevoked    = windowsError{0x800b010c, "cert_e_revoked", []string{"explicitly revoked by its issuer"}}
	revocationOff   = windowsError{0x80092013, "crypt_e_revocation_offline", []string{"because the revocation server was offline", "da der sperrserver offline war", "serveur de r\u00e9vocation", "serveur de r\xe9vocation"}}
	revocationNone  = windowsError{0x80092012, "crypt_e_no_revocation_check", []string{"unable to check revocation for the certificate", "keine sperrpr\u00fcfung f\u00fcr das zertifikat"}}
	revocationError = windowsError{0x800b010e, "cert_e_revocation_failure", []string{"revocation process could not continue"}}
	wrongUse        = windowsError{0x800b0110, "cert_e_wrong_usage", []string{"certificate is not valid for the requested usage", "zertifikat ist f\u00fcr die angeforderte verwendung"}}
	noAlgorithm     = windowsError{0x80090331, "sec_e_algorithm_mismatch", []string{"do not possess a common algorithm", "gemeinsamen algorithmus", "algorithme commun"}}
	illegalMessage  = windowsError{0x80090326, "sec_e_illegal_message", []string{"message received was unexpected or badly formatted", "empfangene nachricht war unerwartet", "message re\u00e7u \u00e9tait inattendu"}}
	clocksApart     = windowsError{0x80090324, "sec_e_time_skew", []string{"clocks on the client and server machines are skewed", "uhren des clients und des servers", "uhren auf client"}}
	timeDifference  = windowsError{1398, "error_time_skew", []string{"time and/or date difference between the client and", "zeit- und/oder datumsunterschied", "heure et/ou de date entre le client", "heure et/ou la date"}}
	targetUnknown   = windowsError{0x80090303, "sec_e_target_unknown", []string{"specified target is unknown or unreachable", "angegebene ziel ist unbekannt oder nicht erreichbar", "cible sp\u00e9cifi\u00e9e est inconnue", "cible sp\xe9cifi\xe9e est inconnue"}}
	notEncrypted    = windowsError{0x80071770, "error_encryption_failed", []string{"specified file could not be encrypted", "angegebene datei konnte nicht verschl", "fichier sp\u00e9cifi\u00e9 n", "crypter le fichier", "chiffrer le fichier"}}
	commandLine     = windowsError{1639, "error_invalid_command_line", []string{"invalid command line argument", "befehlszeilenargument", "argument de ligne de commande non valide", "argument de la ligne de commande"}}
	loginTimeout    = windowsError{0, "", []string{"login timeout expired", "anmeldungstimeout abgelaufen", "anmeldetimeout abgelaufen", "attente de connexion a expir", "attente de la connexion a expir"}}
	socketUsage     = windowsError{10048, "wsaeaddrinuse", []string{"only one usage of each socket address", "normalerweise darf jede socketadresse", "une seule utilisation de chaque adresse de socket"}}
	noBuffers       = windowsError{10055, "wsaenobufs", []string{"lacked sufficient buffer space", "nicht gen\u00fcgend pufferspeicher", "ne disposait pas de suffisamment d"}}
	otherVersion    = windowsError{1638, "error_product_version", []string{"another version of this product is already installed", "newer version of this product is already installed", "andere version dieses produkts", "autre version de ce produit"}}
)

// refused tests an access line of a management point for a status with one of the sub-statuses.
func refused(status int, subStatuses ...int) func(*line) bool {
	return func(l *line) bool {
		return l.access != nil && l.access.Status == status && slices.Contains(subStatuses, l.access.SubStatus) && ofManagementPoint(l.access.Stem)
	}
}

// foreign tests for a request of a program that is no client of a site: a browser, a scanner. What such a one is refused says nothing of the site.
// People ask the administration service with a browser or a script.
func foreign(l *line) bool {
	if l.access == nil {
		return false
	}
	agent := strings.ToLower(l.access.UserAgent[:min(len(l.access.UserAgent), 200)])
	return containsAny(agent, scanners) || !ofAdministration(l) && containsAny(agent, browsers)
}

var (
	scanners = []string{"nessus", "qualys", "nmap", "rapid7", "scan", "zgrab", "nikto", "bot/", "bot+"}
	browsers = []string{"mozilla/5", "curl", "python", "go-http", "wget", "miniredir"}
)

// logonError tests an access line of a management point for a logon that Windows refused with that error.
func logonError(number uint32) func(*line) bool {
	return func(l *line) bool {
		return l.access != nil && l.access.Status == http.StatusUnauthorized && l.access.Windows == number && ofManagementPoint(l.access.Stem)
	}
}

var managementPointFolders = []string{"/sms_mp", "/ccm_", "/bgb", "/sms_"}

const administration = "/adminservice"

func ofManagementPoint(stem string) bool {
	return slices.ContainsFunc(managementPointFolders, func(folder string) bool {
		return len(stem) >= len(folder) && strings.EqualFold(stem[:len(folder)], folder)
	})
}

// ofAdministration tests for the path of the administration service.
func ofAdministration(l *line) bool {
	return l.access != nil && len(l.access.Stem) >= len(administration) && strings.EqualFold(l.access.Stem[:len(administration)], administration)
}

func filtered(l *line) bool {
	r := l.access
	return r != nil && ofManagementPoint(r.Stem) && (r.Status == http.StatusRequestEntityTooLarge || r.Status == http.StatusNotFound && r.SubStatus >= 4)
}

func propfindRefused(l *line) bool {
	return l.access != nil && l.access.Status == http.StatusMethodNotAllowed && strings.EqualFold(l.access.Method, "PROPFIND")
}

func success(l *line) bool {
	switch {
	case l.access != nil:
		return l.access.Status/100 == 2 && (ofManagementPoint(l.access.Stem) || ofAdministration(l))
	case l.event != nil:
		return l.event.Status/100 == 2 && (l.event.Msg == "request answered" || l.event.Msg == "request forwarded")
	}
	return false
}

// served tests for a line of the gateway's statistics.
func served(l *line) bool {
	return strings.HasPrefix(l.low, "requesturi: ") && strings.Contains(l.low, "responsecount: ") && !strings.Contains(l.low, "responsecount: 0 ")
}

func events(messages ...string) func(*line) bool {
	return func(l *line) bool { return l.event != nil && slices.Contains(messages, l.event.Msg) }
}

var statusNumber = regexp.MustCompile(`lpvstatusinformation is 0x([0-9a-f]{1,8})\b`)

func flags(low string) (uint64, bool) {
	found := statusNumber.FindStringSubmatch(low)
	if found == nil {
		return 0, false
	}
	return hexadecimal(found[1]), true
}

func flagged(flag uint64) func(*line) bool {
	return func(l *line) bool {
		number, ok := flags(l.low)
		return ok && number&flag != 0
	}
}

var (
	gatewayWords = []string{"ccm_proxy_", "cloudapp", "gateway", "servicemetadata", "aadauthinfo"}
	gatewayShort = regexp.MustCompile(`\bcmg|cmg\b`)
	hostWords    = []string{"http://", "https://", "host="}
)

// namesGateway says whether a text is about a gateway. Failures ask it of every line: the slow look comes last.
func namesGateway(low string) bool {
	return containsAny(low, gatewayWords) || strings.Contains(low, "cmg") && gatewayShort.MatchString(low)
}

// near is how many lines before an error the address may stand that it is about.
const nearLines = 12

// towardGateway says whether an error is about the way to a gateway: by the address in the line, or in one shortly before.
// Without an address it is taken to be.
func towardGateway(l *line) bool {
	switch {
	case namesGateway(l.low):
		return true
	case containsAny(l.low, hostWords) || namesManagementPoint(l.low):
		return false
	case l.before != nil && l.number-l.before.number <= nearLines:
		return namesGateway(l.before.low)
	}
	return true
}

// ofOtherNumber tests for a number that is that of a process, of something sent, or of a policy.
var ofOtherNumber = either(has("process", "thread", "sent message", "policyid", "policy id"), of("mtrmgr"))

// sideChannel tests for what goes to a fallback status point, which only takes reports.
var sideChannel = toward("/sms_fsp")

// ofOtherService tests for a name that has nothing to do with a site.
var ofOtherService = has("cryptretrieveobjectbyurl", "capi2", "[ value]", "ntpclient", "time.windows.com", "w32time", "time-service", "windowsupdate.com", "wsus")

var (
	managementPointWords = []string{"management point", "/sms_mp", "/ccm_system", "verwaltungspunkt", "point de gestion"}
	managementPointShort = regexp.MustCompile(`\bmp\b|\bmp[0-9a-z-]*\.`)
)

func namesManagementPoint(low string) bool {
	return containsAny(low, managementPointWords) || strings.Contains(low, "mp") && managementPointShort.MatchString(low)
}

// toward tests for a part of the address that an error is about.
func toward(parts ...string) func(*line) bool {
	return func(l *line) bool {
		return containsAny(l.low, parts) || l.before != nil && l.number-l.before.number <= nearLines && containsAny(l.before.low, parts)
	}
}

var notJoined = fits(`\b(wpj|workplace join) cert[a-z]* *(isn't|is not|was not|wasn't|not|could not be|cannot be) (found|present)|(no|find|get|locate|missing)( the| a)? (wpj|workplace join) cert|azureadjoined *: *no\b|` +
	`device (isn't|is not|not) (aad|entra|microsoft entra|azure ad)[ -]joined`)

var refusedStatus = regexp.MustCompile(`statuscode= ?([45][0-9]{2})[ ,]+statustext= ?(\S*)`)

// plainRefusal tests for a status of 400 or more without one of the texts of gateway and connection point.
func plainRefusal(l *line) bool {
	found := refusedStatus.FindStringSubmatch(l.low)
	return found != nil && found[2] != "cmgservice_invalid_token" && !strings.HasPrefix(found[2], "cmgconnector_")
}

// refusedWith tests for such a status.
func refusedWith(statuses ...string) func(*line) bool {
	return func(l *line) bool {
		found := refusedStatus.FindStringSubmatch(l.low)
		return found != nil && !strings.HasPrefix(found[2], "cmg") && slices.Contains(statuses, found[1])
	}
}

var setupEnd = regexp.MustCompile(`ccmsetup(?:\.exe)? (?:is exiting|exited|ended|wird beendet|se termine)[a-z ]*?(?:with return code|code|mit r.{1,3}ckgabecode|avec le code[a-z ]*?)[ :]*(-?\d{1,10}|0x[0-9a-f]{1,8})`)

// setupEnded tests for the end of ccmsetup with one of the codes, or with any other than these.
func setupEnded(with bool, codes ...string) func(*line) bool {
	return func(l *line) bool {
		found := setupEnd.FindStringSubmatch(l.low)
		return found != nil && slices.Contains(codes, found[1]) == with
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
		return (l.severity == logfile.Error || l.severity == logfile.Warning && containsAny(l.low, putOff)) && !noTrouble.MatchString(l.low)
	case l.event != nil:
		return l.severity == logfile.Error
	case l.access != nil:
		return l.access.Status >= http.StatusInternalServerError && ofManagementPoint(l.access.Stem)
	}
	return containsAny(l.low, troubleWords) && !noTrouble.MatchString(l.low)
}

// putOff are words of warnings that tell of something which is not done, or not now.
var putOff = []string{"will not ", "cannot ", "could not", "unable to", "failed", "denied", "refused", "not allowed", "not permitted", "timed out", "retry", "was not "}

var troubleWords = []string{" error", "error ", "error:", "error=", "error(", "exception", "failed", "erreur", "fehler", "fehlgeschlagen", "chec de"}

// noTrouble are sentences with such a word that say that there is none, and those that every client writes that is away from its
// company's network: no site of the directory, no WINS, no service record.
var noTrouble = regexp.MustCompile(`failed to open to wmi namespace|\b(?:0x)?800410(?:0e|10|02)\b|^can't open process|lsgetadsitename\(\) failed|sms_slp.{0,40} wins|dns service record|lsissitecompatible|\b(?:no|0|without|keine|ohne|aucune?|sans) (?:errors?|failed|failures?|fehler|erreurs?)\b|(?:errors?|failed|fehler|erreurs?)[a-z]*(?: code)?[ :=]+"?(?:0x0+|0)(?:[^0-9a-fx]|$)|error_success|if .* failed`)

func hexadecimal(digits string) (n uint64) {
	for _, digit := range strings.ToLower(digits) {
		n = n<<4 | uint64(strings.IndexRune("0123456789abcdef", digit))
	}
	return n
}
