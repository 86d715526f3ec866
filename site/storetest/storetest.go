// Package storetest is the suite that every site.Store passes. A store's own test calls [Run] with a function that opens an empty store.
// It states the contract of site.Store and site.Tx as tests; what only one database can do belongs in that database's own tests.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// Run tests the stores that open returns. Each call of open gives a new and empty store; Run closes it.
func Run(t *testing.T, open func(testing.TB) site.Store) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*testing.T, site.Store)
	}{
		{"devices come back as they went in", devicesComeBack},
		{"a device is one client id and one key", devicesAreUnique},
		{"devices are listed by age and filtered", devicesAreListed},
		{"blocked devices are found by hardware and key", devicesBlocked},
		{"devices that a person refused are found by hardware and identity", devicesRefused},
		{"devices are found by what they have proved", devicesByIdentity},
		{"last seen moves forward only", devicesTouched},
		{"obsolete and held devices come back", devicesWithMarks},
		{"devices are found by hardware id", devicesByHardware},
		{"devices are filtered by what they prove and are called", devicesFiltered},
		{"keys that were replaced are known", replacedKeys},
		{"conflicts", conflicts},
		{"what is used once is noted in the change", notedUses},
		{"a reservation is one key and one client id", reservations},
		{"bulk tokens count each key once", bulkTokens},
		{"policies reach their targets", policies},
		{"keys are kept sealed and in order", signingKeys},
		{"management points", managementPoints},
		{"gateways", gateways},
		{"connectors", connectors},
		{"revocations without a record", keptRevocations},
		{"invitations", invitations},
		{"tenants", tenants},
		{"authorities", authorities},
		{"settings", settings},
		{"the epoch only rises", epoch},
		{"the trust log is a chain", trustLog},
		{"events", events},
		{"hostile strings are only strings", hostileStrings},
		{"large bodies", largeBodies},
		{"times keep microseconds", times},
		{"an error undoes its own change only", rollback},
		{"a panic is one caller's error", panics},
		{"a change sees what it wrote itself", readsOwnWrites},
		{"a view cannot write", viewsDoNotWrite},
		{"a view sees one state", viewsSeeOneState},
		{"exactly N uses of a token", exactlyNUses},
		{"one owner of a contested client id", oneOwner},
		{"concurrent changes of trust make one chain", concurrentTrust},
		{"a waiting caller may leave", cancellation},
		{"changes are announced", changes},
		{"an id is fresh once", remember},
		{"a closed store is unavailable", closed},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() { s.Close() })
			test.run(t, s)
		})
	}
}

// start is the time of the first record of a test.
var start = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

// clientID returns the n-th client id.
func clientID(n int) ccm.ClientID {
	return ccm.ClientID(fmt.Sprintf("GUID:00000000-0000-4000-8000-%012X", n))
}

// key returns the n-th key thumbprint.
func key(n int) proof.KeyThumbprint {
	return proof.KeyThumbprint(fmt.Sprintf("key-%038d", n))
}

// device returns the n-th device, every field set and different.
func device(n int) site.Device {
	at := start.Add(time.Duration(n) * time.Second)
	text := func(field string) string { return fmt.Sprintf("%s %d", field, n) }
	return site.Device{
		ClientID: clientID(n),
		Key:      key(n),
		Record: site.Record{
			SiteCode: "LAB", SMSID: clientID(n), CSMSID: text("csmsid"), Identity: `LAB\WK$`, DeviceID: text("device"), Certificate: []byte(text("certificate")),
			Thumbprint: text("thumbprint"), EncKey: []byte(text("enc")), EncThumbprint: text("enc thumbprint"), KeyType: 1, PublicKey: []byte(text("public")),
			ValidFrom: at.Add(-time.Hour), ValidTo: at.Add(time.Hour), AgentType: 5, SMBIOSID: text("smbios"), MACAddress: text("mac"), HardwareID1: text("hardware"),
			ISVProxyID: text("proxy"), AlwaysInternet: true, InternetEnabled: n%2 == 0, Force: true, ApprovalMethod: 1, ResolutionMethod: 2, IsIntegratedAuth: true,
			Version: "5.00.8790.1007", NetbiosName: fmt.Sprintf("WK%d", n), FQDName: fmt.Sprintf("wk%d.Example.com", n), ManualConflictResolution: true,
		},
		Approval: site.Approval{
			Status: ccm.ApprovalStatus(1), Level: proof.LevelManaged, Method: proof.BulkToken, Rule: "bulk", Evidence: map[string]string{"token": text("id"), "": "empty"},
			By: "site", Why: text("why"), At: at.Add(time.Microsecond),
		},
		Block:    site.Block{Blocked: false, By: text("by"), Why: text("block"), At: at.Add(2 * time.Microsecond)},
		Proved:   fmt.Sprintf("WK%d$@LAB.EXAMPLE", n),
		Created:  at,
		Updated:  at.Add(3 * time.Microsecond),
		LastSeen: at.Add(4 * time.Microsecond),

		Quarantine: site.Quarantine{Since: at.Add(5 * time.Microsecond), Why: "not heard since " + at.Format(time.RFC3339)},
	}
}

// update runs change and fails the test when it does not work.
func update(t testing.TB, s site.Store, change func(site.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), change); err != nil {
		t.Fatalf("update: %v", err)
	}
}

// put writes devices in one update.
func put(t testing.TB, s site.Store, devices ...site.Device) {
	t.Helper()
	update(t, s, func(tx site.Tx) error {
		for _, d := range devices {
			if err := tx.PutDevice(d); err != nil {
				return err
			}
		}
		return nil
	})
}

// read returns what ask returns in a view.
func read[T any](t testing.TB, s site.Store, ask func(site.Tx) (T, error)) T {
	t.Helper()
	v, err := tryRead(t.Context(), s, ask)
	if err != nil {
		t.Fatalf("view: %v", err)
	}
	return v
}

func tryRead[T any](ctx context.Context, s site.Store, ask func(site.Tx) (T, error)) (v T, err error) {
	err = s.View(ctx, func(tx site.Tx) error {
		v, err = ask(tx)
		return err
	})
	return v, err
}

// missing fails the test unless ask gives site.ErrNotFound, in a view and in an update.
func missing[T any](t testing.TB, s site.Store, what string, ask func(site.Tx) (T, error)) {
	t.Helper()
	if _, err := tryRead(t.Context(), s, ask); !errors.Is(err, site.ErrNotFound) {
		t.Errorf("%s in a view: got %v, want ErrNotFound", what, err)
	}
	err := s.Update(t.Context(), func(tx site.Tx) error {
		_, err := ask(tx)
		return err
	})
	if !errors.Is(err, site.ErrNotFound) {
		t.Errorf("%s in an update: got %v, want ErrNotFound", what, err)
	}
}

// refused fails the test unless change gives the wanted error.
func refused(t testing.TB, s site.Store, what string, want error, change func(site.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), change); !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

// same fails the test unless got and want are equal in every field.
func same[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\n got %s\nwant %s", what, short(got), short(want))
	}
}

func short(v any) string {
	text := fmt.Sprintf("%+v", v)
	if len(text) > 3000 {
		text = text[:3000] + "..."
	}
	return text
}

// list names records in order.
func list[T any](records []T, name func(T) string) string {
	names := make([]string, len(records))
	for i, r := range records {
		names[i] = name(r)
	}
	return strings.Join(names, " ")
}
