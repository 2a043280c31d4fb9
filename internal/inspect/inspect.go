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
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/token"
)

// Reader looks. NC and JS are of the same server.
type Reader struct {
	NC *nats.Conn
	JS jetstream.JetStream
}

// Streams are the names of the streams a worker needs.
func Streams() []string {
	return []string{
		consumer.RequestStream, consumer.ResponseStream, consumer.DeadStream, consumer.EventStream,
		ledger.StreamName, connection.StreamName, token.StreamName, consent.StreamName, "OBJ_" + consumer.BodyBucket,
	}
}

// Overview is everything at one glance.
type Overview struct {
	At       time.Time `json:"at"`
	NATS     string    `json:"nats"`
	Version  string    `json:"nats_version"`
	Streams  []Stream  `json:"streams"`
	Queues   []Queue   `json:"queues"`
	Unqueued []Waiting `json:"unqueued,omitempty"` // connections whose requests are in no queue
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

// Queue is an org's queue.
type Queue struct {
	Name        string        `json:"name"`
	Connections []string      `json:"connections"`
	Waiting     int           `json:"waiting"`
	InHand      int           `json:"in_hand"`
	Places      int           `json:"places"`
	Paused      time.Duration `json:"paused_ns,omitempty"` // for how long still
	Cause       string        `json:"cause,omitempty"`     // the answer of Zoho's that it is paused for

	info *jetstream.ConsumerInfo
}

// Waiting is how many requests of a connection wait.
type Waiting struct {
	Connection string `json:"connection"`
	Requests   uint64 `json:"requests"`
}

// Worker is a worker as it answers.
type Worker struct {
	ID      string    `json:"id"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Calls   int       `json:"calls"` // taken at zoho.call.…
	consumer.About
}

const requestPrefix = "zoho.requests."

// Overview looks at everything. Faults of single parts are in it; the error is
// of a NATS that has no JetStream or doesn't answer.
func (r *Reader) Overview(ctx context.Context) (*Overview, error) {
	o := &Overview{At: time.Now(), NATS: r.NC.ConnectedUrlRedacted(), Version: r.NC.ConnectedServerVersion()}
	if _, err := r.JS.AccountInfo(ctx); err != nil {
		return nil, fmt.Errorf("ask JetStream at %s: %w", o.NATS, err)
	}
	var looking sync.WaitGroup
	looking.Go(func() { o.Workers = r.Workers(ctx) })
	for _, name := range Streams() {
		o.Streams = append(o.Streams, r.stream(ctx, name))
	}
	var err error
	o.Queues, err = r.Queues(ctx)
	if err == nil {
		o.Unqueued, err = r.unqueued(ctx, o.Queues)
	}
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

// now is the server's time, where it says it.
func now(info *jetstream.StreamInfo) time.Time {
	if info.TimeStamp.IsZero() {
		return time.Now()
	}
	return info.TimeStamp
}

// Queues are the org queues, those with the most waiting first. The error is
// jetstream.ErrStreamNotFound where no worker ever ran.
func (r *Reader) Queues(ctx context.Context) ([]Queue, error) {
	stream, err := r.JS.Stream(ctx, consumer.RequestStream)
	if err != nil {
		return nil, err
	}
	var queues []Queue
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		queues = append(queues, queueOf(info))
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list the queues: %w", err)
	}
	slices.SortFunc(queues, func(a, b Queue) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.InHand, a.InHand), strings.Compare(a.Name, b.Name))
	})
	for i := range queues {
		if queues[i].Paused > 0 && i < 50 {
			queues[i].Cause, _ = r.cause(ctx, queues[i])
		}
	}
	return queues, nil
}

func queueOf(info *jetstream.ConsumerInfo) Queue {
	q := Queue{
		Name: info.Name, Waiting: int(info.NumPending), InHand: info.NumAckPending, Places: info.Config.MaxAckPending, info: info,
	}
	if info.Paused {
		q.Paused = info.PauseRemaining
	}
	for _, subject := range q.subjects() {
		if name, ok := strings.CutPrefix(subject, requestPrefix); ok && !strings.Contains(name, ".") {
			q.Connections = append(q.Connections, name)
		}
	}
	return q
}

func (q Queue) subjects() []string {
	if len(q.info.Config.FilterSubjects) > 0 {
		return q.info.Config.FilterSubjects
	}
	return []string{q.info.Config.FilterSubject}
}

// paused is the event of a pause, as the consumer publishes it.
type paused struct {
	Event string    `json:"event"`
	Queue string    `json:"queue"`
	Until time.Time `json:"until"`
	Cause string    `json:"cause"`
	At    time.Time `json:"at"`
}

// cause looks for the answer of Zoho's that the queue is paused for, in the last
// event of each of its connections, 20 at most.
func (r *Reader) cause(ctx context.Context, q Queue) (string, bool) {
	stream, err := r.JS.Stream(ctx, consumer.EventStream)
	if err != nil {
		return "", false
	}
	var last paused
	for _, name := range q.Connections[:min(20, len(q.Connections))] {
		msg, err := stream.GetLastMsgForSubject(ctx, "zoho.events."+name)
		var event paused
		if err != nil || json.Unmarshal(msg.Data, &event) != nil || event.Event != "paused" || event.Queue == "" {
			continue
		}
		if event.Until.After(last.Until) {
			last = event
		}
	}
	return last.Cause, last.Cause != ""
}

// unqueued are the connections with requests that no queue covers: revoked or
// unknown ones, or no worker has taken them up yet.
func (r *Reader) unqueued(ctx context.Context, queues []Queue) ([]Waiting, error) {
	stream, err := r.JS.Stream(ctx, consumer.RequestStream)
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter("zoho.requests.>"))
	if err != nil {
		return nil, fmt.Errorf("look at stream %s: %w", consumer.RequestStream, err)
	}
	covered := map[string]bool{}
	for _, q := range queues {
		for _, name := range q.Connections {
			covered[name] = true
		}
	}
	count := map[string]uint64{}
	for subject, n := range info.State.Subjects {
		name, _, _ := strings.Cut(strings.TrimPrefix(subject, requestPrefix), ".")
		if !covered[name] {
			count[name] += n
		}
	}
	var waiting []Waiting
	for name, n := range count {
		waiting = append(waiting, Waiting{name, n})
	}
	slices.SortFunc(waiting, func(a, b Waiting) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), strings.Compare(a.Connection, b.Connection))
	})
	return waiting, nil
}

// gather is for how long the workers are listened to, and quiet how long nobody
// may say anything before that is taken for all of them.
const (
	gather = time.Second
	quiet  = 200 * time.Millisecond
)

// Workers asks the workers for their stats, through the NATS micro service zoho.
func (r *Reader) Workers(ctx context.Context) []Worker {
	var workers []Worker
	r.ask(ctx, "$SRV.STATS.zoho", nil, func(data []byte) {
		var stats micro.Stats
		if json.Unmarshal(data, &stats) != nil {
			return
		}
		w := Worker{ID: stats.ID, Version: stats.Version, Started: stats.Started}
		for _, endpoint := range stats.Endpoints {
			if endpoint.Name == "call" {
				w.Calls = endpoint.NumRequests
				_ = json.Unmarshal(endpoint.Data, &w.About)
			}
		}
		workers = append(workers, w)
	})
	slices.SortFunc(workers, func(a, b Worker) int { return a.Started.Compare(b.Started) })
	return workers
}

// ask publishes a question and hands over the answers of all who have one.
func (r *Reader) ask(ctx context.Context, subject string, data []byte, answer func([]byte)) {
	inbox := r.NC.NewInbox()
	sub, err := r.NC.SubscribeSync(inbox)
	if err != nil {
		return
	}
	defer func() { _ = sub.Unsubscribe() }()
	if r.NC.PublishRequest(subject, inbox, data) != nil {
		return
	}
	for until, wait := time.Now().Add(gather), 2*quiet; time.Now().Before(until) && ctx.Err() == nil; wait = quiet {
		msg, err := sub.NextMsg(wait)
		if err != nil || len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
			return
		}
		answer(msg.Data)
	}
}
