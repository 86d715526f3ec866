package role

import (
	"strconv"

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
	streams := prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_mp_state_streams", Help: "Open streams of the site state."})
	r.MustRegister(streams)
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
