package client

import (
	"context"
	"errors"
	"net/url"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/revocation"
)

// logs are the files that administrators know (protocol.md 8.2). The lines below are word
// for word those of the documents, but for the few that say so.
type logs struct {
	setup     *logfile.Log // ccmsetup.log
	identity  *logfile.Log // ClientIDManagerStartup.log
	messaging *logfile.Log // CcmMessaging.log
	location  *logfile.Log // LocationServices.log
	folder    *logfile.Folder
	place     *logfile.Log // ClientLocation.log
}

func newLogs(folder *logfile.Folder) logs {
	open := func(component string) *logfile.Log {
		return folder.Log(logfile.File{Name: component + ".log", Component: component, Format: logfile.Client})
	}
	return logs{open("ccmsetup"), open("ClientIDManagerStartup"), open("CcmMessaging"), open("LocationServices"), folder, open("ClientLocation")}
}

// account is whose token is cached: the system's own (S2).
const account = "S-1-5-18"

// httpLine is how a component writes a request, and how it names itself in it. The numbers
// are those of the samples; no document says what they mean.
type httpLine struct {
	prefix, agent  string
	flags, options string
	number         int  // Options in an error line
	query          bool // the query is written too
}

func setupLine() httpLine { return httpLine{"ccmsetup", "ccmsetup", "0x4100", "0xe0", 224, false} }
func messageLine() httpLine {
	return httpLine{"ccmhttp", "ccmhttp", "0x4200", "0x1e0", 480, false}
}
func policyLine() httpLine {
	return httpLine{"SMS CCM 5.0", "SMS CCM 5.0", "0x4200", "0x1e0", 480, false}
}
func tenantLine() httpLine {
	return httpLine{"SMS CCM 5.0", "SMS CCM 5.0", "0x1304", "0xe0", 224, true}
}

// write says where a request goes (S2).
func (l httpLine) write(log *logfile.Log, r route, q call) {
	tokenAuth := 0
	if q.token != "" && !q.preAuth {
		tokenAuth = 1
	}
	path := q.url
	if u, err := url.Parse(q.url); err == nil {
		path = u.Path
	}
	if l.query && q.query != "" {
		path += "?" + q.query
	}
	log.Infof("%s: Host=%s, Path=%s, Port=%s, Protocol=%s, CcmTokenAuth=%d, Flags=%s, Options=%s", l.prefix, hostName(r.Host), path, r.port(), r.Scheme, tokenAuth, l.flags, l.options)
	if q.method == methodCCM && r.secure() {
		log.Infof("Target URL scheme is HTTPS: %s", q.url)
	}
	if tokenAuth == 1 {
		log.Infof("Appending CCM Token to the header.")
	}
}

// connected is written when a new connection stands. The second line is there when lists
// and responders are asked about the server's certificate, as it says (S2).
func (l logs) connected(c *conversation) {
	if c.log != l.setup || !c.route.secure() {
		return
	}
	c.log.Infof("Created connection on port %s", c.route.port())
	if c.checks {
		c.log.Infof("Enabled SSL revocation check.")
	}
}

// Lines about the tenant (S2).

func (logs) askingTenant(log *logfile.Log, r route) {
	log.Infof("Getting AAD info from CMG '%s'", r.Host)
}

func (l logs) registeringByTenant() { l.identity.Infof("Registering client using AAD auth.") }

func (l logs) notRegisteredYet() {
	l.identity.Infof("AADJoinStatusTask: Client hasn't been registered yet.")
}

// withoutEntra and notJoined have no line in the documents.
func (logs) withoutEntra(log *logfile.Log, err error) {
	log.Warningf("Entra does not prove this device: %s", plain(err))
}

func (logs) notJoined(log *logfile.Log, err error) {
	log.Infof("Entra is not used: %s", plain(err))
}

// Lines about the company's certificate. The documents have none of them; that the
// certificates are looked at whatever proves the device is their word (S2).

func (l logs) certificateUsed(c *companyCertificate) {
	for _, log := range []*logfile.Log{l.setup, l.identity} {
		log.Infof("Using the client certificate %s, from %s. It is preferred over Entra and over tokens.", c.chosen(), c.file.Certificate)
	}
}

func (l logs) noCertificate(left []string) {
	for _, why := range left {
		l.identity.Warningf("A client certificate is not used: %s", why)
		l.setup.Warningf("A client certificate is not used: %s", why)
	}
	l.identity.Infof("Certificate validation: no client certificate of the company is used.")
}

