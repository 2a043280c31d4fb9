package token

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/connection"
)

// The results of a refresh and of asking for the lock, as the counters name them.
const (
	resultMinted = "minted"
	resultLost   = "lost" // minted, but the claim had run out: thrown away

	lockAcquired    = "acquired"
	lockUnavailable = "unavailable" // Redis is away, went on without
	lockSkipped     = "skipped"     // the token was there before the lock was
)

type metrics struct {
	refreshes *prometheus.CounterVec
	locks     *prometheus.CounterVec
	lockWait  prometheus.Histogram
}

// newMetrics starts every label at zero. A nil registerer keeps the counters private.
func newMetrics(registerer prometheus.Registerer, s *Source) (*metrics, error) {
	m := &metrics{
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zoho_worker_token_refreshes_total",
			Help: "Refreshes of access tokens by what came of them.",
		}, []string{"result"}),
		locks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zoho_worker_token_locks_total",
			Help: "Refresh locks asked for in Redis, by what came of it.",
		}, []string{"result"}),
		lockWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:                        "zoho_worker_token_lock_wait_seconds",
			Help:                        "How long a refresh waited for its lock in Redis.",
			Buckets:                     []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 15},
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		}),
	}
	budgetLeft := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "zoho_worker_token_mint_budget_left",
		Help: "The least refreshes that any active connection has left in the running ten minutes. The same for all workers: take min().",
	}, func() float64 { return float64(s.budgetLeft()) })
	for _, result := range []string{
		resultMinted, resultLost, string(Revoked), string(Throttled), string(Misconfigured), string(AccountsUnavailable),
	} {
		m.refreshes.WithLabelValues(result)
	}
	for _, result := range []string{lockAcquired, lockUnavailable, lockSkipped} {
		m.locks.WithLabelValues(result)
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.refreshes, m.locks, m.lockWait, budgetLeft} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// budgetLeft is the least mints that any active connection has left, from what
// is in memory.
func (s *Source) budgetLeft() int {
	least, now := budget, s.serverNow()
	s.entries.Range(func(name, v any) bool {
		r := v.(*entry).state.Load().record
		if len(r.Mints) == 0 {
			return true
		}
		if c, ok := s.options.Connections.Get(name.(string)); ok && c.Status == connection.Active && r.of(c) {
			least = min(least, max(0, budget-len(r.recent(now))))
		}
		return true
	})
	return least
}
