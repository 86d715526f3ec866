package ccm

import (
	"strings"
	"testing"

	"postern/catalog"
)

func TestParseXML(t *testing.T) {
	source := "<?xml version=\"1.0\" encoding=\"utf-16\"?>\n<!-- c --><R  a='1' b=\"&lt;&#65;&#x42;\r\n\">x<C/>y<![CDATA[<&]]><?pi?><C n=\"2\">z&amp;\r\n</C\n></R> <!-- end -->"
	root, err := parseXML(source, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if root.Name != "R" || root.Attr("a") != "1" || root.Attr("b") != "<AB " {
		t.Errorf("root %q %q", root.Name, root.Attributes)
	}
	if got, want := root.Text, "xy<&"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	if all := root.All("C"); len(all) != 2 || all[1].Text != "z&\n" || root.Child("C") != all[0] {
		t.Errorf("children %+v", root.Children)
	}
	if got, want := source[root.Children[1].Start:root.Children[1].End], "<C n=\"2\">z&amp;\r\n</C\n>"; got != want {
		t.Errorf("the second child stands at %q, want %q", got, want)
	}
	if got, want := source[root.Children[0].Start:root.Children[0].End], "<C/>"; got != want {
		t.Errorf("the first child stands at %q, want %q", got, want)
	}
	if got := root.Twice(); got != "C" {
		t.Errorf("twice %q", got)
	}
	if got := root.Twice("C"); got != "" {
		t.Errorf("twice, C allowed: %q", got)
	}
	if value, ok := root.LookupAttr("none"); ok || value != "" {
		t.Errorf("an attribute that is not there: %q", value)
	}
}

func TestParseXMLRefuses(t *testing.T) {
	small := Limits{Depth: 3, Elements: 5, Attributes: 2, Text: 100}.withDefaults()
	tests := []struct {
		name, source string
		want         catalog.Code
	}{
		{"nothing", "", catalog.XMLMalformed},
		{"only text", "hello", catalog.XMLMalformed},
		{"not closed", "<a>", catalog.XMLMalformed},
		{"closed by another", "<a></b>", catalog.XMLMalformed},
		{"closed twice", "<a></a></a>", catalog.XMLMalformed},
		{"two roots", "<a/><b/>", catalog.XMLMalformed},
		{"text behind the root", "<a/>b", catalog.XMLMalformed},
		{"a NUL behind the root", "<a/>\x00", catalog.XMLMalformed},
		{"CDATA outside the root", "<![CDATA[x]]><a/>", catalog.XMLMalformed},
		{"an attribute twice", `<a b="1" b="2"/>`, catalog.XMLMalformed},
		{"an attribute without quotes", `<a b=1/>`, catalog.XMLMalformed},
		{"an attribute without value", `<a b/>`, catalog.XMLMalformed},
		{"attributes without space between", `<a b="1"c="2"/>`, catalog.XMLMalformed},
		{"a < in an attribute", `<a b="<"/>`, catalog.XMLMalformed},
		{"a lone &", "<a>&</a>", catalog.XMLMalformed},
		{"a & and a space", "<a>& ;</a>", catalog.XMLForbidden},
		{"a reference to NUL", "<a>&#0;</a>", catalog.XMLMalformed},
		{"a reference to half a pair", "<a>&#xD800;</a>", catalog.XMLMalformed},
		{"a reference beyond Unicode", "<a>&#x110000;</a>", catalog.XMLMalformed},
		{"a signed reference", "<a>&#+65;</a>", catalog.XMLMalformed},
		{"a control character", "<a>\x01</a>", catalog.XMLMalformed},
		{"a control character in CDATA", "<a><![CDATA[\x01]]></a>", catalog.XMLMalformed},
		{"]]> in text", "<a>]]></a>", catalog.XMLMalformed},
		{"a name that is a number", "<1/>", catalog.XMLMalformed},
		{"bytes that are not UTF-8", "<a>\xff</a>", catalog.XMLMalformed},
		{"a declaration in the middle", "<a><?xml version='1.0'?></a>", catalog.XMLMalformed},
		{"-- in a comment", "<a><!-- a -- b --></a>", catalog.XMLMalformed},
		{"a document type", "<!DOCTYPE a><a/>", catalog.XMLForbidden},
		{"an entity bomb", `<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><a>&c;</a>`, catalog.XMLForbidden},
		{"an external entity", `<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>`, catalog.XMLForbidden},
		{"an entity of one's own", "<a>&b;</a>", catalog.XMLForbidden},
		{"a document type inside", "<a><!DOCTYPE a></a>", catalog.XMLForbidden},
		{"too deep", "<a><a><a><a/></a></a></a>", catalog.XMLBudget},
		{"too many elements", "<a><b/><b/><b/><b/><b/></a>", catalog.XMLBudget},
		{"too many attributes", `<a b="" c="" d=""/>`, catalog.XMLBudget},
		{"too much text", "<a>" + strings.Repeat("x", 101) + "</a>", catalog.XMLBudget},
		{"too much text in pieces", "<a>" + strings.Repeat("<!---->xxxxx", 21) + "</a>", catalog.XMLBudget},
		{"a long comment", "<a><!--" + strings.Repeat("x", 101) + "--></a>", catalog.XMLBudget},
		{"a long comment before the root", "<!--" + strings.Repeat("x", 101) + "--><a/>", catalog.XMLBudget},
		{"many comments", "<a>" + strings.Repeat("<!--xxxxx-->", 21) + "</a>", catalog.XMLBudget},
		{"a long processing instruction", "<a><?p " + strings.Repeat("x", 101) + "?></a>", catalog.XMLBudget},
		{"too much text in attributes", `<a b="` + strings.Repeat("x", 101) + `"/>`, catalog.XMLBudget},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			root, err := parseXML(test.source, small)
			if got := catalog.CodeOf(err); got != test.want {
				t.Errorf("got %+v, %v; want code %s", root, err, test.want)
			}
		})
	}
}

func TestXMLEnd(t *testing.T) {
	end, err := xmlEnd("<a><b/></a>\x00\x00junk<", DefaultLimits())
	if err != nil || end != len("<a><b/></a>") {
		t.Errorf("got %d, %v", end, err)
	}
}

func TestEscapeXMLReadsBack(t *testing.T) {
	for _, text := range []string{"", "plain", `<a b="c">&'d'</a>`, " \t\r\n", "é\U0001F600", "]]>"} {
		root, err := parseXML(`<a b="`+escapeXML(text)+`">`+escapeXML(text)+`</a>`, DefaultLimits())
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if root.Attr("b") != text || root.Text != text {
			t.Errorf("%q reads back as %q and %q", text, root.Attr("b"), root.Text)
		}
	}
	if got := escapeXML("a\x00b\x1Fc"); got != "a\uFFFDb\uFFFDc" {
		t.Errorf("forbidden characters: %q", got)
	}
	if got := escapeXML("a\xFFb"); got != "a\uFFFDb" {
		t.Errorf("bytes that are no character: %q", got)
	}
	if got := escapeASCII("é&"); got != "&#233;&amp;" {
		t.Errorf("escapeASCII: %q", got)
	}
}

func TestManyRunsOfTextAreNotQuadratic(t *testing.T) {
	source := "<a>" + strings.Repeat("x<!---->", 200_000) + "</a>"
	root, err := parseXML(source, DefaultLimits())
	if err != nil || len(root.Text) != 200_000 {
		t.Errorf("got %v", err)
	}
}
