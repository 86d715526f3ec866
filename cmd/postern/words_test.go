package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/catalog"
)

// command finds what documents and remedies tell people to type: the words behind "postern" that could be verbs.
var command = regexp.MustCompile("(?m)(?:^\\s*|[`\"'])postern ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)*)")

// TestEveryNamedCommandExists keeps remedies and documents honest: whoever types what they say gets a command, not an error.
func TestEveryNamedCommandExists(t *testing.T) {
	texts := map[string]string{}
	for _, e := range catalog.All() {
		texts["catalogue "+string(e.Code)] = strings.Join(append(e.Remedy, e.Cause, e.Confirm), "\n")
	}
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
		for _, match := range command.FindAllStringSubmatch(text, -1) {
			if verb := unknownVerb(strings.Fields(match[1])); verb != "" {
				t.Errorf("%s names `postern %s`, which does not exist", where, verb)
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
		if fenced {
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

// unknownVerb walks the command tree as far as the words go and returns the words that lead nowhere.
func unknownVerb(words []string) string {
	at := newRoot(&session{})
	for i, word := range words {
		if !at.HasSubCommands() {
			return ""
		}
		found := at
		for _, c := range at.Commands() {
			if c.Name() == word {
				found = c
			}
		}
		if found == at {
			if word == "help" || word == "completion" {
				return ""
			}
			return strings.Join(words[:i+1], " ")
		}
		at = found
	}
	return ""
}
