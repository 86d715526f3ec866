package mp

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
	"postern/site"
)

// capturedID is the id that the stub gave to the client of the SDK captures.
const capturedID = ccm.ClientID("GUID:A670CC56-2308-4189-A826-4A4938AFE403")

// withCapturedDevice stores the device of the SDK captures under the id that their later requests carry.
func withCapturedDevice(f *fixture, level proof.Level) {
	f.Helper()
	request, err := ccm.ParseRegistration(f.captured("sdk-registration/01-registration"))
	f.must(err)
	f.put(capturedID, request.Signing, level)
}

func TestCapturedRegistrations(t *testing.T) {
	for _, name := range []string{"python-client-anonymous-http/01-registration", "sdk-registration/01-registration", "sdk-registration-pending/01-registration"} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			g := f.raw(f.capture(name))
			response, err := ccm.ParseRegistrationResponse(f.text(g))
			f.must(err)
			if response.Status != ccm.RegistrationDone || response.ApprovalStatus != ccm.ApprovalNone {
				t.Errorf("answered %+v, want done and not approved", response)
			}
			if !regexp.MustCompile(`SMSID="GUID:[0-9A-F-]{36}"`).MatchString(f.text(g)) {
				t.Errorf("no SMSID as clients search for it: %s", f.text(g))
			}
			d, err := f.site.Device(t.Context(), response.SMSID)
			f.must(err)
			if d.Approval.Level != proof.LevelKnown || d.Approval.Method != proof.MessageSignature {
				t.Errorf("approval %+v, want level known by message signature", d.Approval)
			}
			again, err := ccm.ParseRegistrationResponse(f.text(f.raw(f.capture(name))))
			f.must(err)
			if again.SMSID != response.SMSID {
				t.Errorf("the repeated message gave %s, want %s", again.SMSID, response.SMSID)
			}
			f.wantLogged("MP_RegistrationManager.log", "MP Reg: DDR file written to "+filepath.Join(f.dir, "inboxes", "auth", "ddm.box", "regreq"), "Processing Registration request from Client '")
			files, _ := filepath.Glob(filepath.Join(f.dir, "inboxes", "auth", "ddm.box", "regreq", "*.RDR"))
			if len(files) != 1 {
				t.Fatalf("%d copies, want one for one change", len(files))
			}
			if base := filepath.Base(files[0]); !regexp.MustCompile(`^[A-Z0-9]{8}\.RDR$`).MatchString(base) {
				t.Errorf("copy is called %s", base)
			}
			copied, err := os.ReadFile(files[0])
			f.must(err)
			if !bytes.Contains(copied, []byte(response.SMSID)) {
				t.Errorf("the copy does not name the device: %s", copied)
			}
		})
	}
}

func TestConnectionCloseIsAnswered(t *testing.T) {
	f := newFixture(t)
	if g := f.raw(f.capture("python-client-anonymous-http/01-registration")); !g.Close && !strings.EqualFold(g.Header.Get("Connection"), "close") {
		t.Errorf("Connection: close was not answered: %v", g.Header)
	}
}

func TestCapturedConfirmation(t *testing.T) {
	f := newFixture(t)
	g := f.raw(f.capture("sdk-registration/02-confirmation"))
	if g.StatusCode != 200 || g.Header.Get("Content-Length") != "0" {
		t.Errorf("confirmation of an unknown id: %s, length %s, want an empty 200", g.Status, g.Header.Get("Content-Length"))
	}
	f.wantEvent(catalog.DeviceUnknown)
	withCapturedDevice(f, proof.LevelManaged)
	response, err := ccm.ParseRegistrationResponse(f.text(f.raw(f.capture("sdk-registration/02-confirmation"))))
	f.must(err)
	want := ccm.RegistrationResponse{Type: "Confirmation", TimeStamp: captured, SMSID: capturedID, ApprovalStatus: ccm.ApprovalApproved}
	if response != want {
		t.Errorf("answered %+v, want %+v", response, want)
	}
}

func TestCapturedLocationRequests(t *testing.T) {
	f := newFixture(t)
	for name, root := range map[string]string{
		"01-site-information": "SiteInfoReply", "02-assigned-site": "AssignedSiteReply", "03-content-location": "ContentLocationReply",
		"04-enumerate-mp": "EnumerateMPLocationReply", "05-local-mp": "LocalMPLocationReply", "06-wsus-location": "WSUSLocationReply",
	} {
		t.Run(name, func(t *testing.T) {
			if text := f.text(f.raw(f.capture("sdk-location/" + name))); !strings.HasPrefix(text, "<"+root+" ") {
				t.Errorf("answered %.80s, want a %s", text, root)
			}
		})
	}
}

