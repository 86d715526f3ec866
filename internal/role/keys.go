package role

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postern/auth"
	"postern/catalog"
	"postern/connector"
	"postern/keyfile"
	"postern/token"
)

// Files in the state folder of a gateway or connector. Private keys are sealed with state.key.
const (
	stateKeyName  = "state.key"
	roleKeyName   = "role.key"       // sealed PKCS #8
	roleCertName  = "role.crt"       // PEM chain that the site issued
	siteStateName = "site-state.jws" // newest site state, signed by the site root
	roleKeyLabel  = "role-private-key"
)

// newRoleKey makes the role's own key in a state folder; it never leaves it. A folder that has one is refused.
func newRoleKey(dir string, protection Protection) (*ecdsa.PrivateKey, error) {
	if exists(filepath.Join(dir, roleKeyName)) {
		return nil, catalog.Errorf(catalog.AlreadyExists, "%s holds a role's key already; choose another folder", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, catalog.Wrap(catalog.FolderNotWritable, err, "the folder %s cannot be made", dir)
	}
	sealer, err := openKey(filepath.Join(dir, stateKeyName), true, protection)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, sealer.WriteSealed(filepath.Join(dir, roleKeyName), roleKeyLabel, der)
}

// loadRoleKey opens the role's own key, and says what protects it.
func loadRoleKey(dir string, protection Protection) (key crypto.Signer, protectedBy string, err error) {
	sealer, err := openKey(filepath.Join(dir, stateKeyName), false, protection)
	if err != nil {
		return nil, "", err
	}
	der, err := sealer.ReadSealed(filepath.Join(dir, roleKeyName), roleKeyLabel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", catalog.Wrap(catalog.KeyFileMissing, err, "%s holds no key of a role; run `postern gateway init` or `postern connector join`", dir)
	}
	if err != nil {
		return nil, "", catalog.Wrap(catalog.KeyFileWrong, err, "the key in %s cannot be opened with its %s", dir, stateKeyName)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, "", catalog.Wrap(catalog.KeyFileWrong, err, "the key in %s is damaged", dir)
	}
	return parsed.(crypto.Signer), sealer.Protection(), nil
}

// NewGateway describes the gateway that [InitGateway] makes.
type NewGateway struct {
	Dir, Name, SiteRoot, Listen string
	TLS                         TLSFiles
}

// MadeGateway is what a person needs to list the gateway at the site.
type MadeGateway struct {
	Name   string `json:"name"`
	URL    string `json:"url"`
	Pin    string `json:"pin"`
	Config string `json:"config"`
}

// InitGateway makes a gateway's key in place and writes its configuration (design decision 15).
func InitGateway(ask NewGateway, protection Protection) (MadeGateway, error) {
	root, err := parsePin(ask.SiteRoot)
	if err != nil {
		return MadeGateway{}, err
	}
	listen := cmp.Or(ask.Listen, "127.0.0.1:8443")
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return MadeGateway{}, catalog.Errorf(catalog.InvalidArgument, "--listen is %q; give an address and a port, such as 0.0.0.0:443", listen)
	}
	config := Config{Role: Gateway, Name: ask.Name, SiteRoot: root, Listen: Listen{HTTPS: listen}}
	if config.TLS, err = ask.TLS.check(); err != nil {
		return MadeGateway{}, err
	}
	if problem := config.problem(); problem != "" {
		return MadeGateway{}, catalog.Errorf(catalog.InvalidArgument, "%s", problem)
	}
	path := filepath.Join(ask.Dir, "gateway.yaml")
	if exists(path) {
		return MadeGateway{}, catalog.Errorf(catalog.AlreadyExists, "%s exists already; choose another folder", path)
	}
	key, err := newRoleKey(ask.Dir, protection)
	if err != nil {
		return MadeGateway{}, err
	}
	if err := config.write(path, "# Gateway. docs/configuration.md lists every setting.\n"); err != nil {
		return MadeGateway{}, err
	}
	address := "https://" + ask.Name
	if port != "443" {
		address = "https://" + net.JoinHostPort(ask.Name, port)
	}
	return MadeGateway{Name: ask.Name, URL: address, Pin: token.Pin(key.Public()), Config: path}, nil
}

// check proves that certificate and key can be used together, and makes their paths good from anywhere.
func (f TLSFiles) check() (TLSFiles, error) {
	if f.Certificate == "" && f.Key == "" {
		return f, nil
	}
	if _, err := loadPair(f.Certificate, f.Key); err != nil {
		return f, err
	}
	var err error
	if f.Certificate, err = filepath.Abs(f.Certificate); err != nil {
		return f, err
	}
	f.Key, err = filepath.Abs(f.Key)
	return f, err
}

// parsePin checks a hash of a public key as the commands print it.
func parsePin(pin string) (string, error) {
	pin = strings.ToLower(strings.TrimPrefix(strings.TrimSpace(pin), "sha256:"))
	if sum, err := hex.DecodeString(pin); err != nil || len(sum) != 32 {
		return "", catalog.Errorf(catalog.InvalidArgument, "the hash of the site root is 64 hexadecimal digits; copy it from `postern site init`")
	}
	return pin, nil
}

