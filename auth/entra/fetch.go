package entra

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/catalog"
)

// Budgets of what a provider answers.
const (
	maxDiscovery      = 256 << 10
	maxDiscoveryDepth = 16
	maxRedirects      = 3
)

// entraHosts serve each other's keys: the issuer of version 1.0 is on the first, its
// keys are on another.
var entraHosts = [...]string{
	"sts.windows.net", "login.microsoftonline.com", "login.windows.net", "login.microsoft.com",
	"login.microsoftonline.us", "login.partner.microsoftonline.cn", "sts.chinacloudapi.cn", "login.chinacloudapi.cn",
}

// fetched is what one issuer last answered.
type fetched struct {
	keys         []key
	skipped      int
	at           time.Time
	address      string // of the key set
	etag         string
	lastModified string
	maxAge       time.Duration // as the provider asked; 0: it did not
}

// fetcher asks providers. It holds nothing between two calls.
type fetcher struct {
	client       *http.Client
	hosts        []string
	loopbackHTTP bool
}

func newFetcher(config SourceConfig) *fetcher {
	f := &fetcher{hosts: config.Hosts, loopbackHTTP: config.LoopbackHTTP}
	f.client = &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: config.Timeout}).DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: config.Roots, MinVersion: tls.VersionTLS12},
			MaxResponseHeaderBytes: 64 << 10,
			DisableKeepAlives:      true, // one fetch in hours
			ForceAttemptHTTP2:      true,
		},
		CheckRedirect: sameHost,
	}
	return f
}

var errRedirect = errors.New("redirected")

// sameHost follows a redirection only where the administrator's own choice led.
func sameHost(next *http.Request, before []*http.Request) error {
	first := before[0].URL
	if len(before) > maxRedirects || next.URL.Scheme != first.Scheme || !strings.EqualFold(next.URL.Host, first.Host) {
		return errRedirect
	}
	return nil
}

// fetch asks one issuer of a tenant for its keys: discovery first (OpenID Connect
// Discovery 4), then the key set, which is not sent again when it is the one of last.
// issuers are all of the tenant's.
func (f *fetcher) fetch(ctx context.Context, tenantID, issuer string, issuers []string, last fetched, now time.Time) (fetched, error) {
	address, err := f.discover(ctx, issuer, issuers)
	if err != nil {
		return last, err
	}
	if address != last.address {
		last = fetched{address: address}
	}
	body, header, err := f.get(ctx, address, maxKeySet, last)
	if err != nil {
		return last, err
	}
	if body != nil {
		keys, skipped, err := parseKeys(body, tenantID)
		if err != nil {
			return last, err
		}
		last = fetched{keys: keys, skipped: skipped, address: address, etag: header.Get("ETag"), lastModified: header.Get("Last-Modified")}
	}
	last.at, last.maxAge = now, maxAge(header)
	return last, nil
}

// discover returns where the issuer's keys are.
func (f *fetcher) discover(ctx context.Context, issuer string, issuers []string) (string, error) {
	if err := f.allowedIssuer(issuer); err != nil {
		return "", err
	}
	body, _, err := f.get(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", maxDiscovery, fetched{})
	if err != nil {
		return "", err
	}
	var settings struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if !within(body, maxDiscoveryDepth) {
		return "", catalog.Errorf(catalog.EntraDiscovery, "the settings of %s are nested deeper than %d", issuer, maxDiscoveryDepth)
	}
	if err := json.Unmarshal(body, &settings); err != nil {
		return "", catalog.Wrap(catalog.EntraDiscovery, err, "the settings of %s are not JSON", issuer)
	}
	if settings.Issuer != issuer {
		return "", catalog.Errorf(catalog.EntraDiscovery, "the settings of %s name the issuer %s", issuer, quote(settings.Issuer))
	}
	if err := f.allowedKeys(settings.Keys, issuer, issuers); err != nil {
		return "", err
	}
	return settings.Keys, nil
}

// CheckIssuer says whether an address can be a tenant's issuer: https, a host, no user,
// query or fragment; http only for a loopback address and only when that is allowed.
// The code is EntraIssuerNotAllowed.
func CheckIssuer(issuer string, loopbackHTTP bool) error {
	f := fetcher{loopbackHTTP: loopbackHTTP}
	return f.allowedIssuer(issuer)
}

func (f *fetcher) allowedIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || !f.secure(u) || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
		return catalog.Errorf(catalog.EntraIssuerNotAllowed, "the issuer is %s", quote(withoutPassword(issuer)))
	}
	return nil
}

