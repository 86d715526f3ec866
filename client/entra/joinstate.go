package entra

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
	"unicode"

	"postern/catalog"
)

// JoinType is how a device belongs to a tenant.
type JoinType string

// The ways to belong to a tenant.
const (
	JoinNone       JoinType = "none"
	JoinEntra      JoinType = "entra"      // Microsoft Entra joined
	JoinHybrid     JoinType = "hybrid"     // and in a domain
	JoinRegistered JoinType = "registered" // workplace joined by a user: the device is not the tenant's
)

// Dialect is what a provider speaks.
type Dialect string

// The dialects.
const (
	DialectEntra  Dialect = "entra"
	DialectOpenID Dialect = "openid"
)

// JoinState is what a device knows of its join. Its JSON is the join state file.
type JoinState struct {
	JoinType         JoinType `json:"join_type"`
	DomainJoined     bool     `json:"domain_joined,omitempty"`
	EnterpriseJoined bool     `json:"enterprise_joined,omitempty"`
	WorkplaceJoined  bool     `json:"workplace_joined,omitempty"`

	TenantID   string  `json:"tenant_id,omitempty"`
	TenantName string  `json:"tenant_name,omitempty"`
	Provider   Dialect `json:"provider,omitempty"`  // DialectEntra when empty
	Authority  string  `json:"authority,omitempty"` // https://host/...; that of the public cloud when empty
	CAFile     string  `json:"ca_file,omitempty"`   // PEM of the authorities of the provider's own certificate

	DeviceID      string        `json:"device_id,omitempty"`
	DeviceSID     string        `json:"device_sid,omitempty"`
	WorkplaceJoin WorkplaceJoin `json:"workplace_join,omitzero"`
	User          User          `json:"user,omitzero"`

	Source string `json:"-"` // the file, or the program that was asked
}

// WorkplaceJoin is the certificate that the device got when it joined. Windows keeps it in
// its own store and tells no more than thumbprint and end.
type WorkplaceJoin struct {
	Certificate string    `json:"certificate,omitempty"` // PEM file
	Key         string    `json:"key,omitempty"`         // PEM file, its owner's alone
	Thumbprint  string    `json:"thumbprint,omitempty"`  // SHA-1, upper-case hexadecimal
	NotAfter    time.Time `json:"not_after,omitzero"`
}

// User is who uses the device.
type User struct {
	Name     string `json:"name,omitempty"`
	ObjectID string `json:"object_id,omitempty"`
	SID      string `json:"sid,omitempty"`
}

// Joined reports whether the device is the tenant's.
func (j JoinState) Joined() bool { return j.JoinType == JoinEntra || j.JoinType == JoinHybrid }

// Environment variable and place of the join state file.
const (
	joinStateVariable = "POSTERN_JOIN_STATE"
	joinStateFile     = "/etc/postern/join-state.json"
)

const maxJoinState = 64 << 10

// PlatformJoinState returns the join state of this device: of the file that
// POSTERN_JOIN_STATE names, else on Windows what "dsregcmd /status" says, elsewhere
// /etc/postern/join-state.json. Errors have the codes EntraJoinState, and EntraNotJoined
// when there is none.
func PlatformJoinState() (JoinState, error) {
	if path := os.Getenv(joinStateVariable); path != "" {
		return ReadJoinState(path)
	}
	return platformJoinState()
}

// ReadJoinState reads a join state file; see the package comment. Errors have the codes
// EntraJoinState, and EntraNotJoined when there is no such file.
func ReadJoinState(path string) (JoinState, error) {
	content, err := readOwned(path, maxJoinState, 0o022)
	if errors.Is(err, fs.ErrNotExist) {
		return JoinState{}, catalog.Errorf(catalog.EntraNotJoined, "there is no join state file %s", path)
	}
	if err != nil {
		return JoinState{}, catalog.Wrap(catalog.EntraJoinState, err, "%s", path)
	}
	j, err := parseJoinState(content)
	if err != nil {
		return JoinState{}, catalog.Wrap(catalog.EntraJoinState, err, "%s", path)
	}
	folder := filepath.Dir(path)
	for _, name := range []*string{&j.WorkplaceJoin.Certificate, &j.WorkplaceJoin.Key, &j.CAFile} {
		if *name != "" && !filepath.IsAbs(*name) {
			*name = filepath.Join(folder, *name)
		}
	}
	j.Source = path
	return j, nil
}

// readOwned reads a file that others have none of the forbidden rights to. The mode is
// asked of the open file, so that it cannot be exchanged in between.
func readOwned(path string, limit int64, forbidden fs.FileMode) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("it is no file")
	case runtime.GOOS != "windows" && info.Mode().Perm()&forbidden != 0:
		return nil, fmt.Errorf("it has the mode %04o; others than its owner may use it", info.Mode().Perm())
	}
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("it is longer than %d bytes", limit)
	}
	return content, nil
}

func parseJoinState(content []byte) (JoinState, error) {
	if len(content) > maxJoinState {
		return JoinState{}, fmt.Errorf("it is longer than %d bytes", maxJoinState)
	}
	decoder := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(content, []byte("\ufeff"))))
	decoder.DisallowUnknownFields()
	var j JoinState
	if err := decoder.Decode(&j); err != nil {
		return JoinState{}, fmt.Errorf("it is no join state: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return JoinState{}, errors.New("something follows the join state")
	}
	return j.complete()
}

