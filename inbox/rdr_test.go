package inbox_test

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/inbox"
	"postern/site"
)

func TestRDR(t *testing.T) {
	dir := t.TempDir()
	device := site.Device{ClientID: "GUID:1", Record: site.Record{SiteCode: "LAB", SMSID: "GUID:1", NetbiosName: "WK1\n\"x\"", KeyType: 1}, Approval: site.Approval{Status: 1}}
	path, err := inbox.WriteRDR(dir, device, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if form := regexp.MustCompile(`/auth/ddm\.box/regreq/[A-Z0-9]{8}\.RDR$`); !form.MatchString(filepath.ToSlash(path)) {
		t.Errorf("path %s does not look like the documents'", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"SMSID": "GUID:1"`, `"NetbiosName": "WK1\n\"x\""`, `"ApprovalStatus": 1`, `"FQDName": ""`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the record lacks %s:\n%s", want, text)
		}
	}
	if _, err := inbox.WriteRDR(dir, device, bytes.NewReader(nil)); err == nil {
		t.Error("a name without randomness")
	}
}

func TestRDRFolderKeepsTheNewest(t *testing.T) {
	dir := t.TempDir()
	folder, err := inbox.OpenRDR(dir, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for n := range 1010 {
		if n == 500 { // another run
			if folder, err = inbox.OpenRDR(dir, rand.Reader); err != nil {
				t.Fatal(err)
			}
		}
		path, err := folder.Write(site.Device{})
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	same(t, "files", len(files(t, filepath.Dir(paths[0]), "*.RDR")), 1000)
	if _, err := os.Stat(paths[len(paths)-1]); err != nil {
		t.Errorf("the newest: %v", err)
	}
}
