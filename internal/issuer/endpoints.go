package issuer

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// refusal is an error as Entra's token endpoints answer it.
type refusal struct {
	status int
	name   string
	aadsts int
	text   string
}

func (r *refusal) Error() string { return fmt.Sprintf("AADSTS%d: %s", r.aadsts, r.text) }

// deviceCode is a sign-in on another screen that somebody waits for (RFC 8628).
type deviceCode struct {
	userCode string
	until    time.Time
	user     *User
	denied   bool
}

const codeLifetime = 15 * time.Minute

func (i *Issuer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", i.describe)
	for pattern, handle := range map[string]http.HandlerFunc{
		"GET /{tenant}/.well-known/openid-configuration":      func(w http.ResponseWriter, r *http.Request) { i.discovery(w, V1) },
		"GET /{tenant}/v2.0/.well-known/openid-configuration": func(w http.ResponseWriter, r *http.Request) { i.discovery(w, V2) },
		"GET /{tenant}/discovery/keys":                        i.publishKeys,
		"GET /{tenant}/discovery/v2.0/keys":                   i.publishKeys,
		"POST /{tenant}/oauth2/token":                         i.tokenEndpoint,
		"POST /{tenant}/oauth2/v2.0/token":                    i.tokenEndpoint,
		"POST /{tenant}/oauth2/devicecode":                    i.deviceCodeEndpoint,
		"POST /{tenant}/oauth2/v2.0/devicecode":               i.deviceCodeEndpoint,
		"GET /{tenant}/oauth2/deviceauth":                     i.signInPage,
		"POST /{tenant}/oauth2/deviceauth":                    i.signIn,
	} {
		mux.HandleFunc(pattern, i.ofTenant(handle))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		down := i.down
		i.mu.Unlock()
		if down {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Postern-Stand-In", Description)
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		mux.ServeHTTP(w, r)
	})
}

func (i *Issuer) ofTenant(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !strings.EqualFold(r.PathValue("tenant"), i.options.Tenant) {
			refuse(w, &refusal{http.StatusBadRequest, "invalid_tenant", 90002, "Tenant not found. Check to make sure you have the correct tenant ID."})
			return
		}
		next(w, r)
	}
}

func (i *Issuer) describe(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%s\nTenant %s, resource %s, client app %s\n", Description, i.options.Tenant, i.options.Resource, i.options.ClientApp)
}

