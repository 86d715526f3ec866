package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"golang.org/x/term"

	"postern/catalog"
	"postern/diag"
	"postern/diag/scrub"
	"postern/internal/role"
	"postern/logfile"
	"postern/site"
)

// Budgets of a bundle: a person mails it.
const (
	bundleLogs   = 16 << 20 // bytes of all logs together, the newest first
	bundleLog    = 4 << 20  // bytes of one, its end
	bundleSecret = 64 << 10 // bytes of a file that may hold a secret
	bundleDeep   = 5        // folders below one that is looked through for secrets
)

// part is one file of a bundle.
type part struct {
	Name    string   `json:"name"`
	Size    int      `json:"size"`
	Secrets int      `json:"left_out"` // places where something that is or looks like a secret was left out
	Notes   []string `json:"notes,omitempty"`

	content []byte
}

// bundling gathers a bundle.
type bundling struct {
	config role.Config
	since  time.Time
	now    time.Time
	scrub  *scrub.Scrubber
	parts  []*part
	left   []string // what is not in the bundle, and why
	seen   map[catalog.Code]int
}

func newSupportBundle(s *session) *cobra.Command {
	var out string
	var since time.Duration
	var yes bool
	c := &cobra.Command{
		Use: "support-bundle [--config FILE] [--out FILE.zip]", Short: "Collect logs, settings, versions and health of a role into a zip, without secrets", Args: cobra.NoArgs,
		Long: `Collects what a supporter needs of a role on this machine: its newest logs, its configuration, its versions and health, counts, what the doctor says
and the codes that were seen. It prints the manifest of what would be written, with what was cut and left out, and asks before anything is written;
where nobody can be asked, --yes is needed.

Secrets are left out: keys, keytabs, passphrases, tokens and the store are never read into it, and whatever in the rest is one of them or looks like a token,
a key or a password is replaced by "` + scrub.Mark + `". Names, addresses and ids of devices stay: look through a bundle before you give it away.
A bundle never replaces a file, and only its owner can read it.`,
		Example: `  postern support-bundle --config site/mp.yaml
  postern support-bundle --config gateway/gateway.yaml --since 2h --out gateway.zip --yes
  postern support-bundle --config site/mp.yaml --json       # the manifest alone, for a script`,
		RunE: func(c *cobra.Command, _ []string) error {
			if since <= 0 {
				return usageError{fmt.Errorf("--since %s: want a duration like 24h", since)}
			}
			config, err := s.configuration()
			if err != nil {
				return err
			}
			b := &bundling{config: config, now: time.Now(), seen: map[catalog.Code]int{}}
			b.since = b.now.Add(-since)
			if err := b.gather(c.Context()); err != nil {
				return err
			}
			if out == "" {
				out = fmt.Sprintf("postern-support-%s-%s.zip", fileWord(config.Name), b.now.UTC().Format("20060102-150405"))
			}
			return s.deliver(b, out, yes)
		},
	}
	c.Flags().StringVar(&s.config, "config", "", "configuration file of the role (default: that of the management point, as for the other commands)")
	c.Flags().BoolVar(&s.asJSON, "json", false, "print the manifest as JSON")
	c.Flags().StringVar(&out, "out", "", "file to write (default: postern-support-NAME-TIME.zip in this folder)")
	c.Flags().DurationVar(&since, "since", 24*time.Hour, "how far back the logs go")
	c.Flags().BoolVar(&yes, "yes", false, "write it without asking")
	return c
}

// fileWord is a name as a part of a file's name.
func fileWord(name string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x80 && wordByte(byte(r|0x20)) || r == '.' || '0' <= r && r <= '9' {
			return r
		}
		return '-'
	}, name)
}

// gather fills the bundle: every part goes through the scrubber, and is looked through for known secrets once more.
func (b *bundling) gather(ctx context.Context) error {
	b.scrub = scrub.New(knownSecrets(b.config)...)
	b.versions()
	b.configuration()
	b.health(ctx)
	b.site(ctx)
	if err := b.logs(ctx); err != nil {
		return err
	}
	b.codes()
	slices.SortFunc(b.parts, func(x, y *part) int { return cmp.Compare(x.Name, y.Name) })
	b.manifest()
	for _, p := range b.parts {
		if b.scrub.Holds(p.content) {
			return catalog.Errorf(catalog.BundleNotWritten, "the part %s still holds a secret of this role; nothing was written", p.Name)
		}
	}
	return ctx.Err()
}

// add scrubs a part and keeps it.
func (b *bundling) add(name string, content []byte, notes ...string) *part {
	p := &part{Name: name, Notes: notes}
	p.content, p.Secrets = b.scrub.Text(content)
	p.Size = len(p.content)
	b.parts = append(b.parts, p)
	return p
}

