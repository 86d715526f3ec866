package ccm

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"postern/catalog"
)

// element is one XML element. Names are compared exactly, prefix included.
type element struct {
	Name       string
	Attributes []attribute
	Children   []*element
	Text       string // the character data directly inside, CDATA included, children left out
	Start, End int    // where it stands in the source: source[Start:End] is <Name ...> ... </Name>
	more       []byte // the text while it is read, once it has more than one run
}

type attribute struct{ Name, Value string }

// parseXML reads one whole XML document: a root element and around it nothing but an
// XML declaration, comments and white space. The source is UTF-8, as decodeUTF16 and
// [trimText] return it. It refuses, with wire codes: document types and entities other
// than the five predefined ones and character references, an attribute that occurs
// twice, anything after the root, and whatever exceeds Depth, Elements, Attributes
// (of one element) or Text (all character data, attribute values, comments and
// processing instructions) of the limits.
func parseXML(source string, lim Limits) (*element, error) {
	s := xmlScanner{source: source, lim: lim, build: true}
	root, err := s.document()
	if err != nil {
		return nil, err
	}
	if err := s.misc(); err != nil {
		return nil, err
	}
	if !s.atEnd() {
		return nil, s.malformed("something follows the root element")
	}
	return root, nil
}

// xmlEnd returns the offset just behind the root element of source, under the same
// rules as parseXML except that anything may follow. It allocates no tree.
func xmlEnd(source string, lim Limits) (int, error) {
	s := xmlScanner{source: source, lim: lim}
	if _, err := s.document(); err != nil {
		return 0, err
	}
	return s.at, nil
}

// Child returns the first child with the name, or nil. A nil element has no children.
func (e *element) Child(name string) *element {
	if e == nil {
		return nil
	}
	for _, child := range e.Children {
		if child.Name == name {
			return child
		}
	}
	return nil
}

// All returns the children with the name, in order.
func (e *element) All(name string) []*element {
	if e == nil {
		return nil
	}
	var all []*element
	for _, child := range e.Children {
		if child.Name == name {
			all = append(all, child)
		}
	}
	return all
}

// Attr returns the value of the attribute with the name, or "". A nil element has none.
func (e *element) Attr(name string) string {
	value, _ := e.LookupAttr(name)
	return value
}

// LookupAttr is Attr that tells an empty attribute from a missing one.
func (e *element) LookupAttr(name string) (string, bool) {
	if e == nil {
		return "", false
	}
	for _, a := range e.Attributes {
		if a.Name == name {
			return a.Value, true
		}
	}
	return "", false
}

// ChildText returns the text of the first child with the name without surrounding
// white space, or "".
func (e *element) ChildText(name string) string {
	child := e.Child(name)
	if child == nil {
		return ""
	}
	return strings.TrimSpace(child.Text)
}

// Twice returns the name of a child that occurs more than once and is not among the
// names that may, or "". Receivers that pick different ones of two disagree, so
// parsers refuse such a message.
func (e *element) Twice(except ...string) string {
	seen := make(map[string]bool, len(e.Children))
	for _, name := range except {
		seen[name] = false
	}
	for _, child := range e.Children {
		again, known := seen[child.Name]
		if again {
			return child.Name
		}
		if !known {
			seen[child.Name] = true
		}
	}
	return ""
}

// escapeXML writes text so that it can stand in an attribute or in character data.
// What XML forbids becomes U+FFFD.
func escapeXML(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || strings.ContainsRune(`&<>"'`, r) || !isXMLChar(r) }) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case r == '&':
			b.WriteString("&amp;")
		case r == '<':
			b.WriteString("&lt;")
		case r == '>':
			b.WriteString("&gt;")
		case r == '"':
			b.WriteString("&quot;")
		case r == '\'':
			b.WriteString("&apos;")
		case r == '\t' || r == '\n' || r == '\r':
			b.WriteString("&#" + strconv.Itoa(int(r)) + ";")
		case !isXMLChar(r):
			b.WriteRune(utf8.RuneError)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// add appends a run of text; the usual single run is not copied.
func (e *element) add(text string) {
	switch {
	case e.more != nil:
		e.more = append(e.more, text...)
	case e.Text == "":
		e.Text = text
	case text != "":
		e.more = append([]byte(e.Text), text...)
	}
}

