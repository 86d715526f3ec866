package lab_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/catalog"
	"postern/ccm"
	"postern/connector"
	"postern/gateway"
	"postern/internal/lab"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"
	"postern/internal/role"
	"postern/mp"
	"postern/proof"
	"postern/store/postgrestest"
)

// inside is the network of seeds S0 and S1: two realms, and management points that have a keytab.
type inside struct {
	*realms.Realms
	made  role.MadeSite
	nodes []*node
}

// node is one management point; its world has no gateway.
type node struct {
	*world
	host string // by which clients know it
	logs string
}

// newInside makes realms and a site. Its management points are added with add.
func newInside(t testing.TB, options realms.Options, ask role.NewSite) *inside {
	t.Helper()
	return &inside{Realms: realmstest.Start(t, options), made: newSite(t, t.TempDir(), ask)}
}

// add starts a management point, known to clients by host, with a keytab.
func (i *inside) add(t testing.TB, host, keytab string) *node {
	t.Helper()
	config, err := role.Load(i.made.Config)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "mp")
	config.Name, config.Names = fmt.Sprintf("mp%d.a2003.vm.local", len(i.nodes)+1), []string{host, "127.0.0.1"}
	config.Listen.HTTPS, config.Listen.HTTP = freeAddress(t), freeAddress(t)
	config.State, config.Logs = dir, filepath.Join(dir, "logs")
	config.Kerberos.Keytab = keytab
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	n := &node{host: host, logs: config.Logs}
	n.world = &world{
		TB: t, clients: &clients{byName: map[string]*http.Client{}},
		gateway: newExchanges(func(e gateway.Exchange) string { return e.MessageID }),
		middle:  newExchanges(func(e connector.Exchange) string { return e.MessageID }),
		point:   newExchanges(func(e mp.Exchange) string { return e.MessageID }),
	}
	running, err := role.StartManagementPoint(t.Context(), config, role.Environment{ObserveManagementPoint: n.point.add})
	if err != nil {
		t.Fatal(err)
	}
	n.Lab = &lab.Lab{Dir: dir, SiteRoot: i.made.SiteRoot, ManagementPoint: running}
	t.Cleanup(func() {
		n.clients.closeIdle()
		if err := running.Stop(); err != nil {
			t.Error(err)
		}
	})
	i.nodes = append(i.nodes, n)
	return n
}

// on returns the same node for a subtest.
func (n *node) on(t testing.TB) *node { return &node{n.world.on(t), n.host, n.logs} }

// trusted sets the realms that the site trusts beside the keytab's own.
func (n *node) trusted(realms ...string) *node {
	n.Helper()
	n.must(n.Site().Set(n.Context(), "approval.trusted-realms", strings.Join(realms, ","), "test"))
	return n
}

// address is where clients reach the node by its name in Kerberos.
func (n *node) address(scheme string) string {
	_, port, _ := net.SplitHostPort(n.ManagementPoint.Addresses[scheme])
	return scheme + "://" + net.JoinHostPort(n.host, port) + "/ccm_system_windowsauth/request"
}

// curl sends a request as an account, with Debian's curl, and returns the status that it ends with.
func (n *node) curl(s *realms.Session, address string, arguments ...string) (status string, all string) {
	n.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		n.Fatal("curl is missing; install it with: apt-get install curl")
	}
	_, port, _ := net.SplitHostPort(strings.Split(address, "/")[2])
	arguments = append([]string{"-sS", "-i", "-k", "--max-time", "20", "--noproxy", "*", "-u", ":", "-X", "CCM_POST", "--resolve", n.host + ":" + port + ":127.0.0.1", "-w", "%{http_code}"}, arguments...)
	out, err := s.Command(n.Context(), "curl", append(arguments, address)...).CombinedOutput()
	if err != nil {
		n.Fatalf("curl: %v\n%s", err, out)
	}
	return string(out[len(out)-3:]), string(out)
}

