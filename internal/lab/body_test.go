package lab_test

import (
	"bytes"
	"net/http"
	"net/url"
	"testing"

	"postern/catalog"
	"postern/ccm"
	"postern/token"
)

// TestAProofWithAnotherBody: a DPoP proof covers method, address and token, and no body (RFC 9449). Whoever ends the device's TLS could hold one back and
// send a body of his own with it, once. What the bodies are worth is therefore proved inside them.
func TestAProofWithAnotherBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, other := w.enrolled("victim"), w.enrolled("other")
	thief := newDevice(t, "victim")
	thief.id = d.id
	messages := w.outside(ccm.DoorServerAuth, "/CCM_System_TokenAuth/request")
	send := func(contentType string, body []byte) answer {
		return w.send(w.http1(), "CCM_POST", messages, contentType, body, proofOf(t, d.key, "CCM_POST", messages, d.ccm))
	}
	contentType, good := d.encode(t, "MP_PolicyManager", d.assignments(), true, func(h *ccm.Header) { h.Compressed = false })
	utf16 := func(text string) []byte { return ccm.PolicyBody(text)[2:] }
	changed := bytes.Replace(bytes.Clone(good), utf16("victim.lab"), utf16("VICTIM.lab"), 1)
	if bytes.Equal(changed, good) {
		t.Fatal("nothing was changed")
	}
	for name, test := range map[string]struct {
		body func() (contentType string, body []byte)
		code catalog.Code
	}{
		"one that was changed":        {func() (string, []byte) { return contentType, changed }, catalog.SignatureMismatch},
		"one that nobody signed":      {func() (string, []byte) { return d.encode(t, "MP_PolicyManager", d.assignments(), false) }, catalog.SignatureMissing},
		"one signed by another key":   {func() (string, []byte) { return thief.encode(t, "MP_PolicyManager", d.assignments(), true) }, catalog.SignatureMismatch},
		"another device's":            {func() (string, []byte) { return other.encode(t, "MP_PolicyManager", other.assignments(), true) }, catalog.MessageOtherDevice},
		"a registration of the thief": {func() (string, []byte) { return thief.encode(t, "MP_ClientRegistration", thief.registration(t), false) }, catalog.RegistrationOtherKey},
		"a confirmation of the thief": {func() (string, []byte) {
			return thief.encode(t, "MP_ClientRegistration", thief.confirmation(t, d.id), false)
		}, catalog.RegistrationSignature},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			w.refuses(refusal{status: 200, code: test.code, silent: true}, func() answer { return send(test.body()) })
		})
	}
	if a := send(contentType, good); len(w.text(a)) == 0 {
		t.Errorf("the device's own: %s", a)
	}

	tokens := w.outside(ccm.DoorServerAuth, "/CCM_STS")
	for name, assertion := range map[string]string{"by the thief": thief.assertion(t, tokens), "of another device": other.assertion(t, tokens), "none": ""} {
		values := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:jwt-bearer"}, "requested_token_type": {"urn:postern:token:" + string(token.KindSelfProve)}, "assertion": {assertion}}
		w.unchanged(func() {
			a := w.send(w.http1(), http.MethodPost, tokens, form, []byte(values.Encode()), proofOf(t, d.key, http.MethodPost, tokens, d.selfProve))
			if a.status == 200 {
				t.Errorf("a form with an assertion %s: %s", name, a)
			}
		})
	}
}
