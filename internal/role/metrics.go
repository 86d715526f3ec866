package role

import (
	"math"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"postern/catalog"
	"postern/connector"
	"postern/gateway"
	"postern/mp"
)

// Labels are endpoints, statuses and codes: never a path, an id, a name or an address (threat C99).

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func counter(r *prometheus.Registry, name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.MustRegister(c)
	return c
}

func histogram(r *prometheus.Registry, name, help string, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 11)}, labels)
	r.MustRegister(h)
	return h
}

func managementPointMetrics(also func(mp.Exchange)) (*prometheus.Registry, mp.Hooks) {
	r := newRegistry()
	requests := histogram(r, "postern_mp_request_seconds", "Requests answered by the management point.", "route", "status")
	refused := counter(r, "postern_mp_refused_total", "Refusals by catalogue code, also those that the wire does not show.", "code")
	messages := counter(r, "postern_mp_messages_total", "Protocol messages by endpoint.", "endpoint", "ok")
	registrations := counter(r, "postern_mp_registrations_total", "Registrations by the status answered.", "status")
	tokens := counter(r, "postern_mp_tokens_total", "Tokens issued by kind.", "kind")
	shed := prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_mp_tokens_shed_total", Help: "Requests that the token service sent away unseen, because too many waited."})
	streams := prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_mp_state_streams", Help: "Open streams of the site state."})
	r.MustRegister(shed, streams)
	return r, mp.Hooks{
		Request: func(e mp.Exchange) {
			requests.WithLabelValues(e.Route, strconv.Itoa(e.Status.Code)).Observe(e.Duration.Seconds())
			if also != nil {
				also(e)
			}
		},
		Refused:      func(code catalog.Code) { refused.WithLabelValues(string(code)).Inc() },
		Message:      func(endpoint string, ok bool) { messages.WithLabelValues(endpoint, strconv.FormatBool(ok)).Inc() },
		Registration: func(status int) { registrations.WithLabelValues(strconv.Itoa(status)).Inc() },
		Token:        func(kind string) { tokens.WithLabelValues(kind).Inc() },
		Streams:      func(open int) { streams.Set(float64(open)) },
		Shed:         shed.Inc,
	}
}

func gatewayMetrics(also func(gateway.Exchange)) (*prometheus.Registry, func(gateway.Exchange)) {
	r := newRegistry()
	requests := histogram(r, "postern_gateway_request_seconds", "Requests answered by the gateway.", "endpoint", "status")
	refused := counter(r, "postern_gateway_refused_total", "Refusals by catalogue code.", "code")
	bytes := counter(r, "postern_gateway_bytes_total", "Bytes of bodies.", "direction")
	return r, func(e gateway.Exchange) {
		requests.WithLabelValues(string(e.Path.Endpoint), strconv.Itoa(e.Status.Code)).Observe(e.Duration.Seconds())
		if code := e.Code(); code != "" {
			refused.WithLabelValues(string(code)).Inc()
		}
		bytes.WithLabelValues("in").Add(float64(e.RequestBytes))
		bytes.WithLabelValues("out").Add(float64(e.ResponseBytes))
		if also != nil {
			also(e)
		}
	}
}

// gatewayGauges shows what a gateway knows of its site.
func gatewayGauges(r *prometheus.Registry, g *gateway.Gateway, now func() time.Time) {
	gauge := func(name, help string, value func(gateway.Status) float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(g.Status()) }))
	}
	gauge("postern_gateway_state_epoch", "Epoch of the site state in force.", func(s gateway.Status) float64 { return float64(s.Epoch) })
	gauge("postern_gateway_state_acknowledged_epoch", "Epoch that the site has taken the gateway's confirmation of.", func(s gateway.Status) float64 { return float64(s.Acknowledged) })
	gauge("postern_gateway_state_age_seconds", "Time since the site was last heard; +Inf when it never was.", func(s gateway.Status) float64 {
		if s.LastHeard.IsZero() {
			return math.Inf(1)
		}
		return now().Sub(s.LastHeard).Seconds()
	})
	gauge("postern_gateway_stale", "1 when the site was not heard for 30 seconds: what was revoked since is not known.", func(s gateway.Status) float64 {
		if s.Stale {
			return 1
		}
		return 0
	})
	gauge("postern_gateway_connections", "Connections of connectors.", func(s gateway.Status) float64 { return float64(len(s.Connectors)) })
	gauge("postern_gateway_cut_requests", "Requests ended while under way, since what they had proved was revoked.", func(s gateway.Status) float64 { return float64(s.CutRequests) })
}

func connectorMetrics(also func(connector.Exchange)) (*prometheus.Registry, func(connector.Exchange)) {
	r := newRegistry()
	requests := histogram(r, "postern_connector_request_seconds", "Requests forwarded by the connector.", "endpoint", "status")
	failed := counter(r, "postern_connector_failed_total", "Failures by catalogue code.", "code")
	return r, func(e connector.Exchange) {
		requests.WithLabelValues(string(e.Endpoint), strconv.Itoa(e.Status)).Observe(e.Elapsed.Seconds())
		if e.Code != "" {
			failed.WithLabelValues(string(e.Code)).Inc()
		}
		if also != nil {
			also(e)
		}
	}
}
