package realms_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/internal/realms"
	"postern/internal/realms/realmstest"

	"github.com/jcmturner/gokrb5/v8/keytab"
)

func TestMain(m *testing.M) {
	if os.Getenv("REALMS_TEST_CHILD") != "" {
		child()
	}
	os.Exit(m.Run())
}

// child starts realms, says which processes and folder they have, and waits to be killed.
func child() {
	r, err := realms.Start(context.Background(), realms.Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(r.Folder, r.Processes())
	select {}
}

func TestTicketComesByReferral(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	before := r.KDCLog(r.Child)
	computer := realmstest.Login(t, r, r.Child)
	server, err := computer.Ticket(t.Context(), r.Host("mp"))
	if err != nil {
		t.Fatal(err)
	}
	if want := "HTTP/mp.a2003.vm.local@A2003.VM.LOCAL"; server != want {
		t.Errorf("ticket for %q, want %q", server, want)
	}
	log := strings.TrimPrefix(r.KDCLog(r.Child), before)
	referral, failed := strings.Index(log, "for krbtgt/A2003.VM.LOCAL@CHILD.A2003.VM.LOCAL"), strings.Index(log, "LOOKING_UP_SERVER")
	if referral < 0 || failed >= 0 && failed < referral {
		t.Errorf("the child's KDC gave no referral, or only after a failed look-up:\n%s", log)
	}
	if want := "WK02-020-51W$@CHILD.A2003.VM.LOCAL for HTTP/mp.a2003.vm.local@A2003.VM.LOCAL"; !strings.Contains(r.KDCLog(r.Parent), want) {
		t.Errorf("the parent's KDC has no line with %q:\n%s", want, r.KDCLog(r.Parent))
	}
}

func TestOtherRealms(t *testing.T) {
	t.Parallel()
	unchecked := realms.Other{Name: "UNCHECKED.EXAMPLE", TrustedBy: realms.Child, Referral: true, Unchecked: true}
	r := realmstest.Start(t, realms.Options{Others: []realms.Other{realms.ExternalTrust(), realms.Transit(), unchecked}})
	tests := []struct {
		realm, log, want string
		checked          bool
	}{
		{realms.External, realms.External, "LOOKING_UP_SERVER", true},
		{realms.Partner, realms.Child, "for krbtgt/A2003.VM.LOCAL@CHILD.A2003.VM.LOCAL", true},
		{unchecked.Name, realms.Parent, "WK02-020-51W$@UNCHECKED.EXAMPLE for HTTP/mp.a2003.vm.local@A2003.VM.LOCAL", false},
	}
	for _, test := range tests {
		computer := realmstest.Login(t, r, test.realm)
		server, err := computer.Ticket(t.Context(), r.Host("mp"))
		if err != nil {
			t.Errorf("%s: %v", test.realm, err)
			continue
		}
		if want := "HTTP/mp.a2003.vm.local@A2003.VM.LOCAL"; server != want {
			t.Errorf("%s: ticket for %q, want %q", test.realm, server, want)
		}
		list, err := computer.Command(t.Context(), "klist", "-f").CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v", test.realm, err)
		}
		if got := strings.Contains(flags(string(list), "HTTP/mp"), "T"); got != test.checked {
			t.Errorf("%s: path checked by the KDC: %v, want %v:\n%s", test.realm, got, test.checked, list)
		}
		if log := r.KDCLog(test.log); !strings.Contains(log, test.want) {
			t.Errorf("%s: no %q in the log of %s:\n%s", test.realm, test.want, test.log, log)
		}
	}
}

// flags returns a ticket's flags from the list of klist -f.
func flags(list, service string) string {
	_, ticket, _ := strings.Cut(list, service)
	_, flags, _ := strings.Cut(ticket, "Flags: ")
	flags, _, _ = strings.Cut(flags, "\n")
	return flags
}

func TestUnknownHostHasNoTicket(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	if server, err := realmstest.Login(t, r, r.Child).Ticket(t.Context(), "mp.nowhere.example"); err == nil {
		t.Errorf("got a ticket for %s of a host in no realm", server)
	}
}