// means says what the device proves itself with. It has no line in the documents.
func (logs) means(log *logfile.Log, what string) { log.Infof("Proving this device by its %s.", what) }

// Lines about tokens (S2).

// askingToken has the first line everywhere but where messages renew the token (S2).
func (l logs) askingToken(log *logfile.Log, r route) {
	if log != l.messaging {
		log.Infof("Getting CCM Token from STS server '%s'", r.name())
	}
	log.Infof("Getting CCM Token from %s", r.url(ccm.EndpointSTS, ""))
}

const logTime = "01/02/2006 15:04:05"

func (logs) tokenCached(log *logfile.Log, expires time.Time) {
	log.Infof("Cached encrypted token for '%s'. Will expire at '%s'", account, expires.UTC().Format(logTime))
}

func (logs) tokenEnds(log *logfile.Log, expires time.Time) {
	log.Infof("CCM Token for '%s' (%s) is already expired or close to expire", account, expires.UTC().Format(logTime))
}

// selfProveCached has no line in the documents: S3 shows it as a picture only.
func (logs) selfProveCached(log *logfile.Log, expires time.Time) {
	log.Infof("Received self-prove token. Will expire at '%s'", expires.UTC().Format(logTime))
}

// enrolmentEnded is the last line of an enrolment that did not succeed, wherever else it is
// told. It has no line in the documents.
func (l logs) enrolmentEnded(err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		l.setup.Errorf("Enrolment did not succeed: %s", plain(err))
	}
}

// Lines about registration (S2, product.md 5.5).

func (l logs) registrationStarts(attempt int) {
	l.identity.Infof("[RegTask] - Starting registration, attempt %d.", attempt)
}

func (l logs) registrationSent(id ccm.ClientID) {
	l.identity.Infof("[RegTask] - Client is not registered. Sending registration request for %s ...", id)
}

func (l logs) registered(id ccm.ClientID, approval ccm.ApprovalStatus) {
	l.identity.Infof("[RegTask] - Client is registered. Server assigned ClientID is %s. Approval status %d", id, int(approval))
}

func (l logs) registrationRejected(status int) {
	l.identity.Errorf("[RegTask] - Server rejected registration %d", status)
}

// registrationPending has no line in the documents.
func (l logs) registrationPending(id ccm.ClientID, next time.Duration) {
	l.identity.Infof("[RegTask] - Registration of %s is pending. Asking again in %d seconds.", id, int(next.Seconds()))
}

// withoutKerberos has no line in the documents.
func (l logs) withoutKerberos(err error) {
	l.identity.Warningf("[RegTask] - Kerberos did not prove this device: %s", plain(err))
	l.identity.Warningf("[RegTask] - Going on without it; an administrator has to approve the device.")
}

// withKerberos has no line in the documents.
func (l logs) withKerberos(n Negotiation) {
	l.identity.Infof("[RegTask] - Proved by Kerberos as %s to %s, which proved itself too.", n.Client, n.Service)
}

// Lines about the management point, inside. The documents have none of them.

func (l logs) rootVerified(r route, pin string) {
	l.location.Infof("The trusted root key %s is the one that %s announces.", pin, r.Host)
}

func (l logs) pointChosen(r route, why string) {
	l.location.Infof("Using the management point %s://%s: %s", r.Scheme, r.Host, why)
}

func (l logs) pointFailed(r route, err error) {
	l.location.Warningf("The management point %s://%s cannot be used: %s", r.Scheme, r.Host, plain(err))
}

// Lines about messages (S2).

func (logs) messageSent(c *conversation, m message) {
	c.log.Infof("Sending remote sync message '%s' to host '%s' endpoint '%s'. Flags 0x280, sender account %s", m.id, c.route.name(), m.endpoint, account)
}

func (logs) messageAnswered(c *conversation, id, reply string) {
	c.log.Infof("Message '%s' got reply message '%s' to endpoint 'dummy'", id, reply)
}

// Lines about failures (S4).

func (l logs) badStatus(c *conversation, address string, status ccm.Status) {
	c.log.Errorf("[CCMHTTP] ERROR: URL=%s, Port=%s, Options=%d, Code=0, Text=CCM_E_BAD_HTTP_STATUS_CODE", address, c.route.port(), l.options(c, c.log))
	format := "[CCMHTTP] ERROR INFO: StatusCode=%d StatusText=%s"
	if status.Code == 403 {
		format = "[CCMHTTP] ERROR INFO: StatusCode= %d StatusText= %s" // with these blanks in the documents (S4)
	}
	c.log.Errorf(format, status.Code, status.Reason)
}

