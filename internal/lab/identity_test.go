package lab_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// register sends a registration at the plain listener and returns what was answered.
func (w *world) register(d *device, edit ...func(*ccm.RegistrationRequest)) (ccm.RegistrationResponse, answer) {
	w.Helper()
	contentType, body := d.encode(w, "MP_ClientRegistration", d.registration(w, edit...), false)
	a := w.send(w.http1(), "CCM_POST", w.plain("/ccm_system/request"), contentType, body, nil)
	response, err := ccm.ParseRegistrationResponse(w.text(a))
	w.must(err)
	return response, a
}

func wanting(id ccm.ClientID) func(*ccm.RegistrationRequest) {
	return func(r *ccm.RegistrationRequest) { r.SMSID = id }
}

// TestAnotherDevicesGUIDWithANewKey (C61): by every door, the owner's record stays as it is, byte for byte; the newcomer gets an id of its
// own and the conflict is written down.
func TestAnotherDevicesGUIDWithANewKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	owner := w.enrolled("owner")
	ways := map[string]func(w *world, thief *device) ccm.ClientID{
		"anonymously": func(w *world, thief *device) ccm.ClientID {
			response, _ := w.register(thief, wanting(owner.id))
			return response.SMSID
		},
		"with the owner's name and hardware": func(w *world, thief *device) ccm.ClientID {
			response, _ := w.register(thief, wanting(owner.id), func(r *ccm.RegistrationRequest) {
				r.Properties = map[string]string{"NetBIOS Name": "owner", "FQ Name": "owner.lab.example", "HardwareID1": "2:ABC"}
			})
			return response.SMSID
		},
		"with a bulk token": func(w *world, thief *device) ccm.ClientID {
			raw, _ := w.bulk(1)
			thief.register = w.token(w.exchange(thief, raw, "ccm")).AccessToken
			response, err := ccm.ParseRegistrationResponse(w.text(w.message(thief, thief.register, "MP_ClientRegistration", thief.registration(w, wanting(owner.id)), false)))
			w.must(err)
			return response.SMSID
		},
	}
	before, err := w.Site().Device(t.Context(), owner.id)
	w.must(err)
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			w := w.on(t)
			thief := newDevice(t, "thief")
			got := way(w, thief)
			if got == owner.id || got == "" {
				t.Errorf("the thief was given %q", got)
			}
			after, err := w.Site().Device(t.Context(), owner.id)
			w.must(err)
			before.LastSeen, after.LastSeen = time.Time{}, time.Time{}
			if fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("the owner's record is now\n%+v, was\n%+v", after, before)
			}
			mine, err := w.Site().DeviceByKey(t.Context(), thief.thumbprint(t))
			w.must(err)
			if mine.ClientID != got {
				t.Errorf("the thief's key belongs to %s, it was told %s", mine.ClientID, got)
			}
			w.event(catalog.RegistrationIDTaken)
		})
	}
}

// TestSameKeyUnderManyGUIDs: a key is one device, whatever it calls itself.
func TestSameKeyUnderManyGUIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := newDevice(t, "many")
	first, _ := w.register(d)
	trust := w.state().trust
	for i := range 5 {
		id := ccm.ClientID(fmt.Sprintf("GUID:00000000-0000-4000-8000-%012d", i))
		if again, _ := w.register(d, wanting(id)); again.SMSID != first.SMSID {
			t.Errorf("as %s the same key was given %s, want %s", id, again.SMSID, first.SMSID)
		}
	}
	devices, err := w.Site().Devices(t.Context(), site.DeviceFilter{})
	w.must(err)
	if len(devices) != 1 || w.state().trust != trust {
		t.Errorf("%d devices and %d trust entries, want 1 and %d", len(devices), w.state().trust, trust)
	}
}

