package explain

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/logfile"
)

// troubledDay is the log of a client that failed in some ways and recovered.
func troubledDay(n int) []byte {
	var b []byte
	at := time.Date(2024, 3, 11, 9, 0, n%3600, 0, time.UTC)
	id := fmt.Sprintf("%08X-1111-4222-8333-%012X", n, n)
	for _, text := range []string{
		"[CCMHTTP] ERROR: URL=https://cmg.fabrikam.net/CCM_Proxy_MutualAuth/7/SMS_MP, Port=443, Options=31, Code=12007, Text=ERROR_WINHTTP_NAME_NOT_RESOLVED",
		"[CCMHTTP] ERROR INFO: StatusCode=403 StatusText=CMGConnector_Forbidden",
		"[CCMHTTP] ERROR INFO: StatusCode=401 StatusText=CMGService_Invalid_Token",
		"Getting AAD info from CMG", "Falling back to get user", "Failed to get AAD token", `ccmsetup.exe /NoCRLCheck /UsePKICert /regtoken:x /mp:y SMSSITECODE=AUTO CCMHOSTNAME=x`,
		"Device is AAD joined", "error 0x87d0027e of the token", "CCM token for 'S-1-5-18' will expire", "Failed to send http request 0x1234",
		"Cached encrypted token for 'S-1-5-18'.",
		"Message '{" + id + "}' got reply message '{" + id + "}' to endpoint 'dummy'",
		"HardwareID=2:" + strings.ReplaceAll(id, "-", ""),
		"[RegTask] - Client is registered. Server assigned ClientID is GUID:" + id + ". Approval status 1",
		"WINHTTP_CALLBACK_STATUS_FLAG_CERT_CN_INVALID is set", "GetDirectoryList failed",
	} {
		b = logfile.Record{Format: logfile.Client, Time: at, Severity: logfile.Error, Component: "CcmMessaging", Message: text}.Append(b)
		at = at.Add(time.Second)
	}
	return b
}

// observed reads a log in memory.
func observed(t testing.TB, name string, content []byte, left room) *logFile {
	t.Helper()
	o := newObserver(name, DefaultLimits(), left)
	s := newScanner(strings.NewReader(string(content)), DefaultLimits(), nil)
	for {
		record, number, err := s.next()
		if err != nil {
			return o.end()
		}
		o.record(record, number)
	}
}

// Very many files are compared with those of their own machine, and with no others: in a folder for each, and all in one.
// Were each compared with each, the test would not end. What is kept and what is said of them is bounded.
func TestVeryManyFiles(t *testing.T) {
	count := 20_000
	if testing.Short() || sparse > 3 {
		count = 5000
	}
	day := observed(t, "x.log", troubledDay(1), room{memory: 1 << 40, ids: 1000})
	layouts := []struct {
		files  int
		folder func(i int) string
	}{{count / 10, func(int) string { return "logs" }}, {count, func(i int) string { return fmt.Sprintf("logs/%d", i) }}}
	for _, l := range layouts {
		files := make([]*logFile, l.files)
		for i := range files {
			files[i] = renamedFile(day, fmt.Sprintf("%s/%d.log", l.folder(i), i))
		}
		report := judge(merge(files), nil)
		if report.Verdict == nil && len(report.Undecided) == 0 {
			t.Error("nothing is said")
		}
		if len(report.Evidence) > 24 || len(report.Events) > 120 || len(report.Looked) > 60 || len(report.Followed) > 60 || len(report.Undecided) > 200 {
			t.Errorf("%d lines of evidence, %d events, %d looked at, %d followed, %d undecided",
				len(report.Evidence), len(report.Events), len(report.Looked), len(report.Followed), len(report.Undecided))
		}
	}
}

// renamedFile is a file as if it were another one; lines in memory are shared.
func renamedFile(f *logFile, name string) *logFile {
	out := *f
	out.name, out.seen, out.assigned = name, map[mark]*sighting{}, nil
	for m, s := range f.seen {
		other := *s
		other.last.file = name
		other.lines = cut(s.lines)
		for i := range other.lines {
			other.lines[i].file = name
		}
		out.seen[m] = &other
	}
	for _, a := range f.assigned {
		a.l.file = name
		out.assigned = append(out.assigned, a)
	}
	return &out
}

// When the memory gets scarce less is kept of a file, and at last no more are read, which is said.
func TestTheMemoryOfManyFilesIsBounded(t *testing.T) {
	scarce := observed(t, "x.log", []byte(strings.Repeat(string(troubledDay(1)), 20)), room{memory: 1, ids: 0})
	enough := observed(t, "x.log", []byte(strings.Repeat(string(troubledDay(1)), 20)), room{memory: 1 << 40, ids: 1000})
	if len(scarce.ids) != 0 || 2*scarce.size() > enough.size() {
		t.Errorf("%d ids and %d bytes, with enough memory %d bytes", len(scarce.ids), scarce.size(), enough.size())
	}
	folder := t.TempDir()
	for i := range 40 {
		write(t, fmt.Sprintf("%s/%02d.log", folder, i), troubledDay(i))
	}
	limits := DefaultLimits()
	limits.Memory = 40 << 10
	report, err := Run(t.Context(), Input{Paths: []string{folder}, Limits: limits})
	if err != nil || !strings.Contains(strings.Join(report.Undecided, "\n"), "39.log was not read: the limit of all files together is reached") {
		t.Errorf("got %q, %v", report.Undecided, err)
	}
}

