package kerberos

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/asn1tools"
	"github.com/jcmturner/gokrb5/v8/gssapi"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/spnego"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
	"postern/diag"
)

// maxToken bounds a token in WWW-Authenticate, maxProblem the body that explains a
// refusal.
const (
	maxToken   = 64 << 10
	maxProblem = 64 << 10
)

// anonymous is what the server answered to a request without credentials.
type anonymous struct {
	url    *url.URL
	offers []string // the schemes of WWW-Authenticate
	leaf   *x509.Certificate
}

// httpClient speaks to the server alone: no proxy, no redirect, and where the person
// said. The certificate is not judged here, because a management point's is often the
// site's own: the ticket is bound to it (RFC 5929), so that nobody between can use it,
// and the server proves itself by Kerberos.
func (r *run) httpClient() *http.Client {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if r.Address != "" {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			address = withPort(r.Address, port)
		}
		return r.dialer().DialContext(ctx, network, address)
	}
	return &http.Client{
		Timeout: r.Timeout,
		Transport: &http.Transport{
			DialContext: dial, DisableKeepAlives: true, TLSHandshakeTimeout: r.Timeout, MaxResponseHeaderBytes: 128 << 10,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: r.host},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// send sends an empty registration request, as some clients do first.
func (r *run) send(ctx context.Context, to *url.URL, authorization string) (*http.Response, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, "CCM_POST", to.String(), http.NoBody)
	if err != nil {
		return nil, nil, err
	}
	request.Header.Set("User-Agent", "postern kerberos check")
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	response, err := r.httpClient().Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, maxProblem)) // a body cut short still has its status
	return response, body, nil
}

// checkRequest sends the request that a client sends first: without credentials (S0, S1).
func (r *run) checkRequest(ctx context.Context) []diag.Finding {
	if len(r.urls) == 0 {
		return []diag.Finding{diag.NotLooked("no server was named: give --server")}
	}
	var failures []string
	for _, to := range r.urls {
		before := r.Now()
		response, _, err := r.send(ctx, to, "")
		if err != nil {
			failures = append(failures, fmt.Sprintf("%s: %v", to, plain(inner(err))))
			continue
		}
		r.anon = &anonymous{url: to, offers: schemes(response.Header)}
		if response.TLS != nil && len(response.TLS.PeerCertificates) > 0 {
			r.anon.leaf = response.TLS.PeerCertificates[0]
		}
		return append([]diag.Finding{judgeInvitation(to, response)}, r.serverClock(response, before)...)
	}
	return []diag.Finding{diag.Found(diag.Fail, catalog.CheckServerUnreachable, "%s", strings.Join(failures, "\n"))}
}

func inner(err error) error {
	var failed *url.Error
	if errors.As(err, &failed) {
		return failed.Err
	}
	return err
}

// schemes are the words that WWW-Authenticate begins with, lower case.
func schemes(header http.Header) (words []string) {
	for _, value := range header.Values("WWW-Authenticate") {
		for _, part := range strings.Split(value, ",") {
			word, _, _ := strings.Cut(strings.TrimSpace(part), " ")
			if word != "" && !strings.Contains(word, "=") && len(words) < 16 {
				words = append(words, strings.ToLower(word))
			}
		}
	}
	return words
}

// judgeInvitation says whether the answer to an anonymous request is the healthy one.
func judgeInvitation(to *url.URL, response *http.Response) diag.Finding {
	offers := schemes(response.Header)
	words := fmt.Sprintf("CCM_POST %s: %d", to, response.StatusCode)
	if len(offers) > 0 {
		words += ", WWW-Authenticate: " + strings.Join(offers, ", ")
	}
	negotiate, ntlm := slices.Contains(offers, "negotiate"), slices.Contains(offers, "ntlm")
	switch {
	case response.StatusCode == http.StatusUnauthorized && negotiate:
		return diag.Good("the server invites to authenticate", "%s", words)
	case ntlm && !negotiate:
		return diag.Found(diag.Fail, catalog.CheckNTLMOnly, "%s", words)
	case response.StatusCode == http.StatusNotFound || response.StatusCode >= 500 || response.StatusCode == http.StatusMethodNotAllowed:
		return diag.Found(diag.Fail, catalog.CheckServerAnswer, "%s", words)
	}
	return diag.Found(diag.Fail, catalog.CheckNoNegotiate, "%s", words)
}

