package gateway

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/logfile"
	"postern/token"
)

// requestLine is the statistics line of CMGService.log, word for word (S2, protocol.md
// 8.3). The proxy segment of the address is in upper case.
func requestLine(uri string, t tally) string {
	var average int64
	if t.responses > 0 {
		average = (t.elapsed / time.Duration(t.responses)).Milliseconds()
	}
	return fmt.Sprintf("RequestUri: %s  RequestCount: %d  RequestSize: %d Bytes  ResponseCount: %d  ResponseSize: %d Bytes  AverageElapsedTime: %d ms",
		uri, t.requests, t.requestBytes, t.responses, t.responseBytes, average)
}

// refusedLine counts requests that the gateway itself refused. No document has such a
// line; the status text is the one that the client's log shows (S4).
func refusedLine(uri string, status ccm.Status, code catalog.Code, count int64) string {
	return fmt.Sprintf("RequestUri: %s  RequestCount: %d  StatusCode: %d  StatusText: %s  Code: %s", uri, count, status.Code, status.Reason, code)
}

// notPublishedURI stands for all addresses that are in no row of the table: what a
// stranger asks for never becomes text or memory of its own.
const notPublishedURI = "(not published)"

// uri returns the address of an endpoint as the log writes it.
func (k endpoint) uri() string {
	if k.name == "" {
		return notPublishedURI
	}
	door := ccm.Door(strings.ToUpper(string(k.door)))
	return ccm.ExternalPath(door, k.role, ccm.Path{Endpoint: k.name}.Internal())
}

// endpoint is what counters are kept by. There are as many as the site publishes.
type endpoint struct {
	door ccm.Door
	role uint64
	name ccm.Endpoint
}

// tally is what happened at one endpoint since the last statistics line.
type tally struct {
	requests, responses         int64
	requestBytes, responseBytes int64
	elapsed                     time.Duration
}

type refused struct {
	endpoint endpoint
	status   ccm.Status
	code     catalog.Code
}

// serviceLog keeps the counters of CMGService.log, writes its lines, and holds what has
// not been delivered to the site.
type serviceLog struct {
	log *logfile.Log
	now func() time.Time

	mu        sync.Mutex
	tallies   map[endpoint]tally
	refusals  map[refused]int64
	requests  int64 // since the start
	refusedBy int64
	lines     []line
	size      int
	next      uint64 // number of the next line
	synced    time.Time
}

type line struct {
	number uint64
	bytes  []byte
}

const (
	serviceFile      = "CMGService.log"
	serviceComponent = "CMGService"

	// maxPortion bounds the lines that wait for delivery; the oldest make room, and are
	// still in the file.
	maxPortion = token.MaxAckLog
)

func newServiceLog(logs *logfile.Folder, now func() time.Time) *serviceLog {
	return &serviceLog{
		log: logs.Log(logfile.File{Name: serviceFile, Component: serviceComponent, Format: logfile.Server}),
		now: now, tallies: map[endpoint]tally{}, refusals: map[refused]int64{}, synced: now(),
	}
}

// count takes one request that has ended. known says that its endpoint exists here.
func (s *serviceLog) count(known bool, e Exchange) {
	key := endpoint{}
	if known {
		key = endpoint{e.Path.Door, e.Path.RoleID, e.Path.Endpoint}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	if known {
		t := s.tallies[key]
		t.requests++
		t.requestBytes += e.RequestBytes
		if e.Err == nil {
			t.responses++
			t.responseBytes += e.ResponseBytes
			t.elapsed += e.Duration
		}
		s.tallies[key] = t
	}
	if e.Err != nil {
		s.refusedBy++
		s.refusals[refused{key, e.Status, e.Code()}]++
	}
}

// totals returns how many requests came since the start and how many of them were
// refused or broke off.
func (s *serviceLog) totals() (requests, refused int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.refusedBy
}

// flush writes a line for each endpoint that was asked since the last time.
func (s *serviceLog) flush() {
	s.mu.Lock()
	tallies, refusals := s.tallies, s.refusals
	s.tallies, s.refusals = map[endpoint]tally{}, map[refused]int64{}
	s.mu.Unlock()

	messages := make([]string, 0, len(tallies)+len(refusals))
	for key, t := range tallies {
		messages = append(messages, requestLine(key.uri(), t))
	}
	slices.Sort(messages)
	for _, key := range slices.SortedFunc(maps.Keys(refusals), compareRefused) {
		messages = append(messages, refusedLine(key.endpoint.uri(), key.status, key.code, refusals[key]))
	}
	for _, message := range messages {
		s.write(message)
	}
}

func compareRefused(a, b refused) int {
	return cmp.Or(cmp.Compare(a.endpoint.uri(), b.endpoint.uri()), cmp.Compare(a.code, b.code))
}

// write writes one line and keeps it for delivery.
func (s *serviceLog) write(message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	record := logfile.Record{
		Format: logfile.Server, Time: s.now(), Component: serviceComponent, Thread: logfile.Thread(serviceComponent), Message: message,
	}
	s.log.Write(record)
	text := record.Append(nil)
	s.lines = append(s.lines, line{s.next, text})
	s.next++
	for s.size += len(text); s.size > maxPortion; s.lines = s.lines[1:] {
		s.size -= len(s.lines[0].bytes)
	}
}

// portion returns the lines to deliver and the number after the last of them, when it is
// time for a delivery; nothing otherwise.
func (s *serviceLog) portion(every time.Duration) (text []byte, upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now().Sub(s.synced) < every {
		return nil, 0
	}
	for _, l := range s.lines {
		text = append(text, l.bytes...)
		upTo = l.number + 1
	}
	return text, upTo
}

// delivered forgets the lines before upTo. Zero means that none were sent.
func (s *serviceLog) delivered(upTo uint64) {
	if upTo == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = s.now()
	for len(s.lines) > 0 && s.lines[0].number < upTo {
		s.size -= len(s.lines[0].bytes)
		s.lines = s.lines[1:]
	}
}

// keepStatistics writes statistics lines until ctx ends, and then the last ones.
func (g *Gateway) keepStatistics(ctx context.Context) {
	ticker := time.NewTicker(g.limits.Statistics)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			g.service.flush()
			return
		case <-ticker.C:
			g.service.flush()
		}
	}
}
