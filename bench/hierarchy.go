//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"postern/ccm"
	"postern/gateway"
	"postern/internal/role"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// hierarchy is a site whose roles are processes of their own, started from configuration files as in a deployment, with the backend
// listed as one more management point, and a device that has enrolled.
type hierarchy struct {
	*group
	managementPoint, gateway, connector *process
	configs                             map[*process]role.Config
	address                             string // of the gateway
	host                                string // as devices write it
	roleID                              uint64 // of the backend
	secure, plain                       string // addresses of the backend
	device                              device
}

// device is an enrolled device: what signs its proofs, and its tokens.
type device struct {
	key       *rsa.PrivateKey
	caller    site.Caller // as one with a self-prove token
	id        ccm.ClientID
	token     string // CCM
	selfProve string
}

const actor = "bench"

// program finds the program that is measured; processes run in folders of their own.
func program(postern string) (string, error) {
	found, err := exec.LookPath(postern)
	if err != nil {
		return "", fmt.Errorf("%w; `make build` makes it", err)
	}
	return filepath.Abs(found)
}

func startHierarchy(ctx context.Context, g *group, postern string) (*hierarchy, error) {
	h := &hierarchy{group: g, configs: map[*process]role.Config{}}
	postern, err := program(postern)
	if err != nil {
		return nil, err
	}
	made, invitation, err := h.prepare(ctx)
	if err != nil {
		return nil, fmt.Errorf("make the site: %w", err)
	}
	for _, step := range []func() error{
		h.startBackend,
		func() (err error) { h.managementPoint, err = h.startRole("mp", postern, made.Config); return err },
		func() (err error) {
			h.gateway, err = h.startRole("gateway", postern, filepath.Join(g.dir, "gateway", "gateway.yaml"))
			return err
		},
		func() error { return h.startConnector(ctx, postern, invitation) },
		func() error { return h.gateway.await(func() bool { return h.carries(ctx) }) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// prepare makes the site and everything that it has to know, with the site's own acts and before any role runs.
func (h *hierarchy) prepare(ctx context.Context) (made role.MadeSite, invitation string, err error) {
	addresses := make([]string, 4)
	for i := range addresses {
		if addresses[i], err = freeAddress(); err != nil {
			return made, "", err
		}
	}
	h.address, h.secure, h.plain = addresses[1], addresses[2], addresses[3]
	ask := role.NewSite{Dir: filepath.Join(h.dir, "site"), Code: "BEN", HTTPS: addresses[0], Actor: actor}
	if made, err = role.InitSite(ctx, ask, role.Protection{}, time.Now); err != nil {
		return made, "", err
	}
	config, err := role.Load(made.Config)
	if err != nil {
		return made, "", err
	}
	opened, err := role.OpenSite(ctx, config, role.Protection{}, time.Now, nil)
	if err != nil {
		return made, "", err
	}
	defer opened.Close()
	if err := h.listGateway(ctx, opened.Site, made.SiteRoot); err != nil {
		return made, "", err
	}
	if err := h.listBackend(ctx, opened.Site); err != nil {
		return made, "", err
	}
	if h.device, err = enrol(ctx, opened.Site); err != nil {
		return made, "", fmt.Errorf("enrol: %w", err)
	}
	code, err := opened.Site.Invite(ctx, "bench1", actor)
	return made, code + "." + made.SiteRoot, err
}

func (h *hierarchy) listGateway(ctx context.Context, s *site.Site, root string) error {
	made, err := role.InitGateway(role.NewGateway{Dir: filepath.Join(h.dir, "gateway"), Name: "localhost", SiteRoot: root, Listen: h.address}, role.Protection{})
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(h.address)
	if err != nil {
		return err
	}
	h.host = net.JoinHostPort("localhost", port)
	_, err = s.AddGateway(ctx, made.URL, made.Pin, actor)
	return err
}

// listBackend lists the backend as a management point and gives it such a certificate, so that requests to it are admitted, looked up
// and verified as any others.
func (h *hierarchy) listBackend(ctx context.Context, s *site.Site) error {
	point, err := s.Enlist(ctx, site.ManagementPoint{Name: "BACKEND", FQDN: "backend.test", InternalURL: "https://" + h.secure, Names: []string{"127.0.0.1"}})
	if err != nil {
		return err
	}
	h.roleID = point.RoleID
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	chain, err := s.IssueRole(site.RoleManagementPoint, point.FQDN, key.Public(), []string{point.FQDN, "127.0.0.1"})
	if err != nil {
		return err
	}
	return writePair(filepath.Join(h.dir, "backend"), key, chain...)
}

// writePair writes a certificate and its key as NAME.crt and NAME.key.
func writePair(name string, key *ecdsa.PrivateKey, chain ...[]byte) error {
	var certificates bytes.Buffer
	for _, der := range chain {
		pem.Encode(&certificates, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name+".crt", certificates.Bytes(), 0o600); err != nil {
		return err
	}
	return os.WriteFile(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600)
}

// enrol registers a device with a bulk registration token and gets its CCM token, by the acts behind CCM_STS and registration.
func enrol(ctx context.Context, s *site.Site) (device, error) { return enrolAs(ctx, s, "BENCH1") }

// enrolAs is enrol for a device of that name. Its self-prove token is one, too.
func enrolAs(ctx context.Context, s *site.Site, name string) (device, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return device{}, err
	}
	thumbprint, err := proof.Thumbprint(&key.PublicKey)
	if err != nil {
		return device{}, err
	}
	_, bulk, err := s.NewBulkToken(ctx, site.NewBulk{MaxUses: 1, By: actor})
	if err != nil {
		return device{}, err
	}
	caller := site.Caller{
		Proof:   proof.Proof{Method: proof.BulkToken, Key: thumbprint, BulkID: bulk.ID, TokenID: bulk.ID, Address: "127.0.0.1"},
		Ceiling: proof.LevelManaged,
	}
	if _, err := s.IssueToken(ctx, site.Exchange{Caller: caller, Want: "ccm"}); err != nil {
		return device{}, err
	}
	request, err := registration(key, name)
	if err != nil {
		return device{}, err
	}
	if _, err := s.Register(ctx, caller, request); err != nil {
		return device{}, err
	}
	issued, err := s.IssueToken(ctx, site.Exchange{Caller: caller, Want: "ccm"})
	if err != nil {
		return device{}, err
	}
	caller.Method, caller.BulkID = proof.SelfProveToken, ""
	d := device{key: key, caller: caller, id: issued.Claims.Client, token: issued.Token}
	d.selfProve, err = d.newSelfProve(ctx, s)
	s.Flush(ctx)
	return d, err
}

// newSelfProve gets a self-prove token, as a device does right after it has registered.
func (d *device) newSelfProve(ctx context.Context, s *site.Site) (string, error) {
	const audience = "https://bench/CCM_STS"
	assertion, err := token.SignAssertion(d.key, d.id, audience, time.Now())
	if err != nil {
		return "", err
	}
	issued, err := s.IssueToken(ctx, site.Exchange{Caller: d.caller, Want: token.KindSelfProve, Assertion: assertion, Audience: audience})
	return issued.Token, err
}

func registration(key *rsa.PrivateKey, name string) (*ccm.RegistrationRequest, error) {
	now := time.Now()
	certificate, err := ccm.NewClientCertificate(key, "ConfigMgr Client", ccm.UsageSigning|ccm.UsageEncryption, now, rand.Reader)
	if err != nil {
		return nil, err
	}
	text, err := ccm.BuildRegistration(ccm.RegistrationRequest{
		Type: ccm.RegistrationTypeRegistration, TimeStamp: now.UTC().Format("2006-01-02T15:04:05Z"), Agent: ccm.Agent{Identity: "bench", Version: "5.00.9128.1000"},
		Signing: certificate, Encryption: certificate, KeyType: 1, Properties: map[string]string{"Netbios Name": name},
	}, key)
	if err != nil {
		return nil, err
	}
	utf16 := ccm.PolicyBody(text)[2:] // without the byte order mark
	return ccm.ParseRegistration(&ccm.Message{Body: append(utf16, 0, 0)})
}

func (h *hierarchy) startBackend() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	pair := filepath.Join(h.dir, "backend")
	p, err := h.start("backend", self, "backend", "-https", h.secure, "-http", h.plain, "-certificate", pair+".crt", "-key", pair+".key")
	if err != nil {
		return err
	}
	if err := p.awaitListener(h.secure); err != nil {
		return err
	}
	return p.awaitListener(h.plain)
}

// startRole starts a role and waits for its administration door.
func (h *hierarchy) startRole(name, postern, file string) (*process, error) {
	config, err := role.Load(file)
	if err != nil {
		return nil, err
	}
	p, err := h.start(name, postern, "serve", name, "--config", file)
	if err != nil {
		return nil, err
	}
	h.configs[p] = config
	return p, p.await(func() bool { return role.Knock(config) != nil })
}

func (h *hierarchy) startConnector(ctx context.Context, postern, invitation string) error {
	point := "https://" + h.configs[h.managementPoint].Listen.HTTPS
	joined, err := role.JoinConnector(ctx, role.NewConnector{Dir: filepath.Join(h.dir, "connector"), ManagementPoint: point, Code: invitation}, role.Protection{}, time.Now)
	if err != nil {
		return fmt.Errorf("join the connector: %w", err)
	}
	h.connector, err = h.startRole("connector", postern, joined.Config)
	return err
}

// carries reports whether the gateway knows the site, has the certificate that devices verify, and has all its connections.
func (h *hierarchy) carries(ctx context.Context) bool {
	door := role.Knock(h.configs[h.gateway])
	if door == nil {
		return false
	}
	health, err := door.Health(ctx)
	if err != nil {
		return false
	}
	content, err := json.Marshal(health.Detail["status"])
	if err != nil {
		return false
	}
	var status gateway.Status
	return json.Unmarshal(content, &status) == nil && status.Epoch > 0 && status.Certificate.Source == gateway.CertificateSite &&
		len(status.Connectors) == h.configs[h.connector].Connections
}
