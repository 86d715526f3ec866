package swarm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// device is one simulated device: its key, what it is registered as, and its tokens.
type device struct {
	number    int
	key       *rsa.PrivateKey
	id        ccm.ClientID
	ccm       string
	selfProve string
	status    ccm.ApprovalStatus // as the last token answer told it
}

// world is what the devices know: the two ways, whom they trust, and what time it is.
type world struct {
	gateway string // https://host:port/CCM_Proxy_ServerAuth/<id>
	inside  string // https://host:port of the management point
	trust   *tls.Config
	now     func() time.Time
}

func (d *device) name() string { return fmt.Sprintf("SWARM%05d", d.number) }

// address is the device's own on the loopback network, so that a limit for each address sees as many as there are devices.
func (d *device) address() net.IP {
	n := d.number + 1
	return net.IPv4(127, byte(20+n>>16), byte(n>>8), byte(n))
}

// session is one connection of a device, kept for what it does in a row.
type session struct {
	*device
	world  *world
	client *http.Client
	sent   *atomic.Int64 // counts its requests
}

// requestTime bounds one request of a device.
const requestTime = 60 * time.Second

func (d *device) session(w *world) *session {
	dialer := &net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: d.address()}}
	transport := &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: w.trust, TLSHandshakeTimeout: 20 * time.Second,
		MaxIdleConnsPerHost: 1, ReadBufferSize: 2 << 10, WriteBufferSize: 2 << 10,
	}
	return &session{d, w, &http.Client{Transport: transport, Timeout: requestTime}, new(atomic.Int64)}
}

func (s *session) close() { s.client.CloseIdleConnections() }

// refusal is an answer that is none of those that were wanted.
type refusal struct {
	status int
	code   catalog.Code
	after  time.Duration // from Retry-After
}

func (r *refusal) Error() string { return fmt.Sprintf("status %d %s", r.status, r.code) }

// transient reports whether trying again later may help.
func transient(err error) bool {
	if said, ok := errors.AsType[*refusal](err); ok {
		return said.status == http.StatusTooManyRequests || said.status >= 500
	}
	return err != nil
}

