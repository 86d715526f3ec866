package revocation

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	_ "crypto/sha1" // the names of issuers in OCSP are SHA-1 hashes (RFC 5019 2.1.1)
	"crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ocsp"

	"postern/catalog"
)

// Budgets of OCSP.
const (
	maxAnswer  = 128 << 10
	answerAge  = time.Hour // an answer is asked for again then, however far its next update
	getBytes   = 255       // longer addresses are posted (RFC 5019 5)
	nonceBytes = 32        // RFC 9654 2.1
)

// answer is what a responder said about one certificate, checked.
type answer struct {
	state      State
	thisUpdate time.Time
	nextUpdate time.Time
	revokedAt  time.Time
	reason     int
}

func (a *answer) ends(config Config) time.Time {
	if a.nextUpdate.IsZero() {
		return a.thisUpdate.Add(answerAge)
	}
	return a.nextUpdate.Add(config.Leeway)
}

// answerKey names one certificate at one responder.
type answerKey struct {
	responder string
	issuer    [sha256.Size]byte // of its name and key
	serial    serial
}

func keyOf(responder string, q question) answerKey {
	return answerKey{responder, sha256.Sum256(slices.Concat(q.issuer.RawSubject, q.issuer.RawSubjectPublicKeyInfo)), serialOfCertificate(q.certificate)}
}

// askStaple reads the answer that the server sent in the handshake. A bad one does no harm: others are asked.
func (c *Checker) askStaple(_ context.Context, q question) CertificateStatus {
	if len(q.staple) == 0 {
		return q.unknown(noSource(q, false))
	}
	a, err := c.readAnswer(q.staple, q, nil)
	if err != nil {
		return q.unknown(at("the answer that the server sent", err))
	}
	return a.status("stapled", q)
}

func (a *answer) status(source string, q question) CertificateStatus {
	return CertificateStatus{Certificate: q.certificate, State: a.state, Source: source, ThisUpdate: a.thisUpdate, NextUpdate: a.nextUpdate, RevokedAt: a.revokedAt, Reason: a.reason}
}

// askResponders asks one responder after the other, and leaves half of the time to the lists.
func (c *Checker) askResponders(ctx context.Context, q question) CertificateStatus {
	ctx, cancel := context.WithTimeout(ctx, c.config.Wait/2)
	defer cancel()
	best := q.unknown(noSource(q, false))
	for _, address := range slices.Concat(c.responders, c.named(q.certificate.OCSPServer)) {
		got := c.askResponder(ctx, address, q)
		if decided(got) {
			return got
		}
		best = better(best, got)
	}
	return best
}

func (c *Checker) askResponder(ctx context.Context, address string, q question) CertificateStatus {
	key := keyOf(address, q)
	cell := c.answers.cell(key, q.now)
	got := cell.ask(ctx, plan[*answer]{
		due:    func(v view[*answer]) bool { return c.answerDue(cell, v, q.now) },
		usable: func(v view[*answer]) bool { return v.held && !q.now.After(v.value.ends(c.config)) },
		load:   func(view[*answer]) (*answer, error) { return c.loadAnswer(address, q) },
		begin:  c.begin,
		now:    c.config.Now,
		wait:   true,
	})
	if !got.held {
		if got.err == nil {
			got.err = catalog.Errorf(catalog.RevocationUnreachable, "%s was not asked yet", address)
		}
		return q.unknown(got.err)
	}
	status := got.value.status(address, q)
	if status.State == StateGood && q.now.After(got.value.ends(c.config)) {
		fault := faultOf(catalog.Wrap(catalog.RevocationListDate, got.err, "the answer of %s was good until %s and could not be renewed", address, date(got.value.ends(c.config))))
		status.Stale, status.Code, status.Sentence, status.err = true, fault.Code, fault.Sentence, fault.err
	}
	return status
}

// answerDue says whether a responder shall be asked again about one certificate.
func (c *Checker) answerDue(cell *cell[*answer], v view[*answer], now time.Time) bool {
	if c.rests(cell.attempted, now) {
		return false
	}
	return !v.held || now.Sub(v.fetched) > answerAge || now.After(v.value.ends(c.config))
}