func (b *bundling) addJSON(name string, v any) {
	content, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		content = []byte(err.Error())
	}
	b.add(name, append(content, '\n'))
}

func (b *bundling) versions() {
	libraries := map[string]string{}
	settings := map[string]string{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			libraries[m.Path] = m.Version
		}
		for _, setting := range info.Settings {
			if strings.HasPrefix(setting.Key, "vcs") || setting.Key == "CGO_ENABLED" {
				settings[setting.Key] = setting.Value
			}
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	b.addJSON("versions.json", map[string]any{"postern": version(), "go": runtime.Version(), "os": runtime.GOOS, "architecture": runtime.GOARCH, "kernel": strings.TrimSpace(string(kernel)), "processors": runtime.NumCPU(),
		"libraries": libraries, "build": settings})
}

// configuration is written anew from what was understood: a comment in the file may hold anything.
func (b *bundling) configuration() {
	config := b.config
	config.Store = withoutPassword(config.Store)
	content, err := yaml.Marshal(config)
	if err != nil {
		content = []byte("# " + err.Error() + "\n")
	}
	b.add("configuration.yaml", content, "as it was understood, paths made absolute, without comments")
}

// withoutPassword leaves the password out of the address of a database. Of what is neither such an address nor plainly a path nothing is told.
func withoutPassword(store string) string {
	if strings.HasPrefix(store, "@") || !strings.ContainsAny(store, "@=") && !strings.Contains(store, "://") {
		return store
	}
	address, err := url.Parse(store)
	if err != nil || address.Host == "" {
		return scrub.Mark
	}
	if address.User != nil {
		address.User = url.User(address.User.Username())
	}
	query := address.Query()
	for name := range query {
		if strings.Contains(strings.ToLower(name), "pass") {
			query.Del(name)
		}
	}
	address.RawQuery = query.Encode()
	return address.String()
}

func (b *bundling) health(ctx context.Context) {
	door := role.Knock(b.config)
	if door == nil {
		b.left = append(b.left, "health.json and metrics.txt: the role does not run")
		return
	}
	if health, err := door.Health(ctx); err != nil {
		b.left = append(b.left, "health.json: "+err.Error())
	} else {
		b.addJSON("health.json", health)
	}
	var metrics bytes.Buffer
	if err := door.Metrics(ctx, &metrics); err != nil {
		b.left = append(b.left, "metrics.txt: "+err.Error())
	} else {
		b.add("metrics.txt", metrics.Bytes())
	}
}

// site adds what the doctor says, and of a management point counts: never a record.
func (b *bundling) site(ctx context.Context) {
	var findings bytes.Buffer
	writeFindings(&findings, examine(ctx, b.config))
	b.add("doctor.txt", findings.Bytes())
	if b.config.Role != role.ManagementPoint {
		return
	}
	var counts map[string]any
	err := lookAt(ctx, b.config, func(st *site.Site) (err error) {
		counts, err = b.counts(ctx, st)
		return err
	})
	if err != nil {
		b.left = append(b.left, "counts.json: "+catalog.Public(err))
		return
	}
	b.addJSON("counts.json", counts)
}

// bundleEvents is how many of the newest events are counted.
const bundleEvents = 20_000

func (b *bundling) counts(ctx context.Context, st *site.Site) (map[string]any, error) {
	devices, tokens, refusals := map[string]int{}, map[string]int{}, map[string]int{}
	err := st.EachDevice(ctx, site.DeviceFilter{}, func(d site.Device) {
		devices["all"]++
		devices[fmt.Sprintf("approval status %d", d.Status())]++
		if state := stateText(d); state != "-" {
			devices[strings.ToLower(state)]++
		}
		if b.now.Sub(d.LastSeen) < 24*time.Hour {
			devices["seen within a day"]++
		}
	})
	if err != nil {
		return nil, err
	}
	bulk, err := st.BulkTokens(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range bulk {
		tokens[tokenState(t, b.now)]++
	}
	events, err := st.Events(ctx, site.EventFilter{After: b.since, Limit: bundleEvents})
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		if e.Code != "" {
			refusals[e.Code]++
			b.seen[catalog.Code(e.Code)]++
		}
	}
	waiting, err := st.Conflicts(ctx, site.ConflictFilter{State: site.ConflictWaiting})
	if err != nil {
		return nil, err
	}
	head, err := st.TrustHead(ctx)
	return map[string]any{"devices": devices, "bulk_tokens": tokens, "events_by_code": refusals, "conflicts_waiting": len(waiting), "gateways": len(st.Gateways()), "connectors": len(st.Connectors()),
		"management_points": len(st.ManagementPoints()), "tenants": len(st.Onboarded()), "authorities": len(st.UploadedAuthorities()), "trust_log_entries": head.Sequence, "epoch": st.Epoch(), "since": b.since.UTC().Format(time.RFC3339)}, err
}

// logName is what a log file is called: rotated ones too.
var logName = regexp.MustCompile(`(?i)\.(?:log|lo_|json|js_|jso_|json_|json\.[0-9]+|log\.[0-9]+)$`)

// portable is a name that means one file on every system that a zip is unpacked on, and nothing else.
var portable = regexp.MustCompile(`^[^\x00-\x1f\x7f-\x9f/\\:*?"<>|]+$`)

// logs adds the log files that were written to since, the newest first, until there is no room.
func (b *bundling) logs(ctx context.Context) error {
	entries, err := os.ReadDir(b.config.Logs)
	if err != nil {
		b.left = append(b.left, fmt.Sprintf("logs: %v", err))
		return nil
	}
	var files []fs.FileInfo
	old := 0
	for _, entry := range entries {
		info, err := entry.Info()
		switch {
		case err != nil || info.IsDir():
		case !info.Mode().IsRegular():
			b.left = append(b.left, "logs/"+info.Name()+": no regular file")
		case !portable.MatchString(info.Name()) || secretive(b.scrub, info.Name()):
			b.left = append(b.left, "logs: a file whose name cannot stand in a zip everywhere, or looks like a secret")
		case !logName.MatchString(info.Name()):
			b.left = append(b.left, "logs/"+info.Name()+": not the name of a log")
		case info.ModTime().Before(b.since):
			old++
		default:
			files = append(files, info)
		}
	}
	if old > 0 {
		b.left = append(b.left, fmt.Sprintf("%d log files: not written to since %s", old, stamp(b.since)))
	}
	slices.SortFunc(files, func(x, y fs.FileInfo) int {
		return cmp.Or(y.ModTime().Compare(x.ModTime()), cmp.Compare(x.Name(), y.Name()))
	})
	room := bundleLogs
	for _, info := range files {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if room <= 0 {
			b.left = append(b.left, fmt.Sprintf("logs/%s, %d bytes: newer logs fill the room", info.Name(), info.Size()))
			continue
		}
		content, notes, err := b.tail(filepath.Join(b.config.Logs, info.Name()), min(room, bundleLog))
		if err != nil {
			b.left = append(b.left, fmt.Sprintf("logs/%s: %v", info.Name(), err))
			continue
		}
		room -= len(content)
		b.count(b.add("logs/"+info.Name(), content, notes...).content)
	}
	return nil
}

// secretive reports whether a name holds what would be left out of a text.
func secretive(s *scrub.Scrubber, name string) bool {
	_, leftOut := s.Text([]byte(name))
	return leftOut > 0
}

// tail returns the end of a log: whole lines, none from before since.
func (b *bundling) tail(path string, most int) (content []byte, notes []string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	var directives []byte
	from := max(0, info.Size()-int64(most))
	if from > 0 {
		directives = head(file)
	}
	content, err = io.ReadAll(io.NewSectionReader(file, from, info.Size()-from)) // no more than it has now, though it is written to
	if err != nil {
		return nil, nil, err
	}
	if from > 0 {
		whole := bytes.IndexByte(content, '\n') + 1
		content = append(directives, content[whole:]...)
		notes = append(notes, fmt.Sprintf("cut: the last %d of %d bytes", len(content)-len(directives), info.Size()))
	}
	content, dropped := recent(content, b.since)
	if dropped > 0 {
		notes = append(notes, fmt.Sprintf("cut: %d lines from before %s", dropped, stamp(b.since)))
	}
	return content, notes, nil
}

// head is the lines at the begin of an access log that say what its fields are.
func head(file io.ReaderAt) (directives []byte) {
	for in := bufio.NewReader(io.NewSectionReader(file, 0, 4096)); ; {
		line, err := in.ReadBytes('\n')
		if err != nil || line[0] != '#' {
			return directives
		}
		directives = append(directives, line...)
	}
}

// recent drops the lines from before a time. A line without a time goes with the one before it; directives stay.
func recent(content []byte, since time.Time) (kept []byte, dropped int) {
	old := false
	for line := range bytes.Lines(content) {
		if at := lineTime(string(line)); !at.IsZero() {
			old = at.Before(since)
		}
		if old && line[0] != '#' {
			dropped++
			continue
		}
		kept = append(kept, line...)
	}
	return kept, dropped
}

// lineTime is when a line of a log was written; zero when it does not say.
func lineTime(line string) time.Time {
	if strings.HasPrefix(line, "{") {
		var record struct {
			Time time.Time `json:"time"`
		}
		if json.Unmarshal([]byte(line), &record) != nil {
			return time.Time{}
		}
		return record.Time
	}
	record, err := logfile.ParseLine(strings.TrimRight(line, "\r\n"))
	if err != nil {
		return time.Time{}
	}
	return record.Time
}

var codeWord = regexp.MustCompile(`\b[PE][0-9]{3}\b`)

// count counts the catalogue's codes in a log.
func (b *bundling) count(content []byte) {
	for _, found := range codeWord.FindAll(content, -1) {
		b.seen[catalog.Code(found)]++
	}
}

func (b *bundling) codes() {
	type codeSeen struct {
		Code  catalog.Code `json:"code"`
		Title string       `json:"title"`
		Count int          `json:"count"`
	}
	all := []codeSeen{}
	for _, code := range slices.Sorted(maps.Keys(b.seen)) {
		if entry, ok := catalog.Lookup(code); ok {
			all = append(all, codeSeen{code, entry.Title, b.seen[code]})
		}
	}
	b.addJSON("codes.json", all)
}

// manifest adds the list of the parts, as the person saw it.
func (b *bundling) manifest() {
	slices.Sort(b.left)
	for i := range b.left {
		clean, _ := b.scrub.Text([]byte(b.left[i]))
		b.left[i] = string(clean)
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "Support bundle of the %s %s, made %s by postern %s; logs since %s.\n\n", b.config.Role, b.config.Name, stamp(b.now), version(), stamp(b.since))
	b.writeManifest(&text)
	p := b.add("manifest.txt", text.Bytes())
	b.parts = slices.Concat([]*part{p}, b.parts[:len(b.parts)-1])
}

func (b *bundling) writeManifest(w io.Writer) {
	table(w, "NAME\tBYTES\tSECRETS LEFT OUT\tNOTE", func(row func(...any)) {
		for _, p := range b.parts {
			row(p.Name, p.Size, p.Secrets, cmp.Or(strings.Join(p.Notes, "; "), "-"))
		}
	})
	if len(b.left) > 0 {
		fmt.Fprintln(w, "\nNot in it:")
	}
	for _, line := range b.left {
		fmt.Fprintf(w, "  %s\n", diag.Printable(line))
	}
}

// deliver shows the manifest, asks, and writes.
func (s *session) deliver(b *bundling, out string, yes bool) error {
	manifest := struct {
		File    string   `json:"file"`
		Written bool     `json:"written"`
		Parts   []*part  `json:"parts"`
		Left    []string `json:"not_in_it"`
	}{out, yes, b.parts, append([]string{}, b.left...)}
	if _, err := os.Lstat(out); err == nil {
		return catalog.Errorf(catalog.BundleNotWritten, "%s exists already; a bundle never replaces a file", out)
	}
	if !s.asJSON {
		b.writeManifest(s.out)
	}
	if !yes {
		if !s.agreed(out) {
			err := error(nil)
			if s.asJSON {
				err = s.print(manifest, nil)
			}
			return errors.Join(err, catalog.Errorf(catalog.BundleNotConfirmed, "%s was not written; run the command again with --yes to write it", out))
		}
		manifest.Written = true
	}
	content, err := b.zip()
	if err != nil {
		return catalog.Wrap(catalog.BundleNotWritten, err, "the zip cannot be made")
	}
	if err := writeNew(out, content); err != nil {
		return catalog.Wrap(catalog.BundleNotWritten, err, "%s cannot be written", out)
	}
	return s.print(manifest, func(w io.Writer) {
		fmt.Fprintf(w, "\nWritten: %s (%d bytes). It names devices and addresses: look through it before you give it away.\n", out, len(content))
	})
}

// agreed asks the person at the terminal; where there is none, nobody has agreed.
func (s *session) agreed(out string) bool {
	file, isFile := s.in.(*os.File)
	if !isFile || !term.IsTerminal(int(file.Fd())) {
		return false
	}
	fmt.Fprintf(s.err, "\nWrite %s? [y/N] ", out)
	answer, _ := bufio.NewReader(io.LimitReader(file, 100)).ReadString('\n')
	return slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer)))
}

// zip packs the parts: always in the same order and with the same times, so that equal parts make equal files.
func (b *bundling) zip() ([]byte, error) {
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	for _, p := range b.parts {
		w, err := archive.CreateHeader(&zip.FileHeader{Name: p.Name, Method: zip.Deflate, Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)})
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(p.content); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// writeNew writes a file that its owner alone can read, whole or not at all.
func writeNew(path string, content []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		os.Remove(path)
	}
	return err
}
