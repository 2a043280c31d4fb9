package relay

import (
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/zoho"
)

// metrics count attempts, claims and what came of them. Labels come from closed
// lists; docs/metrics.md says what each means.
type metrics struct {
	methods   map[string]attempts
	tokenWait prometheus.Histogram
	claims    *prometheus.CounterVec
	unknown   *prometheus.CounterVec
	credits   *credits
}

// attempts count those of one method.
type attempts struct {
	answers  map[string]prometheus.Counter
	duration prometheus.Observer
}

var (
	methods = []string{"GET", "POST", "PUT", "PATCH", "DELETE"}
	answers = []string{"2xx", "3xx", "4xx", "401", "429", "5xx", "none"}
)

// The results of a claim, and the causes of an unknown outcome.
const (
	claimMade     = "claimed"
	claimHeld     = "held"
	claimExpired  = "expired"
	claimConflict = "conflict"
	claimReleased = "released"
	claimFailed   = "failed"

	unknownNoAnswer  = "no_answer"
	unknownLeaseOver = "lease_over"
)

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	seconds := []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
	calls := f.NewCounterVec(prometheus.CounterOpts{
		Name: "zoho_worker_attempts_total",
		Help: "Attempts sent to Zoho, by method and class of the answer (none: no answer came).",
	}, []string{"method", "answer"})
	duration := f.NewHistogramVec(prometheus.HistogramOpts{
		Name:                        "zoho_worker_call_duration_seconds",
		Help:                        "Duration of one attempt, connection and body included.",
		Buckets:                     seconds,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	}, []string{"method"})
	m := metrics{
		methods: map[string]attempts{},
		tokenWait: f.NewHistogram(prometheus.HistogramOpts{
			Name:                        "zoho_worker_token_wait_seconds",
			Help:                        "How long a request in hand waited for an access token.",
			Buckets:                     append([]float64{.0001, .001}, seconds...),
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}),
		claims: f.NewCounterVec(prometheus.CounterOpts{
			Name: "zoho_worker_claims_total", Help: "Claims of requests that are sent once, by what came of them.",
		}, []string{"result"}),
		unknown: f.NewCounterVec(prometheus.CounterOpts{
			Name: "zoho_worker_unknown_outcomes_total",
			Help: "Requests answered outcome_unknown, by cause: no_answer, or lease_over (the worker that sent it died).",
		}, []string{"cause"}),
		credits: &credits{orgs: map[string]credit{}},
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_credits_remaining_min",
		Help: "The least API credits left of any org, as Zoho said in the last 15 minutes; NaN where it said nothing.",
	}, func() float64 { return m.credits.least(time.Now()) })
	for _, method := range methods {
		of := attempts{answers: map[string]prometheus.Counter{}, duration: duration.WithLabelValues(method)}
		for _, answer := range answers {
			of.answers[answer] = calls.WithLabelValues(method, answer)
		}
		m.methods[method] = of
	}
	for _, result := range []string{claimMade, claimHeld, claimExpired, claimConflict, claimReleased, claimFailed} {
		m.claims.WithLabelValues(result)
	}
	m.unknown.WithLabelValues(unknownNoAnswer)
	m.unknown.WithLabelValues(unknownLeaseOver)
	return m
}

func (m metrics) attempt(method string, c *connection.Connection, a *zoho.Answer) {
	of := m.methods[method]
	of.answers[class(a.Status)].Inc()
	of.duration.Observe(a.Took.Seconds())
	if a.CreditsRemaining >= 0 {
		m.credits.heard(c.Queue(), a.CreditsRemaining, time.Now())
	}
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

// credits are what Zoho last said that each org has left; it says so only once
// half of them are used.
type credits struct {
	mu   sync.Mutex
	orgs map[string]credit
}

type credit struct {
	left int
	at   time.Time
}

// creditsFresh is for how long what Zoho said counts: credits come back over 24 hours.
const creditsFresh = 15 * time.Minute

func (c *credits) heard(org string, left int, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orgs[org] = credit{left, now}
}

// least forgets what is old and returns the least of the rest, NaN if there is none.
func (c *credits) least(now time.Time) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	least := math.NaN()
	for org, credit := range c.orgs {
		if now.Sub(credit.at) > creditsFresh {
			delete(c.orgs, org)
			continue
		}
		if left := float64(credit.left); math.IsNaN(least) || left < least {
			least = left
		}
	}
	return least
}
