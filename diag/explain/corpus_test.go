package explain

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"postern/catalog"
)

// variant is a way in which logs come that changes nothing of what they say.
type variant struct {
	name   string
	change func(t testing.TB, in incident) string // returns the folder of the changed logs
}

var variants = []variant{
	{"as they are", func(_ testing.TB, in incident) string { return in.logs }},
	{"in UTF-16", func(t testing.TB, in incident) string { return rewrite(t, in, toUTF16) }},
	{"among megabytes of noise", func(t testing.TB, in incident) string { return rewrite(t, in, amongNoise) }},
	{"interleaved with another component", func(t testing.TB, in incident) string { return rewrite(t, in, interleaved) }},
	{"of another time zone", func(t testing.TB, in incident) string { return rewrite(t, in, inAnotherZone) }},
	{"with other line ends and a torn tail of zero bytes", func(t testing.TB, in incident) string { return rewrite(t, in, tornTail) }},
	{"with other names of machines and other ids", func(t testing.TB, in incident) string { return rewrite(t, in, renamed) }},
	{"beside the healthy logs of another machine", func(t testing.TB, in incident) string {
		folder := rewrite(t, in, func(name string, content []byte) (string, []byte) { return name, content })
		write(t, filepath.Join(folder, "another machine", "CcmMessaging.log"), noiseLines(7, 400))
		return folder
	}},
}

// The corpus: at least 95 of 100 verdicts are right, at most one is wrong and given all the same. Run with -v for the figures.
func TestCorpus(t *testing.T) {
	all := incidents(t)
	if len(all) < 200 {
		t.Errorf("%d incidents, want at least 200", len(all))
	}
	var total score
	for n, v := range variants {
		var s score
		for i, in := range all {
			if n > 0 && (i+n)%sparse != 0 { // each incident comes in some of the variants
				continue
			}
			got := code(run(t, v.change(t, in)))
			if s.count(got, in.want.Verdict); got != in.want.Verdict {
				t.Logf("%s, %s: got %q, want %q", in.name, v.name, got, in.want.Verdict)
			}
		}
		t.Logf("%-52s %v", v.name, s)
		total.add(s)
	}
	t.Logf("%-52s %v", "all", total)
	if total.right*100 < total.all()*95 || total.wrong*100 > total.all() {
		t.Errorf("want at least 95 %% right and at most 1 %% wrong: %v", total)
	}
}

// score is how many verdicts were right, were "don't know" where something was to be known, and were wrong.
type score struct{ right, unknown, wrong int }

func (s *score) count(got, want catalog.Code) {
	switch got {
	case want:
		s.right++
	case "":
		s.unknown++
	default:
		s.wrong++
	}
}

func (s *score) add(other score) {
	s.right, s.unknown, s.wrong = s.right+other.right, s.unknown+other.unknown, s.wrong+other.wrong
}

func (s score) all() int { return s.right + s.unknown + s.wrong }

func (s score) String() string {
	share := func(n int) float64 { return float64(n) * 100 / float64(max(s.all(), 1)) }
	return fmt.Sprintf("right %.1f %%, don't know %.1f %%, confidently wrong %.1f %% of %d", share(s.right), share(s.unknown), share(s.wrong), s.all())
}

