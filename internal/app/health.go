package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/register"
)

// health knows what keeps a started worker from its work although it is
// connected: a NATS permission that was taken away, a stream without a leader, a
// disk that is full. While anything of that lasts the worker is not ready.
//
// It looks every 2 s. What it needs, it tries without leaving a trace: a write
// to each stream that names another stream as the expected one, so that the
// server judges the permission, the stream's leader answers, and nothing is stored.
type health struct {
	logger *slog.Logger

	mu       sync.Mutex
	waiting  string               // what the start waits for
	troubles map[string]trouble   // by what is wrong
	missed   map[string]int       // unanswered tries in a row, by stream
	failed   map[string]int       // writes that failed in a row, by stream
	lost     map[string]time.Time // subscriptions the server dropped, and when they were last tried
}

func newHealth(logger *slog.Logger) *health {
	return &health{
		logger: logger, troubles: map[string]trouble{}, missed: map[string]int{}, failed: map[string]int{}, lost: map[string]time.Time{},
	}
}

// trouble was last seen at a time, and is over if it isn't seen again for a while.
type trouble struct {
	seen    time.Time
	lasting time.Duration
}

const (
	lookEvery = 2 * time.Second
	// What every look would see again.
	seenByLooks = 10 * time.Second
	// Writes that fail are tried again within half of it, while there are any to do.
	seenByWrites = time.Minute
)

// written are the streams that every request may need, each by a subject that no
// connection can have.
var written = map[string]string{
	"ZOHO_RESPONSES":   "zoho.responses._.probe",
	"ZOHO_CLAIMS":      "zoho.claims._.probe",
	"ZOHO_TOKENS":      "zoho.tokens._",
	"ZOHO_CONNECTIONS": "zoho.connections._",
	"ZOHO_DEAD":        "zoho.dead._",
	"ZOHO_EVENTS":      "zoho.events._",
	"ZOHO_WORKERS":     "zoho.workers._",
	"ZOHO_QUEUES":      "zoho.queues._",
}

// reasons are why the worker is not ready, in order; none where all is well.
func (h *health) reasons() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting != "" {
		return []string{"waiting for " + h.waiting}
	}
	for what, t := range h.troubles {
		if time.Since(t.seen) > t.lasting {
			delete(h.troubles, what)
			h.logger.Info("trouble with NATS is over", "was", what)
		}
	}
	return slices.Sorted(maps.Keys(h.troubles))
}

func (h *health) waitsFor(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.waiting = what
}

// saw takes in a trouble, and says so once while it lasts.
func (h *health) saw(what string, lasting time.Duration, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.troubles[what]; !known {
		h.logger.Error("not ready: trouble with NATS", "what", what, "err", err)
	}
	h.troubles[what] = trouble{time.Now(), lasting}
}

// over ends a trouble before its time.
func (h *health) over(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.troubles[what]; known {
		delete(h.troubles, what)
		h.logger.Info("trouble with NATS is over", "was", what)
	}
}

// denied is what the NATS user turned out not to be allowed, "" where nothing.
func (h *health) denied() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for what := range h.troubles {
		if strings.HasPrefix(what, "may not ") {
			return what
		}
	}
	return ""
}

var violation = regexp.MustCompile(`(?i)permissions violation for (publish|subscription) to "([^"]+)"`)

// onError takes in what the server says out of turn. A violation counts where
// the worker needs the subject itself: a reply_to that it may not answer is its
// requester's trouble.
func (h *health) onError(err error) {
	m := violation.FindStringSubmatch(err.Error())
	if m == nil || !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	subject := m[2]
	if strings.EqualFold(m[1], "subscription") {
		h.mu.Lock()
		if _, known := h.lost[subject]; !known {
			h.lost[subject] = time.Time{}
		}
		h.mu.Unlock()
		h.saw("may not subscribe to "+subject, seenByLooks, err)
		return
	}
	if strings.HasPrefix(subject, "$") || strings.HasPrefix(subject, "zoho.") {
		h.saw("may not publish to "+kindOf(subject), seenByLooks, err)
	}
}

// kindOf leaves out of a subject what differs from request to request.
func kindOf(subject string) string {
	keep := 2 // zoho.claims, $JS.ACK
	if strings.HasPrefix(subject, "$JS.API.") {
		keep = 4 // $JS.API.STREAM.INFO
	}
	tokens := strings.Split(subject, ".")
	if len(tokens) <= keep {
		return subject
	}
	return strings.Join(tokens[:keep], ".") + ".>"
}

