//go:build unix

package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"postern/diag/kerberos"
)

// What lies where credential caches usually lie may have been put there by anybody: a pipe must not stop the check for ever.
func TestOnlyFilesAreTakenForCredentials(t *testing.T) {
	dir := t.TempDir()
	pipe, file := filepath.Join(dir, "pipe"), filepath.Join(dir, "file")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := firstReadable("", dir, pipe, filepath.Join(dir, "missing"), file); got != file {
		t.Errorf("got %q, want %q", got, file)
	}
	options := kerberos.Options{Keytab: "FILE:/etc/one.keytab", Cache: "FILE:/tmp/one"}
	if err := fillKerberosFiles(&options, ""); err != nil || options.Keytab != "/etc/one.keytab" || options.Cache != "/tmp/one" {
		t.Errorf("MIT's way of naming files: got %q and %q, %v", options.Keytab, options.Cache, err)
	}
}
