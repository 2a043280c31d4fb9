package lease

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
)

// network is a worker's connection, whose writes can be held up, lost or lied about.
type network struct {
	jetstream.JetStream
	mu     sync.Mutex
	fault  func(ctx context.Context, publish func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error)
	n      int           // writes begun
	behind time.Duration // how far the server's clock went back
}

// Stream is a look at a stream with the server's time.
func (w *network) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	stream, err := w.JetStream.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return late{stream, w.behind}, nil
}

// late is a stream of a server whose clock is behind the times in it.
type late struct {
	jetstream.Stream
	by time.Duration
}

func (l late) CachedInfo() *jetstream.StreamInfo {
	info := *l.Stream.CachedInfo()
	info.TimeStamp = info.TimeStamp.Add(-l.by)
	return &info
}

func (w *network) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	publish := func(ctx context.Context) (*jetstream.PubAck, error) { return w.JetStream.PublishMsg(ctx, msg, o...) }
	w.mu.Lock()
	fault := w.fault
	w.n++
	w.mu.Unlock()
	if fault == nil {
		return publish(ctx)
	}
	return fault(ctx, publish)
}

func (w *network) set(fault func(context.Context, func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = fault
}

func (w *network) writes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// Faults of a network.
func cut(ctx context.Context, _ func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func unacknowledged(ctx context.Context, publish func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
	if _, err := publish(ctx); err != nil {
		return nil, err
	}
	return nil, context.DeadlineExceeded
}

func refused(ctx context.Context, publish func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
	if _, err := publish(ctx); err != nil {
		return nil, err
	}
	return nil, &jetstream.APIError{ErrorCode: 10071}
}

// worker is a book with its network.
type worker struct {
	*Book
	net  *network
	lost chan struct{}
}

func serve(tb testing.TB) *natstest.Server {
	tb.Helper()
	s := natstest.Start(tb)
	s.Create(s.JetStream(), StreamConfigs(1)...)
	return s
}

func begin(tb testing.TB, s *natstest.Server, term time.Duration) *worker {
	tb.Helper()
	w := &worker{net: &network{JetStream: s.JetStream()}, lost: make(chan struct{}, 100)}
	w.Book = New(Options{JS: w.net, Term: term, Lost: func() { w.lost <- struct{}{} }})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.Start(ctx); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { w.Close(context.Background()) })
	return w
}

// Terms: one that no noise of a loaded machine ends, and one that is soon over.
const (
	long  = time.Minute
	short = 600 * time.Millisecond
)

func eventually(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatalf("not in a minute: %s", what)
		}
	}
}

func take(tb testing.TB, w *worker, queue string) *Hold {
	tb.Helper()
	var h *Hold
	eventually(tb, "take "+queue, func() bool {
		var err error
		h, err = w.Take(tb.Context(), queue)
		return err == nil
	})
	return h
}

func set(state string) func(json.RawMessage) (json.RawMessage, error) {
	return func(json.RawMessage) (json.RawMessage, error) { return json.RawMessage(state), nil }
}

// forgetful loses the acknowledgement of one write of an org's record.
type forgetful struct {
	jetstream.JetStream
	loses atomic.Bool
}

func (f *forgetful) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := f.JetStream.PublishMsg(ctx, msg, o...)
	if err == nil && strings.HasPrefix(msg.Subject, queuePrefix) && f.loses.CompareAndSwap(true, false) {
		return nil, context.DeadlineExceeded
	}
	return ack, err
}