func TestCapturedAssignments(t *testing.T) {
	f := newFixture(t)
	withCapturedDevice(f, proof.LevelManaged)
	policy, err := f.site.AddPolicy(t.Context(), site.NewPolicy{ID: "{22222222-2222-2222-2222-222222222222}", Category: "NAAConfig", Flags: ccm.PolicyRequiresAuth, Body: []byte("<Policy/>"), All: true, By: "test"})
	f.must(err)
	for _, name := range []string{"sdk-policy/01-assignments-zlib", "sdk-policy/02-assignments-uncompressed"} {
		t.Run(name, func(t *testing.T) {
			g := f.raw(f.capture(name))
			text := f.text(g)
			reply, err := ccm.ParseAssignmentsReply(text)
			f.must(err)
			if len(reply.Assignments) != 1 || reply.Assignments[0].PolicyID != policy.ID {
				t.Fatalf("assignments %+v, want the one policy", reply.Assignments)
			}
			// The pattern of two clients (protocol.md 4.2).
			if !regexp.MustCompile(`PolicyCategory="NAAConfig".*?<!\[CDATA\[https*://<mp>([^]]+)`).MatchString(text) {
				t.Errorf("the location is not where clients look for it: %s", text)
			}
			compressed := bytes.Contains(g.body, []byte{0x78})
			if strings.Contains(name, "uncompressed") && !bytes.Contains(g.body, []byte("P\x00o\x00l\x00i\x00c\x00y\x00I\x00D\x00")) {
				t.Errorf("a client that asked for none got a compressed reply (%v)", compressed)
			}
		})
	}
}

func TestCapturedPolicyBody(t *testing.T) {
	f := newFixture(t)
	withCapturedDevice(f, proof.LevelManaged)
	_, err := f.site.AddPolicy(t.Context(), site.NewPolicy{ID: "{22222222-2222-2222-2222-222222222222}", Flags: ccm.PolicyRequiresAuth, Body: []byte("<Policy a='1'/>"), All: true, By: "test"})
	f.must(err)
	if g := f.raw(f.capture("sdk-policy/03-body-plain")); string(g.body) != ccm.PolicyError || g.StatusCode != 200 {
		t.Errorf("without proof: %s %q, want 200 and the page that clients know", g.Status, g.body)
	}
	f.wantEvent(catalog.PolicyNeedsProof)
	if g := f.raw(f.capture("sdk-policy/04-body-signed")); ccm.DecodePolicyBody(g.body) != "<Policy a='1'/>" {
		t.Errorf("with the headers CCMClientID: %q, want the document", g.body)
	}
	f.clock.advance(policyFreshness)
	if g := f.raw(f.capture("sdk-policy/04-body-signed")); string(g.body) != ccm.PolicyError {
		t.Errorf("with the headers of a day before: %q, want a refusal", g.body)
	}
	f.wantEvent(catalog.PolicyProofWrong)
}

func TestCapturedUploadsAreNeverAnsweredEmpty(t *testing.T) {
	for _, known := range []bool{false, true} {
		f := newFixture(t)
		if known {
			withCapturedDevice(f, proof.LevelManaged)
		}
		for _, name := range []string{"01-ddr", "02-hardware-inventory", "03-software-inventory", "04-file-collection", "05-software-metering", "06-state-message", "07-status-message"} {
			g := f.raw(f.capture("sdk-uploads/" + name))
			m, err := ccm.DecodeReply(g.Header.Get("Content-Type"), bytes.NewReader(g.body), ccm.DefaultLimits())
			if err != nil || !m.NoReply() {
				t.Errorf("%s, device known %v: %s %q, want NoReply", name, known, g.Status, g.body)
			}
		}
		if known {
			f.wantEvent(catalog.EndpointNotHandled)
			if codes := strings.Join(f.events(), " "); strings.Contains(codes, string(catalog.SignatureMismatch)) {
				t.Errorf("events %s: a signed upload did not verify", codes)
			}
		}
	}
}

func TestCapturedWindowsAuth(t *testing.T) {
	f := newFixture(t)
	for _, test := range []struct {
		name, logged string
		code         catalog.Code
	}{
		{"03-registration-windowsauth", "401 2 2148074254", catalog.NegotiateRequired},
		{"04-registration-windowsauth-ntlm-negotiate", "401 1 2148074252", catalog.NTLMRefused},
		{"05-registration-windowsauth-ntlm-authenticate", "401 1 2148074252", catalog.NTLMRefused},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := f.raw(f.capture("sdk-registration/" + test.name))
			if g.StatusCode != http.StatusUnauthorized || g.Header.Get("WWW-Authenticate") != "Negotiate" || g.code() != string(test.code) {
				t.Errorf("%s, WWW-Authenticate %q, code %s, want 401, Negotiate and %s", g.Status, g.Header.Get("WWW-Authenticate"), g.code(), test.code)
			}
			f.wantLogged("u_ex.log", test.logged)
		})
	}
	f.wantLogged("u_ex.log", "CCM_POST /ccm_system_windowsauth/request - ", "ConfigMgr+Messaging+HTTP+Sender")
}
