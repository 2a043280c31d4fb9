package console

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"zoho-worker/internal/envelope"
)

const (
	requestStream  = "ZOHO_REQUESTS"
	responseStream = "ZOHO_RESPONSES"
	requestPrefix  = "zoho.requests."

	// The queues are read at most once per queueAge for all who look, the last
	// uses, which are a read each, once per useAge and for useMost connections.
	queueAge      = time.Second
	useAge        = 10 * time.Second
	useMost       = 100
	boardPatience = 2 * time.Second
)

// queueState is what waits for a connection.
type queueState struct {
	Waiting     uint64 // requests of the connection in the stream, those in flight included
	InFlight    int    // of the org, over all workers
	PausedUntil time.Time
	// Delivered is when a request was last handed to a worker, where the queue is
	// the connection's alone. Reads that are answered to an inbox leave no other trace.
	Delivered time.Time
}

// use is the last response that a connection got.
type use struct {
	At     time.Time
	Fault  string // what it says of an error, empty where it was none
	looked time.Time
}

// board reads what JetStream knows of the connections' work, and keeps it for a
// moment, so that many who look cost what one does. It only reads.
type board struct {
	js     jetstream.JetStream
	now    func() time.Time
	logger *slog.Logger

	mu     sync.Mutex
	at     time.Time
	queues map[string]queueState
	known  bool
	uses   map[string]use
}

// look returns the queues by connection; known is false where JetStream did not say.
func (b *board) look(ctx context.Context) (queues map[string]queueState, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now().Sub(b.at) < queueAge {
		return b.queues, b.known
	}
	ctx, cancel := context.WithTimeout(ctx, boardPatience)
	defer cancel()
	queues, err := b.read(ctx)
	if err != nil {
		b.logger.Debug("console: queues can't be read", "err", err)
	}
	b.at, b.queues, b.known = b.now(), queues, err == nil
	return b.queues, b.known
}

func (b *board) read(ctx context.Context) (map[string]queueState, error) {
	stream, err := b.js.Stream(ctx, requestStream)
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(requestPrefix+">"))
	if err != nil {
		return nil, err
	}
	queues := map[string]queueState{}
	name := func(subject string) string {
		name, _, _ := strings.Cut(strings.TrimPrefix(subject, requestPrefix), ".")
		return name
	}
	for subject, n := range info.State.Subjects {
		state := queues[name(subject)]
		state.Waiting += n
		queues[name(subject)] = state
	}
	consumers := stream.ListConsumers(ctx)
	for consumer := range consumers.Info() {
		for _, subject := range append(consumer.Config.FilterSubjects, consumer.Config.FilterSubject) {
			if !strings.HasPrefix(subject, requestPrefix) || strings.HasSuffix(subject, ".>") {
				continue
			}
			state := queues[name(subject)]
			state.InFlight = consumer.NumAckPending
			if last := consumer.Delivered.Last; last != nil && alone(consumer.Config.FilterSubjects, name) {
				state.Delivered = *last
			}
			if consumer.Paused {
				state.PausedUntil = b.now().Add(consumer.PauseRemaining)
			}
			queues[name(subject)] = state
		}
	}
	return queues, consumers.Err()
}

// alone reports whether the subjects are all of one connection.
func alone(subjects []string, name func(string) string) bool {
	for _, subject := range subjects {
		if name(subject) != name(subjects[0]) {
			return false
		}
	}
	return true
}

// lastUses returns when the connections were last answered, and how.
func (b *board) lastUses(ctx context.Context, names []string) map[string]use {
	b.mu.Lock()
	if b.uses == nil {
		b.uses = map[string]use{}
	}
	now := b.now()
	var stale []string
	for _, name := range names[:min(len(names), useMost)] {
		if now.Sub(b.uses[name].looked) >= useAge {
			stale = append(stale, name)
		}
	}
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, boardPatience)
	defer cancel()
	if stream, err := b.js.Stream(ctx, responseStream); err == nil && len(stale) > 0 {
		var group errgroup.Group
		group.SetLimit(8)
		for _, name := range stale {
			group.Go(func() error {
				u := use{looked: now}
				if msg, err := stream.GetLastMsgForSubject(ctx, "zoho.responses."+name+".*"); err == nil {
					u.At, u.Fault = msg.Time, faultOf(msg.Data)
				}
				b.mu.Lock()
				b.uses[name] = u
				b.mu.Unlock()
				return nil
			})
		}
		_ = group.Wait()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	uses := make(map[string]use, len(names))
	for _, name := range names {
		uses[name] = b.uses[name]
	}
	return uses
}

// faultOf is a response's error in a few words.
func faultOf(data []byte) string {
	r, err := envelope.DecodeResponse(data)
	switch {
	case err != nil:
		return ""
	case r.Error != nil:
		return string(r.Error.Code)
	case r.Status >= 400:
		return "Zoho answered " + statusText(r.Status)
	}
	return ""
}
