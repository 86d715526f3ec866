package main

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/internal/role"
)

// printed runs a command in this process and returns what it printed.
func printed(t *testing.T, want int, arguments ...string) (out, errOut string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if got := run(t.Context(), &session{in: strings.NewReader(""), out: &stdout, err: &stderr, actor: "anna"}, arguments); got != want {
		t.Fatalf("postern %s: exit %d, want %d\n%s%s", strings.Join(arguments, " "), got, want, stdout.String(), stderr.String())
	}
	return stdout.String(), stderr.String()
}

// unpacked is the content of a bundle, by name, and the names in their order.
func unpacked(t *testing.T, path string) (content map[string][]byte, order []string) {
	t.Helper()
	archive, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	content = map[string][]byte{}
	for _, member := range archive.File {
		file, err := member.Open()
		if err != nil {
			t.Fatal(err)
		}
		if content[member.Name], err = io.ReadAll(file); err != nil {
			t.Fatal(err)
		}
		file.Close()
		order = append(order, member.Name)
	}
	return content, order
}

func asUTF16(text []byte) []byte {
	var wide []byte
	for _, c := range text {
		wide = append(wide, c, 0)
	}
	return wide
}

// disguises are the forms in which a secret may have got into a log.
func disguises(secret []byte) map[string][]byte {
	forms := map[string][]byte{}
	for name, plain := range map[string][]byte{"": secret, " of UTF-16": asUTF16(secret)} {
		forms["plain"+name] = plain
		forms["hexadecimal"+name] = []byte(hex.EncodeToString(plain))
		forms["HEXADECIMAL"+name] = []byte(strings.ToUpper(hex.EncodeToString(plain)))
		forms["base64"+name] = []byte(base64.StdEncoding.EncodeToString(plain))
		forms["base64url"+name] = []byte(base64.RawURLEncoding.EncodeToString(plain))
	}
	return forms
}