var (
	guidForm       = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
	sidForm        = regexp.MustCompile(`^S-1(-[0-9]{1,10}){2,15}$`)
	thumbprintForm = regexp.MustCompile(`^[0-9A-F]{40}$`)
)

// publicCloud is Entra's authority; a tenant's id follows.
const publicCloud = "https://login.microsoftonline.com/"

// complete fills in what one value says for another and refuses what cannot be.
func (j JoinState) complete() (JoinState, error) {
	if j.Provider == "" {
		j.Provider = DialectEntra
	}
	if j.Provider == DialectEntra {
		j.TenantID, j.DeviceID, j.User.ObjectID = strings.ToLower(j.TenantID), strings.ToLower(j.DeviceID), strings.ToLower(j.User.ObjectID)
		if j.Authority == "" && j.TenantID != "" {
			j.Authority = publicCloud + j.TenantID
		}
	}
	j.WorkplaceJoin.Thumbprint = strings.ToUpper(j.WorkplaceJoin.Thumbprint)
	j.DomainJoined = j.DomainJoined || j.JoinType == JoinHybrid
	j.WorkplaceJoined = j.WorkplaceJoined || j.JoinType == JoinRegistered
	return j, j.check()
}

func (j JoinState) check() error {
	entra := j.Provider == DialectEntra
	rules := []struct {
		ok   bool
		what string
	}{
		{j.JoinType == JoinNone || j.JoinType == JoinEntra || j.JoinType == JoinHybrid || j.JoinType == JoinRegistered, "join_type is none of entra, hybrid, registered, none"},
		{entra || j.Provider == DialectOpenID, "provider is neither entra nor openid"},
		{j.JoinType == JoinNone || j.TenantID != "", "tenant_id is missing"},
		{!j.Joined() || j.DeviceID != "", "device_id is missing"},
		{j.JoinType == JoinNone || j.Authority != "", "authority is missing"},
		{j.TenantID == "" || !entra || guidForm.MatchString(j.TenantID), "tenant_id is no GUID"},
		{j.DeviceID == "" || !entra || guidForm.MatchString(j.DeviceID), "device_id is no GUID"},
		{j.User.ObjectID == "" || !entra || guidForm.MatchString(j.User.ObjectID), "user.object_id is no GUID"},
		{j.DeviceSID == "" || sidForm.MatchString(j.DeviceSID), "device_sid is no SID"},
		{j.User.SID == "" || sidForm.MatchString(j.User.SID), "user.sid is no SID"},
		{j.Authority == "" || checkAuthority(j.Authority) == nil, "authority is no https address"},
		{j.WorkplaceJoin.Thumbprint == "" || thumbprintForm.MatchString(j.WorkplaceJoin.Thumbprint), "workplace_join.thumbprint is not 40 hexadecimal digits"},
		{(j.WorkplaceJoin.Certificate == "") == (j.WorkplaceJoin.Key == ""), "workplace_join needs certificate and key"},
	}
	for _, rule := range rules {
		if !rule.ok {
			return errors.New(rule.what)
		}
	}
	for _, text := range []string{j.TenantID, j.TenantName, j.DeviceID, j.User.Name, j.User.ObjectID, j.Authority, j.CAFile, j.WorkplaceJoin.Certificate, j.WorkplaceJoin.Key} {
		if !plainText(text) {
			return errors.New("a value is too long or has characters that cannot be printed")
		}
	}
	return nil
}

func plainText(text string) bool {
	return len(text) <= 1024 && !strings.ContainsFunc(text, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) })
}

// checkAuthority accepts https://host[:port]/path and nothing else.
func checkAuthority(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(text) > 1024 {
		return fmt.Errorf("%.120q is no address of a provider: https://host/path", text)
	}
	return nil
}

// authority is where to ask when a site names an issuer: always the join's own. A gateway
// names the site's issuer to anybody who asks, so that it must not say where a device
// takes its assertion, or a person a password. The issuer only has to be of the same
// provider.
func (j JoinState) authority(issuer string) (string, bool) {
	own := strings.TrimSuffix(j.Authority, "/")
	named := strings.TrimSuffix(issuer, "/")
	switch {
	case j.Provider == DialectOpenID && issuer != "":
		return issuer, named == own // an issuer is compared to the letter, and these come with and without a slash
	case j.Provider == DialectOpenID:
		return j.Authority, true
	case issuer == "":
		return own, true
	}
	return own, checkAuthority(issuer) == nil && providerOf(issuer) == providerOf(own)
}

// providerOf is an address's host, or Microsoft's for each of its hosts: the issuer of its
// tokens is another host than the one that gives them.
func providerOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	switch host := strings.ToLower(u.Host); host {
	case "login.microsoftonline.com", "login.microsoft.com", "login.windows.net", "sts.windows.net",
		"login.microsoftonline.us", "login.partner.microsoftonline.cn", "login.chinacloudapi.cn", "sts.chinacloudapi.cn":
		return "Microsoft"
	default:
		return host
	}
}
