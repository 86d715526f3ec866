package entra

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"postern/catalog"
)

// Refusal is in the chain of every error that a provider gave as its answer.
type Refusal struct {
	AADSTS      int    // Entra's number, 0 when there is none
	Name        string // RFC 6749's word, e.g. invalid_client
	Text        string // the provider's own, cleaned and cut
	Status      int    // HTTP status
	Correlation string // by which the tenant's administrator finds it in the sign-in log
}

// Error says number and word.
func (r *Refusal) Error() string {
	if r.AADSTS == 0 {
		return fmt.Sprintf("the provider answered %d %s", r.Status, r.Name)
	}
	return fmt.Sprintf("AADSTS%d (%s)", r.AADSTS, r.Name)
}

// meaning is what a number means and what to do about it.
type meaning struct {
	code   catalog.Code // EntraRefused when empty
	text   string
	remedy string
}

const (
	renewSecret = "renew the application's certificate in the tenant, or join the device again"
	exclude     = "exclude the site's server application from the policy, or use a device that meets it"
	signAgain   = "sign in again at a terminal"
)

// meanings are the numbers that administrators meet (Microsoft Entra authentication and
// authorization error codes; product.md 5.4, E067 to E071).
func meanings() map[int]meaning {
	const clock, signIn, busy = catalog.EntraClock, catalog.EntraSignInNeeded, catalog.EntraUnreachable
	return map[int]meaning{
		50001:   {"", "the resource is not known in the tenant", "compare AADRESOURCEURI with the App ID URI of the site's server application"},
		500011:  {"", "the resource is not known in the tenant", "compare AADRESOURCEURI with the App ID URI of the site's server application, and grant consent to it in this tenant"},
		50020:   {"", "the user is of another tenant", "sign in as a user of the device's tenant"},
		50034:   {"", "the user is not in the tenant", "sign in as a user of the device's tenant"},
		50053:   {"", "the account is locked after too many attempts", "unlock it in the tenant, or wait"},
		50055:   {"", "the user's password has expired", "have the user set a new one"},
		50057:   {"", "the user's account is disabled", "enable it in the tenant, or sign in as somebody else"},
		50074:   {"", "a second factor is needed", signAgain + "; for the device's own token " + exclude},
		50076:   {"", "a second factor is needed", signAgain + "; for the device's own token " + exclude},
		50079:   {"", "the user has to register a second factor", "have the user register one, then " + signAgain},
		50097:   {"", "the device has to prove itself", "sign in from a device that has joined the tenant"},
		50105:   {"", "the user is not assigned to the application", "assign the user or a group to the site's application, or switch off that an assignment is required"},
		50126:   {"", "user name or password is wrong", signAgain},
		50131:   {"", "Conditional Access blocks this sign-in", exclude},
		500133:  {clock, "the assertion is not within its valid time range", ""},
		50155:   {"", "the tenant does not recognise the device", "look for the device in the tenant; if it is disabled or deleted, join it again"},
		50158:   {"", "a further check outside the tenant is needed", signAgain},
		50173:   {"", "the earlier sign-in was withdrawn", signAgain},
		50194:   {"", "the application is for one tenant only, and the authority names none", "put the tenant's id in the authority instead of common"},
		50196:   {busy, "the device asks too often", "wait; it asks again by itself"},
		53000:   {"", "Conditional Access wants a compliant device", exclude},
		53001:   {"", "Conditional Access wants a domain joined device", exclude},
		53003:   {"", "Conditional Access blocks the token", exclude},
		530032:  {"", "a security policy of the tenant blocks the token", exclude},
		65001:   {"", "nobody has consented to the application", "have an administrator of the tenant grant consent to the client application for the server application"},
		70001:   {"", "the application is not known in the tenant", "compare AADCLIENTAPPID with the client application of the site"},
		700016:  {"", "the application is not known in the tenant", "compare AADCLIENTAPPID with the client application of the site, and the tenant with the device's"},
		700024:  {clock, "the assertion is not within its valid time range", ""},
		700027:  {"", "the certificate is none that the provider knows, or its signature does not fit", "compare the thumbprint in \"postern client join-state\" with the device's or the application's certificate in the tenant"},
		7000215: {"", "the application's secret is wrong", renewSecret},
		7000218: {"", "the application is not set to let devices sign in by a code", "switch on public client flows for the client application"},
		7000222: {"", "the application's secret or certificate has expired", renewSecret},
		70008:   {"", "the earlier sign-in has ended", signAgain},
		700082:  {"", "the earlier sign-in has ended after a long time without use", signAgain},
		70018:   {signIn, "the sign-in was declined", ""},
		70020:   {signIn, "the code was not entered in time", ""},
		90002:   {"", "the tenant is not known", "correct the tenant's id in the join state or in AADTENANTID"},
		90024:   {busy, "the provider is busy for the moment", "wait; the device asks again by itself"},
		90033:   {busy, "the provider is busy for the moment", "wait; the device asks again by itself"},
		135011:  {"", "the device is disabled in the tenant", "enable it there"},
	}
}

