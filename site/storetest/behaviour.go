package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/site"
)

func hostileStrings(t *testing.T, s site.Store) {
	for i, text := range []string{
		`'; DROP TABLE devices; --`, `" OR ""="`, `$1 $2 ?1 :name @p`, `\'; \x00 %s %`, "line\r\nfeed\ttab\x01\x7f", "Ω≈ç√∫ 设备 \U0001F680 \u202e\u200b", "}{[]\\u0000", strings.Repeat("ä", 5000),
	} {
		d := device(i)
		d.Record.NetbiosName, d.Record.FQDName, d.Record.HardwareID1 = text, text, text
		d.Approval.Evidence = map[string]string{text: text}
		d.Approval.Why, d.Block.Blocked = text, true
		put(t, s, d)
		same(t, fmt.Sprintf("device with %.20q", text), read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(d.ClientID) }), d)
		found := read(t, s, func(tx site.Tx) ([]site.Device, error) { return tx.Devices(site.DeviceFilter{Name: text}) })
		same(t, fmt.Sprintf("devices named %.20q", text), found, []site.Device{d})
		update(t, s, func(tx site.Tx) error { return tx.PutSetting(text, text) })
		same(t, fmt.Sprintf("setting %.20q", text), read(t, s, func(tx site.Tx) (string, error) { return tx.Setting(text) }), text)
	}
}

func largeBodies(t *testing.T, s site.Store) {
	p := policy("{L}", "1.00", true)
	p.Body = bytes.Repeat([]byte{0, 1, 0xfe, 0xff}, 1<<20) // 4 MiB
	update(t, s, func(tx site.Tx) error { return tx.PutPolicy(p) })
	got := read(t, s, func(tx site.Tx) (site.Policy, error) { return tx.Policy("{L}", "") })
	if !bytes.Equal(got.Body, p.Body) {
		t.Errorf("a body of %d bytes came back as %d other bytes", len(p.Body), len(got.Body))
	}
}

func times(t *testing.T, s site.Store) {
	zone := time.FixedZone("east", 5*3600)
	for name, in := range map[string]time.Time{
		"nanoseconds are cut off":        time.Date(2026, 2, 3, 4, 5, 6, 123456789, time.UTC),
		"another zone becomes UTC":       time.Date(2026, 2, 3, 4, 5, 6, 123456000, zone),
		"the beginning of 1970":          time.Unix(0, 0),
		"a certificate from before 1970": time.Date(1950, 1, 1, 0, 0, 0, 1000, time.UTC),
		"a certificate without end":      time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC),
		"the zero time":                  {},
	} {
		d := device(1)
		d.Record.ValidFrom, d.Created = in, in
		put(t, s, d)
		got := read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(d.ClientID) })
		want := in.UTC().Truncate(time.Microsecond)
		same(t, name, got.Record.ValidFrom, want)
		same(t, name, got.Created, want)
	}
}

// together runs the changes at once and returns their errors in order.
func together(ctx context.Context, s site.Store, n int, change func(n int, tx site.Tx) error) []error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = s.Update(ctx, func(tx site.Tx) error { return change(i, tx) }) })
	}
	all.Wait()
	return errs
}

func rollback(t *testing.T, s site.Store) {
	boom := errors.New("boom")
	const n = 60
	errs := together(t.Context(), s, n, func(i int, tx site.Tx) error {
		if i%5 == 1 {
			return boom // before it has written
		}
		if err := tx.PutDevice(device(i)); err != nil {
			return err
		}
		if i%5 == 3 {
			return fmt.Errorf("after it has written: %w", boom)
		}
		return nil
	})
	for i, err := range errs {
		_, found := tryRead(t.Context(), s, func(tx site.Tx) (site.Device, error) { return tx.Device(device(i).ClientID) })
		wantError := i%5 == 1 || i%5 == 3
		if errors.Is(err, boom) != wantError || (err != nil) != wantError {
			t.Errorf("change %d: got error %v, want one: %v", i, err, wantError)
		}
		if errors.Is(found, site.ErrNotFound) != wantError {
			t.Errorf("change %d: reading its device gives %v", i, found)
		}
	}
}

func panics(t *testing.T, s site.Store) {
	errs := together(t.Context(), s, 20, func(i int, tx site.Tx) error {
		if err := tx.PutDevice(device(i)); err != nil {
			return err
		}
		if i == 7 {
			panic("number 7")
		}
		return nil
	})
	for i, err := range errs {
		if (err != nil) != (i == 7) {
			t.Errorf("change %d: got %v", i, err)
		}
	}
	if err := errs[7]; err != nil && !strings.Contains(err.Error(), "number 7") {
		t.Errorf("the panic's error says %q", err)
	}
	missing(t, s, "the device of the change that panicked", func(tx site.Tx) (site.Device, error) { return tx.Device(clientID(7)) })
}

