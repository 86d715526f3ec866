package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/ccm"
	"postern/diag"
	"postern/diag/explain"
	"postern/inbox"
	"postern/internal/role"
	"postern/proof"
	"postern/site"
)

func newDeviceWhy(s *session) *cobra.Command {
	var factsOnly bool
	c := &cobra.Command{
		Use: "why DEVICE", Short: "Say why a device cannot talk: what it tried, where it stopped, what it needs", Args: cobra.ExactArgs(1),
		Long: `Joins what the site knows of one device and says why it can or cannot talk: the decisions about it and their evidence, the refusals of its requests, when
it was heard last, its token, the trust log's entries, conflicts, how the gateways stand, and what the logs of the management point say of it.

DEVICE is a client id, a name or the thumbprint of a key. Of a device that never registered, refused requests and the inbox are looked through, and
DEVICE may also be the address that it comes from. Where nothing decides, the verdict is "don't know", with what was looked at. Nothing is changed, and
the exit status is 0 whatever the verdict. Run it on the machine of the management point.`,
		Example: `  postern device why LAPTOP-7
  postern device why GUID:BD4A2F49-EA94-4A46-B1BF-8F8C46372B23
  postern device why 203.0.113.9                      # of a device that never registered
  postern device why LAPTOP-7 --json | jq -r .verdict.code`,
		RunE: func(c *cobra.Command, arguments []string) error {
			if s.site != nil || factsOnly {
				return s.siteVerb(s.printFacts)(c, arguments)
			}
			config, err := s.configuration()
			if err != nil {
				return err
			}
			if config.Role != role.ManagementPoint {
				return usageError{fmt.Errorf("%s is the configuration of a %s; the site's devices are known to the management point", config.Path(), config.Role)}
			}
			return s.why(c.Context(), config, arguments[0])
		},
	}
	c.Flags().BoolVar(&factsOnly, "facts", false, "print the facts that are judged, as JSON, and do not judge")
	return c
}

// printFacts is the part that runs where the site is.
func (s *session) printFacts(ctx context.Context, st *site.Site, arguments []string) error {
	facts, err := st.DeviceFacts(ctx, arguments[0])
	if err != nil {
		return err
	}
	return json.NewEncoder(s.out).Encode(facts)
}

// why gathers what the site, the role and its files know, and prints the judgement.
func (s *session) why(ctx context.Context, config role.Config, who string) error {
	facts, err := s.siteFacts(ctx, config, who)
	if err != nil {
		return err
	}
	if facts.Waiting, err = waitingOf(config, facts); err != nil {
		facts.Cut = append(facts.Cut, fmt.Sprintf("the inbox: %v", err))
	}
	logs, err := deviceLogs(ctx, config.Logs, facts.Words())
	if err != nil {
		facts.Cut = append(facts.Cut, fmt.Sprintf("the logs: %v", err))
	}
	facts.Logs = findingOf(logs)
	diagnosis := site.Why(facts)
	whole := struct {
		Asked  string      `json:"asked"`
		Device *deviceJSON `json:"device"`
		site.Diagnosis
		LastSeen string             `json:"last_seen,omitempty"`
		Trust    []site.TrustEntry  `json:"trust"`
		Gateways []site.GatewayFact `json:"gateways"`
		Logs     *explain.Report    `json:"logs"`
	}{Asked: who, Diagnosis: diagnosis, Trust: facts.Trust, Gateways: facts.Gateways, Logs: logs}
	if facts.Device != nil {
		view := deviceView(*facts.Device)
		whole.Device, whole.LastSeen = &view, view.LastSeen
	}
	return s.print(whole, func(w io.Writer) { writeWhy(w, facts, diagnosis, logs) })
}

// siteFacts asks the management point that runs, or else opens its store.
func (s *session) siteFacts(ctx context.Context, config role.Config, who string) (facts site.DeviceFacts, err error) {
	door := role.Knock(config)
	if door == nil {
		err = lookAt(ctx, config, func(st *site.Site) (err error) {
			facts, err = st.DeviceFacts(ctx, who)
			return err
		})
		return facts, err
	}
	result, err := door.Run(ctx, role.Verb{Arguments: []string{"device", "why", "--facts", "--", who}, Actor: s.actor})
	if err != nil {
		return facts, err
	}
	if result.Exit != 0 {
		s.err.Write(result.Errors)
		return facts, exitError{result.Exit}
	}
	if err := json.Unmarshal(result.Output, &facts); err != nil {
		return facts, catalog.Wrap(catalog.AdminDoorClosed, err, "the management point's answer cannot be read; is it of another version?")
	}
	facts.Running = true
	if health, err := door.Health(ctx); err != nil {
		facts.Problems = append(facts.Problems, err.Error())
	} else {
		facts.Problems = health.Problem
	}
	return facts, nil
}

