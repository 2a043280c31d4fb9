package relay

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"zoho-worker/internal/zoho"
)

// metrics counts attempts. Labels come from closed lists: methods, and classes of status.
type metrics struct {
	attempts *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

var (
	methods = []string{"GET", "POST", "PUT", "PATCH", "DELETE"}
	classes = []string{"2xx", "3xx", "4xx", "401", "429", "5xx", "none"}
)

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	m := metrics{
		attempts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "zoho_worker_attempts_total",
			Help: "Attempts sent to Zoho, by method and class of the answer (none: no answer came).",
		}, []string{"method", "answer"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name:                        "zoho_worker_call_duration_seconds",
			Help:                        "Duration of one attempt, connection and body included.",
			Buckets:                     []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
		}, []string{"method"}),
	}
	for _, method := range methods {
		m.duration.WithLabelValues(method)
		for _, class := range classes {
			m.attempts.WithLabelValues(method, class)
		}
	}
	return m
}

func (m metrics) attempt(method string, a *zoho.Answer) {
	m.attempts.WithLabelValues(method, class(a.Status)).Inc()
	m.duration.WithLabelValues(method).Observe(a.Took.Seconds())
}

func class(status int) string {
	switch {
	case status == 401 || status == 429:
		return strconv.Itoa(status)
	case status >= 200 && status <= 599:
		return strconv.Itoa(status/100) + "xx"
	}
	return "none"
}
