package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Bounds of the wait for NATS at the start: 0.25, 0.5, 1, 2, 4, 5, 5 … s, each
// less or more by half. Said again every 30 s.
const (
	firstPause = 250 * time.Millisecond
	mostPause  = 5 * time.Second
	sayAgain   = 30 * time.Second
	oneAttempt = 10 * time.Second
)

// silence is how long a server without a sign of JetStream may be one that is
// starting or stopping. After it JetStream is not switched on.
const silence = 30 * time.Second

// await tries step until it succeeds, for as long as what it lacks may come by
// itself: a server that is up, a leader of JetStream. It returns any other error
// at once, ctx's end included. Meanwhile the worker is alive and not ready.
func (w *Worker) await(ctx context.Context, logger *slog.Logger, what string, step func(context.Context) error) error {
	pauses := backoff.NewExponentialBackOff(backoff.WithInitialInterval(firstPause), backoff.WithMultiplier(2),
		backoff.WithMaxInterval(mostPause), backoff.WithMaxElapsedTime(0))
	begun := time.Now()
	var said time.Time
	for {
		attempt, cancel := context.WithTimeout(ctx, oneAttempt)
		err := step(attempt)
		cancel()
		if err == nil {
			if !said.IsZero() {
				w.health.waitsFor("")
				logger.Info(what+" is there: starting", "waited_ms", time.Since(begun).Milliseconds())
			}
			return nil
		}
		if ctx.Err() != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		if denied := w.health.denied(); denied != "" {
			return fmt.Errorf("%w; the NATS user of this worker %s: see deploy/nats/accounts.conf", err, denied)
		}
		if !passing(err) {
			return err
		}
		if JetStreamIsOff(err) && time.Since(begun) > silence {
			return fmt.Errorf("%w: is JetStream switched on (jetstream { store_dir: … })?", err)
		}
		pause := pauses.NextBackOff()
		if time.Since(said) >= sayAgain {
			said = time.Now()
			w.health.waitsFor(what)
			logger.Warn(what+" is not there yet: waiting for it, not ready meanwhile", "err", err, "waiting_ms", time.Since(begun).Milliseconds())
		}
		select {
		case <-ctx.Done():
			return cmp.Or(context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}

// passing reports whether an error of NATS says no more than that a server or a
// leader is not there. What a person has to mend doesn't pass: credentials,
// certificates, a stream that is something else.
func passing(err error) bool {
	var api *jetstream.APIError
	var network net.Error
	var op *net.OpError
	switch {
	case errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"):
		return false // an alert of TLS
	case JetStreamIsOff(err):
		return true // for a while
	case errors.As(err, &api):
		// 503: no meta leader, no leader of the stream, no room. 10005: too few
		// servers of the cluster are up to hold the replicas.
		return api.Code == 503 || api.ErrorCode == 10005
	case errors.As(err, &network):
		return true
	}
	for _, passes := range []error{
		context.DeadlineExceeded, io.EOF, nats.ErrNoServers, nats.ErrTimeout, nats.ErrNoResponders,
		nats.ErrConnectionClosed, nats.ErrConnectionReconnecting, nats.ErrDisconnected, nats.ErrReconnectBufExceeded,
	} {
		if errors.Is(err, passes) {
			return true
		}
	}
	return false
}

// JetStreamIsOff reports whether nobody answers for JetStream: it is not switched on for
// this account, or its server stops.
func JetStreamIsOff(err error) bool {
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrJetStreamNotEnabled) ||
		errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount)
}
