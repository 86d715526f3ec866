package mp

import (
	"net/url"
	"testing"
	"time"

	"postern/catalog"
	"postern/proof"
	"postern/site"
)

// What the token service refuses to a caller that proved its key is kept under that key, so that whoever asks why the device cannot talk finds it; what nobody
// proved is kept under nothing.
func TestRefusalsAtTheTokenServiceNameTheKey(t *testing.T) {
	f := newFixture(t)
	first, late, ended := f.device(0), f.device(1), f.device(2)
	raw, _ := f.bulk(1)
	f.tokenFrom(f.exchange(first, raw, url.Values{}))
	f.exchange(late, raw, url.Values{}) // used up
	short, _, err := f.site.NewBulkToken(t.Context(), site.NewBulk{Lifetime: time.Hour, By: "test"})
	f.must(err)
	f.clock.advance(3 * time.Hour)
	f.exchange(ended, short, url.Values{}) // which has ended
	headers := f.withToken(first.key, "POST", f.url(EnhancedHTTP, "/CCM_STS"), raw)
	f.send(f.client, "POST", f.url(EnhancedHTTP, "/CCM_STS"), form, nil, headers[:2]...) // a token that somebody copied

	for name, test := range map[string]struct {
		by   *device
		code catalog.Code
	}{"used up": {late, catalog.BulkTokenUsedUp}, "ended": {ended, catalog.TokenExpired}} {
		key, err := proof.Thumbprint(test.by.key.Public())
		f.must(err)
		events, err := f.site.Events(t.Context(), site.EventFilter{Subject: string(key), Limit: 10})
		f.must(err)
		if len(events) != 1 || events[0].Code != string(test.code) || events[0].Kind != "token" {
			t.Errorf("%s: the events of key %s are %+v", name, key, events)
		}
		facts, err := f.site.DeviceFacts(t.Context(), string(key))
		f.must(err)
		if len(facts.Events) != 1 {
			t.Errorf("%s: asked why, the site knows %+v", name, facts.Events)
		}
	}
	events, err := f.site.Events(t.Context(), site.EventFilter{Limit: 50})
	f.must(err)
	for _, e := range events {
		if e.Code == string(catalog.TokenWithoutProof) && e.Subject != "" {
			t.Errorf("a token without a proof is kept under %q", e.Subject)
		}
	}
	f.wantEvent(catalog.TokenWithoutProof)
}
