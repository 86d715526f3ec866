package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"postern/catalog"
	"postern/internal/lab"
	"postern/site"
)

// said runs a command line that acts on nothing, and returns its exit code and what it wrote to standard error.
func said(t *testing.T, arguments ...string) (exit int, text string) {
	t.Helper()
	var out, errOut bytes.Buffer
	exit = run(t.Context(), &session{in: strings.NewReader(""), out: &out, err: &errOut, actor: "test"}, arguments)
	return exit, errOut.String()
}

// A command line that is not understood ends with 2, whichever part of it is wrong, and nothing is tried.
func TestWrongUsageEndsWithTwo(t *testing.T) {
	for _, test := range []struct {
		name      string
		arguments []string
		says      string
	}{
		{"no such command", []string{"frobnicate"}, "see `postern --help`"},
		{"no such command of a group", []string{"tenant", "ad"}, "see `postern tenant --help`"},
		{"an argument too many", []string{"lab", "now"}, "see `postern lab --help`"},
		{"an argument too few", []string{"tenant", "add"}, "`postern tenant add ID`; see `postern tenant add --help`"},
		{"an argument of another kind", []string{"serve", "proxy", "--config", "x"}, "see `postern serve --help`"},
		{"no such flag", []string{"routes", "--all"}, "see `postern routes --help`"},
		{"a flag of another kind", []string{"token", "new", "--lifetime", "long"}, "see `postern token new --help`"},
		{"a flag missing", []string{"site", "init"}, "\"code\" not set; see `postern site init --help`"},
		{"no such seat", []string{"kerberos", "check", "--seat", "sideways"}, "client or server"},
		{"no time to answer", []string{"kerberos", "check", "--timeout", "0s"}, "--timeout"},
		{"nothing to read", []string{"explain"}, "see `postern explain --help`"},
	} {
		if exit, text := said(t, test.arguments...); exit != exitUsage || !strings.Contains(text, test.says) {
			t.Errorf("%s: exit %d, %q; want %d and %q", test.name, exit, text, exitUsage, test.says)
		}
	}
	if exit, _ := said(t, "code", "P999"); exit != exitFailed {
		t.Errorf("what was understood and not found ends with %d, want %d", exit, exitFailed)
	}
}

// A peer has a part in some errors, and a terminal obeys what it is sent.
func TestAnErrorIsTextOnly(t *testing.T) {
	for name, err := range map[string]error{
		"with a code": catalog.Wrap(catalog.NotFound, errors.New("\x1b]0;title\a"), "the server says \x1b[2Jgone\nand more \u202egpj"),
		"without":     errors.New("the server says \x1b[2Jgone\nand more \u009b2J"),
	} {
		var text strings.Builder
		report(&text, err)
		if strings.ContainsAny(text.String(), "\x1b\a\u202e\u009b") || !strings.Contains(text.String(), "the server says ?[2Jgone\n  and more ?") {
			t.Errorf("%s: %q", name, text.String())
		}
	}
}

// A story that needs what does not start has no lab, and says why in JSON too.
func TestALabThatDidNotStartSaysWhy(t *testing.T) {
	var out bytes.Buffer
	s := &session{out: &out}
	err := s.labJSON(lab.Story{Name: "kerberos"}, nil, catalog.Errorf(catalog.ToolMissing, "no KDC"))
	var ended exitError
	if !errors.As(err, &ended) || ended.code != exitFailed {
		t.Errorf("got %v, want exit %d", err, exitFailed)
	}
	var report labReport
	if err := json.Unmarshal(out.Bytes(), &report); err != nil || report.OK || report.Code != catalog.ToolMissing || !strings.Contains(report.Error, "no KDC") || report.Steps == nil {
		t.Errorf("%s (%v)", out.Bytes(), err)
	}
}

