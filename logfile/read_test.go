package logfile

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParseLineReadsWhatTheDocumentsShow(t *testing.T) {
	tests := []struct {
		name, line string
		want       Record
	}{
		{
			"client line (protocol.md 8.1)",
			`<![LOG[message]LOG]!><time="22:42:29.600-60" date="10-07-2024" component="BgbAgent" context="" type="1" thread="3008" file="bgbconnector.cpp:386">`,
			Record{Format: Client, Time: time.Date(2024, 10, 7, 21, 42, 29, 600e6, time.UTC), Severity: Info, Component: "BgbAgent", Thread: 3008, Source: "bgbconnector.cpp:386", Message: "message"},
		},
		{
			"client line with three digits of bias and without context",
			`<![LOG[a]LOG]!><time="01:02:03.004+000" date="1-7-2024" component="x" type="3" thread="1" file="">`,
			Record{Format: Client, Time: time.Date(2024, 1, 7, 1, 2, 3, 4e6, time.UTC), Severity: Error, Component: "x", Thread: 1, Message: "a"},
		},
		{
			"server line (S2)",
			`AverageElapsedTime: 218 ms~~  $$<CMGService><06-24-2020 15:31:46.376+00><thread=4992 (0x1380)>`,
			Record{Format: Server, Time: time.Date(2020, 6, 24, 15, 31, 46, 376e6, time.UTC), Severity: Info, Component: "CMGService", Thread: 4992, Message: "AverageElapsedTime: 218 ms"},
		},
		{
			"server line that ends with a single tilde and quotes another",
			`said "$$<X>" PROGRA~1~  $$<C><06-24-2020 15:31:46.376+420><thread=1 (0x1)>`,
			Record{Format: Server, Time: time.Date(2020, 6, 24, 22, 31, 46, 376e6, time.UTC), Severity: Info, Component: "C", Thread: 1, Message: `said "$$<X>" PROGRA~1`},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseLine(test.line)
			if err != nil {
				t.Fatal(err)
			}
			if !got.Time.Equal(test.want.Time) {
				t.Errorf("time: got %v, want %v", got.Time, test.want.Time)
			}
			got.Time = test.want.Time
			if got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestParseLineReadsBothWebServerOrders(t *testing.T) {
	tests := []struct {
		name, line string
		want       AccessRecord
	}{
		{
			"IIS 6 (S0)",
			`2009-03-05 10:11:12 W3SVC1 10.0.0.1 CCM_POST /ccm_system_windowsauth/request - 80 - 10.0.0.9 ccmhttp 401 2 2148074254`,
			AccessRecord{ServerAddress: "10.0.0.1", Method: "CCM_POST", Stem: "/ccm_system_windowsauth/request", Port: 80, ClientAddress: "10.0.0.9", UserAgent: "ccmhttp", Status: 401, SubStatus: 2, Windows: 2148074254},
		},
		{
			"IIS 7 with bytes and time (S4)",
			`2020-03-05 10:11:12 10.0.0.1 GET /SMS_MP/.sms_aut SITESIGNCERT 443 - 10.0.0.9 SMS+CCM+5.0 - 403 7 0 5573 11`,
			AccessRecord{ServerAddress: "10.0.0.1", Method: "GET", Stem: "/SMS_MP/.sms_aut", Query: "SITESIGNCERT", Port: 443, ClientAddress: "10.0.0.9", UserAgent: "SMS+CCM+5.0", Status: 403, SubStatus: 7, Bytes: 5573, Taken: 11 * time.Millisecond},
		},
		{
			"IIS 7 with the mark of a server line in the address",
			`2020-03-05 10:11:12 10.0.0.1 GET /a$$<b 443 443 - 10.0.0.9 - - 404 0 0`,
			AccessRecord{ServerAddress: "10.0.0.1", Method: "GET", Stem: "/a$$<b", Query: "443", Port: 443, ClientAddress: "10.0.0.9", Status: 404},
		},
		{
			"numbers that do not fit are none, not others",
			`2020-03-05 10:11:12 10.0.0.1 GET /a - 443 - 10.0.0.9 - - 404 0 4294967303 -1 99999999999999999999`,
			AccessRecord{ServerAddress: "10.0.0.1", Method: "GET", Stem: "/a", Port: 443, ClientAddress: "10.0.0.9", Status: 404, Bytes: -1},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseLine(test.line)
			if err != nil {
				t.Fatal(err)
			}
			test.want.Time = got.Time
			if *got.Access != test.want {
				t.Errorf("got  %+v\nwant %+v", *got.Access, test.want)
			}
		})
	}
}

func TestParseLineRefusesOtherText(t *testing.T) {
	for _, line := range []string{
		"", " ", "hello", "<![LOG[", "<![LOG[a]LOG]!>", `<![LOG[a]LOG]!><time="25:00:00" date="01-01-2020">`, `<![LOG[a]LOG]!><time="01:00:00+9999" date="01-01-2020">`,
		"$$<", "a  $$<b><c><d>", "a  $$<b><06-24-2020 15:31:46.376+00><thread 1>", "SMS_CLOUD_PROXYCONNECTOR\tMaintaining connections...",
		"2020-03-05 10:11:12 10.0.0.1 GET - - 443 - 10.0.0.9 - - 404 0 0",
		"2020-03-05 10:11:12 10.0.0.1 GET /a - 443 - 10.0.0.9 - - 404 0 0 1 2 3 4 5",
	} {
		if got, err := ParseLine(line); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: got %+v, %v", line, got, err)
		}
	}
}

func TestReadPutsRecordsTogether(t *testing.T) {
	tail := `]LOG]!><time="01:02:03.004+00" date="01-07-2024" component="x" context="" type="1" thread="1" file="">`
	server := `ok~~  $$<C><06-24-2020 15:31:46.376+00><thread=1 (0x1)>`
	file := "\ufeff<![LOG[one\r\n\r\ntwo" + tail + "\r\n" + // 1-3
		"<![LOG[never ended\r\n" + // 4
		"<![LOG[next" + tail + "\n" + // 5
		"\n" +
		"# a comment is a line\n" + // 7
		server + "\n" + // 8
		"#Fields: time cs-method cs-uri-stem sc-status date x-other\n" +
		"10:11:12 GET /a 200 2020-03-05 z\n" + // 10
		server // 11, without an end
	type short struct {
		line    int
		format  Format
		message string
	}
	want := []short{
		{1, Client, "one\n\ntwo"}, {4, Plain, "<![LOG[never ended"}, {5, Client, "next"}, {7, Plain, "# a comment is a line"},
		{8, Server, "ok"}, {10, W3C, "10:11:12 GET /a 200 2020-03-05 z"}, {11, Server, "ok"},
	}
	got := readAll(t, file)
	if len(got) != len(want) {
		t.Fatalf("got %d records: %+v", len(got), got)
	}
	for i, record := range got {
		if s := (short{record.Line, record.Format, record.Message}); s != want[i] {
			t.Errorf("got %+v, want %+v", s, want[i])
		}
	}
}

func TestReadKeepsItsBudgets(t *testing.T) {
	tests := []struct {
		name    string
		file    string
		limits  ReadLimits
		records int
		err     error
	}{
		{"file too long", strings.Repeat("line\n", 100), ReadLimits{Bytes: 52, Record: 100, Records: 100}, 10, ErrBudget},
		{"too many records", strings.Repeat("line\n", 100), ReadLimits{Bytes: 1000, Record: 100, Records: 7}, 7, ErrBudget},
		{"a line without end is cut", strings.Repeat("x", 100<<10), ReadLimits{Bytes: 1 << 20, Record: 64, Records: 10}, 1, nil},
		{"a record without end is cut", "<![LOG[" + strings.Repeat("x\n", 200), ReadLimits{Bytes: 1 << 20, Record: 300, Records: 1000}, 54, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var records int
			var last error
			for record, err := range Read(strings.NewReader(test.file), test.limits) {
				if last = err; err != nil {
					break
				}
				if records++; len(record.Message) > test.limits.Record {
					t.Errorf("a record of %d bytes", len(record.Message))
				}
			}
			if records != test.records || !errors.Is(last, test.err) {
				t.Errorf("got %d records and %v, want %d and %v", records, last, test.records, test.err)
			}
		})
	}
}

