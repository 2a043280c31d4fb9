package consumer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/zoho"
)

// metrics of this worker. Every label comes from a closed list and starts at
// zero; docs/metrics.md says what each means.
type metrics struct {
	requests     *prometheus.CounterVec
	begun        map[labels]prometheus.Counter // those of requests that are there from the start
	waits        map[relay.Reason]prometheus.Counter
	age          prometheus.Histogram
	queued       prometheus.Histogram
	redeliveries prometheus.Counter
	pauses       prometheus.Counter
	refusals     map[flow.Cause]prometheus.Counter
	moved        prometheus.Counter
	backlog      prometheus.Gauge
}

// labels are those of requests.
type labels struct{ method, class, outcome, code string }

// none stands for a label without a value: an empty one is no label to Prometheus.
const none = "none"

// The outcomes of a request.
const (
	outcomeAnswered  = "answered"
	outcomeRepeated  = "repeated"
	outcomeDead      = "dead"
	outcomeNotStored = "not_stored"
)

func newMetrics(r prometheus.Registerer, c *Consumer) *metrics {
	f := promauto.With(r)
	// With 60 and 300 side by side, waits of 100 s read as a p95 of more than 4 minutes.
	ages := []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 900, 3600}
	m := &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "zoho_worker_requests_total",
			Help: "Requests settled, by method, class of the operation, outcome (answered, repeated, dead, not_stored) and error code.",
		}, []string{"method", "class", "outcome", "code"}),
		begun: map[labels]prometheus.Counter{},
		waits: map[relay.Reason]prometheus.Counter{},
		age: f.NewHistogram(prometheus.HistogramOpts{
			Name:                        "zoho_worker_request_age_seconds",
			Help:                        "Time from the request's storage in the stream to its settlement.",
			Buckets:                     ages,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}),
		queued: f.NewHistogram(prometheus.HistogramOpts{
			Name:                        "zoho_worker_queued_seconds",
			Help:                        "Time from the request's storage in the stream to its first delivery to a worker.",
			Buckets:                     ages,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
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
	refusals := f.NewCounterVec(prometheus.CounterOpts{
		Name: "zoho_worker_refusals_total", Help: "Calls that Zoho refused with 429, by the limit it was taken for: concurrency, sub_concurrency, credits.",
	}, []string{"limit"})
	m.refusals = map[flow.Cause]prometheus.Counter{}
	for _, cause := range flow.Causes() {
		m.refusals[cause] = refusals.WithLabelValues(string(cause))
	}
	m.moved = f.NewCounter(prometheus.CounterOpts{
		Name: "zoho_worker_heavy_moved_total", Help: "Heavy requests moved to a lane of their own, so that light ones behind them need not wait.",
	})
	waits := f.NewCounterVec(prometheus.CounterOpts{
		Name: "zoho_worker_waits_total", Help: "Times a request was given back to wait, by reason.",
	}, []string{"reason"})
	for _, reason := range relay.Reasons() {
		m.waits[reason] = waits.WithLabelValues(string(reason))
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_in_flight", Help: "Requests under way in this worker, each with a place of its org.",
	}, func() float64 { taken, _ := c.gate.state(); return float64(taken) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_held", Help: "Requests in hand of this worker that wait for their start.",
	}, func() float64 { taken, _ := c.gate.state(); return float64(max(0, c.hand.len()-taken)) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_max_in_flight", Help: "Requests that this worker may have under way.",
	}, func() float64 { return float64(c.MaxInFlight) })
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_queues_active", Help: "Orgs that this worker serves.",
	}, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return float64(len(c.orgs))
	})
	if r != nil {
		r.MustRegister(&censusMetrics{c}, &blockedMetrics{c})
	}
	for _, class := range zoho.Classes() {
		for _, method := range class.Methods {
			m.start(method, class.Name)
		}
	}
	m.start(none, none)
	return m
}

// start begins the series of a method and a class at zero.
func (m *metrics) start(method, class string) {
	begin := func(outcome, code string) {
		m.begun[labels{method, class, outcome, code}] = m.requests.WithLabelValues(method, class, outcome, code)
	}
	for _, outcome := range []string{outcomeAnswered, outcomeRepeated, outcomeNotStored} {
		begin(outcome, none)
	}
	for _, code := range envelope.Codes() {
		begin(outcomeAnswered, string(code))
	}
	// What settlement.bury is called with.
	for _, code := range []envelope.Code{envelope.InvalidRequest, envelope.IDConflict, envelope.Internal} {
		begin(outcomeDead, string(code))
	}
}