// xmlScanner walks one source. With build unset it checks everything and keeps nothing.
type xmlScanner struct {
	source   string
	lim      Limits
	build    bool
	at       int
	elements int
	text     int64
}

// document reads the prolog and the root element.
func (s *xmlScanner) document() (*element, error) {
	if !utf8.ValidString(s.source) {
		return nil, s.malformed("bytes that are not UTF-8")
	}
	if err := s.declaration(); err != nil {
		return nil, err
	}
	if err := s.misc(); err != nil {
		return nil, err
	}
	if !s.has("<") {
		return nil, s.malformed("no root element")
	}
	return s.root()
}

// declaration skips <?xml ...?>, which may stand only at the very beginning.
func (s *xmlScanner) declaration() error {
	if !s.has("<?xml") || len(s.source) <= 5 || isNameByte(s.source[5]) {
		return nil
	}
	return s.skipTo("?>", "the XML declaration is not closed")
}

// misc skips white space, comments and processing instructions between other things.
func (s *xmlScanner) misc() error {
	for {
		s.space()
		skipped, err := s.skipAside()
		if !skipped || err != nil {
			return err
		}
	}
}

// skipAside skips one comment or processing instruction, and refuses a document type.
func (s *xmlScanner) skipAside() (bool, error) {
	switch {
	case s.has("<!--"):
		s.at += len("<!--")
		return true, s.skipComment()
	case s.has("<?"):
		return true, s.skipInstruction()
	case s.has("<!") && !s.has("<![CDATA["):
		return false, catalog.Errorf(catalog.XMLForbidden, "a document type at byte %d", s.at)
	}
	return false, nil
}

func (s *xmlScanner) skipComment() error {
	start := s.at
	if err := s.skipTo("-->", "a comment is not closed"); err != nil {
		return err
	}
	comment := s.source[start : s.at-len("-->")]
	if err := s.spend(len(comment)); err != nil {
		return err
	}
	if strings.Contains(comment, "--") || !validChars(comment) {
		return s.malformed("a comment holds what it may not")
	}
	return nil
}

func (s *xmlScanner) skipInstruction() error {
	s.at += len("<?")
	start := s.at
	target, err := s.name()
	if err != nil {
		return err
	}
	if strings.EqualFold(target, "xml") {
		return s.malformed("an XML declaration that is not at the beginning")
	}
	if err := s.skipTo("?>", "a processing instruction is not closed"); err != nil {
		return err
	}
	if err := s.spend(s.at - start); err != nil {
		return err
	}
	if !validChars(s.source[start:s.at]) {
		return s.malformed("a character that XML forbids")
	}
	return nil
}

// root reads an element and everything inside it, with a stack of its own instead of
// recursion, so that depth costs what the limit says and no more.
func (s *xmlScanner) root() (*element, error) {
	var root *element
	var open []*element
	for {
		e, empty, err := s.startTag(len(open) + 1)
		if err != nil {
			return nil, err
		}
		switch {
		case root == nil:
			root = e
		case s.build:
			parent := open[len(open)-1]
			parent.Children = append(parent.Children, e)
		}
		if open = append(open, e); empty {
			open = open[:len(open)-1]
		}
		if open, err = s.close(open); err != nil {
			return nil, err
		}
		if len(open) == 0 {
			return root, nil
		}
	}
}

// close reads on until the start tag of the next child, and returns what is open there.
func (s *xmlScanner) close(open []*element) ([]*element, error) {
	for len(open) > 0 {
		closed, err := s.content(open[len(open)-1])
		if err != nil || !closed {
			return open, err
		}
		open = open[:len(open)-1]
	}
	return open, nil
}

// content reads on inside e until its end tag (closed) or the start tag of a child.
func (s *xmlScanner) content(e *element) (closed bool, err error) {
	for {
		if err := s.characters(e); err != nil {
			return false, err
		}
		switch {
		case s.has("</"):
			return true, s.endTag(e)
		case s.has("<![CDATA["):
			if err := s.cdata(e); err != nil {
				return false, err
			}
		case s.has("<!"), s.has("<?"):
			if _, err := s.skipAside(); err != nil {
				return false, err
			}
		case s.atEnd():
			return false, s.malformed("the element " + strconv.Quote(e.Name) + " is not closed")
		default:
			return false, nil
		}
	}
}

