package console

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/inspect"
)

const (
	// The queues are read at most once per queueAge for all who look, the last
	// uses, which are two reads each, once per useAge, of useMost connections at a time.
	queueAge      = time.Second
	useAge        = 10 * time.Second
	useMost       = 100
	boardPatience = 2 * time.Second
	// workersQuiet is for how long a page waits for one more worker to answer.
	workersQuiet = 100 * time.Millisecond
)

// queueState is what waits for a connection.
type queueState struct {
	Waiting     int // requests of the connection in the stream, those in flight included
	InFlight    int // of the org
	Places      int // of the org; 0: not known
	PausedUntil time.Time
}

// use is when a connection was last used, and the last response that it got.
type use struct {
	At    time.Time
	Fault string // what it says of an error, empty where it was none
	// Delivered is when a request was last handed to a worker. Reads that are
	// answered to an inbox leave no other trace.
	Delivered time.Time
	known     bool // JetStream said so
	looked    time.Time
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
	found  []inspect.Queue
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
	// For all who look: a browser that goes away takes nothing from the others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), boardPatience)
	defer cancel()
	queues, found, err := b.read(ctx)
	if err != nil {
		b.logger.Debug("console: queues can't be read", "err", err)
	}
	b.at, b.queues, b.found, b.known = b.now(), queues, found, err == nil
	return b.queues, b.known
}

// orgs are the queues that the last look found.
func (b *board) orgs() (found []inspect.Queue, known bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.found, b.known
}

// queue is the queue of one connection, nil where JetStream did not say.
func (b *board) queue(ctx context.Context, name string) *inspect.Queue {
	ctx, cancel := context.WithTimeout(ctx, boardPatience)
	defer cancel()
	q, err := b.reader().Queue(ctx, name)
	if err != nil {
		b.logger.Debug("console: a queue can't be read", "connection", name, "err", err)
		return nil
	}
	return q
}

func (b *board) reader() *inspect.Reader {
	return &inspect.Reader{NC: b.js.Conn(), JS: b.js, Quiet: workersQuiet}
}

func (b *board) read(ctx context.Context) (map[string]queueState, []inspect.Queue, error) {
	found, unqueued, err := b.reader().Queues(ctx)
	if err != nil {
		return nil, nil, err
	}
	queues := map[string]queueState{}
	for _, q := range found {
		for _, name := range q.Connections {
			queues[name] = queueState{InFlight: q.InFlight, Places: q.Places, PausedUntil: q.PausedUntil}
		}
		for _, lane := range q.Lanes {
			state := queues[lane.Connection]
			state.Waiting += lane.Waiting + lane.InFlight
			queues[lane.Connection] = state
		}
	}
	for _, w := range unqueued {
		queues[w.Connection] = queueState{Waiting: w.Requests}
	}
	return queues, found, nil
}

// lastUses returns when the connections were last answered, and how.
func (b *board) lastUses(ctx context.Context, names []string) map[string]use {
	b.mu.Lock()
	if b.uses == nil {
		b.uses = map[string]use{}
	}
	now := b.now()
	var stale []string
	for _, name := range names {
		if now.Sub(b.uses[name].looked) >= useAge {
			stale = append(stale, name)
		}
	}
	// Each in its turn.
	slices.SortStableFunc(stale, func(x, y string) int { return b.uses[x].looked.Compare(b.uses[y].looked) })
	stale = stale[:min(len(stale), useMost)]
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), boardPatience)
	defer cancel()
	if stream, err := b.js.Stream(ctx, consumer.ResponseStream); err == nil && len(stale) > 0 {
		var group errgroup.Group
		group.SetLimit(8)
		for _, name := range stale {
			group.Go(func() error {
				u, err := b.lastUse(ctx, stream, name)
				b.mu.Lock()
				defer b.mu.Unlock()
				if err != nil { // what was known stays
					u = b.uses[name]
				}
				u.looked = now
				b.uses[name] = u
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

// lastUse reads when the connection was last answered, and when a request of it was
// last handed out.
func (b *board) lastUse(ctx context.Context, stream jetstream.Stream, name string) (use, error) {
	u := use{known: true}
	msg, err := stream.GetLastMsgForSubject(ctx, "zoho.responses."+name+".*")
	switch {
	case err == nil:
		u.At, u.Fault = msg.Time, faultOf(msg.Data)
	case !errors.Is(err, jetstream.ErrMsgNotFound):
		return use{}, err
	}
	lane, err := b.js.Consumer(ctx, consumer.RequestStream, name)
	switch {
	case err == nil:
		if last := lane.CachedInfo().Delivered.Last; last != nil {
			u.Delivered = *last
		}
	case !errors.Is(err, jetstream.ErrConsumerNotFound):
		return use{}, err
	}
	return u, nil
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
