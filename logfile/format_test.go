package logfile

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestAppendMatchesTheDocumentedSamples(t *testing.T) {
	cet := time.FixedZone("CET", 3600)
	tests := []struct {
		name   string
		record Record
		want   string
	}{
		{
			"client line of protocol.md 8.1, an hour east of Greenwich",
			Record{Format: Client, Time: time.Date(2024, 10, 7, 22, 42, 29, 600e6, cet), Severity: Info, Component: "BgbAgent", Thread: 3008, Source: "bgbconnector.cpp:386", Message: "message"},
			`<![LOG[message]LOG]!><time="22:42:29.600-60" date="10-07-2024" component="BgbAgent" context="" type="1" thread="3008" file="bgbconnector.cpp:386">` + "\r\n",
		},
		{
			"server line of S2, in UTC",
			Record{Format: Server, Time: time.Date(2020, 6, 24, 15, 31, 46, 376e6, time.UTC), Component: "CMGService", Thread: 4992, Message: "RequestUri: /CCM_PROXY_SERVERAUTH/1/CCM_STS  AverageElapsedTime: 218 ms"},
			`RequestUri: /CCM_PROXY_SERVERAUTH/1/CCM_STS  AverageElapsedTime: 218 ms~~  $$<CMGService><06-24-2020 15:31:46.376+00><thread=4992 (0x1380)>` + "\r\n",
		},
		{
			"a zone west of Greenwich has a positive bias",
			Record{Format: Server, Time: time.Date(2020, 6, 24, 15, 31, 46, 0, time.FixedZone("", -5*3600)), Component: "C", Thread: 1, Message: "m"},
			`m~~  $$<C><06-24-2020 15:31:46.000+300><thread=1 (0x0001)>` + "\r\n",
		},
		{
			"line breaks are kept in client lines and are tildes in server lines",
			Record{Format: Server, Time: time.Unix(0, 0).UTC(), Component: "C", Thread: 1, Message: "forbidden.\n at System.Net"},
			`forbidden.~~ at System.Net~~  $$<C><01-01-1970 00:00:00.000+00><thread=1 (0x0001)>` + "\r\n",
		},
		{
			"W3C line in IIS 7 order",
			Record{Format: W3C, Access: &AccessRecord{
				Time: time.Date(2020, 1, 2, 3, 4, 5, 0, cet), ServerAddress: "10.0.0.1", Method: "GET", Stem: "/SMS_MP/.sms_aut", Query: "SITESIGNCERT",
				Port: 443, ClientAddress: "10.0.0.2", UserAgent: "SMS CCM 5.0", Status: 403, SubStatus: 7, Bytes: 5573, Taken: 11 * time.Millisecond}},
			"2020-01-02 02:04:05 10.0.0.1 GET /SMS_MP/.sms_aut SITESIGNCERT 443 - 10.0.0.2 SMS+CCM+5.0 - 403 7 0 5573 11\r\n",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := string(test.record.Append(nil)); got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestHostileMessagesStayOneRecord(t *testing.T) {
	forged := `]LOG]!><time="00:00:00.000+00" date="01-01-2020" component="X" context="" type="1" thread="1" file="">` + "\r\n<![LOG[Client is registered."
	server := "x~~  $$<MP><01-01-2020 00:00:00.000+00><thread=1 (0x0001)>\nnext"
	for _, format := range []Format{Client, Server} {
		for name, message := range map[string]string{
			"end of a client record":         forged,
			"end of a server record":         server,
			"client record in a server line": `<![LOG[forged]LOG]!><time="00:00:00.000+00" date="01-01-2020" component="X">`,
			"terminal escape":                "\x1b[2J\x1b]0;owned\x07",
			"carriage return over the line":  "bad\rgood",
			"right-to-left override":         "exe.\u202egpj",
			"invalid UTF-8":                  "a\xff\xfeb",
			"NUL":                            "a\x00b",
		} {
			t.Run(format.String()+": "+name, func(t *testing.T) {
				line := string(Record{Format: format, Time: time.Now(), Component: "MP", Thread: 4, Message: message}.Append(nil))
				records := readAll(t, line)
				if len(records) != 1 || records[0].Format != format || records[0].Component != "MP" {
					t.Fatalf("got %d records from %q: %+v", len(records), line, records)
				}
				if strings.ContainsAny(line, "\x00\x07\x1b") || strings.Contains(line, "\u202e") || !utf8.ValidString(line) {
					t.Errorf("the line holds characters that drive a terminal: %q", line)
				}
			})
		}
	}
}

func TestLongMessagesAreCutAndMarked(t *testing.T) {
	for _, message := range []string{strings.Repeat("a", 100<<10), strings.Repeat("ä", MessageCap), strings.Repeat("\x01", MessageCap)} {
		got := Clean(message)
		if len(got) > MessageCap || !strings.HasSuffix(got, " bytes cut]") || !utf8.ValidString(got) {
			t.Errorf("got %d bytes ending %q", len(got), got[len(got)-30:])
		}
	}
}

func TestCleanIsIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		once := Clean(rapid.String().Draw(t, "message"))
		if twice := Clean(once); twice != once {
			t.Fatalf("got %q, then %q", once, twice)
		}
	})
}