func TestPrincipalsComeAndGo(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "new.keytab")
	must(r.AddPrincipal(r.Child, "NEW$", realms.Principal{EncryptionTypes: []string{realms.AES128}, Preauth: true}))
	must(r.Keytab(r.Child, file, "NEW$"))
	must(r.ChangeKey(r.Child, "NEW$"))
	if _, err := r.Login(t.Context(), r.Child, "NEW$", file); err == nil {
		t.Error("a stale keytab logged in")
	}
	must(r.Keytab(r.Child, file, "NEW$"))
	_, err := r.Login(t.Context(), r.Child, "NEW$", file)
	must(err)
	keys, err := keytab.Load(file)
	must(err)
	var versions []uint32
	for _, entry := range keys.Entries {
		versions = append(versions, entry.KVNO)
	}
	if !slices.Contains(versions, 1) || !slices.Contains(versions, 2) {
		t.Errorf("key versions %v, want 1 and 2", versions)
	}
	must(r.DeletePrincipal(r.Child, "NEW$"))
	if _, err := r.Login(t.Context(), r.Child, "NEW$", file); err == nil {
		t.Error("a deleted principal logged in")
	}
	if err := r.DeletePrincipal(r.Child, "NEW$"); err == nil {
		t.Error("deleting a principal that is not there: no error")
	}
	if err := r.AddPrincipal(r.Child, "TWO\nLINES", realms.Principal{}); err == nil {
		t.Error("a name of two lines: no error")
	}
}

func TestClusterKeytabIsTheAccounts(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{EncryptionTypes: []string{realms.AES256, realms.RC4}})
	keys, err := keytab.Load(r.ClusterKeytab())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range keys.Entries {
		got = append(got, fmt.Sprint(entry.Principal, " ", entry.KVNO, " ", entry.Key.KeyType))
	}
	want := []string{"svc-mp@A2003.VM.LOCAL 1 18", "svc-mp@A2003.VM.LOCAL 1 23"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFolderIsPrivateAndStopLeavesNothing(t *testing.T) {
	t.Parallel()
	r, err := realms.Start(t.Context(), realms.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Stop()
	err = filepath.WalkDir(r.Folder, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && entry.IsDir() && info.Mode().Perm() != 0o700 {
			t.Errorf("%s has the mode %v", name, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ids := r.Processes()
	if len(ids) != 2 {
		t.Errorf("%d KDCs, want 2", len(ids))
	}
	r.Stop()
	r.Stop()
	for _, id := range ids {
		if running(id) {
			t.Errorf("KDC %d still runs", id)
		}
	}
	if _, err := os.Stat(r.Folder); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
}

func TestKDCStopsAndStartsAgain(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{})
	if err := r.StopKDC(r.Child); err != nil {
		t.Fatal(err)
	}
	if _, err := r.LoginComputer(t.Context(), r.Child); err == nil {
		t.Error("logged in without a KDC")
	}
	if err := r.StartKDC(t.Context(), r.Child); err != nil {
		t.Fatal(err)
	}
	realmstest.Login(t, r, r.Child)
}

func TestKilledProgramTakesItsKDCsAlong(t *testing.T) {
	t.Parallel()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "REALMS_TEST_CHILD=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	c.Process.Kill()
	c.Wait()
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(strings.NewReplacer("[", "", "]", "").Replace(line))
	if len(fields) != 3 {
		t.Fatalf("the child said %q", line)
	}
	eventually(t, "the folder is gone", func() bool { _, err := os.Stat(fields[0]); return errors.Is(err, fs.ErrNotExist) })
	for _, field := range fields[1:] {
		id, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "KDC "+field+" has ended", func() bool { return !running(id) })
	}
}

// running says whether a process runs: one that waits for its new parent to collect it does not.
func running(id int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("not so after ten seconds: %s", what)
			return
		}
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	missing := realms.Missing()
	if !slices.Contains(missing, "kinit") {
		t.Errorf("missing %q, want kinit among them", missing)
	}
	_, err := realms.Start(t.Context(), realms.Options{})
	if got := catalog.CodeOf(err); got != catalog.ToolMissing || !strings.Contains(err.Error(), "krb5-user") {
		t.Errorf("got %v, want %s with the packages", err, catalog.ToolMissing)
	}
}

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		r, err := realms.Start(b.Context(), realms.Options{})
		if err != nil {
			b.Fatal(err)
		}
		r.Stop()
	}
}

func TestTokensDiffer(t *testing.T) {
	t.Parallel()
	r := realmstest.Start(t, realms.Options{Others: []realms.Other{realms.ExternalTrust(), realms.Transit()}})
	for _, realm := range []string{r.Child, realms.External, realms.Partner} {
		computer := realmstest.Login(t, r, realm)
		first, second := realmstest.Token(t, computer, r.Host("mp")), realmstest.Token(t, computer, r.Host("mp"))
		if bytes.Equal(first, second) {
			t.Errorf("%s: one authenticator twice", realm)
		}
	}
}