// TestSignatureOverOtherBytes: a registration, a confirmation and a message whose signature is of something else.
func TestSignatureOverOtherBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, other := w.enrolled("signer"), w.enrolled("other")
	newcomer := newDevice(t, "newcomer")
	swap := func(xml, old, new string) string {
		if !strings.Contains(xml, old) {
			t.Fatalf("no %q in the message", old)
		}
		return strings.Replace(xml, old, new, 1)
	}
	plain := func(contentType string, body []byte) answer {
		return w.send(w.http1(), "CCM_POST", w.plain("/ccm_system/request"), contentType, body, nil)
	}
	stolen := &device{name: "stolen", key: newDeviceKey(t), cert: other.cert, id: other.id}
	for _, c := range []struct {
		name string
		code catalog.Code
		send func() answer
	}{
		{"a registration changed after it was signed", catalog.RegistrationSignature, func() answer {
			return plain(newcomer.encode(t, "MP_ClientRegistration", swap(newcomer.registration(t), `Value="newcomer"`, `Value="otherone"`), false))
		}},
		{"a registration signed by another key than its certificate's", catalog.RegistrationSignature, func() answer {
			mixed := &device{name: "mixed", key: newDeviceKey(t), cert: newcomer.cert}
			return plain(mixed.encode(t, "MP_ClientRegistration", mixed.registration(t), false))
		}},
		{"the same through the gateway", catalog.RegistrationSignature, func() answer {
			return w.message(d, d.register, "MP_ClientRegistration", swap(newcomer.registration(t), `Value="newcomer"`, `Value="otherone"`), false)
		}},
		{"a registration of another key than the token's", catalog.RegistrationOtherKey, func() answer {
			return w.message(d, d.register, "MP_ClientRegistration", newcomer.registration(t), false)
		}},
		{"a confirmation by another key", catalog.RegistrationSignature, func() answer {
			return plain(newcomer.encode(t, "MP_ClientRegistration", newcomer.confirmation(t, d.id), false))
		}},
		{"a policy request signed by another key", catalog.SignatureMismatch, func() answer {
			return plain(stolen.encode(t, "MP_PolicyManager", other.assignments(), true))
		}},
		{"a policy request without a signature", catalog.SignatureMissing, func() answer {
			return plain(d.encode(t, "MP_PolicyManager", d.assignments(), false))
		}},
		{"a policy request for another device", catalog.MessageOtherDevice, func() answer {
			return plain(d.encode(t, "MP_PolicyManager", other.assignments(), true))
		}},
		{"a message of another device with one's own token", catalog.MessageOtherDevice, func() answer {
			return w.message(&device{name: "x", key: d.key, id: other.id}, d.ccm, "MP_PolicyManager", d.assignments(), true)
		}},
		{"a message of a device that nobody knows", catalog.DeviceUnknown, func() answer {
			unknown := &device{name: "x", key: newcomer.key, id: "GUID:99999999-0000-4000-8000-000000000001"}
			return plain(unknown.encode(t, "MP_PolicyManager", unknown.assignments(), true))
		}},
		{"a payload changed after it was signed", catalog.SignatureMismatch, func() answer {
			contentType, data := d.encode(t, "MP_PolicyManager", d.assignments(), true, func(h *ccm.Header) { h.Compressed, h.ReplyCompression = false, "none" })
			at := strings.LastIndex(string(data), "s\x00i\x00g\x00n\x00e\x00r\x00")
			if at < 0 {
				t.Fatal("the payload does not name the device")
			}
			data[at] = 'S'
			return plain(contentType, data)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.on(t).refuses(refusal{status: http.StatusOK, code: c.code, silent: true}, c.send)
			w.on(t).event(c.code)
		})
	}
}

// TestRejectedRegistrationIsTold: what was signed and understood, and may not be, is answered with status 3 and no id (protocol.md 3.4).
func TestRejectedRegistrationIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	blocked := w.enrolled("blocked")
	_, err := w.Site().Block(t.Context(), blocked.id, "test", "stolen")
	w.must(err)
	spoof := newDevice(t, "spoof")
	for _, c := range []struct {
		name string
		d    *device
		edit func(*ccm.RegistrationRequest)
		code catalog.Code
	}{
		{"a blocked device (C61)", blocked, func(*ccm.RegistrationRequest) {}, catalog.DeviceBlocked},
		{"a name that is written backwards (C68)", spoof, func(r *ccm.RegistrationRequest) { r.Properties["NetBIOS Name"] = "lap\u202egnp.exe" }, catalog.RegistrationAttribute},
		{"a name with a zero-width space (C68)", spoof, func(r *ccm.RegistrationRequest) { r.Properties["NetBIOS Name"] = "lap\u200btop" }, catalog.RegistrationAttribute},
		{"a name of a thousand letters", spoof, func(r *ccm.RegistrationRequest) { r.Properties["NetBIOS Name"] = strings.Repeat("a", 1000) }, catalog.RegistrationAttribute},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.on(t)
			w.unchanged(func() {
				response, a := w.register(c.d, c.edit)
				if response.Status != ccm.RegistrationRejected || response.SMSID != "" {
					t.Errorf("answered %+v, want status 3 and no id", response)
				}
				if got := catalog.CodeOf(w.point.of(t, a.id()).Err); got != c.code {
					t.Errorf("told of %q, want %s", got, c.code)
				}
			})
		})
	}
}