// words are the answers of RFC 6749 5.2 and RFC 8628 3.5 for providers without numbers.
func words() map[string]meaning {
	return map[string]meaning{
		"authorization_declined":  {catalog.EntraSignInNeeded, "the sign-in was declined", ""},
		"access_denied":           {catalog.EntraSignInNeeded, "the sign-in was declined", ""},
		"expired_token":           {catalog.EntraSignInNeeded, "the code was not entered in time", ""},
		"temporarily_unavailable": {catalog.EntraUnreachable, "the provider is busy for the moment", "wait; the device asks again by itself"},
		"invalid_client":          {"", "the provider does not recognise the application or the device's certificate", "compare the client application and the certificate with what the provider has; a person's sign-in needs a public client"},
		"unauthorized_client":     {"", "the application may not ask in this way", "allow client credentials and the device code for the client application"},
		"unsupported_grant_type":  {"", "the provider does not offer this way to a token", "allow client credentials and the device code at the provider"},
		"invalid_scope":           {"", "the application may not ask for this", "allow the scopes openid and offline_access for the client application"},
		"invalid_target":          {"", "the provider does not know the resource", "compare AADRESOURCEURI with what the provider has"},
		"invalid_grant":           {"", "the provider no longer accepts the earlier sign-in", signAgain},
	}
}

// clockMatters is the difference from which the provider's clock is worth a word.
const clockMatters = time.Minute

// explain makes a *catalog.Error of the refusal.
func (r *Refusal) explain(ahead time.Duration) error {
	m, found := meanings()[r.AADSTS]
	if !found && r.AADSTS == 0 {
		m, found = words()[r.Name]
	}
	if !found {
		m.text = "the provider's words: " + r.Text
	}
	if m.code == "" {
		m.code = catalog.EntraRefused
	}
	detail := m.text
	if r.AADSTS != 0 {
		detail = fmt.Sprintf("AADSTS%d: %s", r.AADSTS, m.text)
	}
	if m.remedy != "" {
		detail += "; " + m.remedy
	}
	if m.code == catalog.EntraClock && ahead.Abs() >= clockMatters {
		detail += fmt.Sprintf("; the provider's clock is %d seconds %s this device's", int(ahead.Abs().Seconds()), map[bool]string{true: "ahead of", false: "behind"}[ahead > 0])
	}
	if r.Correlation != "" {
		detail += " (correlation " + r.Correlation + ")"
	}
	return catalog.Wrap(m.code, r, "%s", detail)
}

var (
	aadsts = regexp.MustCompile(`AADSTS([0-9]{4,9})\b`)
	// secretLike finds tokens, assertions, codes and keys: long runs without a space.
	secretLike = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*){0,2}|[A-Za-z0-9_+/=-]{41,}`)
)

// harmless returns a provider's text as it may stand in errors and logs: nothing like a
// token, no character that cannot be printed, cut to a length.
func harmless(text string, most int) string {
	if len(text) > 4096 {
		text = text[:4096]
	}
	text = secretLike.ReplaceAllString(text, "[removed]")
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return strings.TrimSpace(text)
}