// discovery answers OpenID Connect Discovery 3. The description comes first.
func (i *Issuer) discovery(w http.ResponseWriter, v Version) {
	i.set(func() { i.fetches.Discovery++ })
	version := map[Version]string{V1: "", V2: "v2.0/"}[v]
	answer(w, http.StatusOK, struct {
		Description   string   `json:"description"`
		Issuer        string   `json:"issuer"`
		Authorization string   `json:"authorization_endpoint"`
		Token         string   `json:"token_endpoint"`
		DeviceCode    string   `json:"device_authorization_endpoint"`
		Keys          string   `json:"jwks_uri"`
		Responses     []string `json:"response_types_supported"`
		Subjects      []string `json:"subject_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
		ClientAuth    []string `json:"token_endpoint_auth_methods_supported"`
	}{
		Description, i.IssuerOf(v), i.Authority() + "/oauth2/" + version + "authorize",
		i.Authority() + "/oauth2/" + version + "token", i.Authority() + "/oauth2/" + version + "devicecode",
		i.Authority() + "/discovery/" + version + "keys",
		[]string{"code", "id_token"}, []string{"pairwise"}, []string{"RS256"}, []string{"private_key_jwt"},
	})
}

func (i *Issuer) publishKeys(w http.ResponseWriter, r *http.Request) {
	i.set(func() { i.fetches.Keys++ })
	keys := i.jwks()
	sum := sha256.Sum256(keys)
	tag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
	w.Header().Set("ETag", tag)
	w.Header().Set("Cache-Control", "max-age=86400, private")
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	answer(w, http.StatusOK, keys)
}

// tokenEndpoint answers the grants that a client of the site uses.
func (i *Issuer) tokenEndpoint(w http.ResponseWriter, r *http.Request) {
	i.set(func() { i.fetches.Token++ })
	reply, err := i.grant(r)
	var refused *refusal
	if errors.As(err, &refused) {
		refuse(w, refused)
		return
	}
	if err != nil {
		refuse(w, &refusal{http.StatusInternalServerError, "server_error", 90033, err.Error()})
		return
	}
	answer(w, http.StatusOK, reply)
}

func (i *Issuer) grant(r *http.Request) (map[string]any, error) {
	if err := r.ParseForm(); err != nil {
		return nil, &refusal{http.StatusBadRequest, "invalid_request", 900144, "The request body cannot be read."}
	}
	form := r.PostForm
	i.mu.Lock()
	refused := i.refusal
	i.mu.Unlock()
	if refused != nil {
		return nil, refused
	}
	if err := i.knownClient(form); err != nil {
		return nil, err
	}
	grants := map[string]func(url.Values) (map[string]any, error){
		"client_credentials": i.byCertificate,
		"device_code":        i.byDeviceCode, // as Microsoft's library writes it
		"urn:ietf:params:oauth:grant-type:device_code": i.byDeviceCode,
		"refresh_token": i.byRefreshToken,
	}
	grant, ok := grants[form.Get("grant_type")]
	if !ok {
		return nil, &refusal{http.StatusBadRequest, "unsupported_grant_type", 70003, "The app requested an unsupported grant type."}
	}
	return grant(form)
}

// knownClient checks application and resource.
func (i *Issuer) knownClient(form url.Values) error {
	if !strings.EqualFold(form.Get("client_id"), i.options.ClientApp) {
		return &refusal{http.StatusBadRequest, "unauthorized_client", 700016, "Application was not found in the directory."}
	}
	asked := strings.Fields(form.Get("scope"))
	if resource := form.Get("resource"); resource != "" {
		asked = append(asked, resource)
	}
	for _, name := range asked {
		if slices.Contains([]string{"openid", "profile", "offline_access", "email"}, name) {
			continue
		}
		if !i.ours(name) {
			return &refusal{http.StatusBadRequest, "invalid_resource", 500011, "The resource principal named " + name + " was not found in the tenant."}
		}
	}
	return nil
}

// ours reports whether a scope or a resource is the site's server app.
func (i *Issuer) ours(name string) bool {
	for _, resource := range []string{i.options.Resource, i.options.ServerApp, "api://" + i.options.ServerApp} {
		if rest, ok := strings.CutPrefix(name, resource); ok && (rest == "" || strings.HasPrefix(rest, "/")) {
			return true
		}
	}
	return false
}

// byCertificate answers client credentials with an assertion (RFC 7523). The
// certificate must be a device's of its workplace join; the answer is that device's
// token.
func (i *Issuer) byCertificate(form url.Values) (map[string]any, error) {
	if form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		return nil, &refusal{http.StatusUnauthorized, "invalid_client", 7000218, "The request body must contain: client_assertion."}
	}
	device, err := i.deviceOf(form.Get("client_assertion"))
	if err != nil {
		return nil, err
	}
	raw, err := i.DeviceToken(device, i.options.Version)
	if err != nil {
		return nil, err
	}
	return i.reply(raw), nil
}

func (i *Issuer) deviceOf(raw string) (Device, error) {
	invalid := &refusal{http.StatusUnauthorized, "invalid_client", 700027, "Client assertion failed signature validation."}
	assertion, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.PS256, jose.RS256, jose.ES256})
	if err != nil {
		return Device{}, invalid
	}
	device, ok := i.deviceBy(assertion.Headers[0])
	if !ok {
		return Device{}, invalid
	}
	var claims jwt.Claims
	if err := assertion.Claims(device.Certificate.PublicKey, &claims); err != nil || claims.Expiry == nil {
		return Device{}, invalid
	}
	err = claims.ValidateWithLeeway(jwt.Expected{
		Issuer: i.options.ClientApp, Subject: i.options.ClientApp, Time: i.options.Now(),
		AnyAudience: jwt.Audience{i.Authority() + "/oauth2/v2.0/token", i.Authority() + "/oauth2/token", i.IssuerOf(V1), i.IssuerOf(V2)},
	}, 5*time.Minute)
	if err != nil {
		return Device{}, &refusal{http.StatusUnauthorized, "invalid_client", 700024, "Client assertion is not within its valid time range, or for another audience."}
	}
	return device, nil
}

// deviceBy finds the device by the thumbprint of its certificate, SHA-256 or SHA-1, in
// base64 of either alphabet: Microsoft's library uses the one with padding.
func (i *Issuer) deviceBy(h jose.Header) (Device, bool) {
	named := func(field jose.HeaderKey) string {
		text, _ := h.ExtraHeaders[field].(string)
		return strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(text), "=")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, device := range i.devices {
		if device.Certificate == nil {
			continue
		}
		long, short := sha256.Sum256(device.Certificate.Raw), sha1.Sum(device.Certificate.Raw)
		if named("x5t#S256") == base64.RawURLEncoding.EncodeToString(long[:]) || named("x5t") == base64.RawURLEncoding.EncodeToString(short[:]) {
			return device, true
		}
	}
	return Device{}, false
}

func (i *Issuer) reply(raw string) map[string]any {
	seconds := int(i.options.Lifetime / time.Second)
	return map[string]any{"token_type": "Bearer", "expires_in": seconds, "ext_expires_in": seconds, "access_token": raw}
}

// deviceCodeEndpoint begins a sign-in on another screen.
func (i *Issuer) deviceCodeEndpoint(w http.ResponseWriter, r *http.Request) {
	err := r.ParseForm()
	if err == nil {
		err = i.knownClient(r.PostForm)
	}
	var refused *refusal
	if errors.As(err, &refused) {
		refuse(w, refused)
		return
	}
	if err != nil {
		refuse(w, &refusal{http.StatusBadRequest, "invalid_request", 900144, "The request body cannot be read."})
		return
	}
	code := random(24)
	userCode := strings.ToUpper(strings.NewReplacer("-", "X", "_", "Y").Replace(random(6)))
	i.set(func() {
		i.fetches.DeviceCode++
		i.codes[code] = &deviceCode{userCode: userCode, until: i.options.Now().Add(codeLifetime)}
	})
	page := i.Authority() + "/oauth2/deviceauth"
	answer(w, http.StatusOK, map[string]any{
		"user_code": userCode, "device_code": code, "verification_uri": page, "expires_in": int(codeLifetime / time.Second), "interval": 1,
		"message": Description + " To sign in, open the page " + page + " and enter the code " + userCode + " to authenticate.",
	})
}

// SignIn is what a person does on the other screen: enter the code and be that user.
func (i *Issuer) SignIn(userCode string, u User) error {
	return i.decide(userCode, func(c *deviceCode) { c.user = &u })
}

// Deny is what a person does who did not ask for the sign-in.
func (i *Issuer) Deny(userCode string) error {
	return i.decide(userCode, func(c *deviceCode) { c.denied = true })
}

func (i *Issuer) decide(userCode string, decide func(*deviceCode)) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, code := range i.codes {
		if code.userCode == strings.ToUpper(strings.TrimSpace(userCode)) && i.options.Now().Before(code.until) {
			decide(code)
			return nil
		}
	}
	return errors.New("sign in: nobody waits for this code, or it has expired")
}

func (i *Issuer) byDeviceCode(form url.Values) (map[string]any, error) {
	user, err := i.redeem(form.Get("device_code"))
	if err != nil {
		return nil, err
	}
	return i.forUser(user)
}

// redeem returns who has signed in with the code, once.
func (i *Issuer) redeem(code string) (User, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	waiting, ok := i.codes[code]
	switch {
	case !ok || !i.options.Now().Before(waiting.until):
		delete(i.codes, code)
		return User{}, &refusal{http.StatusBadRequest, "expired_token", 70020, "The provided value for the input parameter 'device_code' is not valid."}
	case waiting.denied:
		delete(i.codes, code)
		return User{}, &refusal{http.StatusBadRequest, "authorization_declined", 70018, "The user declined the sign-in."}
	case waiting.user == nil:
		return User{}, &refusal{http.StatusBadRequest, "authorization_pending", 70016, "OAuth 2.0 device flow error. Authorization is pending. Continue polling."}
	}
	delete(i.codes, code)
	return *waiting.user, nil
}

func (i *Issuer) byRefreshToken(form url.Values) (map[string]any, error) {
	i.mu.Lock()
	user, ok := i.refresh[form.Get("refresh_token")]
	i.mu.Unlock()
	if !ok {
		return nil, &refusal{http.StatusBadRequest, "invalid_grant", 9002313, "The refresh token is not known."}
	}
	return i.forUser(user)
}

// forUser adds what Microsoft's library needs to remember the account: an id token,
// client_info and a refresh token.
func (i *Issuer) forUser(u User) (map[string]any, error) {
	u.ObjectID = orGUID(u.ObjectID)
	raw, err := i.UserToken(u, i.options.Version)
	if err != nil {
		return nil, err
	}
	identity := i.claims(V2)
	identity["aud"], identity["oid"], identity["sub"], identity["preferred_username"], identity["name"] = i.options.ClientApp, u.ObjectID, u.ObjectID, u.Name, u.Name
	id, err := i.Mint(identity, Header{})
	if err != nil {
		return nil, err
	}
	info, err := json.Marshal(map[string]string{"uid": u.ObjectID, "utid": i.options.Tenant})
	if err != nil {
		return nil, fmt.Errorf("encode client_info: %w", err)
	}
	refresh := random(32)
	i.set(func() { i.refresh[refresh] = u })
	reply := i.reply(raw)
	reply["id_token"], reply["client_info"], reply["refresh_token"] = id, base64.RawURLEncoding.EncodeToString(info), refresh
	reply["scope"] = i.options.Resource + "/.default openid profile offline_access"
	return reply, nil
}

// signInPage is for a person with a browser; there is no password.
func (i *Issuer) signInPage(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	users := slices.Clone(i.users)
	i.mu.Unlock()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!doctype html><title>Sign in</title><p>%s</p><form method=post><p>Code <input name=user_code autofocus></p><p>Person <select name=user>", html.EscapeString(Description))
	for _, user := range users {
		fmt.Fprintf(w, "<option value=%q>%s</option>", html.EscapeString(user.ObjectID), html.EscapeString(user.Name))
	}
	fmt.Fprint(w, "</select></p><button>Sign in</button></form>")
}

func (i *Issuer) signIn(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	users := slices.Clone(i.users)
	i.mu.Unlock()
	chosen := slices.IndexFunc(users, func(u User) bool { return strings.EqualFold(u.ObjectID, r.PostFormValue("user")) })
	if chosen < 0 {
		http.Error(w, Description+"\nThere is no such person.", http.StatusBadRequest)
		return
	}
	if err := i.SignIn(r.PostFormValue("user_code"), users[chosen]); err != nil {
		http.Error(w, Description+"\n"+err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%s\nSigned in as %s. You can close this page.\n", Description, users[chosen].Name)
}

func refuse(w http.ResponseWriter, r *refusal) {
	answer(w, r.status, map[string]any{
		"error": r.name, "error_description": r.Error(), "error_codes": []int{r.aadsts}, "correlation_id": newGUID(), "trace_id": newGUID(),
	})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller may be gone
}