// inboxOf is the folder of the registrations that wait.
func inboxOf(config role.Config) string {
	return filepath.Join(config.State, "inboxes", "auth", "ddm.box", "log")
}

// waitingOf finds the device in the inbox, where it is not registered.
func waitingOf(config role.Config, facts site.DeviceFacts) (found []site.WaitingRegistration, err error) {
	if facts.Device != nil {
		return nil, nil
	}
	err = inbox.Look(inboxOf(config), func(r inbox.Record) {
		w := waitingRegistration(r)
		for _, word := range []string{string(w.ClientID), w.ClientID.UUID(), w.Name, string(w.Key)} {
			if word != "" && strings.EqualFold(word, facts.Asked) {
				found = append(found, w)
				return
			}
		}
		if host, _, _ := strings.Cut(w.Name, "."); host != "" && strings.EqualFold(host, facts.Asked) || sameAddress(w.Address, facts.Asked) {
			found = append(found, w)
		}
	})
	return found, err
}

func sameAddress(a, b string) bool {
	x, err := netip.ParseAddr(a)
	if err != nil {
		return false
	}
	y, err := netip.ParseAddr(b)
	return err == nil && x.Unmap() == y.Unmap()
}

func waitingRegistration(r inbox.Record) site.WaitingRegistration {
	w := site.WaitingRegistration{ClientID: r.ClientID, Key: r.Proof.Key, Address: r.Proof.Address, Received: r.ReceivedAt}
	message, err := ccm.ReadMessage(r.ContentType, bytes.NewReader(r.Message), ccm.DefaultLimits())
	if err != nil {
		return w
	}
	request, err := ccm.ParseRegistration(message)
	if err != nil {
		return w
	}
	w.Name = cmp.Or(request.Property("FQ Name"), request.Property("Netbios Name"))
	if request.Signing != nil && w.Key == "" {
		w.Key, _ = proof.Thumbprint(request.Signing.PublicKey)
	}
	return w
}