// accesses waits for a number of lines about windowsauth in the access log and returns account and status with its two further numbers of each.
func (n *node) accesses(want int) (lines []string) {
	n.Helper()
	eventually(n, fmt.Sprint(want, " lines in the access log"), func() bool {
		lines = nil
		files, err := filepath.Glob(filepath.Join(n.logs, "u_ex*.log"))
		n.must(err)
		for _, file := range files {
			for line := range strings.Lines(string(readFile(n, file))) {
				if f := strings.Fields(line); len(f) == 16 && strings.Contains(strings.ToLower(f[4]), "windowsauth") {
					lines = append(lines, strings.Join(append([]string{f[7]}, f[11:14]...), " "))
				}
			}
		}
		return len(lines) >= want
	})
	return lines
}

// computer is the child's computer as a device of ours.
func computer(t testing.TB) *device { return newDevice(t, "WK02-020-51W") }

func inDomain(domain string) func(*ccm.RegistrationRequest) {
	return func(r *ccm.RegistrationRequest) { r.Properties["FQ Name"] = "WK02-020-51W." + domain }
}

// negotiated sends a message with a token.
func (n *node) negotiated(token []byte, contentType string, body []byte) answer {
	n.Helper()
	header := http.Header{}
	if token != nil {
		header.Set("Authorization", "Negotiate "+base64.StdEncoding.EncodeToString(token))
	}
	return n.send(n.http1(), "CCM_POST", n.plain("/ccm_system_windowsauth/request"), contentType, body, header)
}

// registerBy registers a device with a token.
func (n *node) registerBy(d *device, token []byte, edit ...func(*ccm.RegistrationRequest)) answer {
	n.Helper()
	contentType, body := d.encode(n, "MP_ClientRegistration", d.registration(n, edit...), false)
	return n.negotiated(token, contentType, body)
}

const asked, admitted = "- 401 2 2148074254", `CHILD\WK02-020-51W$ 200 0 0`

// TestWindowsAuthenticationByCurl (S0): the computer of the child domain gets its ticket by referral. One 401 and then 200 is healthy.
func TestWindowsAuthenticationByCurl(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{}, role.NewSite{})
	n := i.add(t, i.Host("mp"), i.MPKeytab()).trusted(i.Child)
	s := realmstest.Login(t, i.Realms, i.Child)
	d := computer(t)
	contentType, body := d.encode(t, "MP_ClientRegistration", d.registration(t, inDomain("child.a2003.vm.local")), false)
	message := filepath.Join(t.TempDir(), "message")
	n.must(os.WriteFile(message, body, 0o600))

	var want []string
	for _, c := range []struct {
		name, scheme string
		arguments    []string
		lines        []string
	}{
		{"asked first", "http", []string{"--anyauth"}, []string{asked, admitted}},
		{"ticket at once", "http", []string{"--negotiate"}, []string{admitted}},
		{"asked first, over TLS", "https", []string{"--anyauth"}, []string{asked, admitted}},
		{"ticket at once, over TLS", "https", []string{"--negotiate"}, []string{admitted}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := n.on(t)
			status, all := n.curl(s, n.address(c.scheme), append(c.arguments, "-H", "Content-Type: "+contentType, "--data-binary", "@"+message)...)
			if status != "200" || !strings.Contains(strings.ToLower(all), "www-authenticate: negotiate ") {
				t.Errorf("ended with %s, want 200 and a token that proves the server:\n%.1500q", status, all)
			}
			want = append(want, c.lines...)
			if got := n.accesses(len(want)); !slices.Equal(got, want) {
				t.Errorf("access log %q, want %q", got, want)
			}
		})
	}
	log := i.KDCLog(i.Child)
	if !strings.Contains(log, "for krbtgt/"+i.Parent+"@"+i.Child) || strings.Contains(log, "LOOKING_UP_SERVER") {
		t.Errorf("the ticket did not come by referral:\n%s", log)
	}
}

// TestTwoRefusalsInARow (S0): a client without a usable ticket ends at the second 401.
func TestTwoRefusalsInARow(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{}, role.NewSite{})
	n := i.add(t, i.Host("mp"), i.MPKeytab()).trusted(i.Child)
	nobody := &realms.Session{Cache: filepath.Join(t.TempDir(), "none"), Config: i.ClientConfig()}
	n.unchanged(func() {
		status, _ := n.curl(nobody, n.address("http"), "--anyauth", "-d", "x")
		if status != "401" {
			t.Errorf("ended with %s, want 401", status)
		}
	})
	for _, line := range n.accesses(1) {
		if line != asked {
			t.Errorf("access log %q, want %q", line, asked)
		}
	}
}

