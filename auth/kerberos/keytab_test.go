package kerberos

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/jcmturner/gokrb5/v8/keytab"

	"postern/catalog"
)

func marshalKeytab(t testing.TB, kt *keytab.Keytab) []byte {
	t.Helper()
	data, err := kt.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestLoadKeytab(t *testing.T) {
	dir := t.TempDir()
	good := keytab.New()
	addKey(t, good, service, parent, 4, 18, "secret")
	weak, kdc := keytab.New(), keytab.New()
	addKey(t, weak, service, parent, 4, 23, "secret")
	addKey(t, weak, service, parent, 4, 16, "secret")
	addKey(t, kdc, "krbtgt/"+parent, parent, 2, 18, "secret")
	data := marshalKeytab(t, good)
	tests := []struct {
		name string
		data []byte
		want catalog.Code
	}{
		{"good", data, ""},
		{"RC4, which a setting may allow", marshalKeytab(t, weak), ""},
		{"no bytes", nil, catalog.KerberosKeytabEmpty},
		{"no key", []byte{5, 2}, catalog.KerberosKeytabEmpty},
		{"holes only", []byte{5, 2, 0xff, 0xff, 0xff, 0xfe, 0, 0}, catalog.KerberosKeytabEmpty},
		{"text", []byte("-----BEGIN KEYTAB-----\n"), catalog.KerberosKeytabMalformed},
		{"credential cache", []byte{5, 4, 0, 12}, catalog.KerberosKeytabMalformed},
		{"version 1", []byte{5, 1, 0, 0}, catalog.KerberosKeytabMalformed},
		{"cut off", data[:len(data)-1], catalog.KerberosKeytabMalformed},
		{"too large", append(bytes.Clone(data), make([]byte, maxKeytab)...), catalog.KerberosKeytabMalformed},
		{"length beyond the end", []byte{5, 2, 0x7f, 0xff, 0xff, 0xff, 0}, catalog.KerberosKeytabMalformed},
		{"hole beyond the end", []byte{5, 2, 0x80, 0, 0, 0, 0}, catalog.KerberosKeytabMalformed},
		{"entry of nothing", []byte{5, 2, 0, 0, 0, 1, 0}, catalog.KerberosKeytabMalformed},
		{"key of the KDC only", marshalKeytab(t, kdc), catalog.KerberosKeytabOnlyWeak},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(test.name, " ", "-"))
			if err := os.WriteFile(path, test.data, 0o600); err != nil {
				t.Fatal(err)
			}
			k, err := LoadKeytab(path)
			if catalog.CodeOf(err) != test.want || (err == nil) != (k != nil) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("%v does not name the file", err)
			}
		})
	}
	if _, err := LoadKeytab(filepath.Join(dir, "nowhere")); catalog.CodeOf(err) != catalog.KerberosKeytabMissing {
		t.Errorf("no file: %v", err)
	}
	if _, err := LoadKeytab(dir); catalog.CodeOf(err) != catalog.KerberosKeytabUnreadable {
		t.Errorf("a folder: %v", err)
	}
	if os.Geteuid() == 0 {
		return // root may read everything
	}
	locked := filepath.Join(dir, "good")
	if err := os.Chmod(locked, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeytab(locked); catalog.CodeOf(err) != catalog.KerberosKeytabUnreadable {
		t.Errorf("no right to read: %v", err)
	}
}