func readsOwnWrites(t *testing.T, s site.Store) {
	update(t, s, func(tx site.Tx) error {
		if err := tx.PutDevice(device(1)); err != nil {
			return err
		}
		_, err := tx.DeviceByKey(key(1))
		return err
	})
	refused(t, s, "a second device with the key in the same change", site.ErrExists, func(tx site.Tx) error {
		if err := tx.PutDevice(device(2)); err != nil {
			return err
		}
		twin := device(3)
		twin.Key = key(2)
		return tx.PutDevice(twin)
	})
	missing(t, s, "the first of them", func(tx site.Tx) (site.Device, error) { return tx.Device(clientID(2)) })

	// ErrExists is no failure of the transaction: a change may go on after it.
	update(t, s, func(tx site.Tx) error {
		for range 2 {
			if err := tx.PutReservation(reservation(5)); err != nil && !errors.Is(err, site.ErrExists) {
				return err
			}
		}
		twin := device(6)
		twin.Key = key(1)
		if err := tx.PutDevice(twin); !errors.Is(err, site.ErrExists) {
			return fmt.Errorf("taken key: got %v", err)
		}
		return tx.PutDevice(device(4))
	})
	read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(clientID(4)) })
}

func viewsDoNotWrite(t *testing.T, s site.Store) {
	err := s.View(t.Context(), func(tx site.Tx) error { return tx.PutDevice(device(1)) })
	if err == nil || errors.Is(err, site.ErrUnavailable) {
		t.Errorf("writing in a view: got %v, want an error that is not ErrUnavailable", err)
	}
	if err := s.View(t.Context(), func(tx site.Tx) error { _, err := tx.NextEpoch(0); return err }); err == nil {
		t.Error("a view raised the epoch")
	}
	missing(t, s, "the device", func(tx site.Tx) (site.Device, error) { return tx.Device(clientID(1)) })
	boom := errors.New("boom")
	if err := s.View(t.Context(), func(site.Tx) error { return boom }); err != boom {
		t.Errorf("a view's own error: got %v", err)
	}
}