// serverClock compares by the header Date, which is good to a second.
func (r *run) serverClock(response *http.Response, before time.Time) []diag.Finding {
	date, err := http.ParseTime(response.Header.Get("Date"))
	if err != nil {
		return nil
	}
	middle := before.Add(r.Now().Sub(before) / 2).Add(r.offset)
	ahead := date.Add(time.Second / 2).Sub(middle)
	if r.answered {
		return []diag.Finding{judgeClock("the KDC of "+r.realm, r.host, ahead)}
	}
	return []diag.Finding{judgeClock("this machine", r.host, ahead)}
}

// checkAnswer sends the same request with the ticket.
func (r *run) checkAnswer(ctx context.Context) []diag.Finding {
	switch {
	case len(r.urls) == 0:
		return []diag.Finding{diag.NotLooked("no server was named: give --server")}
	case r.anon == nil:
		return []diag.Finding{diag.NotLooked("the server did not answer")}
	case !slices.Contains(r.anon.offers, "negotiate"):
		return []diag.Finding{diag.NotLooked("the server does not ask for a ticket")}
	case r.service == nil:
		return []diag.Finding{diag.NotLooked("there is no ticket for the management point")}
	}
	token, authenticator, err := r.negotiateToken()
	if err != nil {
		return []diag.Finding{diag.FromError(diag.Fail, err, catalog.CheckTicketRefused)}
	}
	response, body, err := r.send(ctx, r.anon.url, "Negotiate "+base64.StdEncoding.EncodeToString(token))
	if err != nil {
		return []diag.Finding{diag.Found(diag.Fail, catalog.CheckServerUnreachable, "%s: %v", r.anon.url, plain(inner(err)))}
	}
	return []diag.Finding{r.judgeAnswer(response, body, authenticator)}
}

// negotiateToken wraps the ticket as a client does: SPNEGO around GSS-API around an
// AP-REQ that asks the server to prove itself (RFC 4121, RFC 4178).
func (r *run) negotiateToken() ([]byte, types.Authenticator, error) {
	request, authenticator, err := r.gssRequest(r.service, bindingOf(r.anon.leaf), gssapi.ContextFlagMutual|gssapi.ContextFlagInteg)
	if err != nil {
		return nil, authenticator, err
	}
	var first spnego.NegTokenInit
	first.MechTypes = append(first.MechTypes, gssapi.OIDKRB5.OID(), gssapi.OIDMSLegacyKRB5.OID())
	first.MechTokenBytes = request
	token := spnego.SPNEGOToken{Init: true, NegTokenInit: first}
	encoded, err := token.Marshal()
	return encoded, authenticator, err
}

// krb5OID is 1.2.840.113554.1.2.2, encoded.
var krb5OID = []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x12, 0x01, 0x02, 0x02}

// gssRequest is the first token of a GSS-API context (RFC 4121 4.1).
func (r *run) gssRequest(t *ticket, binding []byte, wanted uint32) ([]byte, types.Authenticator, error) {
	sum := make([]byte, 24)
	binary.LittleEndian.PutUint32(sum, 16)
	copy(sum[4:20], binding)
	binary.LittleEndian.PutUint32(sum[20:], wanted)
	request, authenticator, err := r.apRequest(t, types.Checksum{CksumType: chksumtype.GSSAPI, Checksum: sum})
	if err != nil {
		return nil, authenticator, err
	}
	types.SetFlag(&request.APOptions, flags.APOptionMutualRequired)
	encoded, err := request.Marshal()
	if err != nil {
		return nil, authenticator, err
	}
	return asn1tools.AddASNAppTag(slices.Concat(krb5OID, []byte{1, 0}, encoded), 0), authenticator, nil
}