// refused is ours: what the status means, with the code that the server gave.
func (logs) refused(c *conversation, err error) { c.log.Errorf("%s", plain(err)) }

// options is the number that stands in an error line. In LocationServices.log it is 63, and
// 31 where revocation lists are not asked: so in the samples (S4), and derived from them.
func (l logs) options(c *conversation, log *logfile.Log) int {
	switch {
	case log != l.location:
		return c.line.number
	case c.checks:
		return 63
	}
	return 31
}

// winHTTP are the numbers and names that the log gives to connections that failed.
type winHTTP struct {
	number int
	name   string
	flags  revocation.Flags // of WINHTTP_CALLBACK_STATUS_SECURE_FAILURE
}

func winHTTPErrors() map[catalog.Code]winHTTP {
	const secure, name = revocation.SecureFailure, revocation.SecureFailureText
	return map[catalog.Code]winHTTP{
		catalog.ClientServerRoot:      {secure, name, revocation.FlagInvalidCA},
		catalog.ClientRootRefused:     {secure, name, revocation.FlagInvalidCA},
		catalog.ClientServerUntrusted: {secure, name, revocation.FlagInvalidCA},
		catalog.ClientServerHost:      {secure, name, revocation.FlagName},
		catalog.ClientServerExpired:   {secure, name, revocation.FlagDate},
		catalog.ClientServerRole:      {secure, name, revocation.FlagWrongUsage},
		catalog.ClientTLSFailed:       {secure, name, revocation.FlagChannel},
		catalog.ClientNameNotResolved: {12007, "ERROR_WINHTTP_NAME_NOT_RESOLVED", 0},
		catalog.ClientCannotConnect:   {12029, "ERROR_WINHTTP_CANNOT_CONNECT", 0},
		catalog.ClientTimeout:         {12002, "ERROR_WINHTTP_TIMEOUT", 0},
		catalog.ClientConnectionLost:  {12030, "ERROR_WINHTTP_CONNECTION_ERROR", 0},
	}
}

// connectionFailed writes a failed connection where S4 shows it: in the component's own
// log, and a failed recognition in LocationServices.log too.
func (l logs) connectionFailed(c *conversation, address string, err error) {
	failure, ok := explained(err)
	if !ok {
		return
	}
	if c.looking {
		c.log.Infof("The management point %s is not to be reached from here.", c.route.Host)
		return
	}
	files := []*logfile.Log{c.log}
	if failure.flags != 0 && c.log != l.location {
		files = append(files, l.location)
	}
	for _, log := range files {
		if failure.flags != 0 {
			log.Infof("[CCMHTTP] AsyncCallback():")
			log.Errorf("[CCMHTTP] AsyncCallback(): WINHTTP_CALLBACK_STATUS_SECURE_FAILURE Encountered")
			log.Infof("[CCMHTTP] : dwStatusInformationLength is 4")
			log.Infof("[CCMHTTP] : lpvStatusInformation is 0x%x", uint32(failure.flags))
			for _, flag := range failure.flags.Names() {
				log.Errorf("[CCMHTTP] : %s is set", flag)
			}
		}
		log.Errorf("[CCMHTTP] ERROR: URL=%s, Port=%s, Options=%d, Code=%d, Text=%s", address, c.route.port(), l.options(c, log), failure.number, failure.name)
		log.Errorf("%s", plain(err)) // ours: what that means
	}
}

// plain is an error for a person who reads a log: code, title and detail.
func plain(err error) string {
	e, ok := errors.AsType[*catalog.Error](err)
	if !ok {
		return err.Error()
	}
	entry, _ := catalog.Lookup(e.Code)
	return string(e.Code) + " " + entry.Title + ": " + e.Detail
}

// clockIsWrong has no line in the documents.
func (logs) clockIsWrong(log *logfile.Log, siteAhead time.Duration) {
	if siteAhead > 0 {
		log.Warningf("The clock of this device is %d seconds behind the site's. Going on with the site's time.", int(siteAhead.Seconds()))
		return
	}
	log.Warningf("The clock of this device is %d seconds ahead of the site's. Going on with the site's time.", -int(siteAhead.Seconds()))
}