func put(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestNoCanaryGetsIntoABundle plants secrets in logs, configuration, state folder and environment, in every disguise, and looks for them in the whole
// bundle (users-and-threats.md C58).
func TestNoCanaryGetsIntoABundle(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "site")
	printed(t, 0, "site", "init", "--code", "P01", "--dir", folder, "--https", "127.0.0.1:8444")
	config := filepath.Join(folder, "mp.yaml")
	bulk, _ := printed(t, 0, "token", "new", "--config", config)
	siteKey, err := os.ReadFile(filepath.Join(folder, "site.key"))
	if err != nil {
		t.Fatal(err)
	}
	jose := func(claims string) []byte {
		return fmt.Appendf(nil, "%s.%s.%s", base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`)), base64.RawURLEncoding.EncodeToString([]byte(claims)), base64.RawURLEncoding.EncodeToString([]byte("signature of "+claims)))
	}
	keytab := append([]byte{5, 2, 0, 0, 0, 60, 0, 2, 0, 12}, []byte("CORP.EXAMPLE\x00\x04HTTP\x00\x0fmp.corp.example\x00\x12\x00\x20"+"\xd1\x9e\x03\xc4\x55\x8a\xf7\x21\x90\x4b\xbe\x6c\x13\xe8\x7d\xa2\x39\x5f\x84\x0c\xd6\x72\xe1\xb8\x4a\x97\x2e\xf3\x61\xac\x08\xcd")...)
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: bytes.Repeat([]byte("\x30\x82private-key-bytes\xf1\x07"), 20)})

	known := map[string][]byte{ // secrets that the role has
		"site.key": siteKey, "passphrase": []byte("Correct-Horse-7-Battery"), "keytab": keytab[44:], "private key": private, "database password": []byte("Dsn-Canary-Pa55"),
		"environment": []byte("Env-Canary-Va1ue"), "environment like a path": []byte("/Env/Canary-Slash"), "proxy password": []byte("Proxy-Canary-Pa55"), "bulk token": []byte(strings.TrimSpace(bulk)),
	}
	strange := map[string][]byte{ // secrets that only their looks give away
		"CCM token": jose(`{"kind":"ccm","canary":1}`), "self-prove token": jose(`{"kind":"self-prove","canary":2}`), "unknown private key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: bytes.Repeat([]byte("\x30other-key-bytes\xf1\x07\x99"), 9)}),
	}
	put(t, filepath.Join(folder, "token.txt"), []byte(bulk))
	put(t, filepath.Join(folder, "mp", "device.keytab"), keytab)
	put(t, filepath.Join(folder, "mp", "listener.key"), private)
	put(t, filepath.Join(dir, "pass"), append(known["passphrase"], '\n'))
	t.Setenv("POSTERN_PASSPHRASE_FILE", filepath.Join(dir, "pass"))
	t.Setenv("CANARY_SECRET", string(known["environment"]))
	t.Setenv("CANARY_KEY", string(known["environment like a path"]))
	t.Setenv("HTTPS_PROXY", "http://svc:"+string(known["proxy password"])+"@127.0.0.1:1")

	now := time.Now().UTC().Format(time.RFC3339Nano)
	var client, server, access, events bytes.Buffer
	plant := func(what, how string, secret []byte) {
		fmt.Fprintf(&client, "<![LOG[%s %s %s was seen]LOG]!><time=\"%s+000\" date=\"%s\" component=\"X\" context=\"\" type=\"1\" thread=\"1\" file=\"x.go:1\">\r\n", what, how, secret, time.Now().Format("15:04:05.000"), time.Now().Format("01-02-2006"))
		fmt.Fprintf(&server, "%s\n%s\n", what, secret)
		fmt.Fprintf(&access, "%s 127.0.0.1 GET /x q=%s 443 - 127.0.0.1 - - 200 0 0 1\n", time.Now().UTC().Format("2006-01-02 15:04:05"), secret)
		line, _ := json.Marshal(map[string]any{"time": now, "level": "INFO", "msg": what, "error": string(secret)})
		events.Write(append(line, '\n'))
	}
	for what, secret := range known {
		for how, disguised := range disguises(secret) {
			plant(what, how, disguised)
		}
	}
	for what, secret := range strange {
		plant(what, "plain", secret)
		plant(what, "base64", []byte(base64.StdEncoding.EncodeToString(secret)))
		plant(what, "hexadecimal", []byte(hex.EncodeToString(secret)))
	}
	headers := []string{"Authorization: DPoP Opaque-Canary-Value-1", "DPoP: Opaque-Canary-Value-2", `"Authorization":"Bearer Opaque-Canary-Value-3"`, "postgres://postern:Opaque-Canary-Value-4@db/postern", "PGPASSWORD=Opaque-Canary-Value-5"}
	for _, header := range headers {
		plant("header", "plain", []byte(header))
	}
	logs := filepath.Join(folder, "mp", "logs")
	put(t, filepath.Join(logs, "MP_ClientID.log"), client.Bytes())
	put(t, filepath.Join(logs, "CCM_STS.log"), server.Bytes())
	put(t, filepath.Join(logs, "wide.log"), append([]byte{0xff, 0xfe}, asUTF16(server.Bytes())...))
	put(t, filepath.Join(logs, "u_ex.log"), append([]byte("#Fields: date time s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) cs(Referer) sc-status sc-substatus sc-win32-status time-taken\n"), access.Bytes()...))
	put(t, filepath.Join(logs, "management-point.json"), events.Bytes())
	put(t, filepath.Join(logs, "core.dump"), known["site.key"])
	for _, name := range []string{string(known["passphrase"]) + ".log", string(strange["CCM token"][:60]) + ".log", `..\up.log`, "red\x1b[31m.log"} {
		put(t, filepath.Join(logs, name), []byte("nothing\n"))
	}
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	put(t, config, fmt.Appendf(text, "# the password was %s, and %s\n", known["database password"], known["passphrase"]))

	loaded, err := role.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	loaded.Store = "postgres://postern:Dsn-Canary-Pa55@127.0.0.1:1/postern?sslpassword=Dsn-Canary-Pa55"
	b := &bundling{config: loaded, now: time.Now(), since: time.Now().Add(-time.Hour), seen: map[catalog.Code]int{}}
	if err := b.gather(t.Context()); err != nil {
		t.Fatal(err)
	}
	packed, err := b.zip()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "bundle.zip")
	if err := writeNew(out, packed); err != nil {
		t.Fatal(err)
	}
	content, order := unpacked(t, out)
	if want := []string{"manifest.txt", "codes.json", "configuration.yaml", "doctor.txt", "logs/CCM_STS.log", "logs/MP_ClientID.log", "logs/management-point.json", "logs/u_ex.log", "logs/wide.log", "versions.json"}; !slices.Equal(order, want) {
		t.Errorf("parts %v, want %v", order, want)
	}
	for _, secrets := range []map[string][]byte{known, strange} {
		for what, secret := range secrets {
			for how, form := range disguises(secret) {
				for name, part := range content {
					for _, piece := range pieces(form) {
						if bytes.Contains(part, piece) || bytes.Contains(bytes.ReplaceAll(part, []byte{0}, nil), piece) {
							t.Errorf("%s, %s: %q is in %s", what, how, piece, name)
							break
						}
					}
				}
			}
		}
	}
	for name, part := range content {
		for _, form := range disguises([]byte("Opaque-Canary-Value")) {
			if bytes.Contains(part, form) {
				t.Errorf("a header is in %s", name)
			}
		}
	}
	if text := string(content["logs/MP_ClientID.log"]); !strings.Contains(text, "bulk token plain (left out) was seen]LOG]!>") {
		t.Errorf("what stands around a secret is gone: %.600s", text)
	}
	if text := string(content["configuration.yaml"]); !strings.Contains(text, "store: postgres://postern@127.0.0.1:1/postern") || !strings.Contains(text, "role: management-point") {
		t.Errorf("configuration: %s", text)
	}
	for _, piece := range append(pieces(known["passphrase"]), pieces(strange["CCM token"])[0]) {
		if strings.Contains(strings.Join(order, "\n"), string(piece)) {
			t.Errorf("%q is in a name: %v", piece, order)
		}
	}
	if text := string(content["manifest.txt"]); !strings.Contains(text, "logs/core.dump: not the name of a log") || strings.Count(text, "cannot stand in a zip") != 4 {
		t.Errorf("manifest: %s", text)
	}
}

// TestPasswordsOfStoresHoweverTheyAreSpelled: none is in the configuration that a bundle holds, and each is known.
func TestPasswordsOfStoresHoweverTheyAreSpelled(t *testing.T) {
	for _, test := range []struct{ store, shown, secret string }{
		{"/var/lib/postern/site.db", "/var/lib/postern/site.db", ""},
		{"@/run/credentials/dsn", "@/run/credentials/dsn", ""},
		{"postgres://postern:Dsn-Canary@db/postern", "postgres://postern@db/postern", "Dsn-Canary"},
		{"POSTGRES://postern:Dsn-Canary@db/postern", "postgres://postern@db/postern", "Dsn-Canary"},
		{"postgres://postern:Dsn%40Canary@db/postern", "postgres://postern@db/postern", "Dsn@Canary"},
		{"postgres://db/postern?user=postern&Password=Dsn-Canary", "postgres://db/postern?user=postern", "Dsn-Canary"},
		{"postgres://postern:Dsn@Canary@db/postern", "postgres://postern@db/postern", "Dsn@Canary"},
		{"postgres://postern:Dsn Canary@db/postern", "(left out)", ""},
		{"postgres:/postern:Dsn-Canary@db/postern", "(left out)", "Dsn-Canary"},
		{"postgres:postern:Dsn-Canary@db/postern", "(left out)", "Dsn-Canary"},
		{`host=db password='Dsn\'s Canary' user=postern`, "(left out)", "Dsn's Canary"},
		{"host=db PASSWORD = Dsn-Canary", "(left out)", "Dsn-Canary"},
	} {
		if got := withoutPassword(test.store); got != test.shown {
			t.Errorf("%s is shown as %s, want %s", test.store, got, test.shown)
		}
		known := bytes.Join(storeSecrets(test.store), []byte("\n"))
		if !bytes.Contains(known, []byte(test.secret)) || test.secret == "" && len(known) > 0 && !strings.Contains(test.store, "Canary") {
			t.Errorf("%s: known are %q", test.store, known)
		}
	}
}

// pieces are parts of a secret that are long enough to be its.
func pieces(form []byte) [][]byte {
	if len(form) <= 24 {
		return [][]byte{form}
	}
	var all [][]byte
	for at := 0; at+24 <= len(form); at += 24 {
		if piece := form[at : at+24]; !bytes.Contains(piece, []byte("-----")) {
			all = append(all, piece)
		}
	}
	return all
}

func TestEqualBundlesAreEqualFiles(t *testing.T) {
	b := &bundling{parts: []*part{{Name: "a", content: []byte("x")}, {Name: "b", content: bytes.Repeat([]byte("y"), 1000)}}}
	first, err := b.zip()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.zip(); err != nil || !bytes.Equal(first, again) {
		t.Errorf("they differ: %v", err)
	}
}

func TestLogsOfABundleAreBounded(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	line := func(at time.Time, text string) string {
		return fmt.Sprintf(`{"time":%q,"msg":%q}`+"\n", at.Format(time.RFC3339), text)
	}
	old, fresh := line(now.Add(-25*time.Hour), "old"), line(now.Add(-time.Hour), "fresh")
	b := &bundling{since: now.Add(-24 * time.Hour)}
	for name, test := range map[string]struct {
		content, want string
		most          int
		notes         int
	}{
		"all of it":                             {fresh + fresh, fresh + fresh, 1000, 0},
		"lines from before":                     {old + "goes with it\n" + fresh + "goes with it\n", fresh + "goes with it\n", 1000, 1},
		"the end, from the begin of a line":     {fresh + fresh, fresh, len(fresh) + 5, 1},
		"the fields of an access log stay":      {"#Fields: date time\n" + fresh + fresh, "#Fields: date time\n" + fresh, len(fresh) + 5, 1},
		"one line that is longer than the room": {strings.Repeat("x", 100), strings.Repeat("x", 10), 10, 1},
	} {
		path := filepath.Join(t.TempDir(), "x.log")
		put(t, path, []byte(test.content))
		got, notes, err := b.tail(path, test.most)
		if err != nil || string(got) != test.want || len(notes) != test.notes {
			t.Errorf("%s: got %q, %v, %v", name, got, notes, err)
		}
	}
}

func TestABundleNeedsAYes(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "site")
	printed(t, 0, "site", "init", "--code", "P01", "--dir", folder, "--https", "127.0.0.1:8444")
	config, file := filepath.Join(folder, "mp.yaml"), filepath.Join(dir, "b.zip")
	out, errOut := printed(t, exitFailed, "support-bundle", "--config", config, "--out", file)
	if !strings.Contains(out, "configuration.yaml") || !strings.Contains(errOut, "P773") || !strings.Contains(errOut, "--yes") {
		t.Errorf("got %s%s", out, errOut)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("it was written: %v", err)
	}
	out, _ = printed(t, 0, "support-bundle", "--config", config, "--out", file, "--yes", "--json")
	var manifest struct {
		File    string
		Written bool
		Parts   []part
	}
	if err := json.Unmarshal([]byte(out), &manifest); err != nil || !manifest.Written || manifest.File != file {
		t.Errorf("%s: %v", out, err)
	}
	content, _ := unpacked(t, file)
	if names := slices.Collect(maps.Keys(content)); len(names) != len(manifest.Parts) {
		t.Errorf("the bundle has %v, the manifest %v", names, manifest.Parts)
	}
	if !strings.Contains(string(content["counts.json"]), `"epoch"`) {
		t.Errorf("counts: %s", content["counts.json"])
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	_, errOut = printed(t, exitFailed, "support-bundle", "--config", config, "--out", file, "--yes")
	if !strings.Contains(errOut, "P774") {
		t.Errorf("a file was replaced: %s", errOut)
	}
}
