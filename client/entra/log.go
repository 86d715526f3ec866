package entra

import (
	"cmp"
	"errors"
	"strings"
	"time"

	"postern/catalog"
	"postern/logfile"
)

// LogFile is the file that takes the lines of this package outside of installation (S2).
func LogFile() logfile.File {
	return logfile.File{Name: "ADALOperationProvider.log", Component: "ADALOperationProvider", Format: logfile.Client}
}

// lines writes them, word for word as the documents have them but for the few that say so.
// A token that was kept is got and retrieved like any other: the documents' client asks for
// one each time it needs one, and who keeps it below shows in no line (S2).
type lines struct{ log *logfile.Log }

func (l lines) gettingDevice(w Want) {
	l.log.Infof("Getting AAD (device) token with: ClientId = %s, ResourceUrl = %s, AccountId = %s", w.ClientApp, w.Resource, strings.TrimSuffix(w.Authority, "/")+"/oauth2/token")
}

func (l lines) gettingUser(w Want, u User) {
	l.log.Infof("Getting AAD (user) token with: ClientId = %s, ResourceUrl = %s, AccountId = %s", w.ClientApp, w.Resource, cmp.Or(u.ObjectID, u.Name))
}

// failed is followed by a line of ours, where Windows would give its own number.
func (l lines) failed(err error) {
	l.log.Errorf("Failed to get AAD token..")
	l.log.Errorf("%s", plain(err))
}

func (l lines) fallingBack(u User) {
	l.log.Warningf("Falling back to get user '%s' token for system...", cmp.Or(u.SID, u.ObjectID, u.Name))
}

// retrieved is S2's line for a user; of a device it names the device.
func (l lines) retrieved(t Token) {
	if t.Kind == KindDevice {
		l.log.Infof("Retrieved AAD token for AAD device '%s'", t.Account)
		return
	}
	l.log.Infof("Retrieved AAD token for AAD user '%s'", t.Account)
}

// goingOn has no line in the documents.
func (l lines) goingOn(err error, expires time.Time) {
	l.log.Warningf("Cannot renew the AAD token: %s", plain(err))
	l.log.Warningf("Going on with the one at hand. Will expire at '%s'", expires.UTC().Format("01/02/2006 15:04:05"))
}

// cacheLost has no line in the documents.
func (l lines) cacheLost(err error) {
	l.log.Warningf("The cached AAD tokens cannot be used and are dropped: %v", err)
}

// plain is an error for a person who reads a log.
func plain(err error) string {
	e, ok := errors.AsType[*catalog.Error](err)
	if !ok {
		return err.Error()
	}
	entry, _ := catalog.Lookup(e.Code)
	return string(e.Code) + " " + entry.Title + ": " + e.Detail
}
