// Package inspect looks at the streams, the org queues and the workers from
// outside, for people: what `worker status`, `worker why` and the progress line
// of `worker call` show.
//
// It changes nothing and decides nothing: what it says was true a moment ago.
//
// Invariant: every look is bounded, in messages read and in time, and what was
// not looked at is said.
package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
)

// Reader looks. NC and JS are of the same server.
type Reader struct {
	NC *nats.Conn
	JS jetstream.JetStream
	// Quiet is for how long no worker may say anything before those that did are
	// taken for all of them. Default 200 ms.
	Quiet time.Duration

	blindUntil atomic.Int64 // Unix nanoseconds: the records of connections could not be read
}

// Streams are the names of the streams a worker needs.
func Streams() []string {
	return []string{
		consumer.RequestStream, consumer.ResponseStream, consumer.DeadStream, consumer.EventStream,
		ledger.StreamName, connection.StreamName, token.StreamName, consent.StreamName,
		lease.WorkerStream, lease.QueueStream, "OBJ_" + consumer.BodyBucket,
	}
}

// Overview is everything at one glance.
type Overview struct {
	At       time.Time `json:"at"` // the server's time
	NATS     string    `json:"nats"`
	Version  string    `json:"nats_version"`
	Streams  []Stream  `json:"streams"`
	Queues   []Queue   `json:"queues"`
	Unqueued []Waiting `json:"unqueued,omitempty"` // connections whose requests are in no queue that is known
	Workers  []Worker  `json:"workers"`
	// Connections by status, as the workers know them; nil where none answers.
	Connections map[string]int      `json:"connections"`
	Troubled    []consumer.Troubled `json:"troubled,omitempty"`
}

// Stream is a stream's state.
type Stream struct {
	Name     string        `json:"name"`
	Messages uint64        `json:"messages"`
	Bytes    uint64        `json:"bytes"`
	Age      time.Duration `json:"oldest_ns"` // of the oldest message
	Missing  bool          `json:"missing,omitempty"`
	Err      string        `json:"err,omitempty"`
}

// Worker is a worker as it answers.
type Worker struct {
	ID      string    `json:"id"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Calls   int       `json:"calls"` // taken at zoho.call.…
	consumer.About
}

// Overview looks at everything. Faults of single parts are in it; the error is
// of a NATS that has no JetStream or doesn't answer.
func (r *Reader) Overview(ctx context.Context) (*Overview, error) {
	o := &Overview{NATS: secret.RedactURLs(r.NC.ConnectedUrl()), Version: r.NC.ConnectedServerVersion()}
	if _, err := r.JS.AccountInfo(ctx); err != nil {
		return nil, fmt.Errorf("ask JetStream at %s: %w", o.NATS, err)
	}
	o.At = r.Now(ctx)
	var looking sync.WaitGroup
	looking.Go(func() { o.Workers = r.Workers(ctx) })
	for _, name := range Streams() {
		o.Streams = append(o.Streams, r.stream(ctx, name))
	}
	var err error
	o.Queues, o.Unqueued, err = r.Queues(ctx)
	looking.Wait()
	for _, w := range o.Workers {
		if o.Connections == nil {
			o.Connections, o.Troubled = w.Connections, w.Troubled
		}
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		err = nil // its line says so
	}
	return o, err
}

func (r *Reader) stream(ctx context.Context, name string) Stream {
	s := Stream{Name: name}
	stream, err := r.JS.Stream(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		s.Missing = true
	case err != nil:
		s.Err = err.Error()
	default:
		info := stream.CachedInfo()
		s.Messages, s.Bytes = info.State.Msgs, info.State.Bytes
		if s.Messages > 0 {
			s.Age = max(0, now(info).Sub(info.State.FirstTime))
		}
	}
	return s
}

// Now is the server's time, by which pauses count; this machine's where the server
// doesn't say it.
func (r *Reader) Now(ctx context.Context) time.Time {
	stream, err := r.JS.Stream(ctx, consumer.RequestStream)
	if err != nil {
		return time.Now()
	}
	return now(stream.CachedInfo())
}

// now is the server's time, where it says it.
func now(info *jetstream.StreamInfo) time.Time {
	if info.TimeStamp.IsZero() {
		return time.Now()
	}
	return info.TimeStamp
}

// gather is for how long the workers are listened to, and quiet for how long
// nobody may say anything before that is taken for all of them.
const (
	gather = time.Second
	quiet  = 200 * time.Millisecond
)

// Workers asks the workers for their stats, through the NATS micro service zoho.
func (r *Reader) Workers(ctx context.Context) []Worker {
	var workers []Worker
	r.ask(ctx, "$SRV.STATS.zoho", nil, func(data []byte) (enough bool) {
		var stats micro.Stats
		if json.Unmarshal(data, &stats) != nil {
			return false
		}
		w := Worker{ID: stats.ID, Version: stats.Version, Started: stats.Started}
		for _, endpoint := range stats.Endpoints {
			if endpoint.Name == "call" {
				w.Calls = endpoint.NumRequests
				_ = json.Unmarshal(endpoint.Data, &w.About)
			}
		}
		workers = append(workers, w)
		return false
	})
	slices.SortFunc(workers, func(a, b Worker) int { return a.Started.Compare(b.Started) })
	return workers
}

// ask publishes a question and hands over the answers of all who have one, until
// answer has enough.
func (r *Reader) ask(ctx context.Context, subject string, data []byte, answer func([]byte) (enough bool)) {
	inbox := r.NC.NewInbox()
	sub, err := r.NC.SubscribeSync(inbox)
	if err != nil {
		return
	}
	defer func() { _ = sub.Unsubscribe() }()
	if r.NC.PublishRequest(subject, inbox, data) != nil {
		return
	}
	pause := cmp.Or(r.Quiet, quiet)
	for until, wait := time.Now().Add(gather), 2*pause; time.Now().Before(until) && ctx.Err() == nil; wait = pause {
		msg, err := sub.NextMsg(wait)
		if err != nil || len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
			return
		}
		if answer(msg.Data) {
			return
		}
	}
}
