package mp

import (
	"errors"
	"net/http"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// logs are the two files of a management point that administrators search. Each function writes its lines word for word as the documents
// have them (protocol.md 8.3); what is not in the documents goes to the JSON log only.
type logs struct {
	registration *logfile.Log
	sts          *logfile.Log
	folder       *logfile.Folder
}

func newLogs(folder *logfile.Folder) logs {
	return logs{
		registration: folder.Log(logfile.File{Name: "MP_RegistrationManager.log"}),
		sts:          folder.Log(logfile.File{Name: "CCM_STS.log"}),
		folder:       folder,
	}
}

func (l logs) registrationBegins(id ccm.ClientID) {
	l.registration.Infof("Processing Registration request from Client '%s'", id)
}

// registrationByCloud writes that a device registers with its Entra identity (S2 3.1); the space after the device's id is the documents'.
func (l logs) registrationByCloud(c proof.Cloud) {
	l.registration.Infof("Registering device using AAD auth: DeviceId='%s ', TenantId='%s'", c.Device, c.Tenant)
}

func (l logs) registrationInvalid() {
	l.registration.Errorf("MP Reg: Registration request body is invalid.")
}

func (l logs) registrationFailed() { l.registration.Errorf("MP Reg: Registration failed.") }

func (l logs) copyWritten(path string) {
	l.registration.Infof("MP Reg: DDR file written to %s", path)
}

func (l logs) tokenBegins(fqdn string) {
	l.sts.Infof("ProcessRequest - Start")
	l.sts.Infof("Incoming request URL: https://%s/CCM_STS", fqdn)
}

// cloudValidated writes an accepted Entra token (S2 3.4). The line of the documents ends in a space when a device's identifier is not known.
func (l logs) cloudValidated(c proof.Cloud) {
	l.sts.Infof("Validated AAD token. TokenType: %s TenantId: %s UserId: %s DeviceId: %s OnPrem_UserSid: %s OnPrem_DeviceSid: %s ", c.Kind, c.Tenant, c.User, c.Device, c.UserSID, c.DeviceSID)
	l.sts.Infof("TokenType is %s", c.Kind)
}

func (l logs) tokenIssued(issued site.Issued) {
	user := ""
	if issued.Claims.Cloud != nil {
		user = issued.Claims.Cloud.User
	}
	l.sts.Infof("Created SCCM token, token type: %s, hierarchyId: %s, userId: %s, deviceId: %s", issued.Claims.TokenType, issued.Claims.Hierarchy, user, issued.Claims.Client)
	l.sts.Infof("Issued token")
	l.sts.Infof("Return token to client")
}

// tokenRefused writes the refusal. An expired token has its own lines (S4).
func (l logs) tokenRefused(status int, err error) {
	var expired *token.ExpiredError
	if errors.As(err, &expired) {
		const layout = "01/02/2006 15:04:05"
		l.sts.Errorf("Return code: %d, Description: PreAuth token validation failed, System.IdentityModel.Tokens.SecurityTokenExpiredException:\n"+
			"IDX10223: Lifetime validation failed. The token is expired.\nValidTo: '%s'\nCurrent time: '%s'.\n"+
			"at System.IdentityModel.Tokens.Validators.ValidateLifetime....",
			http.StatusUnauthorized, expired.ValidTo.UTC().Format(layout), expired.Now.UTC().Format(layout))
		return
	}
	entry, _ := catalog.Lookup(catalog.CodeOf(err))
	l.sts.Errorf("Return code: %d, Description: PreAuth token validation failed, %s: %s", status, entry.Code, entry.Title)
}

// gateway is the synchronised copy of a gateway's log (S2).
func (l logs) gateway(name string) *logfile.Log {
	return l.folder.Log(logfile.File{Name: "CMG-" + name + "-ProxyService_IN_0-CMGService.log", Component: "CMGService", Format: logfile.Server})
}
