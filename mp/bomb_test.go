package mp

import (
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"postern/catalog"
	"postern/proof"
)

// commentBomb is the body of a message that is nearly all one comment of so many characters. It packs twenty to thirty to one, its characters take three
// bytes in UTF-8, and what follows the document makes a reader look for its end.
func commentBomb(characters int) string {
	random := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	b.WriteString("<Bomb><!--")
	for n := 0; n < characters; {
		run := min(20+random.IntN(60), characters-n)
		b.WriteString(strings.Repeat(string(rune(0x4E00+random.IntN(4000))), run))
		n += run
	}
	b.WriteString("--></Bomb> and more")
	return b.String()
}

// whole reports whether nobody has a share of a room.
func whole(r *room, bytes int64) bool {
	if !r.free.TryAcquire(bytes) {
		return false
	}
	r.free.Release(bytes)
	return true
}

func TestStrangersUnpackLittle(t *testing.T) {
	f := newFixture(t)
	for _, test := range []struct {
		name, endpoint string
		characters     int
		want           catalog.Code
		noReply        bool
	}{
		{"what a stranger may unpack", "MP_LocationManager", maxStranger/2 - 1000, catalog.LocationRequestMalformed, false},
		{"more than that", "MP_LocationManager", maxStranger / 2, catalog.InflateBudget, false},
		{"an inventory, whose sender would send it for ever", "MP_HinvEndpoint", maxStranger / 2, catalog.InflateBudget, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			contentType, body := f.message(test.endpoint, commentBomb(test.characters), nil)
			g := f.send(f.client, http.MethodPost, f.url(HTTP, "/ccm_system/request"), contentType, body)
			if g.StatusCode != http.StatusOK || len(g.body) > 0 != test.noReply {
				t.Errorf("%s, %d bytes", g.Status, len(g.body))
			}
			f.wantEvent(test.want)
			if !whole(f.mp.strangers, strangersRoom) {
				t.Error("the message has kept its room")
			}
		})
	}
}

func TestProvedCallersUnpackMore(t *testing.T) {
	f := newFixture(t)
	d := f.device(0)
	f.register(d)
	raw := f.tokenFrom(f.exchange(d, "", f.asking(d, "ccm"))).AccessToken
	address := f.url(EnhancedHTTP, "/ccm_system_tokenauth/request")
	contentType, body := f.message("MP_LocationManager", commentBomb(maxStranger), nil)
	g := f.send(f.client, methodCCM, address, contentType, body, f.withToken(d.key, methodCCM, address, raw)...)
	if g.StatusCode != http.StatusOK {
		t.Error(g.Status)
	}
	f.wantEvent(catalog.LocationRequestMalformed) // it was unpacked and read
	if !whole(f.mp.proved, provedRoom) {
		t.Error("the message has kept its room")
	}
}

func TestNoRoomForAnotherMessage(t *testing.T) {
	f := newFixture(t)
	f.mp.strangers.wait = time.Millisecond
	if !f.mp.strangers.free.TryAcquire(strangersRoom - 1000) {
		t.Fatal("no room")
	}
	contentType, body := f.message("MP_LocationManager", "<SiteInformationRequest SchemaVersion=\"1.00\"/>", nil)
	g := f.send(f.client, http.MethodPost, f.url(HTTP, "/ccm_system/request"), contentType, body)
	if g.StatusCode != http.StatusServiceUnavailable || g.code() != string(catalog.MessagesBusy) || g.Header.Get("Retry-After") == "" {
		t.Errorf("%s, code %s, Retry-After %q", g.Status, g.code(), g.Header.Get("Retry-After"))
	}
	f.mp.strangers.free.Release(strangersRoom - 1000)
	if g := f.send(f.client, http.MethodPost, f.url(HTTP, "/ccm_system/request"), contentType, body); g.StatusCode != http.StatusOK {
		t.Errorf("with room again: %s", g.Status)
	}
}

// TestLargeBodiesTakeRoomWhileTheyArrive: senders who announce much, or send it slowly, hold what they have sent and keep small messages out of nothing.
func TestLargeBodiesTakeRoomWhileTheyArrive(t *testing.T) {
	f := newFixture(t)
	f.mp.strangers.wait = time.Millisecond
	address := f.url(HTTP, "/ccm_system/request")
	noise := make([]byte, 4*smallBody)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	large := func() int { return f.send(f.client, http.MethodPost, address, "text/plain", noise).StatusCode }
	if got := large(); got != http.StatusOK || !f.mp.strangers.coming.TryAcquire(strangersRoom) {
		t.Fatalf("with room: %d, or it has kept its room", got)
	}
	if got := large(); got != http.StatusServiceUnavailable {
		t.Errorf("without room: %d, want 503", got)
	}
	contentType, body := f.message("MP_LocationManager", "<SiteInformationRequest SchemaVersion=\"1.00\"/>", nil)
	if g := f.send(f.client, http.MethodPost, address, contentType, body); g.StatusCode != http.StatusOK || len(g.body) == 0 {
		t.Errorf("a small message meanwhile: %s, %d bytes", g.Status, len(g.body))
	}
	f.mp.strangers.coming.Release(strangersRoom)
	if got := large(); got != http.StatusOK {
		t.Errorf("with room again: %d", got)
	}
}

// deadlines is a connection that remembers until when it was to be read.
type deadlines struct {
	http.ResponseWriter
	last time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.last = t
	return nil
}

func TestABodyHasItsTime(t *testing.T) {
	for _, size := range []int{0, 100, smallBody, 5*smallBody + 1} {
		for _, end := range []error{io.EOF, io.ErrUnexpectedEOF} {
			conn := &deadlines{ResponseWriter: httptest.NewRecorder()}
			v := &visit{w: &answer{ResponseWriter: conn}, route: &Route{Body: maxMessage}, mp: &ManagementPoint{strangers: newRoom(strangersRoom)}}
			v.proof.Method = proof.Anonymous
			v.r = httptest.NewRequest(http.MethodPost, "/", io.MultiReader(strings.NewReader(strings.Repeat("x", size)), iotest.ErrReader(end)))
			data, err := v.arrive()
			if whole := end == io.EOF; len(data) != size || whole != (err == nil) || whole != conn.last.IsZero() {
				t.Errorf("%d bytes that end in %v: %d bytes, %v, to be read until %s", size, end, len(data), err, conn.last)
			}
			v.give()
			if !v.mp.strangers.coming.TryAcquire(strangersRoom) {
				t.Errorf("%d bytes that end in %v: they have kept their room", size, end)
			}
		}
	}
}