// selfSigned is the certificate that a gateway shows to connectors, which look at nothing but its key.
func selfSigned(key crypto.Signer, name string, now time.Time) (tls.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(10 * 365 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// NewConnector describes the connector that [JoinConnector] makes.
type NewConnector struct {
	Dir, ManagementPoint string
	Code                 string // the one-time code, a dot, and the hash of the site root
}

// MadeConnector is what a person sees after joining.
type MadeConnector struct {
	Name     string    `json:"name"`
	SiteCode string    `json:"site_code"`
	Expires  time.Time `json:"certificate_expires"`
	Config   string    `json:"config"`
}

// joinReply is the management point's answer to /postern/join.
type joinReply struct {
	Chain           [][]byte `json:"chain"`
	SiteCode        string   `json:"site_code"`
	ManagementPoint string   `json:"management_point"`
}

// JoinConnector makes a connector's key in place, redeems the one-time code for a role certificate and writes the configuration. No
// role key is left behind when the management point refuses, so that the same folder serves for the next code.
func JoinConnector(ctx context.Context, ask NewConnector, protection Protection, now func() time.Time) (made MadeConnector, err error) {
	code, root, _ := strings.Cut(ask.Code, ".")
	if root, err = parsePin(root); err != nil {
		return made, catalog.Errorf(catalog.InvitationInvalid, "the code has two parts with a dot between; copy all of it from `postern site connector invite`")
	}
	path := filepath.Join(ask.Dir, "connector.yaml")
	if exists(path) {
		return made, catalog.Errorf(catalog.AlreadyExists, "%s exists already; choose another folder", path)
	}
	key, err := newRoleKey(ask.Dir, protection)
	if err != nil {
		return made, err
	}
	defer func() {
		if err != nil {
			os.Remove(filepath.Join(ask.Dir, roleKeyName))
		}
	}()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "connector"}}, key)
	if err != nil {
		return made, err
	}
	roots, err := auth.NewAnchors(root, nil, nil, now)
	if err != nil {
		return made, err
	}
	reply, err := join(ctx, ask.ManagementPoint, roots, code, csr, now)
	if catalog.CodeOf(rootCause(err)) == catalog.RoleCertificateRoot && led(ctx, ask.ManagementPoint, roots) {
		reply, err = join(ctx, ask.ManagementPoint, roots, code, csr, now)
	}
	if err != nil {
		return made, err
	}
	name, leaf, err := checkChainUnder(reply.Chain, roots, token.RoleConnector, now())
	if err != nil {
		return made, err
	}
	if err := keyfile.WriteFile(filepath.Join(ask.Dir, roleCertName), encodeChain(reply.Chain)); err != nil {
		return made, err
	}
	config := Config{Role: Connector, Name: name, SiteRoot: roots.Newest(), ManagementPoint: strings.TrimRight(ask.ManagementPoint, "/"), Connections: 2}
	if err := config.write(path, "# Connector. docs/configuration.md lists every setting.\n"); err != nil {
		return made, err
	}
	return MadeConnector{Name: name, SiteCode: reply.SiteCode, Expires: leaf.NotAfter, Config: path}, nil
}

// led reports whether a management point that shows another site root than the one of the code has proved that it took that one's place.
func led(ctx context.Context, point string, roots *auth.Anchors) bool {
	u, err := url.Parse(point)
	if err != nil {
		return false
	}
	links, err := connector.AskRoots(ctx, net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "443")))
	if err != nil {
		return false
	}
	changed, err := roots.Follow(links)
	return changed && err == nil
}

func join(ctx context.Context, point string, roots auth.Roots, code string, csr []byte, now func() time.Time) (reply joinReply, err error) {
	body, err := json.Marshal(map[string]any{"code": code, "csr": csr})
	if err != nil {
		return reply, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(point, "/")+"/postern/join", strings.NewReader(string(body)))
	if err != nil || request.URL.Scheme != "https" {
		return reply, catalog.Errorf(catalog.InvalidArgument, "--mp is %q; give the https address of the management point", point)
	}
	request.Header.Set("Content-Type", "application/json")
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: underTLS(roots, token.RoleManagementPoint, now)}}
	response, err := client.Do(request)
	if err != nil {
		return reply, catalog.Wrap(catalog.JoinUnreachable, err, "the management point %s cannot be reached or is not of this site: %s", point, rootCause(err))
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return reply, err
	}
	if response.StatusCode != http.StatusOK {
		return reply, problemError(content, response.Status)
	}
	return reply, json.Unmarshal(content, &reply)
}

// PinnedTLS trusts servers that hold a certificate for the role under the site root, and nobody else.
func PinnedTLS(root, role string, now func() time.Time) *tls.Config {
	return underTLS(auth.RootPin(root), role, now)
}

// problemError turns a problem document into an error with its code.
func problemError(content []byte, status string) error {
	var problem struct {
		Code   catalog.Code `json:"code"`
		Detail string       `json:"detail"`
	}
	if json.Unmarshal(content, &problem) == nil && problem.Code != "" {
		return catalog.Errorf(problem.Code, "%s", problem.Detail)
	}
	return catalog.Errorf(catalog.JoinUnreachable, "the management point answered %s", status)
}

func rootCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

func encodeChain(chain [][]byte) []byte {
	var out []byte
	for _, der := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

func decodeChain(content []byte) (chain [][]byte) {
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			return chain
		}
		chain = append(chain, block.Bytes)
	}
}