// mutual is a client of MIT's own GSSAPI that insists on knowing the server.
const mutual = `
import sys, base64, http.client, gssapi
host, port = sys.argv[1:3]
name = gssapi.Name("HTTP@" + host, gssapi.NameType.hostbased_service)
context = gssapi.SecurityContext(name=name, mech=gssapi.OID.from_int_seq("1.3.6.1.5.5.2"), usage="initiate",
                                 flags=gssapi.RequirementFlag.mutual_authentication)
connection = http.client.HTTPConnection("127.0.0.1", int(port))
connection.request("CCM_POST", "/ccm_system_windowsauth/request",
                   headers={"Host": host, "Authorization": "Negotiate " + base64.b64encode(context.step()).decode()})
response = connection.getresponse()
header = response.getheader("WWW-Authenticate") or ""
if " " in header:
    context.step(base64.b64decode(header.split()[1]))
print(response.status, "complete", context.complete, "mutual", bool(context.actual_flags & gssapi.RequirementFlag.mutual_authentication))
`

func TestMITsGSSAPIKnowsTheServer(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{}, role.NewSite{})
	n := i.add(t, i.Host("mp"), i.MPKeytab()).trusted(i.Child)
	s := realmstest.Login(t, i.Realms, i.Child)
	_, port, _ := net.SplitHostPort(n.ManagementPoint.Addresses["http"])
	out, err := s.Command(t.Context(), "/usr/bin/python3", "-c", mutual, n.host, port).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\npython3-gssapi is needed; install it with: apt-get install python3-gssapi", err, out)
	}
	if got, want := strings.TrimSpace(string(out)), "200 complete True mutual True"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestRegistrationInsideTheNetwork (S0, S1): approved without a person, and the record says by what.
func TestRegistrationInsideTheNetwork(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{}, role.NewSite{})
	n := i.add(t, i.Host("mp"), i.MPKeytab()).trusted(i.Child)
	s := realmstest.Login(t, i.Realms, i.Child)
	for _, c := range []struct {
		name, domain string
		status       ccm.ApprovalStatus
	}{
		{"its own account", "child.a2003.vm.local", ccm.ApprovalApproved},
		{"a name in another domain", "evilchild.a2003.vm.local", ccm.ApprovalNone},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := n.on(t)
			d := computer(t)
			n.check(n.registerBy(d, nil, inDomain(c.domain)), refusal{status: 401, code: catalog.NegotiateRequired})
			response, err := ccm.ParseRegistrationResponse(n.text(n.registerBy(d, realmstest.Token(t, s, n.host), inDomain(c.domain))))
			n.must(err)
			if response.Status != ccm.RegistrationDone || response.ApprovalStatus != c.status {
				t.Errorf("answered %+v, want done with approval status %d", response, c.status)
			}
			got, err := n.Site().Device(t.Context(), response.SMSID)
			n.must(err)
			if got.Approval.Status != c.status || got.Approval.Method != proof.Kerberos || got.Record.ApprovalMethod != 1 || !got.Record.IsIntegratedAuth {
				t.Errorf("kept %+v, ApprovalMethod %d, IsIntegratedAuth %v", got.Approval, got.Record.ApprovalMethod, got.Record.IsIntegratedAuth)
			}
			if got.Approval.Evidence["realm"] != i.Child || !strings.Contains(got.Approval.Evidence["account"], realms.Computer) {
				t.Errorf("evidence %v, want the ticket's realm and account", got.Approval.Evidence)
			}
		})
	}
}

