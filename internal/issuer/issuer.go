// Package issuer is a stand-in for Microsoft Entra, for the lab and for tests: a real
// HTTPS server on loopback that speaks Entra's discovery, key, token and device code
// endpoints and mints tokens of Entra's shape, version 1.0 and 2.0, for devices and
// users. Start with [Start]. Microsoft's own client library gets tokens from it, with
// instance discovery off and its authority trusted.
//
// It is no identity provider: it knows no password, it believes whoever runs it, and
// [Issuer.Mint] signs anything, also what no provider would.
package issuer

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/token"
)

// Description is the first line of whatever the stand-in says of itself.
const Description = "Stand-in for Microsoft Entra (Postern lab): it is not a real identity provider."

// Version is the form of a token.
type Version string

// The versions; the resource decides which one its tokens have.
const (
	V1 Version = "1.0"
	V2 Version = "2.0"
)

// Options are what an Issuer needs; the zero value works.
type Options struct {
	Address   string           // host:port of a loopback address; "" means 127.0.0.1:0
	Tenant    string           // id of its tenant, a GUID; "" makes one
	Resource  string           // App ID URI of the site's server app; "" means https://ConfigMgrService
	ServerApp string           // client id of that app, the aud of v2 tokens; "" makes one
	ClientApp string           // client id of the native app; "" makes one
	Version   Version          // of the tokens from the token endpoints; "" means 1.0
	Lifetime  time.Duration    // of tokens; 0 means one hour
	CA        *tls.Certificate // signs its server certificate; nil makes one
	Now       func() time.Time // nil means time.Now
}

// Device is a device that has joined the tenant.
type Device struct {
	ID          string            // deviceid, a GUID; "" makes one
	ObjectID    string            // oid, a GUID; "" makes one
	OnPremSID   string            // of a hybrid joined device
	Certificate *x509.Certificate // of its workplace join; only the token endpoint needs it
}

// User is a person of the tenant.
type User struct {
	ObjectID  string // oid, a GUID; "" makes one
	Name      string // user principal name
	OnPremSID string
	Device    string // deviceid of the device that the person signs in from, or ""
}

// Fetches counts the answered requests.
type Fetches struct {
	Discovery, Keys, Token, DeviceCode int
}

// Issuer is a running stand-in. It is safe for concurrent use.
type Issuer struct {
	options  Options
	host     string
	listener net.Listener
	server   *http.Server
	served   chan error
	ca       tls.Certificate

	mu      sync.Mutex
	keys    []signingKey // the last one signs
	devices []Device
	users   []User
	codes   map[string]*deviceCode // by device code
	refresh map[string]User        // by refresh token
	refusal *refusal
	down    bool
	fetches Fetches
}

type signingKey struct {
	id  string
	key *rsa.PrivateKey
}

// Start starts a stand-in; Close ends it.
func Start(o Options) (*Issuer, error) {
	if err := complete(&o); err != nil {
		return nil, err
	}
	i := &Issuer{options: o, served: make(chan error, 1), codes: map[string]*deviceCode{}, refresh: map[string]User{}}
	if err := i.Rotate(); err != nil {
		return nil, err
	}
	var err error
	if i.listener, err = net.Listen("tcp", o.Address); err != nil {
		return nil, fmt.Errorf("start the stand-in for Entra: %w", err)
	}
	if !i.listener.Addr().(*net.TCPAddr).IP.IsLoopback() {
		return nil, errors.Join(fmt.Errorf("start the stand-in for Entra: %s is not a loopback address", o.Address), i.listener.Close())
	}
	i.host = i.listener.Addr().String()
	certificate, err := i.certificate()
	if err != nil {
		return nil, errors.Join(err, i.listener.Close())
	}
	i.server = &http.Server{
		Handler:           i.handler(),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // who distrusts its certificate says so itself
	}
	go func() { i.served <- i.server.ServeTLS(i.listener, "", "") }()
	return i, nil
}

