package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"postern/catalog"
)

// command finds what texts tell people to type: the words behind "postern" that could be verbs, several with bars between, and the rest of the line.
var command = regexp.MustCompile("(?m)(^\\s*(?:\\$ )?|[`\"'])postern ((?:[a-z][a-z|-]*)(?: [a-z][a-z|-]*)*)(.*)$")

// TestEveryNamedCommandExists keeps remedies, documents and help honest: whoever types what they say gets a command with these flags, not an error.
func TestEveryNamedCommandExists(t *testing.T) {
	texts := map[string]string{}
	for _, e := range catalog.All() {
		texts["catalogue "+string(e.Code)] = strings.Join(append(append([]string{e.Cause, e.Confirm}, e.Remedy...), e.Where...), "\n")
	}
	var help func(c *cobra.Command)
	help = func(c *cobra.Command) {
		texts["`"+c.CommandPath()+" --help`"] = c.Long + "\n" + c.Example
		for _, under := range c.Commands() {
			help(under)
		}
	}
	help(newRoot(&session{}))
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".md" && filepath.Base(path) != "errors.md" { // errors.md is the catalogue, checked above
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			texts[path] = onlyCode(string(content))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range texts {
		for len(text) > 0 {
			match := command.FindStringSubmatchIndex(text)
			if match == nil {
				break
			}
			quote, words, rest := text[match[2]:match[3]], strings.Fields(text[match[4]:match[5]]), text[match[6]:match[7]]
			text = text[match[5]:]
			if strings.Trim(quote, "`\"'") != quote {
				rest, _, _ = strings.Cut(rest, quote)
			}
			at, unknown := verbOf(words)
			if unknown != "" {
				t.Errorf("%s names `postern %s`, which does not exist", where, unknown)
				continue
			}
			for _, flag := range unknownFlags(at, rest) {
				t.Errorf("%s gives `%s` the flag --%s, which it has not", where, at.CommandPath(), flag)
			}
		}
	}
}

// onlyCode keeps what a document sets as code: prose may use the product's name before any word.
func onlyCode(text string) string {
	var b strings.Builder
	fenced := false
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced && !strings.Contains(line, "mermaid")
			continue
		}
		if fenced || strings.HasPrefix(line, "    postern ") || strings.HasPrefix(line, "    $ postern ") {
			b.WriteString(line + "\n")
			continue
		}
		for i, span := range strings.Split(line, "`") {
			if i%2 == 1 {
				b.WriteString("`" + span + "`\n")
			}
		}
	}
	return b.String()
}

// verbOf walks the command tree as far as the words go. It returns the command, or the words that lead nowhere.
func verbOf(words []string) (at *cobra.Command, unknown string) {
	at = newRoot(&session{})
	for i, word := range words {
		if !at.HasSubCommands() || word == "help" || word == "completion" {
			return at, ""
		}
		var next *cobra.Command
		for _, one := range strings.Split(word, "|") {
			if next = under(at, one); next == nil {
				return nil, strings.Join(words[:i+1], " ")
			}
		}
		at = next
	}
	return at, ""
}

func under(c *cobra.Command, name string) *cobra.Command {
	for _, one := range c.Commands() {
		if one.Name() == name {
			return one
		}
	}
	return nil
}

var flagName = regexp.MustCompile(`^--([a-z][a-z0-9-]*)`)

// unknownFlags returns the flags in the rest of a command line that the command does not have, up to where another command begins.
func unknownFlags(c *cobra.Command, rest string) (unknown []string) {
	c.InitDefaultHelpFlag()
	for _, word := range strings.Fields(rest) {
		if strings.Contains("# | ; && || > >>", word) {
			return unknown
		}
		if flag := flagName.FindStringSubmatch(word); flag != nil && c.Flags().Lookup(flag[1]) == nil && c.InheritedFlags().Lookup(flag[1]) == nil {
			unknown = append(unknown, flag[1])
		}
	}
	return unknown
}

// The check above finds what it is for.
func TestCommandsThatDoNotExistAreFound(t *testing.T) {
	for line, wrong := range map[string]string{
		"`postern token block ID --why TEXT`": "", "postern token block|unblock ID": "", "    postern device block LAPTOP-7 --why stolen --wait": "", "postern status --config F": "",
		"`postern token revoke`": "verb", "postern device events": "verb", "postern token block|drop": "verb", "`postern site gateway list --wait`": "flag",
	} {
		match := command.FindStringSubmatch(line)
		if match == nil {
			t.Errorf("%q is not seen", line)
			continue
		}
		got := ""
		at, unknown := verbOf(strings.Fields(match[2]))
		if unknown != "" {
			got = "verb"
		} else if len(unknownFlags(at, match[3])) > 0 {
			got = "flag"
		}
		if got != wrong {
			t.Errorf("%q: got %q, want %q", line, got, wrong)
		}
	}
}
