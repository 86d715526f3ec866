package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/catalog"
)

func runJoinState(t *testing.T, asJSON bool, arguments ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	s := &session{out: &out, err: &out, asJSON: asJSON}
	c := s.joinState()
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(arguments)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestJoinState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "join-state.json")
	const state = `{"join_type":"hybrid","tenant_id":"9aaf466a-3f40-4468-b3cd-f0010f21f05a","tenant_name":"Contoso","device_id":"8d2b4ff9-0172-4998-9851-b5324303385f",
"workplace_join":{"certificate":"wpj.pem","key":"wpj.key"},"user":{"name":"meg@contoso.com"}}`
	if err := os.WriteFile(path, []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := runJoinState(t, false, "--file", path)
	if ended, ok := err.(exitError); !ok || ended.code != exitFailed {
		t.Errorf("got %v, want exit status %d", err, exitFailed)
	}
	for _, want := range []string{
		"Device State", "AzureAdJoined : YES", "DomainJoined : YES", "Tenant Details", "TenantName : Contoso", "User State",
		"WorkplaceJoined : NO", "What is missing", "P992 The WPJ certificate isn't found", "Make sure that the device is joined",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("got %s\nwant %q in it", text, want)
		}
	}
	text, err = runJoinState(t, true, "--file", path)
	var report joinReport
	if _, ok := err.(exitError); !ok || json.Unmarshal([]byte(text), &report) != nil || len(report.Missing) != 1 || report.Missing[0].Code != catalog.EntraCertificateMissing {
		t.Errorf("got %s, %v", text, err)
	}
	t.Setenv("POSTERN_JOIN_STATE", filepath.Join(t.TempDir(), "none.json"))
	if _, err := runJoinState(t, false); catalog.CodeOf(err) != catalog.EntraNotJoined {
		t.Errorf("without a file: got %v, want %s", err, catalog.EntraNotJoined)
	}
}