// What can be written can be read again: every field that the format carries.
func TestRoundTrip(t *testing.T) {
	word := rapid.StringMatching(`[A-Za-z_.][A-Za-z0-9_. :-]{0,30}`)
	rapid.Check(t, func(t *rapid.T) {
		want := Record{
			Format:    rapid.SampledFrom([]Format{Client, Server}).Draw(t, "format"),
			Time:      drawTime(t),
			Severity:  Info,
			Component: word.Draw(t, "component"),
			Thread:    rapid.IntRange(0, 1<<31).Draw(t, "thread"),
			Message:   rapid.StringOf(rapid.SampledFrom([]rune("ab ~\n\t]LOG![<>$\"ä\u2028\r\x00"))).Draw(t, "message"),
		}
		if want.Format == Client {
			want.Severity = rapid.SampledFrom([]Severity{Info, Warning, Error}).Draw(t, "severity")
			want.Source = word.Draw(t, "source")
			want.Context = word.Draw(t, "context")
		}
		line := string(want.Append(nil))
		got, err := ParseLine(line)
		if err != nil {
			t.Fatalf("parse %q: %v", line, err)
		}
		if !got.Time.Equal(want.Time) {
			t.Fatalf("time: got %v, want %v from %q", got.Time, want.Time, line)
		}
		want.Message = expected(want.Format, want.Message)
		got.Time, want.Time = time.Time{}, time.Time{}
		if got != want {
			t.Fatalf("got  %+v\nwant %+v\nfrom %q", got, want, line)
		}
	})
}

// expected is what a reader gives back of a message: cleaned, and with the layout's
// own marks broken up.
func expected(format Format, message string) string {
	marks := clientText.marks
	if format == Server {
		marks = serverText.marks
	}
	return marks(Clean(message))
}

func drawTime(t *rapid.T) time.Time {
	zone := time.FixedZone("", 60*rapid.IntRange(-12*60, 14*60).Draw(t, "zone"))
	return time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "time")).In(zone)
}

func TestAccessRoundTrip(t *testing.T) {
	field := rapid.StringMatching(`[A-Za-z0-9/?=.$_{}\\-]{2,30}`)
	rapid.Check(t, func(t *rapid.T) {
		want := AccessRecord{
			Time:          time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "time"), 0).UTC(),
			ServerAddress: "127.0.0.1",
			Method:        rapid.SampledFrom([]string{"GET", "CCM_POST"}).Draw(t, "method"),
			Stem:          field.Draw(t, "stem"),
			Query:         field.Draw(t, "query"),
			Port:          rapid.IntRange(0, 65535).Draw(t, "port"),
			Username:      field.Draw(t, "user"),
			ClientAddress: "2001:db8::1",
			UserAgent:     field.Draw(t, "agent"),
			Status:        rapid.IntRange(100, 599).Draw(t, "status"),
			SubStatus:     rapid.IntRange(0, 20).Draw(t, "substatus"),
			Windows:       rapid.Uint32().Draw(t, "windows"),
			Bytes:         rapid.Int64Range(0, 1<<50).Draw(t, "bytes"),
			Taken:         time.Duration(rapid.Int64Range(0, 1e9).Draw(t, "taken")) * time.Millisecond,
		}
		got, err := ParseLine(string(Record{Format: W3C, Access: &want}.Append(nil)))
		if err != nil {
			t.Fatal(err)
		}
		if *got.Access != want {
			t.Fatalf("got  %+v\nwant %+v", *got.Access, want)
		}
	})
}

func TestAccessFieldsCannotForgeFieldsOrLines(t *testing.T) {
	record := AccessRecord{Time: time.Unix(0, 0), ServerAddress: "::1", Method: "GET", Stem: "/a b", Query: "x\r\n1970-01-01 00:00:00", Username: "CHILD\\WK$", UserAgent: "a\tb\x00\xff", Status: 200}
	got := string(record.append(nil))
	want := "1970-01-01 00:00:00 ::1 GET /a+b x%0D%0A1970-01-01+00:00:00 0 CHILD\\WK$ - a%09b%00%FF - 200 0 0 0 0\r\n"
	if got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