// stored takes in how a write of the worker's own ended. A server whose disk is
// full doesn't answer writes at all, so two that fail in a row are trouble,
// whatever their errors are.
func (h *health) stored(stream string, err error) {
	what := writes + stream + ".>"
	var api *jetstream.APIError
	refused := errors.As(err, &api) && full(api.ErrorCode)
	h.mu.Lock()
	failed := h.failed[stream]
	switch {
	case err == nil || register.IsConflict(err):
		h.failed[stream] = 0
	case errors.Is(err, context.Canceled), errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrDisconnected),
		errors.Is(err, nats.ErrConnectionReconnecting), errors.Is(err, nats.ErrReconnectBufExceeded),
		register.IsTooLarge(err), laneIsFull(err): // a caller's doing
		h.mu.Unlock()
		return // says nothing of the server
	default:
		h.failed[stream]++
	}
	now := h.failed[stream]
	h.mu.Unlock()
	switch {
	case now > 1 || refused:
		h.saw(what, seenByWrites, err)
	case failed > 0:
		h.over(what)
	}
}

const writes = "can't store zoho."

// connected forgets what failed on an earlier connection.
func (h *health) connected() {
	h.mu.Lock()
	streams := slices.Collect(maps.Keys(h.failed))
	clear(h.failed)
	h.mu.Unlock()
	for _, stream := range streams {
		h.over(writes + stream + ".>")
	}
}

// laneIsFull: as many requests of one lane wait as somebody allowed by hand. The
// server has the same error for it as for a stream that is full.
func laneIsFull(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == 10077 && strings.Contains(api.Description, "per subject")
}

// full: the server has no room, or the stream is at its limit.
func full(code jetstream.ErrorCode) bool {
	switch code {
	case 10023, // insufficient resources
		10028, // account resources exceeded
		10047, // insufficient storage resources available
		10077: // the store failed: maximum bytes or messages exceeded
		return true
	}
	return false
}

// run looks until ctx ends.
func (h *health) run(ctx context.Context, js jetstream.JetStream) {
	nc := js.Conn()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !nc.IsConnected() {
			continue // that alone makes it not ready
		}
		var all sync.WaitGroup
		all.Go(func() {
			h.try(ctx, js, consumer.RequestStream, func(ctx context.Context) error {
				_, err := js.Stream(ctx, consumer.RequestStream)
				return err
			})
		})
		for stream, subject := range written {
			all.Go(func() {
				h.try(ctx, js, stream, func(ctx context.Context) error { return writable(ctx, nc, subject) })
			})
		}
		all.Wait()
		h.subscribeAgain(nc)
		h.reasons() // says what is over
	}
}

// errNotStream is the server's answer to a write that names another stream.
const errNotStream = 10060

// writable tries whether the stream of the subject takes a write.
func writable(ctx context.Context, nc *nats.Conn, subject string) error {
	answer, err := nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: subject, Header: nats.Header{jetstream.ExpectedStreamHeader: {"_"}}})
	if err != nil {
		return err
	}
	var ack struct{ Error *jetstream.APIError }
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return err
	}
	if ack.Error != nil && ack.Error.ErrorCode != errNotStream {
		return ack.Error
	}
	return nil
}

// try asks a stream. One that isn't there stays away until somebody acts: only a worker
// that starts makes it, because what is made is empty.
func (h *health) try(ctx context.Context, js jetstream.JetStream, stream string, ask func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	err := ask(ctx)
	what, gone := "stream "+stream+" doesn't answer", "stream "+stream+" is gone"
	h.mu.Lock()
	if err == nil {
		h.missed[stream] = 0
	} else {
		h.missed[stream]++
	}
	missed := h.missed[stream]
	h.mu.Unlock()
	switch {
	case err == nil:
		h.over(what)
		h.over(gone)
	case missed > 1: // one may be a change of leaders
		if _, notFound := js.Stream(ctx, stream); errors.Is(notFound, jetstream.ErrStreamNotFound) {
			what, err = gone, fmt.Errorf("%w: restore it, or start a worker, which makes it anew and empty", notFound)
		}
		h.saw(what, seenByLooks, err)
	}
}

// subscribeAgain tries the subscriptions that the server dropped when it read
// its configuration again. When it refuses none any more, connecting anew brings
// them all back.
func (h *health) subscribeAgain(nc *nats.Conn) {
	h.mu.Lock()
	lost := maps.Clone(h.lost)
	h.mu.Unlock()
	back := false
	for subject, tried := range lost {
		what := "may not subscribe to " + subject
		h.mu.Lock()
		refused := h.troubles[what].seen.After(tried)
		if refused || tried.IsZero() {
			h.lost[subject] = time.Now()
		} else {
			delete(h.lost, subject)
			back = true
		}
		h.mu.Unlock()
		if !refused && !tried.IsZero() {
			h.over(what)
			continue
		}
		if sub, err := nc.SubscribeSync(subject); err == nil {
			_ = nc.FlushTimeout(lookEvery)
			_ = sub.Unsubscribe()
		}
	}
	if back {
		h.logger.Info("NATS permissions are back: connecting anew")
		if err := nc.ForceReconnect(); err != nil {
			h.logger.Warn("connect anew", "err", err)
		}
	}
}
