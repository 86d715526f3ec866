package explain

import (
	"bytes"
	"os"
	"testing"
)

// BenchmarkClientLog reads a healthy client's log, the commonest there is.
func BenchmarkClientLog(b *testing.B) {
	content, err := os.ReadFile("testdata/incidents/s2-renewal/logs/CcmMessaging.log")
	if err != nil {
		b.Fatal(err)
	}
	content = bytes.Repeat(content, 8<<20/len(content))
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if _, err := Run(b.Context(), Input{Paths: []string{"-"}, Stdin: bytes.NewReader(content)}); err != nil {
			b.Fatal(err)
		}
	}
}