func TestAudit(t *testing.T) {
	kt := keytab.New()
	addKey(t, kt, "svc-mp", parent, 3, 18, "secret")
	addKey(t, kt, "svc-mp", parent, 4, 18, "secret")
	addKey(t, kt, "svc-mp", parent, 4, 23, "secret")
	addKey(t, kt, service, child, 1, 17, "secret")
	addKey(t, kt, "krbtgt/"+parent, parent, 2, 18, "secret")
	path := filepath.Join(t.TempDir(), "krb5.keytab")
	if err := os.WriteFile(path, marshalKeytab(t, kt), 0o644); err != nil {
		t.Fatal(err)
	}
	k, err := LoadKeytab(path)
	if err != nil {
		t.Fatal(err)
	}
	got := k.Audit()
	if want := []string{service + "@" + child, "krbtgt/" + parent + "@" + parent, "svc-mp@" + parent}; !slices.Equal(got.Principals, want) {
		t.Errorf("principals %q, want %q", got.Principals, want)
	}
	if want := []string{parent, child}; !slices.Equal(got.Realms, want) || !slices.Equal(k.Realms(), want) {
		t.Errorf("realms %q, want %q", got.Realms, want)
	}
	if first, last := got.Keys[0], got.Keys[len(got.Keys)-1]; first != (Key{service, child, 1, 17, noon.AddDate(0, 0, 1)}) || last.Version != 3 || len(got.Keys) != 5 {
		t.Errorf("keys %v", got.Keys)
	}
	var codes []catalog.Code
	for _, finding := range got.Findings {
		codes = append(codes, finding.Code)
		if finding.Detail == "" {
			t.Errorf("%s says nothing", finding.Code)
		}
	}
	if want := []catalog.Code{catalog.KerberosKeytabExposed, catalog.KerberosKeytabForbidden, catalog.KerberosKeytabWeakKeys}; !slices.Equal(codes, want) {
		t.Errorf("findings %q, want %q", codes, want)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if k, err = LoadKeytab(path); err != nil || len(k.Audit().Findings) != 2 {
		t.Errorf("for a group: %v, %v", k.Audit().Findings, err)
	}
}

func TestKeysAreNeverPrinted(t *testing.T) {
	kt := wellKeys(t, 18)
	k := reread(t, kt)
	secret := k.keys[0].secret.value
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		text := fmt.Sprintf(verb, k) + fmt.Sprintf(verb, k.Audit())
		if strings.Contains(text, string(secret)) || strings.Contains(text, fmt.Sprintf("%x", secret)) || strings.Contains(text, strings.Trim(fmt.Sprint(secret), "[]")) {
			t.Errorf("%s prints a key", verb)
		}
	}
}

// The names of one account have one key, which is tried once; and what a keytab can make
// us try is bounded.
func TestCandidates(t *testing.T) {
	kt := keytab.New()
	for _, name := range []string{"svc-mp", service, "HTTP/mpcluster"} {
		addKey(t, kt, "svc-mp", parent, 3, 17, "secret")
		kt.Entries[len(kt.Entries)-1].Principal.Components = strings.Split(name, "/")
		kt.Entries[len(kt.Entries)-1].Principal.NumComponents = int16(len(strings.Split(name, "/")))
	}
	for version := range uint8(100) {
		addKey(t, kt, "svc-other", parent, version+1, 17, fmt.Sprint(version))
	}
	k := reread(t, kt)
	versions := func(keys []*key) (v []int) {
		for _, entry := range keys {
			v = append(v, entry.Version)
		}
		return v
	}
	if got := versions(k.candidates(parent, 17, 3)); len(got) != maxTries || !reflect.DeepEqual(got[:4], []int{3, 3, 100, 99}) {
		t.Errorf("got %v", got)
	}
	for asked, want := range map[string]string{"http/MPCLUSTER": "HTTP/mpcluster", service: service, "svc-mp": "svc-mp", "HTTP/evil": "", "svc-other": "", "": ""} {
		if got, ok := k.candidates(parent, 17, 3)[0].called(asked); got != want || ok != (want != "") {
			t.Errorf("called %q: %q, %v; want %q", asked, got, ok, want)
		}
	}
	if got := k.candidates(child, 17, 3); got != nil {
		t.Errorf("another realm: %v", got)
	}
	if got := k.candidates(parent, 18, 3); got != nil {
		t.Errorf("another type: %v", got)
	}
}

// A keytab cut or turned anywhere is refused or read, and nothing breaks.
func TestBrokenKeytabs(t *testing.T) {
	data := marshalKeytab(t, wellKeys(t, 17, 18))
	for i := range data {
		ParseKeytab(data[:i])
		for bit := range 8 {
			turned := bytes.Clone(data)
			turned[i] ^= 1 << bit
			ParseKeytab(turned)
		}
	}
	many := []byte{5, 2}
	record := marshalKeytab(t, wellKeys(t, 17))[2:]
	record = record[:4+binary.BigEndian.Uint32(record)]
	for range maxKeys + 1 {
		many = append(many, record...)
	}
	if _, err := ParseKeytab(many); catalog.CodeOf(err) != catalog.KerberosKeytabMalformed {
		t.Errorf("more than %d keys: %v", maxKeys, err)
	}
}