// Every row of the catalogue that a log can show has an incident that yields its verdict; the entry of every other one says that
// no log shows it. Rows that are no failure are named beside the verdict.
func TestEveryRowOfTheCatalogue(t *testing.T) {
	yields, named := map[catalog.Code]bool{}, map[catalog.Code]bool{}
	for _, in := range incidents(t) {
		report := run(t, in.logs)
		yields[code(report)] = true
		for _, v := range report.Also {
			named[v.Code] = true
		}
	}
	ruled := map[catalog.Code]bool{}
	for _, k := range looks {
		ruled[catalog.Code(k.mark)] = true
	}
	for n := 1; n <= 162; n++ {
		c := catalog.Code(fmt.Sprintf("E%03d", n))
		entry, ok := catalog.Lookup(c)
		if !ok {
			t.Errorf("%s has no entry", c)
			continue
		}
		noLog := strings.Contains(strings.Join(entry.Where, "\n"), "no log")
		shown := yields[c] || entry.Severity == catalog.SeverityInfo && named[c]
		switch {
		case noLog && (shown || ruled[c]):
			t.Errorf("%s: the entry says that no log shows it, and there is a rule", c)
		case !noLog && !shown:
			t.Errorf("%s %s: no incident yields it, and the entry does not say that no log shows it", c, entry.Title)
		}
	}
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func toUTF16(name string, content []byte) (string, []byte) {
	if !utf8.Valid(content) {
		return name, content
	}
	out := []byte{0xff, 0xfe}
	for _, unit := range utf16.Encode([]rune(string(content))) {
		out = append(out, byte(unit), byte(unit>>8))
	}
	return name, out
}

// noiseTexts are what a healthy client writes all day.
var noiseTexts = []string{
	"Evaluation not required. No changes detected.",
	"Initializing policy agent thread %d",
	"CTaskConsumer::Execute - task %d",
	"Starting LSRefreshLocationsTask",
	"Current IP address of the adapter %d has not changed",
	"Raising client SDK event for class CCM_ClientSDK instance %d",
	"Job {6F1D2C77-1B7A-4C3E-9D11-%012d} started",
	"SMS CCM 5.0: Host=MP01.FABRIKAM.NET, Path=/ccm_system/request, Port=443, Protocol=https, CcmTokenAuth=0, Flags=0x1, Options=0x1",
	"Updated settings of group %d, 0 errors",
	"Transferred %d of 12029 bytes",
	"Sleeping for %d ms",
}

// noiseLines are so many lines of the client format, always the same for one seed.
func noiseLines(seed uint64, count int) []byte {
	var b bytes.Buffer
	random := rand.New(rand.NewPCG(seed, 2))
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for range count {
		at = at.Add(time.Duration(random.IntN(4000)) * time.Millisecond)
		text := noiseTexts[random.IntN(len(noiseTexts))]
		if strings.Contains(text, "%") {
			text = fmt.Sprintf(text, random.IntN(100_000))
		}
		fmt.Fprintf(&b, "<![LOG[%s]LOG]!><time=\"%s+000\" date=\"%s\" component=\"CcmExec\" context=\"\" type=\"1\" thread=\"%d\" file=\"x.cpp:%d\">\r\n",
			text, at.Format("15:04:05.000"), at.Format("01-02-2006"), random.IntN(20_000), random.IntN(2000))
	}
	return b.Bytes()
}

// Lines of noise before and after what matters, some 180 bytes each: a megabyte each time for one incident in twelve, and less for the
// others, because only the time that it takes differs.
const (
	noiseCount  = 300
	muchNoise   = 6000
	muchNoiseIn = 12
)

func amongNoise(name string, content []byte) (string, []byte) {
	if !utf8.Valid(content) || bytes.HasPrefix(content, []byte("#")) {
		return name, content
	}
	count := noiseCount
	if len(content)%muchNoiseIn == 0 {
		count = muchNoise
	}
	noise := noiseLines(uint64(len(content)), count)
	return name, append(append(append([]byte{}, noise...), content...), noise...)
}

// interleaved puts a line of noise after every record that ends with its line.
func interleaved(name string, content []byte) (string, []byte) {
	if !utf8.Valid(content) || !bytes.Contains(content, []byte(recordStart)) {
		return name, content
	}
	noise := bytes.SplitAfter(noiseLines(5, 64), []byte("\n"))
	var out []byte
	for i, text := range bytes.SplitAfter(content, []byte("\n")) {
		if out = append(out, text...); bytes.Contains(text, clientEnd) {
			out = append(out, noise[i%60]...)
		}
	}
	return name, out
}

// inAnotherZone writes the same moments as a machine five hours behind UTC does.
func inAnotherZone(name string, content []byte) (string, []byte) {
	var out []byte
	for text := range bytes.Lines(content) {
		all := fromRecord(name, 1, trimmed(text))
		if len(all) == 1 && all[0].kind == clientLine {
			local := all[0].time.UTC().Add(-5 * time.Hour)
			begin, end := bytes.Index(text, []byte(`<time="`)), bytes.Index(text, []byte(`" component=`))
			if begin > 0 && end > begin {
				text = fmt.Appendf(nil, "%s<time=\"%s+300\" date=\"%s%s", text[:begin], local.Format("15:04:05.000"), local.Format("01-02-2006"), text[end:])
			}
		}
		out = append(out, text...)
	}
	return name, out
}

func tornTail(name string, content []byte) (string, []byte) {
	if !utf8.Valid(content) {
		return name, content
	}
	return name, append(bytes.ReplaceAll(content, []byte("\r\n"), []byte("\n")), make([]byte, 300)...)
}

// renamed changes what differs from site to site.
func renamed(name string, content []byte) (string, []byte) {
	for _, change := range [][2]string{{"fabrikam", "northwind"}, {"FABRIKAM", "NORTHWIND"}, {"contoso", "tailspin"}, {"CONTOSO", "TAILSPIN"}, {"72057594037938011", "72186325152220511"},
		{"5B1D7E44", "A07C3391"}, {"C66EE0FD", "19EE0A52"}, {"10.20.7.", "10.99.1."}, {"192.168.20.", "172.16.8."}, {"PC-0417", "LT-7"}} {
		content = bytes.ReplaceAll(content, []byte(change[0]), []byte(change[1]))
	}
	return name, content
}

// BenchmarkCorpus prints right, don't-know and confidently-wrong of the corpus as it is.
func BenchmarkCorpus(b *testing.B) {
	all := incidents(b)
	for b.Loop() {
		var s score
		for _, in := range all {
			s.count(code(run(b, in.logs)), in.want.Verdict)
		}
		n := float64(s.all())
		b.ReportMetric(float64(s.right)*100/n, "%right")
		b.ReportMetric(float64(s.unknown)*100/n, "%don't-know")
		b.ReportMetric(float64(s.wrong)*100/n, "%confidently-wrong")
	}
}

// exists is for the variants: every incident has its logs.
func TestEveryIncidentHasItsLogs(t *testing.T) {
	for _, in := range incidents(t) {
		count := 0
		filepath.WalkDir(in.logs, func(_ string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				count++
			}
			return err
		})
		if count == 0 {
			t.Errorf("%s has no logs", in.name)
		}
	}
}
