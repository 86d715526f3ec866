package ccm

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"postern/catalog"
)

func TestParseClientID(t *testing.T) {
	const want = ClientID("GUID:0EAD457A-7EE3-4E90-B8BF-6144266E6823")
	for _, text := range []string{string(want), strings.ToLower(string(want)), "Guid:0ead457A-7EE3-4E90-B8BF-6144266E6823"} {
		if got, err := ParseClientID(text); err != nil || got != want {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	if got := want.UUID(); got != "0EAD457A-7EE3-4E90-B8BF-6144266E6823" {
		t.Errorf("UUID() = %q", got)
	}
	for _, text := range []string{"", "GUID:", "0EAD457A-7EE3-4E90-B8BF-6144266E6823", "UID:0EAD457A-7EE3-4E90-B8BF-6144266E6823",
		"GUID:{0EAD457A-7EE3-4E90-B8BF-6144266E6823}", "GUID:0EAD457A-7EE3-4E90-B8BF-6144266E682G", "GUID:0EAD457A-7EE3-4E90-B8BF-6144266E6823'",
		" GUID:0EAD457A-7EE3-4E90-B8BF-6144266E6823", "GUID:0EAD457A+7EE3-4E90-B8BF-6144266E6823", "GUİD:0EAD457A-7EE3-4E90-B8BF-6144266E682"} {
		if id, err := ParseClientID(text); catalog.CodeOf(err) != catalog.ClientIDMalformed {
			t.Errorf("%q: got %q, %v", text, id, err)
		}
	}
}

func TestNewClientID(t *testing.T) {
	id, err := NewClientID(zeroReader{})
	if err != nil || id != "GUID:00000000-0000-4000-8000-000000000000" {
		t.Errorf("got %q, %v", id, err)
	}
	id, err = NewClientID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := ParseClientID(string(id)); err != nil || again != id {
		t.Errorf("%q does not read as itself: %q, %v", id, again, err)
	}
	if _, err := NewClientID(strings.NewReader("short")); err == nil {
		t.Error("made an id without randomness")
	}
}

func TestParseSiteCode(t *testing.T) {
	if got, err := ParseSiteCode("2p4"); err != nil || got != "2P4" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, text := range []string{"", "AB", "ABCD", "A-B", "A B", "ÄÖ"} {
		if _, err := ParseSiteCode(text); catalog.CodeOf(err) != catalog.SiteCodeMalformed {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestNextClientIDBeginsWithTheTime(t *testing.T) {
	at := time.UnixMilli(0x0123456789AB)
	id, err := NextClientID(at, bytes.NewReader([]byte{0xFF, 1, 2, 3, 4, 5, 6, 7, 8, 9}))
	if want := ClientID("GUID:01234567-89AB-7F01-8203-040506070809"); err != nil || id != want {
		t.Errorf("got %s, %v, want %s", id, err, want)
	}
	if later, err := NextClientID(at.Add(time.Millisecond), bytes.NewReader(make([]byte, 10))); err != nil || later <= id {
		t.Errorf("%s of a millisecond later is not after %s, %v", later, id, err)
	}
	if _, err := NextClientID(at, bytes.NewReader(nil)); err == nil {
		t.Error("no randomness gave an id")
	}
}
