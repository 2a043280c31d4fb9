package token

import "github.com/prometheus/client_golang/prometheus"

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
}

// newMetrics starts every label at zero. A nil registerer keeps the counters private.
func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zoho_worker_token_refreshes_total",
			Help: "Refreshes of access tokens by what came of them.",
		}, []string{"result"}),
		locks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zoho_worker_token_locks_total",
			Help: "Refresh locks asked for in Redis, by what came of it.",
		}, []string{"result"}),
	}
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
	if err := registerer.Register(m.refreshes); err != nil {
		return nil, err
	}
	return m, registerer.Register(m.locks)
}