// TestBlockedDevice: refused at the gateway by its key as soon as the state is there, and at the management point at once (C46).
func TestBlockedDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.enrolled("blocked")
	_, err := w.Site().Block(t.Context(), d.id, "test", "stolen")
	w.must(err)
	w.settled()
	address := w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut")
	w.refuses(refusal{status: 401, reason: "CMGService_Invalid_Token", code: catalog.KeyBlocked}, func() answer {
		return w.send(w.http1(), http.MethodGet, address+"?MPLIST", "", nil, proofOf(t, d.key, http.MethodGet, address, d.ccm))
	})
	w.refuses(refusal{status: 401, reason: "CMGService_Invalid_Token", code: catalog.KeyBlocked}, func() answer { return w.exchange(d, d.selfProve, "ccm") })
	direct := w.inside("/SMS_MP_TokenAuth/.sms_aut")
	w.refuses(refusal{status: 401, code: catalog.KeyBlocked}, func() answer {
		return w.send(w.http1(), http.MethodGet, direct+"?MPLIST", "", nil, proofOf(t, d.key, http.MethodGet, direct, d.ccm))
	})
	w.refuses(refusal{status: 200, code: catalog.DeviceBlocked, silent: true}, func() answer {
		contentType, body := d.encode(t, "MP_PolicyManager", d.assignments(), true)
		return w.send(w.http1(), "CCM_POST", w.plain("/ccm_system/request"), contentType, body, nil)
	})
}

// TestWhyKnowsWhatTheGatewayRefused: a thief's key that shows a device's token never gets to the site, which knows of it all the same, and not of the device as
// the one that did it.
func TestWhyKnowsWhatTheGatewayRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, thief := w.enrolled("robbed"), newDevice(t, "thief")
	address := w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_aut")
	w.refuses(refusal{status: 401, reason: "CMGService_Invalid_Token", code: catalog.ProofOtherKey}, func() answer {
		return w.send(w.http1(), http.MethodGet, address+"?MPLIST", "", nil, proofOf(t, thief.key, http.MethodGet, address, d.ccm))
	})
	key, err := proof.Thumbprint(&thief.key.PublicKey)
	w.must(err)
	if e := w.event(catalog.ProofOtherKey); e.Kind != "gateway" || e.Subject != string(key) || e.Address == "" || !strings.Contains(e.Detail, w.Site().Gateways()[0].Name) {
		t.Errorf("told of as %+v", e)
	}
	for who, want := range map[string]catalog.Code{string(key): catalog.ProofOtherKey, string(d.id): catalog.DeviceTalks} {
		facts, err := w.Site().DeviceFacts(t.Context(), who)
		w.must(err)
		facts.Running = true
		if why := site.Why(facts); why.Verdict == nil || why.Verdict.Code != want || why.Verdict.Sure != "certain" {
			t.Errorf("%s: %+v", who, why)
		}
	}
}

// settled waits until the gateway has acknowledged the site's newest state.
func (w *world) settled() {
	w.Helper()
	eventually(w, "the gateway has the newest state", func() bool { return w.Gateway.Gateway.Status().Epoch == w.Site().Epoch() })
}

// TestPolicyOfOthers: a policy for other devices, one that needs a proof, and one with a secret, asked for by those who may not have it. The
// answer is the page that clients know (protocol.md 4.4).
func TestPolicyOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, other := w.enrolled("reader"), w.enrolled("target")
	add := func(ask site.NewPolicy) string {
		ask.By, ask.Body = "test", []byte("<Policy/>")
		p, err := w.Site().AddPolicy(t.Context(), ask)
		w.must(err)
		return p.ID
	}
	own := add(site.NewPolicy{Category: "Own", Targets: []ccm.ClientID{other.id}})
	high := add(site.NewPolicy{Category: "High", All: true, Level: proof.LevelSecrets})
	secret := add(site.NewPolicy{Category: "NAAConfig", All: true, Flags: ccm.PolicySecret | ccm.PolicyRequiresAuth})
	address := w.outside(ccm.DoorServerAuth, "/SMS_MP_TokenAuth/.sms_pol")
	for _, c := range []struct {
		name, query string
		code        catalog.Code
	}{
		{"of another device", own + ".1_00", catalog.PolicyOtherDevice},
		{"above one's level", high + ".1_00", catalog.PolicyLevel},
		{"with a secret", secret + ".1_00", catalog.PolicyLevel},
		{"that does not exist", "{11111111-2222-4333-8444-555555555555}.1_00", catalog.PolicyUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := w.on(t)
			w.unchanged(func() {
				a := w.send(w.http1(), http.MethodGet, address+"?"+c.query, "", nil, proofOf(t, d.key, http.MethodGet, address, d.ccm))
				if a.status != 200 || string(a.body) != ccm.PolicyError {
					t.Errorf("answered %s, want 200 and the error page", a)
				}
				if got := catalog.CodeOf(w.point.of(t, a.id()).Err); got != c.code {
					t.Errorf("told of %q, want %s", got, c.code)
				}
			})
		})
	}
	t.Run("without any proof", func(t *testing.T) {
		w := w.on(t)
		for _, id := range []string{own, high, secret} {
			a := w.send(w.http1(), http.MethodGet, w.plain("/SMS_MP/.sms_pol?"+id+".1_00"), "", nil, nil)
			if got := catalog.CodeOf(w.point.of(t, a.id()).Err); string(a.body) != ccm.PolicyError || got != catalog.PolicyNeedsProof {
				t.Errorf("answered %s with %q, want the error page and %s", a, got, catalog.PolicyNeedsProof)
			}
		}
	})
}