// bindingOf is the hash of the channel binding tls-server-end-point (RFC 5929 4, RFC
// 4121 4.1.1.2); zeros without TLS.
func bindingOf(leaf *x509.Certificate) []byte {
	if leaf == nil {
		return make([]byte, md5.Size)
	}
	var digest []byte
	switch leaf.SignatureAlgorithm {
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		sum := sha512.Sum384(leaf.Raw)
		digest = sum[:]
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		sum := sha512.Sum512(leaf.Raw)
		digest = sum[:]
	default:
		sum := sha256.Sum256(leaf.Raw)
		digest = sum[:]
	}
	data := append([]byte("tls-server-end-point:"), digest...)
	encoded := make([]byte, 16, 20+len(data)) // no addresses: two types and two lengths of zero
	encoded = binary.LittleEndian.AppendUint32(encoded, uint32(len(data)))
	hash := md5.Sum(append(encoded, data...))
	return hash[:]
}

// reply is what the server's token says: its proof, or its reason.
type reply struct {
	proof  *messages.APRep
	reason *messages.KRBError
}

// parseReply reads the token of an answer: SPNEGO or bare Kerberos.
func parseReply(token []byte) (parsed reply, err error) {
	defer guard(&err)
	if len(token) == 0 || len(token) > maxToken {
		return parsed, errors.New("no token")
	}
	if _, negotiated, err := spnego.UnmarshalNegToken(token); err == nil {
		response, ok := negotiated.(spnego.NegTokenResp)
		if !ok {
			return parsed, errors.New("not an answer")
		}
		if len(response.ResponseToken) == 0 {
			return parsed, nil
		}
		token = response.ResponseToken
	}
	var inner spnego.KRB5Token
	if err := inner.Unmarshal(token); err != nil {
		return parsed, errors.New("not a token of Kerberos")
	}
	if inner.IsAPRep() {
		parsed.proof = &inner.APRep
	}
	if inner.IsKRBError() {
		parsed.reason = &inner.KRBError
	}
	return parsed, nil
}

// tokenOf returns the token beside Negotiate in the answer's header.
func tokenOf(header http.Header) []byte {
	for _, value := range header.Values("WWW-Authenticate") {
		scheme, text, _ := strings.Cut(strings.TrimSpace(value), " ")
		if !strings.EqualFold(scheme, "Negotiate") || len(text) > maxToken*4/3+4 {
			continue
		}
		if token, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text)); err == nil && len(token) > 0 {
			return token
		}
	}
	return nil
}

// proves says whether the server's proof is for our request (RFC 4120 3.2.4).
func (t *ticket) proves(proof *messages.APRep, ours types.Authenticator) bool {
	part, err := openProof(proof, t.key)
	return err == nil && part.CTime.Equal(ours.CTime) && part.Cusec == ours.Cusec
}

func openProof(proof *messages.APRep, k types.EncryptionKey) (part messages.EncAPRepPart, err error) {
	defer guard(&err)
	inside, err := decrypt(proof.EncPart, k, keyusage.AP_REP_ENCPART)
	if err != nil {
		return part, err
	}
	return part, part.Unmarshal(inside)
}