// Help shows how a command is typed, not only what it takes.
func TestEveryCommandShowsAnExample(t *testing.T) {
	var look func(*cobra.Command)
	look = func(c *cobra.Command) {
		for _, below := range c.Commands() {
			look(below)
		}
		path := strings.Replace(c.CommandPath(), "postern site key ", "postern key ", 1) // one group under two names
		if !c.HasSubCommands() && !strings.Contains(c.Example, path) {
			t.Errorf("`%s --help` shows no example of it", c.CommandPath())
		}
	}
	look(newRoot(&session{}))
}

// docs/configuration.md and `postern site set --help` list the same settings.
func TestEverySiteSettingIsDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "\n## Settings of the site\n")
	section, _, ended := strings.Cut(section, "\n## ")
	if !found || !ended {
		t.Fatal("docs/configuration.md has no section about the settings of the site")
	}
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(section, -1) {
		documented[row[1]] = true
	}
	for _, setting := range site.SettingNames() {
		if !documented[setting.Name] {
			t.Errorf("docs/configuration.md has no row for %s", setting.Name)
		}
		delete(documented, setting.Name)
	}
	for name := range documented {
		t.Errorf("docs/configuration.md has a row for %s, which is no setting", name)
	}
}

// A slash at the beginning of a value is none of the tool's options.
func TestCommandLinesThatAreNotTheBulkTools(t *testing.T) {
	for _, line := range []string{
		"token block --wait --why /lost/ ID", "token new --label /dev/null", "token list --config /etc/postern/mp.yaml --json", "token new --label=/new", "site show --config /etc/postern/mp.yaml",
	} {
		got, err := fromBulkTool(strings.Fields(line))
		if err != nil || strings.Join(got, " ") != line {
			t.Errorf("%s: became %q, %v", line, got, err)
		}
	}
}

// Every example of the help, and every line of the documents' blocks, is understood as it stands: its flags, the kinds of their values, and the number of its
// arguments. What follows a # is for the reader.
func TestExamplesAreUnderstood(t *testing.T) {
	lines := map[string][]string{}
	var collect func(*cobra.Command)
	collect = func(c *cobra.Command) {
		lines["`"+c.CommandPath()+" --help`"] = strings.Split(c.Example, "\n")
		for _, below := range c.Commands() {
			collect(below)
		}
	}
	collect(newRoot(&session{}))
	pages, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range append(pages, filepath.Join("..", "..", "README.md")) {
		content, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		lines[page] = blocks(string(content))
	}
	understood := 0
	for where, all := range lines {
		for _, line := range all {
			words := typed(line)
			if len(words) == 0 || words[0] != "postern" {
				continue
			}
			understood++
			if err := understand(words[1:]); err != nil {
				t.Errorf("%s: %q: %v", where, strings.TrimSpace(line), err)
			}
		}
	}
	if understood < 200 {
		t.Errorf("only %d lines were looked at", understood)
	}
}

// blocks are the lines of a document that are set apart as code.
func blocks(page string) (lines []string) {
	fenced := false
	for _, line := range strings.Split(page, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced, strings.HasPrefix(line, "    "):
			lines = append(lines, strings.TrimPrefix(strings.TrimSpace(line), "$ "))
		}
	}
	return lines
}

// typed splits a line as a shell does, up to a comment, a pipe or another command. In a pipe it is the part that runs postern.
func typed(line string) (words []string) {
	quote, word, open := rune(0), "", false
	for _, r := range line + " " {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == '#' && word == "" || strings.ContainsRune("|>;&", r):
			return words
		case r == '(' && strings.HasSuffix(word, "$"):
			quote, word, open = ')', word+"(", true
		case r != ' ':
			word, open = word+string(r), true
		case open:
			words, word, open = append(words, word), "", false
		}
	}
	return words
}

func understand(words []string) error {
	words, err := fromBulkTool(words)
	if err != nil {
		return err
	}
	root := newRoot(&session{})
	root.InitDefaultCompletionCmd()
	c, rest, err := root.Find(words)
	if err != nil {
		return err
	}
	c.InitDefaultHelpFlag()
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	if help, err := c.Flags().GetBool("help"); err == nil && help {
		return nil
	}
	return errors.Join(c.ValidateArgs(c.Flags().Args()), c.ValidateRequiredFlags())
}