// deviceLogs explains the lines of a log folder that hold one of the words; nil when there are none.
func deviceLogs(ctx context.Context, folder string, words []string) (*explain.Report, error) {
	entries, err := os.ReadDir(folder)
	if os.IsNotExist(err) || len(words) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	excerpts, err := os.MkdirTemp("", "postern-why-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(excerpts)
	hits := 0
	for _, entry := range entries {
		if !entry.Type().IsRegular() || ctx.Err() != nil {
			continue
		}
		n, err := excerpt(filepath.Join(folder, entry.Name()), filepath.Join(excerpts, entry.Name()), newWordFilter(words))
		if err != nil {
			return nil, err
		}
		hits += n
	}
	if hits == 0 {
		return nil, ctx.Err()
	}
	report, err := explain.Run(ctx, explain.Input{Paths: []string{excerpts}})
	if err != nil {
		return nil, err
	}
	renameFiles(&report, excerpts, folder)
	return &report, nil
}

// renameFiles makes the report name the files that the excerpts are from.
func renameFiles(r *explain.Report, excerpts, folder string) {
	rename := func(text *string) { *text = strings.ReplaceAll(*text, excerpts, folder) }
	for i := range r.Evidence {
		rename(&r.Evidence[i].File)
	}
	for _, texts := range [][]string{r.Followed, r.Undecided, r.Looked} {
		for i := range texts {
			rename(&texts[i])
		}
	}
}

// excerptLimit bounds what is read of one log; both generations of the largest fit.
const excerptLimit = 64 << 20

// excerpt copies the lines that the filter lets through. Each keeps its number: of the others the line end is left.
func excerpt(from, to string, keep wordFilter) (hits int, err error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	var out bytes.Buffer
	for reader := bufio.NewReaderSize(io.LimitReader(in, excerptLimit), 1<<20); ; {
		line, err := reader.ReadSlice('\n')
		if whole := err == nil || err == io.EOF; whole && (bytes.HasPrefix(line, []byte("#")) || keep.holds(line)) {
			out.Write(bytes.TrimRight(line, "\r\n"))
			if !bytes.HasPrefix(line, []byte("#")) {
				hits++
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil && err != bufio.ErrBufferFull {
			return hits, err
		}
		if err == nil {
			out.WriteByte('\n')
		}
	}
	if hits == 0 {
		return 0, nil
	}
	return hits, os.WriteFile(to, out.Bytes(), 0o600)
}

// wordFilter finds lines that hold one of some words, whole, in any case.
type wordFilter struct {
	words map[string]bool // of letters, digits, - and _
	texts [][]byte        // of more than these
}

func newWordFilter(words []string) wordFilter {
	f := wordFilter{words: map[string]bool{}}
	for _, word := range words {
		word = strings.ToLower(word)
		if strings.IndexFunc(word, func(r rune) bool { return r >= 0x80 || !wordByte(byte(r)) }) < 0 {
			f.words[word] = true
		} else {
			f.texts = append(f.texts, []byte(word))
		}
	}
	return f
}

func wordByte(c byte) bool {
	return c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z'
}

func (f wordFilter) holds(line []byte) bool {
	low := bytes.ToLower(line)
	for begin := 0; begin < len(low); {
		end := begin
		for end < len(low) && wordByte(low[end]) {
			end++
		}
		if end > begin && f.words[string(low[begin:end])] {
			return true
		}
		begin = end + 1
	}
	return slices.ContainsFunc(f.texts, func(text []byte) bool { return site.Mentions(string(low), string(text)) })
}

// findingOf is what the logs say that a diagnosis may rest on.
func findingOf(report *explain.Report) *site.LogFinding {
	if report == nil || report.Verdict == nil {
		return nil
	}
	f := &site.LogFinding{Code: report.Verdict.Code, Sure: string(report.Verdict.Sure)}
	for _, e := range report.Evidence[:min(3, len(report.Evidence))] {
		f.Lines = append(f.Lines, fmt.Sprintf("%s:%d", e.File, e.Line))
	}
	return f
}

// writeWhy writes a diagnosis for a person: the verdict first.
func writeWhy(w io.Writer, f site.DeviceFacts, d site.Diagnosis, logs *explain.Report) {
	if f.Device == nil {
		fmt.Fprintf(w, "%s: not registered\n", diag.Printable(f.Asked))
	} else {
		fmt.Fprintf(w, "%s, last heard %s\n", diag.Printable(deviceLine(*f.Device)), stamp(f.Device.LastSeen))
	}
	if d.Verdict == nil {
		fmt.Fprintln(w, "Don't know: nothing that the site keeps decides why.")
	} else {
		fmt.Fprintf(w, "%s %s (%s)\n", d.Verdict.Code, d.Verdict.Title, d.Verdict.Sure)
	}
	if d.Stopped != "" {
		fmt.Fprintf(w, "Stopped at: %s\n", d.Stopped)
	}
	list := func(title string, lines []string) {
		if len(lines) > 0 {
			fmt.Fprintf(w, "\n%s\n", title)
		}
		for _, line := range lines {
			fmt.Fprintf(w, "  %s\n", diag.Printable(line))
		}
	}
	list("Because", d.Because)
	list("What it needs next", d.Needs)
	for i := range d.Remedy {
		d.Remedy[i] = fmt.Sprintf("%d. %s", i+1, d.Remedy[i])
	}
	list("What to do", d.Remedy)
	if len(d.Tried) > 0 {
		fmt.Fprintln(w, "\nWhat it tried, newest first")
		table(w, "  WHEN\tWHAT\tCODE\tTIMES\tFROM\tDETAIL", func(row func(...any)) {
			for _, a := range d.Tried[:min(shown, len(d.Tried))] {
				row("  "+stamp(a.At), a.What, cmp.Or(a.Code, "-"), a.Times, cmp.Or(a.Address, "-"), a.Detail)
			}
		})
	}
	list("What was decided", d.Decisions)
	var ways []string
	for _, g := range f.Gateways {
		ways = append(ways, fmt.Sprintf("gateway %s was last heard %s%s", g.Name, stamp(g.Heard), map[bool]string{true: ", and has not confirmed the newest site state"}[g.Behind]))
	}
	for _, c := range f.Connectors {
		state := "its certificate is good until " + stamp(c.Expires)
		switch {
		case c.Blocked:
			state = "blocked"
		case !f.At.Before(c.Expires):
			state = "its certificate ended " + stamp(c.Expires)
		}
		ways = append(ways, fmt.Sprintf("connector %s: %s", c.Name, state))
	}
	list("The way from the internet", ways)
	var also []string
	for _, v := range d.Also {
		also = append(also, fmt.Sprintf("%s %s (%s)", v.Code, v.Title, v.Sure))
	}
	list("True as well", also)
	if logs != nil {
		list("What the logs say of it", logLines(*logs))
	}
	list("Not decided", d.Undecided)
}

// logLines is the short form of what the logs say.
func logLines(r explain.Report) []string {
	lines := []string{"don't know"}
	if r.Verdict != nil {
		lines[0] = fmt.Sprintf("%s %s (%s)", r.Verdict.Code, r.Verdict.Title, r.Verdict.Sure)
	}
	for _, e := range r.Evidence[:min(5, len(r.Evidence))] {
		lines = append(lines, fmt.Sprintf("%s:%d  %.160s", filepath.Base(e.File), e.Line, e.Text))
	}
	return lines
}