// characters reads character data up to the next markup.
func (s *xmlScanner) characters(e *element) error {
	n := strings.IndexByte(s.source[s.at:], '<')
	if n < 0 {
		n = len(s.source) - s.at
	}
	if n == 0 {
		return nil
	}
	raw := s.source[s.at : s.at+n]
	if strings.Contains(raw, "]]>") {
		return s.malformed("a stray ]]>")
	}
	text, err := s.unescape(raw, false)
	if err != nil {
		return err
	}
	s.at += n
	return s.keep(e, text)
}

func (s *xmlScanner) cdata(e *element) error {
	s.at += len("<![CDATA[")
	start := s.at
	if err := s.skipTo("]]>", "a CDATA section is not closed"); err != nil {
		return err
	}
	text := s.source[start : s.at-len("]]>")]
	if !validChars(text) {
		return s.malformed("a character that XML forbids")
	}
	return s.keep(e, normalLines(text))
}

// keep counts text against the budget and adds it to the element's.
func (s *xmlScanner) keep(e *element, text string) error {
	if err := s.spend(len(text)); err != nil {
		return err
	}
	if s.build {
		e.add(text)
	}
	return nil
}

// startTag reads <name attributes> or <name attributes/>.
func (s *xmlScanner) startTag(depth int) (e *element, empty bool, err error) {
	if s.elements++; s.elements > s.lim.Elements {
		return nil, false, catalog.Errorf(catalog.XMLBudget, "more than %d elements", s.lim.Elements)
	}
	if depth > s.lim.Depth {
		return nil, false, catalog.Errorf(catalog.XMLBudget, "more than %d levels", s.lim.Depth)
	}
	e = &element{Start: s.at}
	s.at++
	if e.Name, err = s.name(); err != nil {
		return nil, false, err
	}
	for {
		spaced := s.space()
		switch {
		case s.has("/>"):
			s.at += 2
			e.End = s.at
			return e, true, nil
		case s.has(">"):
			s.at++
			return e, false, nil
		case !spaced:
			return nil, false, s.malformed("a start tag that is not closed")
		}
		if err := s.attribute(e); err != nil {
			return nil, false, err
		}
	}
}

// attributeCost is what an attribute costs of the text budget besides its bytes, so that
// a great number of tiny ones is not free.
const attributeCost = 16

// attribute reads name="value" into e.
func (s *xmlScanner) attribute(e *element) error {
	if len(e.Attributes) >= s.lim.Attributes {
		return catalog.Errorf(catalog.XMLBudget, "more than %d attributes", s.lim.Attributes)
	}
	name, err := s.name()
	if err != nil {
		return err
	}
	if _, twice := e.LookupAttr(name); twice {
		return s.malformed("an attribute occurs twice")
	}
	s.space()
	if !s.has("=") {
		return s.malformed("an attribute without value")
	}
	s.at++
	s.space()
	value, err := s.quoted()
	if err != nil {
		return err
	}
	e.Attributes = append(e.Attributes, attribute{name, value})
	return s.spend(len(name) + len(value) + attributeCost)
}

func (s *xmlScanner) quoted() (string, error) {
	if !s.has(`"`) && !s.has(`'`) {
		return "", s.malformed("an attribute value without quotes")
	}
	quote := s.source[s.at]
	n := strings.IndexByte(s.source[s.at+1:], quote)
	if n < 0 {
		return "", s.malformed("an attribute value that is not closed")
	}
	raw := s.source[s.at+1 : s.at+1+n]
	if strings.IndexByte(raw, '<') >= 0 {
		return "", s.malformed("a < inside an attribute value")
	}
	value, err := s.unescape(raw, true)
	s.at += n + 2
	return value, err
}

// endTag reads </name> of e.
func (s *xmlScanner) endTag(e *element) error {
	s.at += len("</")
	name, err := s.name()
	if err != nil {
		return err
	}
	s.space()
	if name != e.Name || !s.has(">") {
		return s.malformed("an end tag that does not fit " + strconv.Quote(e.Name))
	}
	s.at++
	e.End = s.at
	if e.more != nil {
		e.Text = string(e.more)
	}
	return nil
}

// maxName bounds an element's or attribute's name; the longest of the protocol has 30.
const maxName = 256