// TestTwoNodesBehindOneName (S0): one service principal name, one keytab, one database. Either node accepts the computer; what one has
// accepted, the other refuses.
func TestTwoNodesBehindOneName(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{}, role.NewSite{Store: postgrestest.Start(t)})
	host := i.Host("mpcluster")
	first := i.add(t, host, i.ClusterKeytab()).trusted(i.Child)
	second := i.add(t, host, i.ClusterKeytab())
	eventually(second, "both nodes to know each other", func() bool { return first.Site().Epoch() == second.Site().Epoch() })
	s := realmstest.Login(t, i.Realms, i.Child)
	d := computer(t)
	ours := inDomain("child.a2003.vm.local")

	token := realmstest.Token(t, s, host)
	response, err := ccm.ParseRegistrationResponse(first.text(first.registerBy(d, token, ours)))
	first.must(err)
	if response.ApprovalStatus != ccm.ApprovalApproved {
		t.Errorf("the first node answered %+v, want approved", response)
	}
	first.refuses(refusal{status: 401, code: catalog.KerberosReplay}, func() answer { return first.registerBy(d, token, ours) })
	second.unchanged(func() {
		a := second.registerBy(computer(t), token, ours)
		second.refusedLate(a, catalog.KerberosReplay)
	})
	again, err := ccm.ParseRegistrationResponse(second.text(second.registerBy(d, realmstest.Token(t, s, host), ours)))
	second.must(err)
	if again.SMSID != response.SMSID {
		t.Errorf("the second node answered %+v, want the same id %s", again, response.SMSID)
	}

	// A message that is no registration is noted as well.
	d.id = response.SMSID
	contentType, body := d.encode(t, "MP_PolicyManager", d.assignments(), true)
	token = realmstest.Token(t, s, host)
	second.text(second.negotiated(token, contentType, body))
	second.refuses(refusal{status: 401, code: catalog.KerberosReplay}, func() answer { return second.negotiated(token, contentType, body) })
	first.unchanged(func() { first.refusedLate(first.negotiated(token, contentType, body), catalog.KerberosReplay) })
}

// refusedLate compares a refusal that comes after the message was read: from then on a failure is told by an empty answer at most, and only the
// log says why (protocol.md 1.5).
func (n *node) refusedLate(a answer, code catalog.Code) {
	n.Helper()
	if a.status == http.StatusOK && len(bytes.TrimSpace(a.body)) > 0 {
		n.Errorf("answered %s, want nothing or a refusal", a)
	}
	if got := n.codes(a.id()); !slices.Contains(got, code) {
		n.Errorf("the management point told of %v, want %s", got, code)
	}
}

// TestTicketsOfOtherRealms (C83): each realm on the way has to be listed.
func TestTicketsOfOtherRealms(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{Others: []realms.Other{realms.ExternalTrust(), realms.Transit()}}, role.NewSite{})
	n := i.add(t, i.Host("mp"), i.MPKeytab())
	d := computer(t)
	for _, c := range []struct {
		name, realm string
		trusted     []string
		code        catalog.Code // "": accepted
	}{
		{"the child, not listed", i.Child, nil, catalog.KerberosRealmNotTrusted},
		{"the child, listed", i.Child, []string{i.Child}, ""},
		{"an external trust, not listed", realms.External, []string{i.Child}, catalog.KerberosRealmNotTrusted},
		{"a namesake of another realm does not count", realms.External, []string{"EVIL" + realms.External}, catalog.KerberosRealmNotTrusted},
		{"through the child, not listed", realms.Partner, []string{i.Child}, catalog.KerberosRealmNotTrusted},
		{"through the child, which is not listed", realms.Partner, []string{realms.Partner}, catalog.KerberosTransitNotTrusted},
		{"through the child, both listed", realms.Partner, []string{realms.Partner, i.Child}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := n.on(t)
			n.trusted(c.trusted...)
			token := realmstest.Token(t, realmstest.Login(t, i.Realms, c.realm), n.host)
			if c.code != "" {
				n.refuses(refusal{status: 401, code: c.code}, func() answer { return n.registerBy(d, token) })
				return
			}
			n.text(n.registerBy(computer(t), token))
		})
	}
}

