package lab_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/client"
	"postern/proof"
	"postern/site"
	"postern/token"
)

// rotating is a device of the client program whose keys are changed.
type rotating struct {
	*world
	dir   string
	setup client.Setup
	id    ccm.ClientID
	key   proof.KeyThumbprint
}

// rotating enrols a device; way is "through the gateway" or "directly".
func (w *world) rotating(way string) *rotating {
	w.Helper()
	d := &rotating{world: w, dir: filepath.Join(w.TempDir(), "device")}
	raw, _ := w.bulk(1)
	d.setup = w.Setup("rotating", raw)
	if way == "directly" {
		d.setup = client.Setup{ManagementPoint: w.ManagementPointURL(), SiteCode: "LAB", RootKey: w.SiteRoot, Token: client.Secret(raw), Name: "rotating"}
	}
	agent := d.open(nil)
	defer agent.Close()
	w.must(agent.Enrol(w.Context(), d.setup))
	d.id, d.key = agent.Status().ClientID, agent.Status().Key
	return d
}

func (d *rotating) open(observe func(client.Step)) *client.Agent {
	d.Helper()
	agent, err := client.Open(client.Config{Dir: d.dir, Observe: observe})
	d.must(err)
	return agent
}

// known is the device as the site knows it.
func (d *rotating) known() site.Device {
	d.Helper()
	device, err := d.Site().Device(d.Context(), d.id)
	d.must(err)
	return device
}

// whole makes sure that the device works, is the same one, and that the site knows it by its key and no other device by any.
func (d *rotating) whole(what string) client.Status {
	d.Helper()
	agent := d.open(nil)
	defer agent.Close()
	if err := agent.Renew(d.Context(), true); err != nil {
		d.Fatalf("%s: the device cannot renew its tokens: %v", what, err)
	}
	if _, err := agent.Send(d.Context(), "MP_PolicyManager", ccm.BuildAssignmentsRequest(ccm.AssignmentsRequest{ClientID: d.id, FQDN: "rotating", NetBIOSName: "ROTATING", PolicySource: "SMS:LAB"})); err != nil {
		d.Errorf("%s: a signed message: %v", what, err)
	}
	status := agent.Status()
	known := d.known()
	if status.ClientID != d.id || status.Key != known.Key || known.Approval.Status != ccm.ApprovalApproved {
		d.Errorf("%s: the device is %s with key %s, the site knows %s with key %s, approval %d", what, status.ClientID, status.Key, d.id, known.Key, known.Approval.Status)
	}
	return status
}

// TestAKeyIsChanged: the device stays the same, and its former key opens nothing any more, at either hop.
func TestAKeyIsChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, way := range []string{"through the gateway", "directly"} {
		t.Run(way, func(t *testing.T) {
			w := w.on(t)
			d := w.rotating(way)
			before := d.known()
			agent, other := d.open(nil), d.open(nil) // of two processes
			defer agent.Close()
			defer other.Close()
			for range 2 {
				w.must(agent.RotateKey(t.Context()))
				if _, err := other.Send(t.Context(), "MP_LocationManager", `<SiteInformationRequest SchemaVersion="1.00"><SiteCode Name="LAB"/></SiteInformationRequest>`); err != nil {
					t.Errorf("another process of the device: %v", err)
				}
			}
			status := d.whole("after two changes")
			if status.Key == d.key {
				t.Errorf("the key is still %s", d.key)
			}
			after := d.known()
			if after.Record.NetbiosName != before.Record.NetbiosName || after.Approval.Rule != before.Approval.Rule || !after.Created.Equal(before.Created) {
				t.Errorf("the record has changed:\nbefore %+v\nafter  %+v", before, after)
			}
			if _, err := os.Stat(filepath.Join(d.dir, "keys.next.sealed")); !os.IsNotExist(err) {
				t.Errorf("the next keys are still there: %v", err)
			}
			if got := w.actions("device.rekey", string(d.id)); got != 2 {
				t.Errorf("%d entries in the trust log, want 2", got)
			}
		})
	}
}

// actions counts trust entries.
func (w *world) actions(action, subject string) (n int) {
	w.Helper()
	entries, err := w.Site().TrustLog(w.Context(), 0, 0)
	w.must(err)
	for _, e := range entries {
		if e.Action == action && e.Subject == subject {
			n++
		}
	}
	return n
}