// loadAnswer asks a responder, unless it failed a moment ago.
func (c *Checker) loadAnswer(address string, q question) (*answer, error) {
	now := c.config.Now()
	if err := c.down.last(address, now.Add(-c.config.MinAge)); err != nil {
		return nil, err
	}
	var nonce []byte
	if c.config.Nonce {
		nonce = make([]byte, nonceBytes)
		rand.Read(nonce)
	}
	request, err := ocspRequest(address, q, nonce)
	if err != nil {
		return nil, err
	}
	got, err := c.fetcherFor(address).do(c.context, request, maxAnswer)
	if catalog.CodeOf(err) == catalog.RevocationUnreachable {
		c.down.note(address, now, err)
	}
	if err != nil {
		return nil, err
	}
	c.down.note(address, now, nil)
	a, err := c.readAnswer(got.body, q, nonce)
	if err != nil {
		return nil, at(address, err)
	}
	return a, nil
}

// ocspRequest is a GET when it is short and may be cached, otherwise a POST (RFC 6960 A.1).
func ocspRequest(address string, q question, nonce []byte) (*http.Request, error) {
	der, err := ocsp.CreateRequest(q.certificate, q.issuer, nil)
	if err == nil && nonce != nil {
		der, err = withNonce(der, nonce)
	}
	if err != nil {
		return nil, catalog.Wrap(catalog.RevocationAnswerRefused, err, "no question can be made about the certificate %s", describe(q.certificate))
	}
	short := strings.TrimSuffix(address, "/") + "/" + url.QueryEscape(base64.StdEncoding.EncodeToString(der))
	if nonce == nil && len(short) <= getBytes {
		return newRequest(http.MethodGet, short, nil)
	}
	return newRequest(http.MethodPost, address, der)
}

func newRequest(method, address string, body []byte) (*http.Request, error) {
	request, err := http.NewRequest(method, address, bytes.NewReader(body))
	if err != nil {
		return nil, catalog.Wrap(catalog.RevocationUnreachable, err, "%s cannot be asked", redacted(address))
	}
	request.Header.Set("Accept", "application/ocsp-response")
	if body != nil {
		request.Header.Set("Content-Type", "application/ocsp-request")
	}
	return request, nil
}

var oidNonce = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}

// withNonce adds the requestExtensions of RFC 6960 4.1.1 with a nonce to a request of x/crypto/ocsp.
func withNonce(der, nonce []byte) ([]byte, error) {
	var request, inner cryptobyte.String
	input := cryptobyte.String(der)
	if !input.ReadASN1(&request, cryptobyte_asn1.SEQUENCE) || !request.ReadASN1(&inner, cryptobyte_asn1.SEQUENCE) {
		return nil, errors.New("not an OCSP request")
	}
	var b cryptobyte.Builder
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(inner)
			b.AddASN1(cryptobyte_asn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) { addNonce(b, nonce) })
			})
		})
	})
	return b.Bytes()
}

func addNonce(b *cryptobyte.Builder, nonce []byte) {
	b.AddASN1(cryptobyte_asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidNonce)
		b.AddASN1(cryptobyte_asn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddASN1OctetString(nonce) })
	})
}

// readAnswer checks an OCSP response (RFC 6960 3.2): it is signed by the issuer or by somebody whom the issuer named for
// that, about this certificate of this issuer, in date, and made for this request when there is a nonce. Codes:
// RevocationAnswerRefused, RevocationAnswerNone.
func (c *Checker) readAnswer(raw []byte, q question, nonce []byte) (*answer, error) {
	if len(raw) > maxAnswer {
		return nil, refuse(nil, "it has %d bytes, at most %d are read", len(raw), maxAnswer)
	}
	response, err := ocsp.ParseResponseForCert(raw, q.certificate, nil)
	if status, ok := errors.AsType[ocsp.ResponseError](err); ok {
		return nil, catalog.Wrap(catalog.RevocationAnswerNone, err, "the responder answers with %q", status.Status.String())
	}
	if err != nil {
		return nil, refuse(err, "the answer cannot be read or is about another certificate")
	}
	if err := checkSigner(response, q); err != nil {
		return nil, err
	}
	if err := checkSubject(response.TBSResponseData, q, nonce); err != nil {
		return nil, err
	}
	if err := c.checkAnswerDates(response, q.now); err != nil {
		return nil, err
	}
	return answerOf(response)
}