func (s *xmlScanner) name() (string, error) {
	start := s.at
	for s.at < len(s.source) && isNameByte(s.source[s.at]) {
		s.at++
	}
	name := s.source[start:s.at]
	if name == "" || len(name) > maxName || strings.IndexByte("-.0123456789", name[0]) >= 0 || !validChars(name) {
		s.at = start
		return "", s.malformed("a name is missing or not one")
	}
	return name, nil
}

// space skips white space and reports whether there was any.
func (s *xmlScanner) space() bool {
	start := s.at
	for s.at < len(s.source) && strings.IndexByte(" \t\r\n", s.source[s.at]) >= 0 {
		s.at++
	}
	return s.at > start
}

func (s *xmlScanner) has(prefix string) bool { return strings.HasPrefix(s.source[s.at:], prefix) }

func (s *xmlScanner) atEnd() bool { return s.at >= len(s.source) }

// skipTo moves behind the next occurrence of mark.
func (s *xmlScanner) skipTo(mark, otherwise string) error {
	n := strings.Index(s.source[s.at:], mark)
	if n < 0 {
		return s.malformed(otherwise)
	}
	s.at += n + len(mark)
	return nil
}

func (s *xmlScanner) spend(n int) error {
	if s.text += int64(n); s.text > s.lim.Text {
		return catalog.Errorf(catalog.XMLBudget, "more than %d bytes of text", s.lim.Text)
	}
	return nil
}

func (s *xmlScanner) malformed(what string) error {
	return catalog.Errorf(catalog.XMLMalformed, "%s at byte %d", what, s.at)
}

// unescape resolves references and normalises white space as XML 1.0 says (2.11, 3.3.3).
func (s *xmlScanner) unescape(raw string, inAttribute bool) (string, error) {
	if !validChars(raw) {
		return "", s.malformed("a character that XML forbids")
	}
	raw = normalLines(raw)
	if inAttribute && strings.ContainsAny(raw, "\t\n") {
		raw = strings.Map(func(r rune) rune {
			if r == '\t' || r == '\n' {
				return ' '
			}
			return r
		}, raw)
	}
	if strings.IndexByte(raw, '&') < 0 {
		return raw, nil
	}
	var b strings.Builder
	for raw != "" {
		before, rest, found := strings.Cut(raw, "&")
		b.WriteString(before)
		if !found {
			break
		}
		name, after, closed := strings.Cut(rest, ";")
		r, err := s.reference(name, closed)
		if err != nil {
			return "", err
		}
		b.WriteRune(r)
		raw = after
	}
	return b.String(), nil
}

// reference resolves one of the five predefined entities or a character reference.
func (s *xmlScanner) reference(name string, closed bool) (rune, error) {
	if !closed || name == "" || len(name) > 10 {
		return 0, s.malformed("a & that begins no reference")
	}
	if name[0] == '#' {
		return s.characterReference(name[1:])
	}
	switch name {
	case "amp":
		return '&', nil
	case "lt":
		return '<', nil
	case "gt":
		return '>', nil
	case "quot":
		return '"', nil
	case "apos":
		return '\'', nil
	}
	return 0, catalog.Errorf(catalog.XMLForbidden, "an entity that is not predefined at byte %d", s.at)
}

func (s *xmlScanner) characterReference(digits string) (rune, error) {
	base := 10
	if strings.HasPrefix(digits, "x") {
		base, digits = 16, digits[1:]
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil || n > utf8.MaxRune || !isXMLChar(rune(n)) {
		return 0, s.malformed("a character reference to what XML forbids")
	}
	return rune(n), nil
}

// normalLines turns CR LF and CR into LF.
func normalLines(text string) string {
	if strings.IndexByte(text, '\r') < 0 {
		return text
	}
	return strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\r", "\n")
}

func validChars(text string) bool {
	for _, r := range text {
		if !isXMLChar(r) {
			return false
		}
	}
	return true
}

// isXMLChar is the production Char of XML 1.0, 2.2.
func isXMLChar(r rune) bool {
	return r >= 0x20 && r <= 0xD7FF || r == '\t' || r == '\n' || r == '\r' ||
		r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= 0x10FFFF
}

func isNameByte(c byte) bool {
	return c >= utf8.RuneSelf || isAlphanumeric(rune(c)) || c == '_' || c == ':' || c == '-' || c == '.'
}