// A web server that answers many clients at the door of Windows authentication, well or not: what is kept of them is bounded, and
// the verdict is that of the last requests.
func TestManyLogons(t *testing.T) {
	o := newObserver("u_ex.log", DefaultLimits(), room{memory: 1 << 40})
	at := time.Date(2024, 3, 11, 0, 0, 0, 0, time.UTC)
	request := func(client, status int) {
		at = at.Add(time.Second)
		account := "-"
		if status == 200 {
			account = `FAB\PC$`
		}
		o.record(fmt.Appendf(nil, "%s 10.0.0.5 CCM_POST /ccm_system_windowsauth/request - 80 %s 10.1.%d.%d %s %d 2 2148074254", at.Format(time.DateTime), account, client/250, client%250,
			strings.Repeat("x", 500), status), 1)
	}
	for i := range 200_000 {
		request(i%5000, 200) // without a first leg, as on a connection that stays open
	}
	for i := range 200_000 {
		request(i%5000, 401)
	}
	f := o.end()
	lines := 0
	for _, w := range f.attempts {
		lines += w.kept()
	}
	if limit := DefaultLimits().Kept; lines > limit || len(f.attempts) != 5000 {
		t.Errorf("%d lines of %d clients are kept, want at most %d", lines, len(f.attempts), limit)
	}
	for range 2 {
		request(0, 401)
	}
	found, _ := refusedLogons(merge([]*logFile{o.end()}))
	if len(found) == 0 || found[0].code != catalog.SymptomNegotiateFailed || found[0].over != nil {
		t.Errorf("got %d findings", len(found))
	}
}

// Of the clients that a web server refuses, so many are followed, and no more: then it is not said that all got through.
func TestManyClientsRefused(t *testing.T) {
	for clients, want := range map[int]bool{10: true, clientsKept - 1: true, 3 * clientsKept: false} {
		o := newObserver("u_ex.log", DefaultLimits(), room{memory: 1 << 40})
		at := time.Date(2024, 3, 11, 0, 0, 0, 0, time.UTC)
		for _, answer := range []string{"403 7 64", "200 0 0"} {
			for i := range clients {
				at = at.Add(time.Second)
				o.record(fmt.Appendf(nil, "%s 10.0.0.5 CCM_POST /ccm_system/request - 443 - 10.1.%d.%d ccmhttp %s", at.Format(time.DateTime), i/250, i%250, answer), 1)
			}
		}
		f := o.end()
		if len(f.failed) > clientsKept {
			t.Errorf("of %d clients %d are followed", clients, len(f.failed))
		}
		tl := merge([]*logFile{f})
		if over := tl.through(catalog.SymptomAccessClientCertificateMissing, tl.seen[mark(catalog.SymptomAccessClientCertificateMissing)]); (over != nil) != want {
			t.Errorf("of %d clients, all let in later: over is %v", clients, over != nil)
		}
	}
}

// What a client was refused is over when it is let in later, in a conversation of its own, and goes on when it is refused again.
func TestARefusedClientThatIsLetIn(t *testing.T) {
	const first, second, well = "401 2 2148074254", "401 1 2148074252", "200 0 0"
	cases := []struct {
		name  string
		steps []string // seconds and answers
		want  catalog.Code
		over  bool
	}{
		{"twice refused", []string{"0 " + first, "1 " + second}, "E002", false},
		{"three legs", []string{"0 " + first, "1 " + second, "2 " + well}, "", false},
		{"refused, and let in an hour later", []string{"0 " + first, "1 " + second, "3600 " + first, "3601 " + well}, "E002", true},
		{"let in, and refused an hour later", []string{"0 " + first, "1 " + well, "3600 " + first, "3601 " + second}, "E002", false},
		{"refused, let in, refused again", []string{"0 " + first, "1 " + second, "3600 " + first, "3601 " + well, "7200 " + first, "7201 " + second}, "E002", false},
		{"let in each time", []string{"0 " + first, "1 " + well, "3600 " + first, "3601 " + well}, "", false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := newObserver("u_ex.log", DefaultLimits(), room{memory: 1 << 40})
			for i, step := range c.steps {
				var after int
				var status string
				fmt.Sscanf(step, "%d", &after)
				_, status, _ = strings.Cut(step, " ")
				at := time.Date(2024, 3, 11, 0, 0, after, 0, time.UTC)
				o.record(fmt.Appendf(nil, "%s 10.0.0.5 CCM_POST /ccm_system_windowsauth/request - 80 - 10.1.1.1 ccmhttp %s", at.Format(time.DateTime), status), i+1)
			}
			tl := merge([]*logFile{o.end()})
			logons, _ := refusedLogons(tl)
			got := current(tl, logons)
			switch {
			case c.want == "" && len(got) > 0:
				t.Errorf("got %s", got[0].code)
			case c.want != "" && (len(got) != 1 || got[0].code != c.want || (got[0].over != nil) != c.over):
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestLastIndexIsTheLast(t *testing.T) {
	for _, raw := range []string{"", "$", "$$<", "a$$<b$$<c", "a$$<b<c<", "<$$", "$$<<", `x component="a" component="b" y="`, `component="`} {
		for _, mark := range []string{"$$<", ` component="`, `"`} {
			if got, want := lastIndex([]byte(raw), []byte(mark)), strings.LastIndex(raw, mark); got != want {
				t.Errorf("%q in %q: %d, want %d", mark, raw, got, want)
			}
		}
	}
}