func complete(o *Options) error {
	for _, field := range []struct {
		value    *string
		standard string
	}{
		{&o.Address, "127.0.0.1:0"}, {&o.Tenant, newGUID()}, {&o.Resource, "https://ConfigMgrService"},
		{&o.ServerApp, newGUID()}, {&o.ClientApp, newGUID()}, {(*string)(&o.Version), string(V1)},
	} {
		if *field.value == "" {
			*field.value = field.standard
		}
	}
	o.Tenant = strings.ToLower(o.Tenant)
	if o.Version != V1 && o.Version != V2 {
		return fmt.Errorf("version %q: want %s or %s", o.Version, V1, V2)
	}
	if o.Lifetime == 0 {
		o.Lifetime = time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return nil
}

// Close ends it.
func (i *Issuer) Close() error {
	err := i.server.Close()
	if served := <-i.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Tenant returns the tenant as a site would onboard it, with the keys of this moment.
func (i *Issuer) Tenant() token.Tenant {
	return token.Tenant{
		ID: i.options.Tenant, Issuers: []string{i.IssuerOf(V1), i.IssuerOf(V2)},
		Audiences: []string{i.options.Resource, i.options.ServerApp},
		ClientApp: i.options.ClientApp, Resource: i.options.Resource, Keys: i.jwks(),
	}
}

// Authority is what Microsoft's library calls the authority: https://host:port/<tenant>.
func (i *Issuer) Authority() string { return "https://" + i.host + "/" + i.options.Tenant }

// IssuerOf returns the issuer of tokens of that version, as Entra forms it.
func (i *Issuer) IssuerOf(v Version) string {
	if v == V2 {
		return i.Authority() + "/v2.0"
	}
	return i.Authority() + "/"
}

// AddDevice joins a device and returns it with its ids.
func (i *Issuer) AddDevice(d Device) Device {
	d.ID, d.ObjectID = orGUID(d.ID), orGUID(d.ObjectID)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.devices = append(i.devices, d)
	return d
}

// RemoveDevice ends a device's join; its next request for a token is refused.
func (i *Issuer) RemoveDevice(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.devices = slices.DeleteFunc(i.devices, func(d Device) bool { return strings.EqualFold(d.ID, id) })
}

// AddUser adds a person and returns it with its id.
func (i *Issuer) AddUser(u User) User {
	u.ObjectID = orGUID(u.ObjectID)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.users = append(i.users, u)
	return u
}

// Rotate makes a new key and signs with it from now on; the earlier ones stay
// published until Forget.
func (i *Issuer) Rotate() error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("make a signing key: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append(i.keys, signingKey{id: random(20), key: key})
	return nil
}

// Forget publishes no key but the one that signs.
func (i *Issuer) Forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = i.keys[len(i.keys)-1:]
}

// Down makes it unreachable: every connection breaks off without an answer.
func (i *Issuer) Down() { i.set(func() { i.down = true }) }

// Up makes it reachable again.
func (i *Issuer) Up() { i.set(func() { i.down = false }) }

// Refuse has the token endpoints answer with this error until it is called with 0,
// such as 50076 (interaction needed) or 7000222 (secret expired).
func (i *Issuer) Refuse(aadsts int, description string) {
	i.set(func() {
		if i.refusal = nil; aadsts != 0 {
			i.refusal = &refusal{status: http.StatusBadRequest, name: "invalid_grant", aadsts: aadsts, text: description}
		}
	})
}

func (i *Issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

// Fetches returns how many requests were answered.
func (i *Issuer) Fetches() Fetches {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

func orGUID(id string) string {
	if id == "" {
		return newGUID()
	}
	return strings.ToLower(id)
}

func newGUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	text := hex.EncodeToString(b[:])
	return strings.Join([]string{text[:8], text[8:12], text[12:16], text[16:20], text[20:]}, "-")
}
