package inbox

import (
	"bytes"
	"io"
	"reflect"
	"testing"
	"time"
)

// FuzzSegment reads any bytes as a segment: it never panics, never takes more than it was given, and what it reads it can write again.
func FuzzSegment(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		in := bytes.NewReader(data)
		var taken int64
		for {
			r, n, err := readFrame(in)
			if err == io.EOF && taken != int64(len(data)) {
				t.Fatalf("the end after %d of %d bytes", taken, len(data))
			}
			if err != nil {
				return
			}
			taken += n
			again, err := appendFrame(nil, r)
			if err != nil {
				t.Fatalf("write again: %v", err)
			}
			back, _, err := readFrame(bytes.NewReader(again))
			if err != nil || !reflect.DeepEqual(back, r) {
				t.Fatalf("read again: %+v, %v; want %+v", back, err, r)
			}
		}
	})
}

func TestFrame(t *testing.T) {
	for name, want := range map[string]Record{
		"empty":                 {},
		"message of any bytes":  {ID: "a", Message: []byte{0, 255, '"', '\n'}},
		"every field":           {ID: "a", ReceivedAt: time.Unix(1, 2).UTC(), ContentType: "text/plain", Message: []byte("m"), ClientID: "GUID:1", TraceID: "t"},
		"message named in JSON": {ID: `","Message":"eA=="`},
	} {
		frame, err := appendFrame([]byte("before"), want)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, n, err := readFrame(bytes.NewReader(frame[6:]))
		if err != nil || n != int64(len(frame)-6) || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %d, %v; want %+v", name, got, n, err, want)
		}
	}
}