func refuse(err error, format string, arguments ...any) error {
	return catalog.Wrap(catalog.RevocationAnswerRefused, err, format, arguments...)
}

func answerOf(response *ocsp.Response) (*answer, error) {
	a := &answer{thisUpdate: response.ThisUpdate, nextUpdate: response.NextUpdate}
	switch response.Status {
	case ocsp.Good:
		a.state = StateGood
	case ocsp.Revoked:
		a.state, a.revokedAt, a.reason = StateRevoked, response.RevokedAt, response.RevocationReason
	default:
		return nil, catalog.Errorf(catalog.RevocationAnswerNone, "the responder does not know the certificate")
	}
	return a, nil
}

// checkSigner checks the signature by the issuer, or by a responder whose certificate the issuer signed for that use.
func checkSigner(response *ocsp.Response, q question) error {
	if weakSignature(response.SignatureAlgorithm) {
		return refuse(nil, "it is signed with %s", response.SignatureAlgorithm)
	}
	signer := q.issuer
	if own := response.Certificate; own != nil && !bytes.Equal(own.RawSubjectPublicKeyInfo, q.issuer.RawSubjectPublicKeyInfo) {
		if err := checkResponder(own, q); err != nil {
			return err
		}
		signer = own
	}
	if err := response.CheckSignatureFrom(signer); err != nil {
		return refuse(err, "it is not signed by %s", describe(signer))
	}
	return nil
}

