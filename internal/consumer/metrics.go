package consumer

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/relay"
)

// metrics of this worker. Every label comes from a closed list and starts at zero.
type metrics struct {
	requests     *prometheus.CounterVec
	waits        map[relay.Reason]prometheus.Counter
	age          prometheus.Histogram
	redeliveries prometheus.Counter
	pauses       prometheus.Counter
	backlog      prometheus.Gauge
}

var outcomes = []string{"answered", "repeated", "dead", "not stored"}

func newMetrics(r prometheus.Registerer, c *Consumer) *metrics {
	f := promauto.With(r)
	m := &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "zoho_worker_requests_total",
			Help: "Requests settled, by method, outcome (answered, repeated, dead, not stored) and error code (empty: none).",
		}, []string{"method", "outcome", "code"}),
		waits: map[relay.Reason]prometheus.Counter{},
		age: f.NewHistogram(prometheus.HistogramOpts{
			Name:                        "zoho_worker_request_age_seconds",
			Help:                        "Time from the request's storage in the stream to its settlement.",
			Buckets:                     []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600},
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
		}),
		redeliveries: f.NewCounter(prometheus.CounterOpts{
			Name: "zoho_worker_redeliveries_total", Help: "Requests handed to this worker that had been handed out before.",
		}),
		pauses: f.NewCounter(prometheus.CounterOpts{
			Name: "zoho_worker_pauses_total", Help: "Pauses of an org's queue that this worker made.",
		}),
		backlog: f.NewGauge(prometheus.GaugeOpts{
			Name: "zoho_worker_backlog", Help: "Requests in the stream, in hand or not, when this worker last looked.",
		}),
	}
	waits := f.NewCounterVec(prometheus.CounterOpts{
		Name: "zoho_worker_waits_total", Help: "Times a request was given back to wait, by reason.",
	}, []string{"reason"})
	for _, reason := range relay.Reasons() {
		m.waits[reason] = waits.WithLabelValues(string(reason))
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_in_flight", Help: "Requests in hand of this worker.",
	}, func() float64 { return float64(c.hand.len()) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_queues_active", Help: "Queues of orgs that this worker pulls from.",
	}, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return float64(len(c.active))
	})
	for _, method := range []string{"", "GET", "POST", "PUT", "PATCH", "DELETE"} {
		for _, outcome := range outcomes {
			m.requests.WithLabelValues(method, outcome, "")
		}
		for _, code := range envelope.Codes() {
			m.requests.WithLabelValues(method, "answered", string(code))
		}
	}
	return m
}

func (m *metrics) settled(method, outcome string, code envelope.Code) {
	m.requests.WithLabelValues(method, outcome, string(code)).Inc()
}