// withoutPassword is an address without the password that somebody may have put in it.
func withoutPassword(address string) string {
	u, err := url.Parse(address)
	switch {
	case err == nil && u.User != nil:
		return u.Redacted()
	case err != nil && strings.Contains(address, "@"):
		return "(not an address)"
	}
	return address
}

// secure reports whether the address has a host that is reached by TLS, or is on this
// machine when that will do.
func (f *fetcher) secure(u *url.URL) bool {
	if u.Host == "" || u.Hostname() == "" {
		return false
	}
	if u.Scheme == "https" {
		return true
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "http" && f.loopbackHTTP && ip != nil && ip.IsLoopback()
}

// allowedKeys lets keys come from a host of the tenant's issuers, from a host that an
// administrator named, and for Entra's issuers from Entra's hosts.
func (f *fetcher) allowedKeys(address, issuer string, issuers []string) error {
	u, err := url.Parse(address)
	if err != nil || !f.secure(u) || u.User != nil || u.Fragment != "" {
		return catalog.Errorf(catalog.EntraDiscovery, "the settings of %s have the keys at %s", issuer, quote(withoutPassword(address)))
	}
	from, err := url.Parse(issuer)
	if err != nil {
		return catalog.Errorf(catalog.EntraIssuerNotAllowed, "the issuer is %s", quote(issuer))
	}
	allowed := slices.Clone(f.hosts)
	for _, name := range issuers {
		if other, err := url.Parse(name); err == nil {
			allowed = append(allowed, other.Host)
		}
	}
	if containsFold(entraHosts[:], from.Host) {
		allowed = append(allowed, entraHosts[:]...)
	}
	if !containsFold(allowed, u.Host) {
		return catalog.Errorf(catalog.EntraDiscovery, "the settings of %s have the keys on another host, %s", issuer, quote(u.Host))
	}
	return nil
}

func containsFold(names []string, name string) bool {
	return slices.ContainsFunc(names, func(known string) bool { return strings.EqualFold(known, name) })
}

// get returns the body of an answer, or nil when it is the one of last.
func (f *fetcher) get(ctx context.Context, address string, limit int64, last fetched) ([]byte, http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, nil, catalog.Wrap(catalog.EntraProviderUnreachable, err, "%s", quote(address))
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "postern")
	if len(last.keys) > 0 && last.etag != "" {
		request.Header.Set("If-None-Match", last.etag)
	} else if len(last.keys) > 0 && last.lastModified != "" {
		request.Header.Set("If-Modified-Since", last.lastModified)
	}
	response, err := f.client.Do(request)
	if errors.Is(err, errRedirect) {
		return nil, nil, catalog.Errorf(catalog.EntraRedirect, "%s", quote(address))
	}
	if err != nil {
		return nil, nil, catalog.Wrap(catalog.EntraProviderUnreachable, err, "%s", quote(address))
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotModified && len(last.keys) > 0 {
		return nil, response.Header, nil
	}
	if response.StatusCode != http.StatusOK {
		return nil, nil, catalog.Errorf(catalog.EntraProviderUnreachable, "%s answers %d", quote(address), response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	switch {
	case err != nil:
		return nil, nil, catalog.Wrap(catalog.EntraProviderUnreachable, err, "%s", quote(address))
	case int64(len(body)) > limit:
		return nil, nil, catalog.Errorf(tooLarge(limit), "%s answers more than %d bytes", quote(address), limit)
	case !isJSON(response.Header.Get("Content-Type")):
		return nil, nil, catalog.Errorf(catalog.EntraProviderUnreachable, "%s answers something else than JSON", quote(address))
	}
	return body, response.Header, nil
}

func tooLarge(limit int64) catalog.Code {
	if limit == maxKeySet {
		return catalog.EntraKeySet
	}
	return catalog.EntraDiscovery
}

// isJSON allows application/json, application/jwk-set+json, text/json, text/plain and no
// type at all. A sign-in page of a network is text/html.
func isJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && (strings.HasSuffix(media, "json") || media == "text/plain")
}

// maxAge reads Cache-Control (RFC 9111 5.2.2.1).
func maxAge(header http.Header) time.Duration {
	for directive := range strings.SplitSeq(header.Get("Cache-Control"), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		if !strings.EqualFold(name, "max-age") {
			continue
		}
		seconds, err := strconv.ParseUint(strings.Trim(value, `"`), 10, 31)
		if err == nil {
			return time.Duration(seconds) * time.Second
		}
	}
	return 0
}

// String keeps a fetch readable in a log: how many keys, from where.
func (f fetched) String() string { return fmt.Sprintf("%d keys from %s", len(f.keys), f.address) }
