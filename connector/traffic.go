package connector

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"postern/ccm"
)

// TrafficReport is what passed through the connector in an interval, in the fields of
// the documents (product.md 1.2 row 5).
type TrafficReport struct {
	Server            string            `json:"server"`
	Start             time.Time         `json:"start"`
	End               time.Time         `json:"end"`
	HighestConcurrent int               `json:"highest_concurrent"`
	Endpoints         []EndpointTraffic `json:"endpoints"` // sorted
}

// EndpointTraffic is the part of one endpoint, gateway and backend.
type EndpointTraffic struct {
	Endpoint          ccm.Endpoint `json:"endpoint"`
	ProxyServer       string       `json:"proxy_server"` // the gateway
	TargetHost        string       `json:"target_host"`
	Requests          int64        `json:"requests"`
	BearerRequests    int64        `json:"bearer_requests"` // with a token
	HighestConcurrent int          `json:"highest_concurrent"`
	RequestBytes      int64        `json:"request_bytes"`
	ResponseBytes     int64        `json:"response_bytes"`
	Failed            int64        `json:"failed"` // answered 400 and above, or not at all
}

// traffic counts. Its keys come from the signed table, so there are not many.
type traffic struct {
	server string

	mu      sync.Mutex
	start   time.Time
	running int
	most    int
	rows    map[trafficKey]*trafficRow
}

type trafficKey struct {
	gateway  string
	endpoint ccm.Endpoint
	target   string
}

type trafficRow struct {
	running int
	EndpointTraffic
}

// counter is one request under way.
type counter struct {
	key      trafficKey
	received *atomic.Int64
}

func newTraffic(server string, now time.Time) *traffic {
	return &traffic{server: server, start: now, rows: map[trafficKey]*trafficRow{}}
}

func (t *traffic) begin(gateway string, endpoint ccm.Endpoint, target string) *counter {
	key := trafficKey{gateway, endpoint, target}
	t.mu.Lock()
	defer t.mu.Unlock()
	row := t.row(key)
	t.running++
	row.running++
	t.most = max(t.most, t.running)
	row.HighestConcurrent = max(row.HighestConcurrent, row.running)
	return &counter{key: key, received: new(atomic.Int64)}
}

func (t *traffic) end(c *counter, bearer bool, sent int64, failed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	row := t.row(c.key)
	t.running--
	row.running--
	row.Requests++
	row.RequestBytes += c.received.Load()
	row.ResponseBytes += sent
	row.BearerRequests += one(bearer)
	row.Failed += one(failed)
}

func (t *traffic) row(key trafficKey) *trafficRow {
	if t.rows[key] == nil {
		t.rows[key] = &trafficRow{EndpointTraffic: EndpointTraffic{Endpoint: key.endpoint, ProxyServer: key.gateway, TargetHost: key.target}}
	}
	return t.rows[key]
}

func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// next returns the report of the interval that ends now, and begins another.
func (t *traffic) next(now time.Time) TrafficReport {
	t.mu.Lock()
	defer t.mu.Unlock()
	report := t.report(now)
	t.start, t.most = now, t.running
	for key, row := range t.rows {
		if row.running == 0 {
			delete(t.rows, key)
			continue
		}
		row.EndpointTraffic = EndpointTraffic{Endpoint: key.endpoint, ProxyServer: key.gateway, TargetHost: key.target, HighestConcurrent: row.running}
	}
	return report
}

func (t *traffic) report(now time.Time) TrafficReport {
	r := TrafficReport{Server: t.server, Start: t.start, End: now, HighestConcurrent: t.most}
	for _, row := range t.rows {
		r.Endpoints = append(r.Endpoints, row.EndpointTraffic)
	}
	slices.SortFunc(r.Endpoints, func(a, b EndpointTraffic) int {
		return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.ProxyServer, b.ProxyServer), cmp.Compare(a.TargetHost, b.TargetHost))
	})
	return r
}