// do sends one request with a token, when there is one, and a proof of the device's key.
func (s *session) do(ctx context.Context, method, address, query, contentType, accessToken string, body []byte) ([]byte, error) {
	proof, err := token.SignProof(s.key, method, address, accessToken, s.world.now(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, method, address+query, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("DPoP", proof)
	if accessToken != "" {
		request.Header.Set("Authorization", "DPoP "+accessToken)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	s.sent.Add(1)
	response, err := s.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		said := &refusal{status: response.StatusCode}
		var problem struct {
			Code catalog.Code `json:"code"`
		}
		if json.Unmarshal(answer, &problem) == nil {
			said.code = problem.Code
		}
		if seconds, err := time.ParseDuration(response.Header.Get("Retry-After") + "s"); err == nil {
			said.after = seconds
		}
		return nil, said
	}
	return answer, nil
}

const (
	grantExchange  = "urn:ietf:params:oauth:grant-type:token-exchange"
	grantAssertion = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	tokenURN       = "urn:postern:token:"
)

// exchange asks CCM_STS for a token; with an assertion of the registered key where one is wanted.
func (s *session) exchange(ctx context.Context, base, shown string, want token.Kind) (string, error) {
	address := base + "/CCM_STS"
	form := url.Values{"grant_type": {grantExchange}, "requested_token_type": {tokenURN + string(want)}}
	if want == token.KindSelfProve || shown == "" {
		assertion, err := token.SignAssertion(s.key, s.id, address, s.world.now())
		if err != nil {
			return "", err
		}
		form.Set("grant_type", grantAssertion)
		form.Set("assertion", assertion)
	}
	answer, err := s.do(ctx, http.MethodPost, address, "", "application/x-www-form-urlencoded", shown, []byte(form.Encode()))
	if err != nil {
		return "", err
	}
	var got struct {
		Token    string `json:"access_token"`
		ClientID string `json:"client_id"`
		Status   int    `json:"approval_status"`
	}
	if err := json.Unmarshal(answer, &got); err != nil || got.Token == "" {
		return "", errors.New("the token service's answer holds no token")
	}
	if s.id, err = ccm.ParseClientID(got.ClientID); err != nil {
		return "", err
	}
	s.status = ccm.ApprovalStatus(got.Status)
	return got.Token, nil
}

// register sends the registration message, by the token of the moment.
func (s *session) register(ctx context.Context, base string) error {
	now := s.world.now()
	certificate, err := ccm.NewClientCertificate(s.key, s.name(), ccm.UsageSigning|ccm.UsageEncryption, now, rand.Reader)
	if err != nil {
		return err
	}
	xml, err := ccm.BuildRegistration(ccm.RegistrationRequest{
		Type: ccm.RegistrationTypeRegistration, TimeStamp: now.UTC().Format(time.RFC3339), Agent: ccm.Agent{Identity: "swarm", Version: "5.00.9128.1000"},
		Signing: certificate, Encryption: certificate, KeyType: 1,
		Properties: map[string]string{"NetBIOS Name": s.name(), "FQ Name": strings.ToLower(s.name()) + ".swarm.test", "HardwareID1": fmt.Sprintf("2:%040X", s.number)},
	}, s.key)
	if err != nil {
		return err
	}
	header := ccm.Header{TargetEndpoint: "MP_ClientRegistration", SourceHost: s.name(), ReplyTo: "direct:" + s.name() + ":SccmMessaging", ReplyMode: "Sync", Compressed: true, ReplyCompression: "zlib"}
	contentType, body, err := ccm.EncodeRequest(header, xml, nil)
	if err != nil {
		return err
	}
	answer, err := s.do(ctx, "CCM_POST", base+"/ccm_system_tokenauth/request", "", contentType, s.ccm, body)
	if err == nil && len(answer) == 0 {
		err = errors.New("the registration was not taken")
	}
	return err
}

// enrol is the first day: token exchange, registration, both tokens.
func (s *session) enrol(ctx context.Context, bulk string) (err error) {
	base := s.world.gateway
	if s.ccm, err = s.exchange(ctx, base, bulk, token.KindCCM); err != nil {
		return err
	}
	if err = s.register(ctx, base); err != nil {
		return err
	}
	if s.ccm, err = s.exchange(ctx, base, bulk, token.KindCCM); err != nil {
		return err
	}
	s.selfProve, err = s.exchange(ctx, base, bulk, token.KindSelfProve)
	return err
}

// renew gets a CCM token by the self-prove token, as each device does before its eight hours are over.
func (s *session) renew(ctx context.Context, base string) (err error) {
	s.ccm, err = s.exchange(ctx, base, s.selfProve, token.KindCCM)
	return err
}

// prolong renews the self-prove token by itself, as each device does once a month.
func (s *session) prolong(ctx context.Context, base string) (err error) {
	s.selfProve, err = s.exchange(ctx, base, s.selfProve, token.KindSelfProve)
	return err
}

// showKey is the return after a long absence: the registered key alone, through the gateway.
func (s *session) showKey(ctx context.Context) (err error) {
	s.ccm, err = s.exchange(ctx, s.world.gateway, "", token.KindCCM)
	return err
}

// settle is what follows: a fresh registration, and a self-prove token.
func (s *session) settle(ctx context.Context) (err error) {
	if err = s.register(ctx, s.world.gateway); err != nil {
		return err
	}
	s.selfProve, err = s.exchange(ctx, s.world.gateway, "", token.KindSelfProve)
	return err
}

// policy asks for something that any device may have, by the CCM token: a request like those of its day.
func (s *session) policy(ctx context.Context, base string) error {
	_, err := s.do(ctx, http.MethodGet, base+"/SMS_MP_TokenAuth/.sms_aut", "?MPLIST", "", s.ccm, nil)
	return err
}
