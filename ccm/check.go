package ccm

import (
	"unicode/utf8"

	"postern/catalog"
)

// CheckXML reports why a UTF-8 document is not XML that this package would read back: no DTD, only the five entities, within the default
// budgets, and with a body size as the caller allows.
func CheckXML(document []byte) error {
	if !utf8.Valid(document) {
		return catalog.Errorf(catalog.XMLMalformed, "the document is not UTF-8")
	}
	limits := DefaultLimits()
	limits.Text = max(limits.Text, int64(len(document)))
	_, err := parseXML(string(document), limits)
	return err
}
