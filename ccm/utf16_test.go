package ccm

import (
	"bytes"
	"strings"
	"testing"
)

func TestDecodeUTF16(t *testing.T) {
	tests := []struct {
		name string
		in   []byte
		want string
	}{
		{"nothing", nil, ""},
		{"without mark", []byte{'<', 0, 'a', 0}, "<a"},
		{"with mark", []byte{0xFF, 0xFE, '<', 0}, "<"},
		{"big-endian with mark", []byte{0xFE, 0xFF, 0, '<'}, "<"},
		{"an odd last byte", []byte{'<', 0, 'a'}, "<"},
		{"a pair", []byte{0x3D, 0xD8, 0x00, 0xDE}, "\U0001F600"},
		{"half a pair at the end", []byte{'a', 0, 0x3D, 0xD8}, "a\uFFFD"},
		{"the wrong half first", []byte{0x00, 0xDE, 0x3D, 0xD8}, "\uFFFD\uFFFD"},
		{"half a pair and a letter", []byte{0x3D, 0xD8, 'a', 0}, "\uFFFDa"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := decodeUTF16(test.in); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestALargeTextIsDecodedIntoOnePieceOfMemory(t *testing.T) {
	large := encodeUTF16(strings.Repeat("x", 1<<20))
	if got := testing.AllocsPerRun(5, func() { decodeUTF16(large) }); got != 1 {
		t.Errorf("got %v allocations, want 1", got)
	}
}

func TestTrimText(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"one NUL", "<a/>\x00", "<a/>"},
		{"NUL and 0D 0A as one character", "<a/>\x00\u0a0d", "<a/>"},
		{"0D 0A without NUL", "<a/>\u0a0d", "<a/>"},
		{"line end and a run of NULs", "<a/>\r\n\x00\x00\x00", "<a/>"},
		{"an attachment behind it", "<a/>\x00<b/>", "<a/>"},
		{"nothing to trim", "<a>x</a>", "<a>x</a>"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := trimText(test.in); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestRawUTF16FindsTheBytesOfASlice(t *testing.T) {
	for _, mark := range [][]byte{nil, {0xFF, 0xFE}} {
		body := append(mark, encodeUTF16("é\U0001F600<Data>ü</Data>x")...)
		body = append(body, 0x3D, 0xD8) // half a pair
		text := decodeUTF16(body)
		start, end := len("é\U0001F600"), len("é\U0001F600<Data>ü</Data>")
		if got, want := rawUTF16(body, text, start, end), encodeUTF16("<Data>ü</Data>"); !bytes.Equal(got, want) {
			t.Errorf("got % x, want % x", got, want)
		}
		if got, want := rawUTF16(body, text, len(text)-3, len(text)), []byte{0x3D, 0xD8}; !bytes.Equal(got, want) {
			t.Errorf("a lone half: got % x, want % x", got, want)
		}
	}
}
