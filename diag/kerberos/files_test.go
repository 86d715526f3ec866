package kerberos

import (
	"encoding/binary"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"postern/internal/realms"
	"postern/internal/realms/realmstest"
)

// alteredEntries returns a keytab's entries, without the file's first two bytes, with
// every key's last byte changed.
func alteredEntries(content []byte) []byte {
	entries := slices.Clone(content[2:])
	for at := 0; at+4 <= len(entries); {
		length := int(int32(binary.BigEndian.Uint32(entries[at:])))
		if length <= 0 {
			at += 4 - length
			continue
		}
		entries[at+4+length-5] ^= 1 // the key ends before the four bytes of its version
		at += 4 + length
	}
	return entries
}

// careless accepts any ticket and proves nothing.
func careless(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") == "" {
		w.Header().Set("WWW-Authenticate", "Negotiate")
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func TestReadCacheReadsWhatMITWrites(t *testing.T) {
	r := realmstest.Start(t, realms.Options{})
	session := realmstest.Login(t, r, r.Child)
	if _, err := session.Ticket(t.Context(), r.Host("mp")); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(session.Cache)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readCache(content)
	if err != nil {
		t.Fatal(err)
	}
	if name := got.client.PrincipalNameString() + "@" + got.realm; name != "WK02-020-51W$@CHILD.A2003.VM.LOCAL" {
		t.Errorf("owner %q", name)
	}
	var services []string
	for _, ticket := range got.tickets {
		services = append(services, ticket.name.PrincipalNameString())
	}
	if !slices.Contains(services, "krbtgt/CHILD.A2003.VM.LOCAL") || !slices.Contains(services, "HTTP/mp.a2003.vm.local") {
		t.Errorf("tickets for %q", services)
	}
	for n := range content {
		if cut, err := readCache(content[:n]); err == nil && cut == nil {
			t.Errorf("cut at %d: neither a cache nor an error", n)
		}
	}
}

func TestGuessSeat(t *testing.T) {
	of := func(principal string) key {
		name, realm := parsePrincipal(principal)
		return key{name: name, realm: realm}
	}
	host, service := of("NODE1$@A.EXAMPLE"), of("HTTP/mp.a.example@A.EXAMPLE")
	tests := []struct {
		name   string
		server string
		keys   []key
		want   Seat
	}{
		{"nothing", "", nil, Client},
		{"a computer's keytab", "mp.a.example", []key{host}, Client},
		{"a service's keytab, no server", "", []key{service}, Server},
		{"a service's keytab and its own name", "MP.a.example", []key{host, service}, Server},
		{"a service's keytab and another server's name", "other.a.example", []key{host, service}, Client},
	}
	for _, test := range tests {
		if got := guessSeat(test.server, test.keys); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestTarget(t *testing.T) {
	tests := []struct{ given, host, urls string }{
		{"mp.a.example", "mp.a.example", "https://mp.a.example http://mp.a.example"},
		{"MP.a.example.", "mp.a.example", "https://MP.a.example. http://MP.a.example."},
		{"mp.a.example:8443", "mp.a.example", "https://mp.a.example:8443 http://mp.a.example:8443"},
		{"http://mp.a.example/x", "mp.a.example", "http://mp.a.example"},
		{"ftp://mp.a.example", "", ""},
		{"http://user:secret@mp.a.example", "", ""},
		{"mp a", "", ""},
	}
	for _, test := range tests {
		host, urls, err := target(test.given)
		var list []string
		for _, u := range urls {
			list = append(list, strings.TrimSuffix(u.String(), "/ccm_system_windowsauth/request"))
		}
		if got := strings.Join(list, " "); host != test.host || got != test.urls || (err == nil) != (test.host != "") {
			t.Errorf("%q: %q %q %v, want %q %q", test.given, host, got, err, test.host, test.urls)
		}
	}
}
