// Package realmstest starts real Kerberos realms for a test. A machine without the KDC's programs fails the test, with the line that installs
// them; it never skips it.
//
// The realms themselves are package realms, which the lab uses without a test.
package realmstest

import (
	"strings"
	"testing"

	"postern/internal/realms"
)

// Start starts realms that end with the test. When the test fails, what the KDCs logged is shown.
func Start(tb testing.TB, options realms.Options) *realms.Realms {
	tb.Helper()
	r, err := realms.Start(tb.Context(), options)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			for _, name := range r.Names() {
				tb.Logf("KDC of %s:\n%s", name, strings.Join(requests(r.KDCLog(name)), ""))
			}
		}
		r.Stop()
	})
	return r
}

// Login logs [realms.Computer] of a realm in.
func Login(tb testing.TB, r *realms.Realms, realm string) *realms.Session {
	tb.Helper()
	s, err := r.LoginComputer(tb.Context(), realm)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// requests keeps the lines about requests.
func requests(log string) (lines []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "_REQ") {
			lines = append(lines, line)
		}
	}
	return lines
}
