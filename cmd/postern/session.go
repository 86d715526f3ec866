package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"postern/catalog"
	"postern/diag"
	"postern/internal/role"
	"postern/site"
)

// session is one run of a command: where it reads and prints, who gave it, and, inside a serving role, the site that it acts on.
type session struct {
	in       io.Reader
	out, err io.Writer
	actor    string
	site     *site.Site // set when the command runs inside `postern serve mp`
	held     *role.OpenedSite
	backup   func(ctx context.Context, path string) error
	config   string // --config
	asJSON   bool   // --json
	alone    bool   // the store is open in this process only: no management point runs with it
}

// configPaths are where a management point's configuration is looked for when --config is not given.
func configPaths() []string {
	return []string{os.Getenv("POSTERN_CONFIG"), "mp.yaml", filepath.Join("site", "mp.yaml"), "/etc/postern/mp.yaml"}
}

// findConfig returns the configuration file to use.
func (s *session) findConfig() (string, error) {
	if s.config != "" {
		return s.config, nil
	}
	for _, path := range configPaths() {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", catalog.Errorf(catalog.ConfigInvalid, "no configuration found; give --config FILE, or set POSTERN_CONFIG (looked for mp.yaml, site/mp.yaml and /etc/postern/mp.yaml)")
}

// configuration reads the configuration file that findConfig finds.
func (s *session) configuration() (role.Config, error) {
	path, err := s.findConfig()
	if err != nil {
		return role.Config{}, err
	}
	return role.Load(path)
}

// siteVerb wraps an act on the site as a command's body. Where the management point runs, the act runs inside it, through its
// administration door; where it does not, the store is opened here (design decision 16).
func (s *session) siteVerb(act func(ctx context.Context, st *site.Site, arguments []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, arguments []string) error {
		ctx := c.Context()
		if s.site != nil {
			return act(ctx, s.site, arguments)
		}
		config, err := s.configuration()
		if err != nil {
			return err
		}
		if door := role.Knock(config); door != nil && config.Role == role.ManagementPoint {
			return s.through(ctx, door, c)
		}
		return s.direct(ctx, config, func(st *site.Site) error { return act(ctx, st, arguments) })
	}
}

// through runs the command inside the serving role and prints what it printed.
func (s *session) through(ctx context.Context, door *role.Door, c *cobra.Command) error {
	verb := role.Verb{Arguments: verbLine(c), Actor: s.actor}
	if readsInput(c) {
		content, err := io.ReadAll(io.LimitReader(s.in, maxInput+1))
		if err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		verb.Input = content
	}
	result, err := door.Run(ctx, verb)
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted; the management point may have done it all the same: `postern audit list` tells")
	}
	if err != nil {
		return err
	}
	s.out.Write(result.Output)
	s.err.Write(result.Errors)
	if result.Exit != 0 {
		return exitError{result.Exit}
	}
	return nil
}

// direct opens the site's store for one command.
func (s *session) direct(ctx context.Context, config role.Config, act func(*site.Site) error) error {
	protection, err := role.ProtectionFromEnvironment()
	if err != nil {
		return err
	}
	opened, err := role.OpenSite(ctx, config, protection, time.Now, nil)
	if err != nil {
		return err
	}
	defer opened.Close()
	s.held, s.alone = opened, !role.SharedStore(config)
	defer func() { s.held = nil }()
	err = act(opened.Site)
	opened.Site.Flush(ctx) // also what a refused act has noted
	return err
}

// lookAt gives act the site of a configuration as its store has it. Nothing of the store is changed, neither is it brought forward.
func lookAt(ctx context.Context, config role.Config, act func(*site.Site) error) error {
	protection, err := role.ProtectionFromEnvironment()
	if err != nil {
		return err
	}
	opened, err := role.LookAtSite(ctx, config, protection)
	if err != nil {
		return err
	}
	defer opened.Close()
	return act(opened.Site)
}

const maxInput = 32 << 20

// inputAnnotation marks commands that read standard input when an argument is "-".
const inputAnnotation = "reads-input"

func readsInput(c *cobra.Command) bool {
	path, marked := c.Annotations[inputAnnotation]
	if !marked {
		return false
	}
	value, err := c.Flags().GetString(path)
	return err == nil && value == "-"
}

// verbLine rebuilds the command line for the other side of the door. Everything a command needs is in its arguments and flags; --config is of
// this side alone, and files named by flags have been read into standard input before.
func verbLine(c *cobra.Command) []string {
	var line []string
	for parent := c; parent.HasParent(); parent = parent.Parent() {
		line = append([]string{parent.Name()}, line...)
	}
	c.Flags().Visit(func(f *pflag.Flag) {
		if f.Name == "config" {
			return
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, value := range values {
			line = append(line, "--"+f.Name+"="+value)
		}
	})
	return append(append(line, "--"), c.Flags().Args()...)
}

// dispatch runs a command that came through the door of a serving management point.
func dispatch(st *site.Site, backup func(ctx context.Context, path string) error) role.RunVerb {
	return func(ctx context.Context, verb role.Verb) role.VerbResult {
		var out, errOut bytes.Buffer
		inside := &session{in: bytes.NewReader(verb.Input), out: &out, err: &errOut, actor: verb.Actor, site: st, backup: backup}
		exit := run(ctx, inside, verb.Arguments)
		return role.VerbResult{Output: out.Bytes(), Errors: errOut.Bytes(), Exit: exit}
	}
}

// print writes v as JSON when asked for, and otherwise lets text write it for people.
func (s *session) print(v any, text func(w io.Writer)) error {
	if !s.asJSON {
		text(s.out)
		return nil
	}
	if list := reflect.ValueOf(v); list.Kind() == reflect.Slice && list.IsNil() {
		v = []struct{}{} // a script expects a list, also an empty one
	}
	encoder := json.NewEncoder(s.out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// table writes aligned columns. Some cells are what devices say of themselves.
func table(w io.Writer, header string, rows func(row func(cells ...any))) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, header)
	rows(func(cells ...any) {
		for i, cell := range cells {
			if i > 0 {
				fmt.Fprint(t, "\t")
			}
			fmt.Fprint(t, diag.Printable(fmt.Sprint(cell)))
		}
		fmt.Fprintln(t)
	})
	t.Flush()
}

// aligned returns what writes a line with a name and a value; one without text is left out. longest is the longest name, unless one of the evidence, which is
// written further in, is longer.
func aligned(w io.Writer, longest string, evidence map[string]string) func(name string, value any) {
	width := len(longest)
	for name := range evidence {
		width = max(width, len("  "+name))
	}
	return func(name string, value any) {
		if text := fmt.Sprint(value); text != "" {
			fmt.Fprintf(w, "%-*s %s\n", width, name, diag.Printable(text))
		}
	}
}

// stamp writes a time for people; "-" for none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// whoami names the person for the trust log.
func whoami() string {
	host, _ := os.Hostname()
	if u, err := user.Current(); err == nil {
		return u.Username + "@" + host
	}
	return fmt.Sprintf("uid-%d@%s", os.Getuid(), host)
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}