// problem is the part of an answer's body that names the server's reason (RFC 9457).
type problem struct {
	Code   string `json:"code"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

func problemOf(header http.Header, body []byte) (p problem) {
	if kind, _, _ := strings.Cut(header.Get("Content-Type"), ";"); strings.TrimSpace(kind) != "application/problem+json" {
		return problem{}
	}
	if json.NewDecoder(bytes.NewReader(body)).Decode(&p) != nil {
		return problem{}
	}
	return p
}

func (p problem) String() string {
	if p.Code == "" {
		return ""
	}
	return strings.TrimSuffix(fmt.Sprintf("%s %s: %s", p.Code, p.Title, p.Detail), ": ")
}

// reasonCodes say what the reason in a server's token means.
var reasonCodes = map[int32]catalog.Code{
	errorcode.KRB_AP_ERR_MODIFIED:      catalog.CheckTicketUnreadable,
	errorcode.KRB_AP_ERR_BAD_INTEGRITY: catalog.CheckTicketUnreadable,
	errorcode.KRB_AP_ERR_NOKEY:         catalog.CheckTicketUnreadable,
	errorcode.KRB_AP_ERR_NOT_US:        catalog.CheckTicketUnreadable,
	errorcode.KRB_AP_ERR_BADKEYVER:     catalog.CheckTicketUnreadable,
	errorcode.KRB_AP_ERR_SKEW:          catalog.CheckClockSkew,
	errorcode.KRB_AP_ERR_TKT_NYV:       catalog.CheckClockSkew,
}

// judgeAnswer says what the server made of the ticket.
func (r *run) judgeAnswer(response *http.Response, body []byte, ours types.Authenticator) diag.Finding {
	words := fmt.Sprintf("CCM_POST %s with %s's ticket: %d", r.anon.url, r.service.client.PrincipalNameString(), response.StatusCode)
	said := problemOf(response.Header, body)
	if text := said.String(); text != "" {
		words += "\nthe server says " + text
	}
	parsed, _ := parseReply(tokenOf(response.Header)) // without a token, or with one of another kind, the status speaks
	proved := parsed.proof != nil && r.service.proves(parsed.proof, ours)
	accepted := response.StatusCode != http.StatusUnauthorized
	r.accepted = &accepted
	switch {
	case proved:
		if response.StatusCode == http.StatusBadRequest {
			words += ", as it should be: the request has no body"
		}
		return diag.Good("the server accepts the ticket and proves itself", "%s", words)
	case !accepted:
		return judgeRejection(words, said, parsed.reason)
	case response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusForbidden || response.StatusCode >= 500:
		r.accepted = nil
		return diag.Found(diag.Fail, catalog.CheckServerAnswer, "%s", words)
	}
	return diag.Found(diag.Warn, catalog.CheckNotMutual, "%s", words)
}

// judgeRejection says why: by the server's own code, else by the reason in its token.
func judgeRejection(words string, said problem, reason *messages.KRBError) diag.Finding {
	if code, ok := saidCodes[catalog.Code(said.Code)]; ok {
		return diag.Found(diag.Fail, code, "%s", words)
	}
	if reason != nil {
		words += "\nits token says " + errorcode.Lookup(reason.ErrorCode)
		if code, ok := reasonCodes[reason.ErrorCode]; ok {
			return diag.Found(diag.Fail, code, "%s", words)
		}
	}
	if said.Code == "" && reason == nil {
		// IIS says no more than this. With a ticket that a KDC has just given, the usual reason is the key.
		return diag.Found(diag.Fail, catalog.CheckTicketUnreadable, "%s, and the server does not say why; a ticket that the KDC has just given is usually refused because the server has another key", words)
	}
	return diag.Found(diag.Fail, catalog.CheckTicketRefused, "%s", words)
}

// saidCodes say what our own management point's reason means for the one who asks.
var saidCodes = map[catalog.Code]catalog.Code{
	catalog.KerberosKeyMissing:        catalog.CheckTicketUnreadable,
	catalog.KerberosKeyWrong:          catalog.CheckTicketUnreadable,
	catalog.KerberosClockSkew:         catalog.CheckClockSkew,
	catalog.KerberosTicketNotYetValid: catalog.CheckClockSkew,
	catalog.KerberosEncryptionRefused: catalog.CheckWeakTicket,
}