// TestTheFormerKeyOpensNothing: tokens of the former key with good proofs, at the gateway and at the management point.
func TestTheFormerKeyOpensNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("former")
	next := deviceOf(t, "former", newDeviceKey(t))
	response, err := ccm.ParseRegistrationResponse(w.text(w.changeKey(d, next, d, d.ccm, nil)))
	w.must(err)
	if response.Status != ccm.RegistrationDone || response.SMSID != d.id {
		t.Fatalf("answered %+v", response)
	}
	epoch := w.Site().Epoch()
	eventually(t, "the gateway has the state", func() bool { return w.Gateway.Gateway.Status().Epoch >= epoch })
	policy := func(address string, as *device, raw string) func() answer {
		return func() answer {
			return w.send(w.http1(), http.MethodGet, address+"?MPLIST", "", nil, proofOf(t, as.key, http.MethodGet, address, raw))
		}
	}
	outside, inside := w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut"), w.inside("/SMS_MP_TokenAuth/.sms_aut")
	w.refuses(refusal{status: 401, reason: "CMGService_Invalid_Token", code: catalog.KeyBlocked}, policy(outside, d, d.ccm))
	if a := policy(inside, d, d.ccm)(); a.status == 200 || a.problem() != catalog.DeviceObsolete {
		t.Errorf("the former key at the management point: %s", a)
	}
	if a := w.exchange(d, d.selfProve, token.KindCCM); a.status == 200 {
		t.Errorf("the former self-prove token: %s", a)
	}
	if a := policy(outside, next, d.ccm)(); a.problem() != catalog.ProofOtherKey && a.problem() != catalog.KeyBlocked {
		t.Errorf("the new key with a token of the former one: %s", a)
	}
}

// changeKey sends the registration that changes a device's key: by next, with a statement by the key of stated, with the token raw of d.
func (w *world) changeKey(d, next, stated *device, raw string, edit func(*change)) answer {
	w.Helper()
	address := w.outside(ccm.DoorServerAuth, "/CCM_System_TokenAuth/request")
	c := change{named: next, client: d.id, audience: address, sender: d, proves: d}
	if edit != nil {
		edit(&c)
	}
	statement, err := token.SignKeyChange(stated.key, c.client, c.named.thumbprint(w), c.audience, time.Now().Add(c.off))
	w.must(err)
	if c.statement != nil {
		statement = c.statement(statement)
	}
	body := next.registration(w, func(r *ccm.RegistrationRequest) {
		r.SMSID = d.id
		r.Properties["Postern Key Change"] = statement
	})
	contentType, data := c.sender.encode(w, "MP_ClientRegistration", body, c.sender != nil && !c.unsigned)
	return w.send(w.http1(), "CCM_POST", address, contentType, data, proofOf(w, c.proves.key, "CCM_POST", address, raw))
}

// change is what may be wrong with a change of a key.
type change struct {
	named     *device // that the statement is for
	client    ccm.ClientID
	audience  string
	off       time.Duration
	statement func(string) string
	sender    *device // who signs the message
	unsigned  bool
	proves    *device // who makes the DPoP proof
}

// TestWhoCannotChangeAKey: a thief who has the CCM token only, the former token, or one of the two keys; and every statement that does not hold.
func TestWhoCannotChangeAKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, other := w.enrolled("victim"), w.enrolled("other")
	thief := deviceOf(t, "victim", newDeviceKey(t))
	thief.id = d.id
	silent := func(code catalog.Code) refusal { return refusal{status: 200, code: code, silent: true} }
	invalid := refusal{status: 401, reason: "CMGService_Invalid_Token"}
	for name, test := range map[string]struct {
		stated *device
		raw    string
		edit   func(*change)
		want   refusal
	}{
		"the token alone":                       {thief, d.ccm, func(c *change) { c.sender, c.proves = thief, thief }, refusal{invalid.status, invalid.reason, catalog.ProofOtherKey, false}},
		"the token of register":                 {d, d.register, nil, silent(catalog.KeyChangeNotByDevice)},
		"a token of another device":             {thief, other.ccm, func(c *change) { c.sender, c.proves = thief, other }, silent("")},
		"another device's token and statement":  {other, other.ccm, func(c *change) { c.sender, c.proves, c.client = other, other, d.id }, silent(catalog.KeyChangeNotByDevice)},
		"the message is not signed":             {d, d.ccm, func(c *change) { c.unsigned = true }, silent(catalog.KeyChangeNotByDevice)},
		"the message is signed by the new key":  {d, d.ccm, func(c *change) { c.sender = thief }, silent("")},
		"a statement by the new key":            {thief, d.ccm, nil, silent(catalog.KeyChangeInvalid)},
		"a statement for another key":           {d, d.ccm, func(c *change) { c.named = other }, silent(catalog.KeyChangeInvalid)},
		"a statement of another device":         {d, d.ccm, func(c *change) { c.client = other.id }, silent(catalog.KeyChangeInvalid)},
		"a statement for another server":        {d, d.ccm, func(c *change) { c.audience = "https://elsewhere.example/request" }, silent(catalog.KeyChangeInvalid)},
		"a statement of yesterday":              {d, d.ccm, func(c *change) { c.off = -24 * time.Hour }, silent(catalog.KeyChangeInvalid)},
		"an assertion in the statement's place": {d, d.ccm, func(c *change) { c.statement = func(string) string { return d.assertion(t, c.audience) } }, silent(catalog.KeyChangeInvalid)},
		"a statement that was cut":              {d, d.ccm, func(c *change) { c.statement = func(s string) string { return s[:len(s)/2] } }, silent(catalog.KeyChangeInvalid)},
		"a proof of possession as the statement": {d, d.ccm, func(c *change) {
			c.statement = func(string) string { return proofOf(t, d.key, "CCM_POST", c.audience, d.ccm).Get("Dpop") }
		}, silent(catalog.KeyChangeInvalid)},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			w.unchanged(func() {
				a := w.changeKey(d, thief, test.stated, test.raw, test.edit)
				if a.status == 200 && len(a.body) > 0 {
					t.Errorf("answered %q", w.text(a))
				}
				if test.want.code != "" {
					w.check(a, test.want)
				}
			})
		})
	}
	t.Run("the key of another device, which names its successor too", func(t *testing.T) {
		w := w.on(t)
		w.unchanged(func() {
			a := w.changeKey(d, other, d, d.ccm, nil)
			response, err := ccm.ParseRegistrationResponse(w.text(a))
			if err != nil || response.Status != ccm.RegistrationRejected {
				t.Errorf("answered %+v, %v", response, err)
			}
		})
	})
	t.Run("from the internet where no key comes back alone", func(t *testing.T) {
		w := w.on(t)
		w.must(w.Site().Set(t.Context(), "return.enabled", "false", "test"))
		w.unchanged(func() {
			a := w.changeKey(d, thief, d, d.ccm, nil)
			response, err := ccm.ParseRegistrationResponse(w.text(a))
			if err != nil || response.Status != ccm.RegistrationRejected {
				t.Errorf("answered %+v, %v", response, err)
			}
		})
	})
}

