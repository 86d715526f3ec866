package lab_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/ccm"
	"postern/internal/role"
	"postern/proof"
	"postern/site"
)

// TestSecretsAreNowhere (C58): after a whole run, with refusals of every kind, no log, no database, no kept state, no answer and no output has a
// token, a private key, the secret in a policy, or a one-time code.
func TestSecretsAreNowhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	canaries := map[string][]byte{}
	var said bytes.Buffer // everything that was answered or printed

	// A policy with a secret, read by the one device that may.
	const secret = "canary-P@ssw0rd-5f1c9e"
	canaries["policy secret"] = []byte(secret)
	policy, err := w.Site().AddPolicy(t.Context(), site.NewPolicy{
		Category: "NAAConfig", All: true, Flags: ccm.PolicySecret | ccm.PolicyRequiresAuth, By: "test",
		Body: fmt.Appendf(nil, "<Policy><Secret>%s</Secret></Policy>", secret),
	})
	w.must(err)
	raw, _ := w.bulk(0)
	agent, err := w.NewDevice("laptop1")
	w.must(err)
	defer agent.Close()
	w.must(agent.Enrol(t.Context(), w.Setup("laptop1", raw)))
	_, err = w.Site().Approve(t.Context(), agent.Status().ClientID, proof.LevelSecrets, "test", "needs it")
	w.must(err)
	assigned, err := agent.Policies(t.Context())
	w.must(err)
	if text, err := agent.Policy(policy.ID); err != nil || !strings.Contains(text, secret) {
		t.Fatalf("the device that may does not have the secret: %v; it is assigned %+v", err, assigned)
	}
	w.must(agent.Renew(t.Context(), true))

	// A device whose secrets the test knows.
	d := w.enrolled("laptop2")
	for name, text := range map[string]string{"bulk token": raw, "register token": d.register, "CCM token": d.ccm, "self-prove token": d.selfProve} {
		canaries[name] = []byte(text)
		canaries["signature of the "+name] = []byte(text[strings.LastIndex(text, ".")+1:])
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(d.key)
	w.must(err)
	canaries["device key"], canaries["device key's exponent"], canaries["device key's prime"] = pkcs8, d.key.D.Bytes(), d.key.Primes[1].Bytes()
	for purpose, key := range w.signingKeys() {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		w.must(err)
		canaries[purpose+" key"] = der
	}

	// A connector that joins.
	code, err := w.Site().Invite(t.Context(), "lab2", "test")
	w.must(err)
	canaries["one-time code"] = []byte(code)
	join := role.NewConnector{Dir: filepath.Join(w.Dir, "connector2"), ManagementPoint: w.ManagementPointURL(), Code: code + "." + w.SiteRoot}
	_, err = role.JoinConnector(t.Context(), join, role.Protection{}, time.Now)
	w.must(err)
	join.Dir += "-again"
	if _, err = role.JoinConnector(t.Context(), join, role.Protection{}, time.Now); err == nil {
		t.Error("a one-time code worked twice")
	}
	fmt.Fprintln(&said, err)

	// Each of them in every place where it does not belong: header, query, path, body, a refused exchange, a refused message.
	sts := w.outside(ccm.DoorServerAuth, "/CCM_STS")
	for _, text := range []string{raw, d.register, d.ccm, d.selfProve} {
		for _, base := range []string{"https://" + w.GatewayHost, w.inside(""), w.plain("")} {
			for _, path := range []string{"/" + text, "/CCM_STS?access_token=" + text, "/CCM_STS?x=" + text, "/SMS_MP/.sms_aut?" + text, ccm.ExternalPath(ccm.DoorServerAuth, w.role, "/CCM_STS?access_token="+text)} {
				a := w.send(w.http1(), http.MethodPost, base+path, "", []byte(text), http.Header{"X-Token": {text}, "Cookie": {"t=" + text}, "User-Agent": {"canary"}})
				fmt.Fprintln(&said, a.header, a)
			}
			for _, scheme := range []string{"DPoP ", "Bearer ", "Basic ", "Negotiate ", ""} {
				a := w.send(w.http1(), http.MethodPost, base+"/CCM_STS", form, []byte("grant_type="+text+"&assertion="+text), http.Header{"Authorization": {scheme + text}, "Dpop": {text}})
				fmt.Fprintln(&said, a.header, a)
			}
		}
		a := w.send(w.http1(), http.MethodPost, sts, form, []byte("assertion="+text+"&requested_token_type="+text), proofOf(t, d.key, http.MethodPost, sts, raw))
		fmt.Fprintln(&said, a.header, a)
		a = w.message(d, d.ccm, "MP_"+text, "<"+text+"/>", true)
		fmt.Fprintln(&said, a.header, a)
	}
	for _, body := range []string{code, fmt.Sprintf(`{"code":%q,"csr":"AAAA"}`, code), fmt.Sprintf(`{"code":%q,"code":%q}`, code, code), fmt.Sprintf(`{%q:1}`, code), raw} {
		a := w.send(w.http1(), http.MethodPost, w.inside("/postern/join"), "application/json", []byte(body), nil)
		fmt.Fprintln(&said, a.header, a)
	}

	// The program's own words.
	out, stderr, _ := run(t, "client", "enrol", "--dir", filepath.Join(w.Dir, "device-cli"), "--name", "cli", "CCMHOSTNAME="+w.HostName(), "SMSSITECODE=XXX", "--root-key", strings.Repeat("0", 64), "/regtoken:"+raw)
	said.WriteString(out + stderr)
	out, stderr, _ = run(t, "client", "enrol", "--dir", filepath.Join(w.Dir, "device-cli2"), "/regtoken:"+raw, "/nonsense:"+raw, raw)
	said.WriteString(out + stderr)
	out, stderr, _ = run(t, "connector", "join", "--mp", w.ManagementPointURL(), "--code", code+"."+w.SiteRoot, "--dir", filepath.Join(w.Dir, "connector3"))
	said.WriteString(out + stderr)
	status, err := json.Marshal(agent.Status())
	w.must(err)
	said.Write(status)
	steps, err := json.Marshal(w.Steps())
	w.must(err)
	said.Write(steps)

	w.must(w.Stop()) // everything is written down now
	search(t, "what was said", said.Bytes(), canaries)
	files := 0
	w.must(filepath.WalkDir(w.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		search(t, strings.TrimPrefix(path, w.Dir), content, canaries)
		if bytes.Contains(content, []byte("PRIVATE KEY")) {
			t.Errorf("%s holds a private key in the clear", path)
		}
		return nil
	}))
	if files < 20 {
		t.Errorf("only %d files were looked at", files)
	}
}

// search looks for secrets as they are and in the forms that programs write bytes in.
func search(t testing.TB, where string, content []byte, canaries map[string][]byte) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(canaries)) {
		canary := canaries[name]
		text := base64.StdEncoding.EncodeToString(canary)
		for form, bytesOf := range map[string][]byte{
			"as it is": canary, "in UTF-16": wide(string(canary))[2:], "in hexadecimal": []byte(hex.EncodeToString(canary)), "in upper hexadecimal": []byte(strings.ToUpper(hex.EncodeToString(canary))),
			"in base64": []byte(text[:len(text)/4*4-4]), "in base64url": []byte(base64.RawURLEncoding.EncodeToString(canary)),
		} {
			if bytes.Contains(content, bytesOf) {
				t.Errorf("%s has the %s, %s", where, name, form)
			}
		}
	}
}