// TestKeysThatDoNotFit: the failures of seed S0 from the server's seat, and a key that was changed.
func TestKeysThatDoNotFit(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{}, role.NewSite{})
	wrong := i.add(t, i.Host("mp"), i.WrongKeytab()).trusted(i.Child)
	stale := i.add(t, i.Host("mp"), i.MPKeytab())
	s := realmstest.Login(t, i.Realms, i.Child)
	d := computer(t)

	a := wrong.registerBy(d, realmstest.Token(t, s, wrong.host))
	wrong.check(a, refusal{status: 401, code: catalog.KerberosKeyWrong})
	if !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Negotiate ") {
		t.Errorf("WWW-Authenticate %q, want a token that says it was rejected", a.header.Get("WWW-Authenticate"))
	}
	status, _ := wrong.curl(s, wrong.address("http"), "--anyauth", "-d", "x")
	if status != "401" {
		t.Errorf("curl ended with %s, want 401", status)
	}
	if got := wrong.accesses(3); !strings.HasPrefix(got[0], "- 401 1 ") || got[1] != asked || !strings.HasPrefix(got[2], "- 401 1 ") {
		t.Errorf("access log %q, want a refusal, and for curl the question and the refusal", got)
	}

	stale.text(stale.registerBy(d, realmstest.Token(t, s, stale.host), inDomain("child.a2003.vm.local")))
	stale.must(i.ChangeKey(i.Parent, i.Service("mp")))
	fresh := realmstest.Login(t, i.Realms, i.Child)
	stale.refuses(refusal{status: 401, code: catalog.KerberosKeyWrong}, func() answer { return stale.registerBy(d, realmstest.Token(t, fresh, stale.host)) })
}

// TestTicketForAnotherService: the parent has other services; a ticket for one of them is worth nothing here.
func TestTicketForAnotherService(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{}, role.NewSite{})
	n := i.add(t, i.Host("mp"), i.MPKeytab()).trusted(i.Child)
	s := realmstest.Login(t, i.Realms, i.Child)
	n.refuses(refusal{status: 401, code: catalog.KerberosKeyWrong}, func() answer {
		return n.registerBy(computer(t), realmstest.Token(t, s, i.Host("mpcluster")))
	})
}

// TestRC4Ticket: refused unless the configuration allows it.
func TestRC4Ticket(t *testing.T) {
	t.Parallel()
	i := newInside(t, realms.Options{EncryptionTypes: []string{realms.AES256, realms.RC4}}, role.NewSite{})
	file := filepath.Join(t.TempDir(), "rc4.keytab")
	if err := i.AddPrincipal(i.Parent, i.Service("old"), realms.Principal{EncryptionTypes: []string{realms.RC4}}); err != nil {
		t.Fatal(err)
	}
	if err := i.Keytab(i.Parent, file, i.Service("mp"), i.Service("old")); err != nil {
		t.Fatal(err)
	}
	n := i.add(t, i.Host("old"), file).trusted(i.Child)
	s := realmstest.Login(t, i.Realms, i.Child)
	n.refuses(refusal{status: 401, code: catalog.KerberosEncryptionRefused}, func() answer { return n.registerBy(computer(t), realmstest.Token(t, s, n.host)) })
}

func TestEveryStepOfTheKerberosStoryIsOK(t *testing.T) {
	story, err := lab.FindStory("kerberos")
	if err != nil {
		t.Fatal(err)
	}
	if err := story.Ready(); err != nil {
		t.Fatal(err) // make test installs what it needs
	}
	l, err := story.Start(t.Context(), lab.Options{Dir: t.TempDir(), HTTP: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Stop()
	if err := l.Tell(t.Context(), story); err != nil {
		t.Error(err)
	}
	var told strings.Builder
	for _, step := range l.Steps() {
		fmt.Fprintln(&told, step.Hop, step.What)
		if !step.OK || step.Code != "" || step.Error != "" {
			t.Errorf("step %+v is not ok", step)
		}
	}
	for _, want := range []string{
		"401 2 2148074254", `200 0 0, ticket of CHILD\WK02-020-51W$ verified`, "for krbtgt/A2003.VM.LOCAL@CHILD.A2003.VM.LOCAL",
		"Kerberos, trusted realm, own computer account", "service HTTP/mp.a2003.vm.local@A2003.VM.LOCAL", "KIOSK7 waiting (approval status 0",
	} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("the story does not tell %q:\n%s", want, told.String())
		}
	}
	// What the lab then names to try finds everything in order, from both seats.
	configuration, client, server := l.Checks()
	t.Setenv("KRB5_CONFIG", configuration)
	for _, seat := range []string{client, server} {
		out, stderr, code := run(t, append([]string{"kerberos", "check"}, strings.Fields(seat)...)...)
		if code != 0 || stderr != "" || !strings.Contains(out, " 0 failed") {
			t.Errorf("kerberos check %s: exit %d, %q\n%s", seat, code, stderr, out)
		}
	}
}
