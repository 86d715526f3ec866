package site_test

import (
	"bytes"
	"testing"
	"time"

	"postern/catalog"
	"postern/site"
	"postern/token"
)

func confirmStories() []story {
	return []story{
		{"C77 an acknowledgement is taken once", replayedAck},
		{"a gateway gets one certificate an hour at most, and has it again when it asks again", oneCertificateAnHour},
		{"a gateway that confirms what the store does not know tells that the store is older", storeBehindGateway},
		{"confirmations say which gateway has which epoch, and since when", ackConfirmations},
	}
}

func replayedAck(t *testing.T, w *world) {
	key := newECKey()
	w.addGateway(t, "https://gw.example.com", token.Pin(key.Public()))
	for name, raw := range map[string]string{
		"plain":             w.ack(key),
		"with a request":    w.ack(key, func(a *token.Ack) { a.CSR = requestFor(key) }),
		"later with a line": w.ack(key, func(a *token.Ack) { a.At = a.At.Add(time.Second); a.Log = []byte("x") }),
	} {
		if _, err := w.Acknowledge(t.Context(), raw); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		entries := w.during(t, func() {
			_, err := w.Acknowledge(t.Context(), raw)
			refused(t, name+" again", err, catalog.AcknowledgementReplayed)
		})
		if len(entries) != 0 {
			t.Errorf("%s: the replay left %s", name, actions(entries))
		}
	}
}

func oneCertificateAnHour(t *testing.T, w *world) {
	key := newECKey()
	w.addGateway(t, "https://gw.example.com", token.Pin(key.Public()))
	ask := func() [][]byte {
		t.Helper()
		w.clock.advance(time.Second) // no two acknowledgements are the same
		chain, err := w.Acknowledge(t.Context(), w.ack(key, func(a *token.Ack) { a.CSR = requestFor(key) }))
		if err != nil || len(chain) < 2 {
			t.Fatalf("%d certificates, %v", len(chain), err)
		}
		return chain
	}
	first := ask()
	entries := w.during(t, func() {
		for range 20 {
			if again := ask(); !bytes.Equal(again[0], first[0]) {
				t.Fatal("another certificate within the hour")
			}
		}
	})
	if len(entries) != 0 {
		t.Errorf("asking again left %s", actions(entries))
	}
	w.clock.advance(time.Hour)
	if later := ask(); bytes.Equal(later[0], first[0]) {
		t.Error("no other certificate after the hour")
	}
}

func storeBehindGateway(t *testing.T, w *world) {
	key := newECKey()
	w.addGateway(t, "https://gw.example.com", token.Pin(key.Public()))
	epoch := w.Epoch()
	claim := func(by uint64) error {
		_, err := w.Acknowledge(t.Context(), w.ack(key, func(a *token.Ack) { a.Epoch = by }))
		return err
	}
	entries := w.during(t, func() {
		for _, far := range []uint64{epoch + uint64(time.Hour.Milliseconds()), 1<<64 - 1} {
			refused(t, "an epoch of the far future", claim(far), catalog.GatewayAhead)
		}
	})
	if g := w.Gateways()[0]; len(entries) != 0 || g.Acknowledged != 0 || w.Epoch() != epoch {
		t.Errorf("it counts: %+v, epoch %d, %s", g, w.Epoch(), actions(entries))
	}
	entries = w.during(t, func() {
		if err := claim(epoch + 5000); err != nil {
			t.Fatal(err)
		}
	})
	if w.Epoch() <= epoch+5000 || actions(entries) != "site.older" {
		t.Errorf("epoch %d, %s", w.Epoch(), actions(entries))
	}
}

func ackConfirmations(t *testing.T, w *world) {
	quick, slow := newECKey(), newECKey()
	w.addGateway(t, "https://a.example.com", token.Pin(quick.Public()))
	w.addGateway(t, "https://b.example.com", token.Pin(slow.Public()))
	epoch := w.Epoch()
	w.clock.advance(3 * time.Second)
	if _, err := w.Acknowledge(t.Context(), w.ack(quick, func(a *token.Ack) { a.Gateway = "a.example.com" })); err != nil {
		t.Fatal(err)
	}
	at := truncated(w.clock.now())
	w.clock.advance(2 * time.Minute)
	if _, err := w.Acknowledge(t.Context(), w.ack(quick, func(a *token.Ack) { a.Gateway = "a.example.com" })); err != nil {
		t.Fatal(err)
	}
	want := []site.Confirmation{
		{Gateway: "a.example.com", Confirmed: true, At: at, Epoch: epoch, Heard: truncated(w.clock.now())},
		{Gateway: "b.example.com", Heard: time.Unix(0, 0).UTC()},
	}
	got, err := w.AwaitConfirmations(t.Context(), epoch, time.Millisecond)
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	want[1].Heard = got[1].Heard // it was never heard, however the store writes that
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %+v, want %+v", got[i], want[i])
		}
	}
	if _, err := w.Acknowledge(t.Context(), w.ack(slow, func(a *token.Ack) { a.Gateway = "b.example.com" })); err != nil {
		t.Fatal(err)
	}
	if got, err = w.AwaitConfirmations(t.Context(), epoch, time.Minute); err != nil || !got[1].Confirmed {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err = w.Confirmations(t.Context(), epoch+1); err != nil || got[0].Confirmed || !got[0].At.IsZero() {
		t.Errorf("of a later epoch: %+v, %v", got, err)
	}
}