// assertion is what the device says of itself at the token service.
func (d *device) assertion(t testing.TB, audience string) string {
	t.Helper()
	raw, err := token.SignAssertion(d.key, d.id, audience, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestAChangeOfKeysKilledAtAnyStep: the program ends after any of its steps. Started again, the device works, is the same one, and can change its key.
func TestAChangeOfKeysKilledAtAnyStep(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"through the gateway", "directly"} {
		for last := 1; ; last++ {
			d := newWorld(t).rotating(way) // a world of its own: a gateway lets few keys come alone from one address
			steps, survived := d.killedAfter(last)
			what := fmt.Sprintf("%s, killed after step %d (%s)", way, last, strings.Join(steps, "; "))
			d.whole(what)
			agent := d.open(nil)
			if err := agent.RotateKey(t.Context()); err != nil {
				t.Errorf("%s: the change cannot be finished: %v", what, err)
			}
			agent.Close()
			if status := d.whole(what + ", finished"); status.Key == d.key {
				t.Errorf("%s: the key is still the first", what)
			}
			if survived {
				if last < 4 {
					t.Errorf("%s: only %d steps", way, last)
				}
				break
			}
		}
	}
}

// killedAfter begins a change of keys that ends, as a program that is killed does, when so many steps are done.
func (d *rotating) killedAfter(last int) (steps []string, survived bool) {
	d.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		agent := d.open(func(s client.Step) {
			if steps = append(steps, s.What); len(steps) == last {
				runtime.Goexit()
			}
		})
		defer agent.Close()
		if err := agent.RotateKey(d.Context()); err != nil {
			d.Error(err)
		}
		survived = true
	}()
	<-done
	return steps, survived
}

// TestAChangeOfKeysKilledBetweenItsFiles: each file of the folder is the one of before or the one of after, as a computer that loses its power leaves them;
// the site has taken the new key, and the answer may never have come.
func TestAChangeOfKeysKilledBetweenItsFiles(t *testing.T) {
	t.Parallel()
	files := []string{"keys.sealed", "tokens.sealed", "state.json"}
	for mix := range 1 << len(files) {
		w := newWorld(t) // of its own: a gateway lets few keys come alone from one address
		d := w.rotating("through the gateway")
		before := filepath.Join(t.TempDir(), "before")
		agent := d.open(func(s client.Step) {
			if strings.HasPrefix(s.What, "new keys made") {
				w.must(os.CopyFS(before, os.DirFS(d.dir)))
			}
		})
		w.must(agent.RotateKey(t.Context()))
		agent.Close()
		var old []string
		for i, name := range append(files, "keys.next.sealed") {
			if i < len(files) && mix&(1<<i) != 0 {
				continue
			}
			content, err := os.ReadFile(filepath.Join(before, name))
			w.must(err)
			w.must(os.WriteFile(filepath.Join(d.dir, name), content, 0o600))
			old = append(old, name)
		}
		what := fmt.Sprintf("of before: %v", old)
		d.whole(what)
		again := d.open(nil)
		if err := again.Enrol(t.Context(), d.setup); err != nil {
			t.Errorf("%s: enrolling again: %v", what, err)
		}
		again.Close()
		d.whole(what + ", enrolled again")
	}
}
