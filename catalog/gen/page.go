package main

import (
	"bytes"
	"fmt"
	"strings"

	"postern/catalog"
)

type heading struct{ area, title string }

// headings are the titles of the areas on the page, in reading order.
var headings = []heading{
	{"wire", "The wire: messages, paths, certificates"},
	{"message", "The wire: registration, policy, location"},
	{"token", "Tokens"},
	{"registration", "Registration and approval"},
	{"mp", "Management point"},
	{"gateway", "Gateway"},
	{"connector", "Connector"},
	{"tunnel", "Tunnel"},
	{"client", "Client"},
	{"policy", "Policy"},
	{"site", "Site"},
	{"return", "Life of tokens and the return of devices"},
	{"keys", "Signing keys and site roots"},
	{"revoke", "Revocation of devices, tokens and keys"},
	{"possession", "Proof of possession"},
	{"roaming", "Roaming"},
	{"audit", "Bulk registration tokens and audit"},
	{"operation", "Operation: configuration, store, keys, administration"},
	{"store", "Store"},
	{"inbox", "Inbox"},
	{"kerberos", "Kerberos"},
	{"entra", "Entra"},
	{"entraclient", "Entra, on the device"},
	{"revocation", "Certificates and revocation"},
	{"check", "Checks of Kerberos, from a client's or a server's seat"},
	{"analyze", "The connection analyzer and the checks before a deployment"},
	{"explain", "Reading logs"},
	{"swarm", "Simulated fleets"},
	{"sources", "Symptoms in the logs of the original product"},
}

// errorsPage returns docs/errors.md.
func errorsPage(areas []catalog.Area) []byte {
	var b bytes.Buffer
	b.WriteString(`# Errors

<!-- Written by catalog/gen from catalog/data. Do not edit. -->

Every failure that a device, a server or a person can meet has a code. Codes that begin with ` + "`P`" + ` are
Postern's own and are never reused; codes that begin with ` + "`E`" + ` are symptoms that the documents of the
original product describe, and that Postern's servers and clients show in the same words.

`)
	for _, heading := range headings {
		for _, area := range areas {
			if area.Name == heading.area && area.Err == nil {
				writeArea(&b, heading.title, area)
			}
		}
	}
	return append(bytes.TrimRight(b.Bytes(), "\n"), '\n')
}

func writeArea(b *bytes.Buffer, title string, area catalog.Area) {
	fmt.Fprintf(b, "## %s\n\n| code | name | what | status |\n| --- | --- | --- | --- |\n", title)
	for _, e := range area.Entries {
		fmt.Fprintf(b, "| [%s](#%s) | %s | %s | %s |\n", e.Code, strings.ToLower(string(e.Code)), e.Name, cell(e.Title), status(e))
	}
	b.WriteString("\n")
	for _, e := range area.Entries {
		writeEntry(b, e)
	}
}

func writeEntry(b *bytes.Buffer, e catalog.Entry) {
	fmt.Fprintf(b, "<a id=\"%s\"></a>\n### %s %s\n\n", strings.ToLower(string(e.Code)), e.Code, oneLine(e.Title))
	fmt.Fprintf(b, "*%s*, seen in %s.\n\n", e.Severity, oneLine(strings.Join(e.Where, "; ")))
	for _, line := range e.Looks {
		fmt.Fprintf(b, "- %s\n", code(line))
	}
	fmt.Fprintf(b, "\n**Why.** %s\n\n**What to do.**\n\n", oneLine(e.Cause))
	for i, step := range e.Remedy {
		fmt.Fprintf(b, "%d. %s\n", i+1, oneLine(step))
	}
	fmt.Fprintf(b, "\n**It helped when** %s\n\n", lowerFirst(oneLine(e.Confirm)))
	fmt.Fprintf(b, "Source: %s.", strings.TrimSuffix(oneLine(e.Source), "."))
	for i, see := range e.See {
		separator := ", "
		if i == 0 {
			separator = " See "
		}
		fmt.Fprintf(b, "%s[%s](#%s)", separator, see, strings.ToLower(string(see)))
	}
	if len(e.See) > 0 {
		b.WriteString(".")
	}
	b.WriteString("\n\n")
}

func status(e catalog.Entry) string {
	if e.Status == 0 {
		return "-"
	}
	return fmt.Sprint(e.Status)
}

func cell(s string) string { return strings.ReplaceAll(oneLine(s), "|", `\|`) }

// code returns s as inline code, with a fence longer than any run of backticks in it.
func code(s string) string {
	fence := "`"
	for strings.Contains(s, fence) {
		fence += "`"
	}
	if len(fence) > 1 {
		return fence + " " + oneLine(s) + " " + fence
	}
	return fence + oneLine(s) + fence
}

// lowerFirst makes a sentence the continuation of another, unless it begins with a
// name or a command.
func lowerFirst(s string) string {
	for _, word := range []string{"The ", "A ", "An ", "No ", "It ", "There ", "Its ", "This ", "Both ", "Each ", "Every ", "All "} {
		if strings.HasPrefix(s, word) {
			return strings.ToLower(s[:1]) + s[1:]
		}
	}
	return s
}
