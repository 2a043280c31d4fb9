package app

import (
	"context"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/lock"
	"zoho-worker/internal/register"
)

// watchStart registers what is known of a worker from its first moment, also while it
// waits for NATS: an alert on what isn't there would never fire.
func (w *Worker) watchStart(metrics prometheus.Registerer) {
	f := promauto.With(metrics)
	f.NewGaugeVec(prometheus.GaugeOpts{
		Name: "zoho_worker_build_info", Help: "1, with the version of this worker.",
	}, []string{"version", "revision", "go_version"}).WithLabelValues(Version, revision(), runtime.Version()).Set(1)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_ready", Help: "1 where the worker takes requests: started, not stopping, connected to NATS, which lets it do its work.",
	}, func() float64 { return number01(w.notReady() == "") })
}

// watch registers what else is known of the worker as a whole.
func (w *Worker) watch(metrics prometheus.Registerer) {
	f := promauto.With(metrics)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_nats_connected", Help: "1 while connected to NATS.",
	}, func() float64 { return number01(w.nc.IsConnected()) })
	f.NewCounterFunc(prometheus.CounterOpts{
		Name: "zoho_worker_nats_reconnects_total", Help: "Reconnects to NATS.",
	}, func() float64 { return float64(w.nc.Stats().Reconnects) })
	metrics.MustRegister(connectionMetrics{w.Connections})
}

func number01(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// revision is the commit the binary was built from, where the build knew it.
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// connectionMetrics counts the connections when it is asked.
type connectionMetrics struct{ store *connection.Store }

var connectionsDesc = prometheus.NewDesc("zoho_worker_connections",
	"Connections by status: active, revoked, unreadable.", []string{"status"}, nil)

// Describe implements prometheus.Collector.
func (m connectionMetrics) Describe(to chan<- *prometheus.Desc) { to <- connectionsDesc }

// Collect implements prometheus.Collector.
func (m connectionMetrics) Collect(to chan<- prometheus.Metric) {
	count := map[connection.Status]int{connection.Active: 0, connection.Revoked: 0, connection.Unreadable: 0}
	for _, c := range m.store.All() {
		status := c.Status
		if c.Err() != nil {
			status = connection.Unreadable
		}
		if _, known := count[status]; known {
			count[status]++
		}
	}
	for status, n := range count {
		to <- prometheus.MustNewConstMetric(connectionsDesc, prometheus.GaugeValue, float64(n), string(status))
	}
}

// pingRedis sees whether Redis gives locks, now and every 10 s until ctx ends, in the
// background: no request waits for it. Nil, without a Redis, all is well.
func pingRedis(ctx context.Context, locker *lock.Locker, metrics prometheus.Registerer) {
	f := promauto.With(metrics)
	up := f.NewGauge(prometheus.GaugeOpts{
		Name: "zoho_worker_redis_up", Help: "1 where Redis gave a lock when last asked for one; also where none is configured.",
	})
	took := f.NewGauge(prometheus.GaugeOpts{
		Name: "zoho_worker_redis_ping_seconds", Help: "How long that took.",
	})
	up.Set(1)
	if locker == nil {
		return
	}
	go func() {
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			asked := time.Now()
			up.Set(number01(locker.Ping(ctx) == nil))
			took.Set(time.Since(asked).Seconds())
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
}

// The streams a publish is counted for, by the second token of its subject.
var publishStreams = []string{"requests", "responses", "claims", "tokens", "connections", "workers", "queues", "events", "dead", "other"}

// countedJetStream counts what is published through it, and tells how it ended.
type countedJetStream struct {
	jetstream.JetStream
	told                     func(stream string, err error)
	stored, conflict, failed map[string]prometheus.Counter // by stream; read only
}

func countPublishes(js jetstream.JetStream, metrics prometheus.Registerer, told func(stream string, err error)) jetstream.JetStream {
	publishes := promauto.With(metrics).NewCounterVec(prometheus.CounterOpts{
		Name: "zoho_worker_jetstream_publishes_total",
		Help: "Messages published to JetStream, by stream and result: stored, conflict (a compare-and-set that somebody else won), failed.",
	}, []string{"stream", "result"})
	c := &countedJetStream{JetStream: js, told: told}
	for result, counters := range map[string]*map[string]prometheus.Counter{"stored": &c.stored, "conflict": &c.conflict, "failed": &c.failed} {
		*counters = map[string]prometheus.Counter{}
		for _, stream := range publishStreams {
			(*counters)[stream] = publishes.WithLabelValues(stream, result)
		}
	}
	return c
}

// PublishMsg implements jetstream.JetStream.
func (c *countedJetStream) PublishMsg(ctx context.Context, msg *nats.Msg, options ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := c.JetStream.PublishMsg(ctx, msg, options...)
	c.count(msg.Subject, err)
	return ack, err
}

// Publish implements jetstream.JetStream.
func (c *countedJetStream) Publish(ctx context.Context, subject string, data []byte, options ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := c.JetStream.Publish(ctx, subject, data, options...)
	c.count(subject, err)
	return ack, err
}

func (c *countedJetStream) count(subject string, err error) {
	stream := "other"
	if rest, ok := strings.CutPrefix(subject, "zoho."); ok {
		stream, _, _ = strings.Cut(rest, ".")
	}
	c.told(stream, err)
	counters := c.stored
	switch {
	case err != nil && register.IsConflict(err):
		counters = c.conflict
	case err != nil:
		counters = c.failed
	}
	counter, known := counters[stream]
	if !known {
		counter = counters["other"]
	}
	counter.Inc()
}