func viewsSeeOneState(t *testing.T, s site.Store) {
	put(t, s, device(1))
	err := s.View(t.Context(), func(tx site.Tx) error {
		before, err := tx.Devices(site.DeviceFilter{})
		if err != nil {
			return err
		}
		if err := s.Update(t.Context(), func(tx site.Tx) error { return tx.PutDevice(device(2)) }); err != nil {
			return err
		}
		after, err := tx.Devices(site.DeviceFilter{})
		if err == nil && len(before) != len(after) {
			err = fmt.Errorf("the view saw %d devices and then %d", len(before), len(after))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	same(t, "devices after the view", len(read(t, s, func(tx site.Tx) ([]site.Device, error) { return tx.Devices(site.DeviceFilter{}) })), 2)
}

func exactlyNUses(t *testing.T, s site.Store) {
	const limit, callers = 7, 60
	token := bulkToken(limit)
	update(t, s, func(tx site.Tx) error { return tx.PutBulkToken(token) })
	usedUp := errors.New("used up")
	errs := together(t.Context(), s, callers, func(i int, tx site.Tx) error {
		now, err := tx.BulkToken(token.ID)
		if err != nil {
			return err
		}
		if now.Uses >= now.MaxUses {
			return usedUp
		}
		if err := tx.UseToken(token.ID, site.TokenUse{Key: key(i), ClientID: clientID(i), At: start}); err != nil {
			return err
		}
		return appendTrust(tx, fmt.Sprint(i))
	})
	served := 0
	for _, err := range errs {
		switch {
		case err == nil:
			served++
		case !errors.Is(err, usedUp):
			t.Errorf("use: %v", err)
		}
	}
	same(t, "callers served", served, limit)
	same(t, "uses", read(t, s, func(tx site.Tx) (site.BulkToken, error) { return tx.BulkToken(token.ID) }).Uses, limit)
	same(t, "uses listed", len(read(t, s, func(tx site.Tx) ([]site.TokenUse, error) { return tx.TokenUses(token.ID, 0) })), limit)
	same(t, "trust entries", len(chain(t, s)), limit)
}

func oneOwner(t *testing.T, s site.Store) {
	const keys = 500
	owner := errors.New("has an owner")
	errs := together(t.Context(), s, keys, func(i int, tx site.Tx) error {
		switch _, err := tx.Device(clientID(1)); {
		case err == nil:
			return owner
		case !errors.Is(err, site.ErrNotFound):
			return err
		}
		d := device(1)
		d.Key = key(i)
		if err := tx.PutDevice(d); err != nil {
			return err
		}
		return appendTrust(tx, string(d.Key))
	})
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Errorf("keys %d and %d both own the client id", winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, owner):
			t.Errorf("key %d: %v", i, err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody owns the client id")
	}
	same(t, "the owner's key", read(t, s, func(tx site.Tx) (site.Device, error) { return tx.Device(clientID(1)) }).Key, key(winner))
	same(t, "trust entries", len(chain(t, s)), 1)
}

func concurrentTrust(t *testing.T, s site.Store) {
	boom := errors.New("boom")
	errs := together(t.Context(), s, 80, func(i int, tx site.Tx) error {
		if err := appendTrust(tx, fmt.Sprint(i)); err != nil {
			return err
		}
		if i%8 == 3 {
			return boom
		}
		return nil
	})
	kept := 0
	for _, err := range errs {
		switch {
		case err == nil:
			kept++
		case !errors.Is(err, boom):
			t.Errorf("append: %v", err)
		}
	}
	same(t, "entries", len(chain(t, s)), kept)
	same(t, "changes that worked", kept, 70)
}

func cancellation(t *testing.T, s site.Store) {
	ended, end := context.WithCancel(t.Context())
	end()
	ran := false
	if err := s.Update(ended, func(site.Tx) error { ran = true; return nil }); !errors.Is(err, context.Canceled) || ran {
		t.Errorf("update after the end: got %v, ran: %v", err, ran)
	}
	if err := s.View(ended, func(site.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("view after the end: got %v", err)
	}

	// While one change holds the writer, another waits; its caller leaves and the change never runs.
	entered, release, first := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		var once sync.Once
		first <- s.Update(context.Background(), func(tx site.Tx) error {
			once.Do(func() { close(entered) })
			<-release
			return tx.PutDevice(device(1))
		})
	}()
	<-entered
	leaving, leave := context.WithCancel(t.Context())
	var second atomic.Bool
	left := make(chan error, 1)
	go func() {
		left <- s.Update(leaving, func(tx site.Tx) error {
			second.Store(true)
			return tx.PutDevice(device(2))
		})
	}()
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that leaves: got %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("the change that held the writer: %v", err)
	}
	put(t, s, device(3)) // the queue goes on
	if second.Load() {
		t.Error("the change of a caller that had left was run")
	}
}

func changes(t *testing.T, s site.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	told, too := s.Changes(ctx), s.Changes(ctx)
	receive := func(c <-chan struct{}) {
		t.Helper()
		select {
		case _, open := <-c:
			if !open {
				t.Fatal("the channel is closed")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no word of a commit")
		}
	}
	for n := range 3 {
		put(t, s, device(n))
		receive(told)
		receive(too)
	}
	put(t, s, device(8)) // nobody receives: nobody waits
	put(t, s, device(9))
	cancel()
	for _, c := range []<-chan struct{}{told, too} {
		deadline := time.After(10 * time.Second)
		for open := true; open; {
			select {
			case _, open = <-c:
			case <-deadline:
				t.Fatal("the channel stays open after its context")
			}
		}
	}
	put(t, s, device(10))
}

func remember(t *testing.T, s site.Store) {
	ask := func(id string, until time.Time) bool {
		t.Helper()
		fresh, err := s.Remember(t.Context(), id, until)
		if err != nil {
			t.Fatalf("remember %q: %v", id, err)
		}
		return fresh
	}
	later, ago := time.Now().Add(time.Hour), time.Now().Add(-time.Minute)
	for _, test := range []struct {
		name, id string
		until    time.Time
		want     bool
	}{
		{"first", "a", later, true},
		{"again", "a", later, false},
		{"again with another time", "a", ago, false},
		{"still", "a", later, false},
		{"another id", "b", later, true},
		{"another case", "B", later, true},
		{"no id", "", later, true},
		{"long", strings.Repeat("x", 10000), later, true},
		{"expired at once", "c", ago, true},
		{"after it expired", "c", later, true},
		{"and again", "c", later, false},
	} {
		if got := ask(test.id, test.until); got != test.want {
			t.Errorf("%s: fresh is %v, want %v", test.name, got, test.want)
		}
	}

	var fresh atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if first, err := s.Remember(t.Context(), "contested", later); err != nil {
				t.Errorf("remember: %v", err)
			} else if first {
				fresh.Add(1)
			}
		})
	}
	all.Wait()
	same(t, "callers for whom one id was fresh", fresh.Load(), 1)
}

func closed(t *testing.T, s site.Store) {
	told := s.Changes(t.Context())
	put(t, s, device(1))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if err := s.Update(t.Context(), func(tx site.Tx) error { return tx.PutDevice(device(2)) }); !errors.Is(err, site.ErrUnavailable) {
		t.Errorf("update: got %v, want ErrUnavailable", err)
	}
	if _, err := tryRead(t.Context(), s, func(tx site.Tx) (site.Device, error) { return tx.Device(clientID(1)) }); !errors.Is(err, site.ErrUnavailable) {
		t.Errorf("view: got %v, want ErrUnavailable", err)
	}
	for range 2 { // one word of the commit, then the end
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatal("the channel stays open after Close")
		}
	}
}
