package ccm

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// parseRoot reads a whole document under the default limits and checks the name of its root.
func parseRoot(text, name string) (*element, error) {
	root, err := parseXML(text, DefaultLimits())
	if err != nil {
		return nil, err
	}
	if root.Name != name {
		return nil, fmt.Errorf("the root element is not %s", name)
	}
	return root, nil
}

// tag returns one XML element: its attributes as name and value in turn, its content as given, already XML. An element
// without content is written in the short form.
func tag(name string, attributes []string, content ...string) string {
	var b strings.Builder
	b.WriteString("<" + name)
	for i := 0; i+1 < len(attributes); i += 2 {
		b.WriteString(" " + attributes[i] + `="` + escapeXML(attributes[i+1]) + `"`)
	}
	inner := strings.Join(content, "")
	if inner == "" {
		b.WriteString("/>")
		return b.String()
	}
	b.WriteString(">" + inner + "</" + name + ">")
	return b.String()
}

// textTag returns one XML element that holds only text.
func textTag(name, text string) string { return tag(name, nil, escapeXML(text)) }

// xmlCharacter returns r, or U+FFFD for what XML forbids.
func xmlCharacter(r rune) rune {
	if !isXMLChar(r) {
		return utf8.RuneError
	}
	return r
}

// optional returns the attributes without those that have an empty value.
func optional(attributes ...string) []string {
	var kept []string
	for i := 0; i+1 < len(attributes); i += 2 {
		if attributes[i+1] != "" {
			kept = append(kept, attributes[i], attributes[i+1])
		}
	}
	return kept
}

// each returns the XML of every item, in order.
func each[T any](items []T, xml func(T) string) string {
	var b strings.Builder
	for _, item := range items {
		b.WriteString(xml(item))
	}
	return b.String()
}