// checkResponder checks a delegated responder (RFC 6960 4.2.2.2).
func checkResponder(responder *x509.Certificate, q question) error {
	switch {
	case !bytes.Equal(responder.RawIssuer, q.issuer.RawSubject),
		q.issuer.CheckSignature(responder.SignatureAlgorithm, responder.RawTBSCertificate, responder.Signature) != nil:
		return refuse(nil, "its signer %s was not named by %s", describe(responder), describe(q.issuer))
	case !slices.Contains(responder.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		return refuse(nil, "its signer %s does not have the usage OCSP signing", describe(responder))
	case dateFault(responder, q.now) != "":
		return refuse(nil, "about its signer: %s", dateFault(responder, q.now))
	case weakness(responder, false) != "" || rsaBits(responder) > maxRSABits:
		return refuse(nil, "its signer %s has a weak key or signature", describe(responder))
	case len(responder.UnhandledCriticalExtensions) > 0:
		return refuse(nil, "its signer %s has a critical extension that is not understood", describe(responder))
	}
	return nil
}

// checkAnswerDates refuses what is from the future or out of date, as an answer is that somebody replays.
func (c *Checker) checkAnswerDates(response *ocsp.Response, now time.Time) error {
	a := answer{thisUpdate: response.ThisUpdate, nextUpdate: response.NextUpdate}
	switch {
	case response.ThisUpdate.After(now.Add(c.config.Leeway)):
		return refuse(nil, "it begins on %s, it is now %s", date(response.ThisUpdate), date(now))
	case now.After(a.ends(c.config)):
		return refuse(nil, "it was made on %s and is out of date, it is now %s", date(response.ThisUpdate), date(now))
	}
	return nil
}

// checkSubject compares what x/crypto/ocsp leaves out: that the answer is about this issuer's certificate, and its nonce.
func checkSubject(data []byte, q question, nonce []byte) error {
	var content, responses, extensions cryptobyte.String
	var present bool
	input := cryptobyte.String(data)
	zero, one := cryptobyte_asn1.Tag(0).ContextSpecific().Constructed(), cryptobyte_asn1.Tag(1).ContextSpecific().Constructed()
	var responder cryptobyte.String
	var tag cryptobyte_asn1.Tag
	if !input.ReadASN1(&content, cryptobyte_asn1.SEQUENCE) || !content.SkipOptionalASN1(zero) || !content.ReadAnyASN1(&responder, &tag) ||
		!content.SkipASN1(cryptobyte_asn1.GeneralizedTime) || !content.ReadASN1(&responses, cryptobyte_asn1.SEQUENCE) ||
		!content.ReadOptionalASN1(&extensions, &present, one) {
		return refuse(nil, "the answer cannot be read")
	}
	for !responses.Empty() {
		if err := checkSingle(&responses, q); err != nil {
			return err
		}
	}
	if nonce != nil && !bytes.Equal(nonceIn(extensions), nonce) {
		return refuse(nil, "it does not repeat the number of the request, as an old answer does")
	}
	return nil
}

// checkSingle refuses an answer about the same serial number of another issuer.
func checkSingle(responses *cryptobyte.String, q question) error {
	var single, id, algorithm, name, key, number cryptobyte.String
	var hashID asn1.ObjectIdentifier
	if !responses.ReadASN1(&single, cryptobyte_asn1.SEQUENCE) || !single.ReadASN1(&id, cryptobyte_asn1.SEQUENCE) ||
		!id.ReadASN1(&algorithm, cryptobyte_asn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&hashID) ||
		!id.ReadASN1(&name, cryptobyte_asn1.OCTET_STRING) || !id.ReadASN1(&key, cryptobyte_asn1.OCTET_STRING) ||
		!id.ReadASN1(&number, cryptobyte_asn1.INTEGER) {
		return refuse(nil, "the answer cannot be read")
	}
	if serialOf(number) != serialOfCertificate(q.certificate) {
		return nil
	}
	hash, known := map[string]crypto.Hash{
		"1.3.14.3.2.26": crypto.SHA1, "2.16.840.1.101.3.4.2.1": crypto.SHA256,
		"2.16.840.1.101.3.4.2.2": crypto.SHA384, "2.16.840.1.101.3.4.2.3": crypto.SHA512,
	}[hashID.String()]
	if !known || !bytes.Equal(name, hashed(hash, q.issuer.RawSubject)) || !bytes.Equal(key, hashed(hash, publicKeyBits(q.issuer))) {
		return refuse(nil, "it is about a certificate of another authority")
	}
	return nil
}

func hashed(hash crypto.Hash, data []byte) []byte {
	h := hash.New()
	h.Write(data)
	return h.Sum(nil)
}

// publicKeyBits is the BIT STRING of a subject public key, which OCSP hashes.
func publicKeyBits(certificate *x509.Certificate) []byte {
	var content, bits cryptobyte.String
	input := cryptobyte.String(certificate.RawSubjectPublicKeyInfo)
	if !input.ReadASN1(&content, cryptobyte_asn1.SEQUENCE) || !content.SkipASN1(cryptobyte_asn1.SEQUENCE) ||
		!content.ReadASN1(&bits, cryptobyte_asn1.BIT_STRING) || len(bits) < 1 {
		return nil
	}
	return bits[1:]
}

// nonceIn returns the nonce among responseExtensions, or nil.
func nonceIn(extensions cryptobyte.String) []byte {
	var list cryptobyte.String
	if !extensions.ReadASN1(&list, cryptobyte_asn1.SEQUENCE) {
		return nil
	}
	for !list.Empty() {
		var extension, value, nonce cryptobyte.String
		var id asn1.ObjectIdentifier
		if !list.ReadASN1(&extension, cryptobyte_asn1.SEQUENCE) || !extension.ReadASN1ObjectIdentifier(&id) ||
			!extension.SkipOptionalASN1(cryptobyte_asn1.BOOLEAN) || !extension.ReadASN1(&value, cryptobyte_asn1.OCTET_STRING) {
			return nil
		}
		if id.Equal(oidNonce) && value.ReadASN1(&nonce, cryptobyte_asn1.OCTET_STRING) {
			return nonce
		}
	}
	return nil
}