func TestReadStopsWhenTheCallerDoes(t *testing.T) {
	in := strings.NewReader(strings.Repeat("a line of a long log\r\n", 10_000))
	records := 0
	for record, err := range Read(in, DefaultReadLimits()) {
		if err != nil {
			t.Fatal(err)
		}
		if records++; record.Line == 2 {
			break
		}
	}
	if records != 2 || in.Len() == 0 {
		t.Errorf("got %d records and %d bytes left to read, want 2 and most of the log", records, in.Len())
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add(`<![LOG[message]LOG]!><time="22:42:29.600-60" date="10-07-2024" component="BgbAgent" context="" type="1" thread="3008" file="bgbconnector.cpp:386">`)
	f.Add(`AverageElapsedTime: 218 ms~~  $$<CMGService><06-24-2020 15:31:46.376+00><thread=4992 (0x1380)>`)
	f.Add(`2020-03-05 10:11:12 10.0.0.1 GET /SMS_MP/.sms_aut SITESIGNCERT 443 - 10.0.0.9 SMS+CCM+5.0 - 403 7 0 5573 11`)
	f.Fuzz(func(t *testing.T, line string) {
		record, err := ParseLine(line)
		if err != nil || record.Time.UTC().Year() < 1 || record.Time.UTC().Year() > 9998 {
			return
		}
		if record.Format == W3C {
			record.Access.ServerAddress = "127.0.0.1" // tells the two field orders apart
		}
		again, err := ParseLine(string(record.Append(nil)))
		if err != nil || again.Format != record.Format {
			t.Fatalf("%q was read as %+v, written again it is %+v, %v", line, record, again, err)
		}
		for _, err := range Read(strings.NewReader(line), ReadLimits{Bytes: 1 << 20, Record: 1 << 10, Records: 100}) {
			if err != nil && !errors.Is(err, ErrBudget) {
				t.Fatal(err)
			}
		}
	})
}
