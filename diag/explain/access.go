package explain

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/logfile"
)

// accessColumns says where the fields of a W3C file are. -1 is a field that the file has not.
type accessColumns struct {
	count                                                                      int
	date, clock, method, stem, query, port, user, client, agent, code, sub, os int
}

// columnsOf reads the names after #Fields.
func columnsOf(names []string) *accessColumns {
	at := func(name string) int { return slices.Index(names, name) }
	return &accessColumns{len(names), at("date"), at("time"), at("cs-method"), at("cs-uri-stem"), at("cs-uri-query"), at("s-port"),
		at("cs-username"), at("c-ip"), at("cs(User-Agent)"), at("sc-status"), at("sc-substatus"), at("sc-win32-status")}
}

// The field orders of W3C lines without a #Fields line (protocol.md 8.1): with the name of the site or without, with the
// referring page or without. What follows the Windows code differs and is not used.
var knownColumns = []*accessColumns{
	columnsOf(strings.Fields("date time s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) sc-status sc-substatus sc-win32-status")),
	columnsOf(strings.Fields("date time s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) cs(Referer) sc-status sc-substatus sc-win32-status")),
	columnsOf(strings.Fields("date time s-sitename s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) sc-status sc-substatus sc-win32-status")),
	columnsOf(strings.Fields("date time s-sitename s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) cs(Referer) sc-status sc-substatus sc-win32-status")),
}

// fieldsDirective begins the line that names the fields of what follows.
var fieldsDirective = []byte("#Fields:")

const mostFields = 64

// cells cuts a W3C line at its blanks.
type cells struct {
	text  []byte
	count int
	ends  [mostFields]int32
}

// of cuts a line. It says no when the line has more fields than any file.
func (c *cells) of(text []byte) bool {
	c.text, c.count = text, 0
	for from := 0; ; {
		blank := bytes.IndexByte(text[from:], ' ')
		if c.count == mostFields {
			return false
		}
		if blank < 0 {
			c.ends[c.count] = int32(len(text))
			c.count++
			return true
		}
		c.ends[c.count] = int32(from + blank)
		c.count++
		from += blank + 1
	}
}

func (c *cells) at(i int) []byte {
	switch {
	case i < 0 || i >= c.count:
		return nil
	case i == 0:
		return c.text[:c.ends[0]]
	}
	return c.text[c.ends[i-1]+1 : c.ends[i]]
}

// columns returns where the fields of a line are: those of the file, or the known ones that fit.
func (c *cells) columns(file *accessColumns) *accessColumns {
	if file != nil && c.count == file.count {
		return file
	}
	for _, known := range knownColumns {
		if c.count >= known.count && c.count <= known.count+4 && isStatus(c.at(known.code)) && isNumber(c.at(known.sub)) && isNumber(c.at(known.os)) &&
			isNumber(c.at(known.port)) && begins(c.at(known.stem), "/") {
			return known
		}
	}
	return nil
}

func isStatus(text []byte) bool {
	return len(text) == 3 && text[0] >= '1' && text[0] <= '5' && isNumber(text)
}

func isNumber(text []byte) bool {
	for _, c := range text {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(text) > 0
}

// number is a decimal number of at most ten digits, or 0.
func (c *cells) number(i int) uint64 {
	n, err := strconv.ParseUint(string(c.at(i)), 10, 32)
	if err != nil {
		return 0
	}
	return n
}

func (c *cells) value(i int) string {
	if v := c.at(i); string(v) != "-" {
		return string(v)
	}
	return ""
}

// record makes an access record of the fields that the rules use.
func (c *cells) record(w *accessColumns) (logfile.AccessRecord, bool) {
	at, err := time.Parse(time.DateTime, string(c.at(w.date))+" "+string(c.at(w.clock)))
	r := logfile.AccessRecord{Time: at, Method: c.value(w.method), Stem: c.value(w.stem), Query: c.value(w.query), Port: int(c.number(w.port)), Username: c.value(w.user),
		ClientAddress: c.value(w.client), UserAgent: c.value(w.agent), Status: int(c.number(w.code)), SubStatus: int(c.number(w.sub)), Windows: uint32(c.number(w.os))}
	return r, err == nil && r.Method != "" && r.Stem != "" && r.Status >= 100 && r.Status <= 999
}