func (m *metrics) settled(method, class, outcome string, code envelope.Code) {
	if method == "" {
		method = none
	}
	// Of the other outcomes nobody was told the code of this worker.
	if code == "" || outcome != outcomeAnswered && outcome != outcomeDead {
		code = none
	}
	requests, ok := m.begun[labels{method, class, outcome, string(code)}]
	if !ok {
		requests = m.requests.WithLabelValues(method, class, outcome, string(code))
	}
	requests.Inc()
}

// censusMetrics are the numbers of the census, read when they are asked for.
type censusMetrics struct{ *Consumer }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("zoho_worker_"+name, help, labels, nil)
}

var (
	waitingDesc = describe("waiting_requests", "Requests not under way, of all workers, by what they wait for: worker, place, pause, credits, authorization.", "for")
	runDesc     = describe("runnable_backlog", "Requests that only a worker's place is missing for. The same for all workers: take max().")
	inHandDesc  = describe("in_hand", "Requests handed out to workers, of each org as many as it has places at most.")
	queuesDesc  = describe("queues", "Org queues with work, by state: running, full, paused, credits, parked.", "state")
	pausedDesc  = describe("pause_longest_seconds", "For how long the queue has been paused that has been so for longest.")
	oldestDesc  = describe("oldest_request_seconds", "Age of the oldest request in the stream.")
	lookedDesc  = describe("last_look_timestamp_seconds", "When this worker last looked at the stream.")
)

// Describe implements prometheus.Collector.
func (censusMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{waitingDesc, runDesc, inHandDesc, queuesDesc, pausedDesc, oldestDesc, lookedDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m censusMetrics) Collect(to chan<- prometheus.Metric) {
	wanting := m.wanting()
	for _, s := range m.leases.Others() {
		wanting += s.Wanting
	}
	t := m.census.totals(time.Now(), m.Clock.Now(), wanting)
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(waitingDesc, float64(t.forWorker), "worker")
	gauge(waitingDesc, float64(t.forPlace), "place")
	gauge(waitingDesc, float64(t.forPause), "pause")
	gauge(waitingDesc, float64(t.forCredits), "credits")
	gauge(waitingDesc, float64(t.forPerson), "authorization")
	gauge(runDesc, float64(t.forWorker))
	gauge(inHandDesc, float64(t.inHand))
	gauge(queuesDesc, float64(t.running), "running")
	gauge(queuesDesc, float64(t.full), "full")
	gauge(queuesDesc, float64(t.paused), "paused")
	gauge(queuesDesc, float64(t.broke), "credits")
	gauge(queuesDesc, float64(t.parked), "parked")
	gauge(pausedDesc, t.pausedFor.Seconds())
	gauge(oldestDesc, t.oldest.Seconds())
	m.census.mu.Lock()
	looked := m.census.looked
	m.census.mu.Unlock()
	var at float64
	if !looked.IsZero() {
		at = float64(looked.UnixMilli()) / 1000
	}
	gauge(lookedDesc, at)
}

// blockedMetrics count this worker's orgs by what holds their next request back.
type blockedMetrics struct{ *Consumer }

var blockedDesc = describe("orgs", "Orgs that this worker serves, by what holds their next request back: none, worker, and the reasons of an org's limits.", "blocked")

// Describe implements prometheus.Collector.
func (blockedMetrics) Describe(to chan<- *prometheus.Desc) { to <- blockedDesc }

// Collect implements prometheus.Collector.
func (m blockedMetrics) Collect(to chan<- prometheus.Metric) {
	count := map[flow.Reason]int{}
	for _, o := range m.all() {
		o.mu.Lock()
		count[o.blocked]++
		o.mu.Unlock()
	}
	for _, reason := range append(flow.Reasons(), WaitWorker, "") {
		label := string(reason)
		if label == "" {
			label = none
		}
		to <- prometheus.MustNewConstMetric(blockedDesc, prometheus.GaugeValue, float64(count[reason]), label)
	}
}
