package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
)

// State is what a request waits for. The list is closed.
type State string

// The states of a request.
const (
	Answered      State = "answered"
	Unknown       State = "unknown"       // neither a request nor a response is there
	Unseen        State = "unseen"        // not found, and not everything was looked at
	InCall        State = "in_hand"       // a worker has it in hand
	Returned      State = "returned"      // it was handed out, and comes again
	Paused        State = "paused"        // the org's queue is paused
	Queued        State = "queued"        // others are before it, or the org has no free place
	Authorization State = "authorization" // the connection is revoked
	Stranger      State = "stranger"      // nobody knows the connection
	NoWorker      State = "no_worker"
)

// Why is why a request is not answered yet, or that it is.
type Why struct {
	Connection string    `json:"connection"`
	ID         string    `json:"id"`
	State      State     `json:"state"`
	Sentence   string    `json:"sentence"`
	Sequence   uint64    `json:"sequence,omitempty"`
	StoredAt   time.Time `json:"stored_at,omitzero"`
	Deadline   time.Time `json:"deadline,omitzero"`
	Queue      *Queue    `json:"queue,omitempty"`
	// Place is how many requests of the org are before it; PlaceAtLeast says that
	// there may be more.
	Place        int            `json:"place,omitempty"`
	PlaceAtLeast bool           `json:"place_at_least,omitempty"`
	Estimate     *time.Duration `json:"estimate_ns,omitempty"`
}

// Bounds of a search for an id: how many requests are read, and for how long,
// and how many of those before it are counted.
const (
	searchMost  = 20_000
	searchTime  = 10 * time.Second
	searchWays  = 8
	countMost   = 5_000
	rateMeasure = time.Second
)

// Why says what the request of that id waits for. The error is of a server that
// doesn't answer.
func (r *Reader) Why(ctx context.Context, name, id string) (*Why, error) {
	w := &Why{Connection: name, ID: id}
	if !envelope.ValidConnection(name) {
		return w.say(Stranger, "%q can't be the name of a connection: lower-case letters, digits, - and _", name), nil
	}
	if answered, err := r.answered(ctx, w); err != nil || answered {
		return w, err
	}
	stream, err := r.JS.Stream(ctx, consumer.RequestStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return w.say(Unknown, "there are no requests on this server: no worker ever ran against it"), nil
	}
	if err != nil {
		return w, err
	}
	found, read, all, err := search(ctx, stream, name, id)
	switch {
	case err != nil:
		return w, err
	case found == nil && !all:
		return w.say(Unseen, "no request %s among the %d requests of %s that were looked at; there are more of them than that", id, read, name), nil
	case found == nil:
		// It may have been answered while it was searched for.
		if answered, err := r.answered(ctx, w); err != nil || answered {
			return w, err
		}
		return w.say(Unknown, "there is neither a request %s of %s nor a response to it: it was never published, was answered to an inbox only (a GET), is a dead letter, or its response was kept for its time", id, name), nil
	}
	return w, r.explain(ctx, stream, w, found, true)
}

// At is Why for a request whose sequence is known; quick, it measures no rate.
func (r *Reader) At(ctx context.Context, name string, sequence uint64) (*Why, error) {
	w := &Why{Connection: name, Sequence: sequence}
	stream, err := r.JS.Stream(ctx, consumer.RequestStream)
	if err != nil {
		return w, err
	}
	msg, err := stream.GetMsg(ctx, sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return w.say(Answered, "answered, the response is on its way"), nil
	}
	if err != nil {
		return w, err
	}
	return w, r.explain(ctx, stream, w, msg, false)
}

func (w *Why) say(state State, format string, args ...any) *Why {
	w.State, w.Sentence = state, fmt.Sprintf(format, args...)
	return w
}

// answered looks for the stored response.
func (r *Reader) answered(ctx context.Context, w *Why) (bool, error) {
	entry, err := register.New(r.JS, consumer.ResponseStream, 5*time.Second).Get(ctx, consumer.ResponseSubject(w.Connection, w.ID))
	switch {
	case errors.Is(err, register.ErrNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		return false, nil
	case err != nil:
		return false, err
	}
	response, err := envelope.DecodeResponse(entry.Data)
	if err != nil {
		return false, fmt.Errorf("response %s: %w", entry.Subject, err)
	}
	what := fmt.Sprintf("with Zoho's %d", response.Status)
	if response.Error != nil {
		what = "with " + string(response.Error.Code) + " (" + response.Error.Message + ")"
	}
	w.say(Answered, "answered %s ago, at %s, %s after %s", ago(time.Since(entry.Time)), clock(entry.Time), what, attempts(response.Attempts))
	return true, nil
}

func attempts(n int) string {
	if n == 1 {
		return "1 attempt"
	}
	return fmt.Sprint(n, " attempts")
}

// search looks for the id among the connection's requests, in several stretches
// of the stream at a time. It reports how many it read, and whether that was all.
func search(ctx context.Context, stream jetstream.Stream, name, id string) (found *jetstream.RawStreamMsg, read int, all bool, err error) {
	info, err := stream.Info(ctx)
	if err != nil {
		return nil, 0, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	var mu sync.Mutex
	var searching sync.WaitGroup
	all = true
	for _, subject := range []string{requestPrefix + name, requestPrefix + name + ".>"} {
		first, last := info.State.FirstSeq, info.State.LastSeq
		stretch := max(1, (last-first)/searchWays+1)
		for from := first; from <= last && last > 0; from += stretch {
			searching.Go(func() {
				for next := from; next < from+stretch; {
					msg, gerr := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(subject))
					mu.Lock()
					read++
					stop := found != nil || read > searchMost
					switch {
					case errors.Is(gerr, jetstream.ErrMsgNotFound):
						mu.Unlock()
						return
					case gerr != nil:
						if found == nil {
							all = false
							if ctx.Err() == nil {
								err = gerr
							}
						}
						mu.Unlock()
						return
					case msg.Sequence >= from+stretch:
						mu.Unlock()
						return
					case idOf(msg.Data) == id:
						found, stop = msg, true
						cancel()
					case stop:
						all = false
					}
					mu.Unlock()
					if stop {
						return
					}
					next = msg.Sequence + 1
				}
			})
		}
	}
	searching.Wait()
	if found != nil {
		err = nil
	}
	return found, read, all, err
}

func idOf(data []byte) string {
	var doc struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(data, &doc)
	return doc.ID
}

// explain says why a request that is in the stream is not answered.
func (r *Reader) explain(ctx context.Context, stream jetstream.Stream, w *Why, msg *jetstream.RawStreamMsg, measure bool) error {
	w.Sequence, w.StoredAt = msg.Sequence, msg.Time
	request, err := (&envelope.Decoder{MaxBytes: 64 << 20, ReplyPrefixes: []string{""}}).Decode(msg.Data, msg.Time)
	if err == nil {
		w.Deadline = request.Deadline
	}
	queues, err := r.Queues(ctx)
	if err != nil {
		return err
	}
	for i := range queues {
		if contains(queues[i].Connections, w.Connection) {
			w.Queue = &queues[i]
		}
	}
	if w.Queue == nil {
		r.withoutQueue(ctx, w)
		return nil
	}
	q := w.Queue
	if q.info.Delivered.Stream >= msg.Sequence {
		r.delivered(ctx, w)
		return nil
	}
	w.Place, w.PlaceAtLeast = before(ctx, stream, q, msg.Sequence)
	var rate float64
	if measure && q.Paused == 0 {
		rate = r.rate(ctx, stream, q)
	}
	w.wait(rate)
	return nil
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// withoutQueue is for a request that no queue covers.
func (r *Reader) withoutQueue(ctx context.Context, w *Why) {
	var record struct {
		Status    connection.Status `json:"status"`
		Reason    string            `json:"status_reason"`
		RevokedAt time.Time         `json:"revoked_at"`
	}
	entry, err := register.New(r.JS, connection.StreamName, 2*time.Second).Get(ctx, "zoho.connections."+w.Connection)
	if err == nil {
		err = json.Unmarshal(entry.Data, &record)
	}
	switch {
	case errors.Is(err, register.ErrNotFound), err == nil && record.Status == connection.Removed:
		w.say(Stranger, "there is no connection %s: the request is about to be answered unknown_connection", w.Connection)
	case err == nil && record.Status == connection.Revoked:
		w.say(Authorization, "connection %s is revoked since %s (%s): the request waits for somebody to authorize it again%s",
			w.Connection, clock(record.RevokedAt), record.Reason, w.until())
	default:
		w.say(NoWorker, "no worker has taken up the queue of %s (is one running?)%s", w.Connection, w.until())
	}
}

// delivered is for a request that was handed to a worker.
func (r *Reader) delivered(ctx context.Context, w *Why) {
	var hand *consumer.InHand
	r.ask(ctx, "zoho.hand."+w.Connection, strconv.AppendUint(nil, w.Sequence, 10), func(data []byte) {
		var h consumer.InHand
		if json.Unmarshal(data, &h) == nil {
			hand = &h
		}
	})
	claim := r.claim(ctx, w)
	q := w.Queue
	switch {
	case hand != nil:
		w.say(InCall, "in hand of worker %s (pid %d) since %s, for %s%s", hand.Host, hand.PID, clock(hand.Since), ago(time.Since(hand.Since)), claim)
	case q.Paused > 0:
		w.say(Paused, "was handed to a worker and given back%s: the queue %s is paused for another %s%s%s", claim, q.Name, ago(q.Paused), q.because(), w.until())
	default:
		w.say(Returned, "was handed to a worker, and comes again by itself%s: it waits for a token, for another attempt, or its worker died%s", claim, w.until())
	}
}

// claim says how the claim of a request stands that is sent once.
func (r *Reader) claim(ctx context.Context, w *Why) string {
	id := w.ID
	if id == "" {
		return ""
	}
	entry, err := register.New(r.JS, ledger.StreamName, 2*time.Second).Get(ctx, "zoho.claims."+w.Connection+"."+id)
	var record struct {
		State   string `json:"state"`
		LeaseMS int64  `json:"lease_ms"`
	}
	if err != nil || json.Unmarshal(entry.Data, &record) != nil || record.State != "claimed" {
		return ""
	}
	left := time.Until(entry.Time.Add(time.Duration(record.LeaseMS) * time.Millisecond))
	if left <= 0 {
		return fmt.Sprintf(" (claimed at %s, and the claim is over: it will be answered outcome_unknown)", clock(entry.Time))
	}
	return fmt.Sprintf(" (claimed by a worker at %s, for another %s at most)", clock(entry.Time), ago(left))
}

// before counts the requests of the queue that are handed out before the one at
// sequence, up to a bound; more says that there may be more.
func before(ctx context.Context, stream jetstream.Stream, q *Queue, sequence uint64) (n int, more bool) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for _, subject := range q.subjects() {
		for next := q.info.Delivered.Stream + 1; next < sequence; {
			if n >= countMost {
				return n, true
			}
			msg, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && msg.Sequence >= sequence {
				break
			}
			if err != nil {
				return n, true
			}
			n, next = n+1, msg.Sequence+1
		}
	}
	return n, false
}

// rate is how many requests of the queue are handed out a second, as it is now.
func (r *Reader) rate(ctx context.Context, stream jetstream.Stream, q *Queue) float64 {
	begun := time.Now()
	select {
	case <-time.After(rateMeasure):
	case <-ctx.Done():
		return 0
	}
	there, err := stream.Consumer(ctx, q.Name)
	if err != nil {
		return 0
	}
	return float64(there.CachedInfo().Delivered.Consumer-q.info.Delivered.Consumer) / time.Since(begun).Seconds()
}

// wait says where in its queue a request is.
func (w *Why) wait(rate float64) {
	q := w.Queue
	place := fmt.Sprintf("%d requests are before it", w.Place)
	switch {
	case w.PlaceAtLeast:
		place = "at least " + place
	case w.Place == 0:
		place = "it is the next"
	case w.Place == 1:
		place = "1 request is before it"
	}
	limits := fmt.Sprintf("%d of the org's %d places are taken", q.InHand, q.Places)
	switch {
	case q.Paused > 0:
		w.estimate(q.Paused)
		w.say(Paused, "in queue %s, which is paused for another %s%s; then %s%s", q.Name, ago(q.Paused), q.because(), place, w.until())
	case rate > 0:
		d := time.Duration(float64(w.Place+1) / rate * float64(time.Second))
		w.estimate(d)
		w.say(Queued, "in queue %s: %s, %s; at %.3g a second its turn comes in about %s%s", q.Name, place, limits, rate, ago(d), w.until())
	case q.InHand >= q.Places:
		w.say(Queued, "in queue %s: %s, %s, and no call has ended in the last second%s", q.Name, place, limits, w.until())
	default:
		w.say(Queued, "in queue %s: %s, %s%s", q.Name, place, limits, w.until())
	}
}

// ByHand begins the cause of a pause that a person made.
const ByHand = "by hand"

func (w *Why) estimate(d time.Duration) { w.Estimate = &d }

func (q *Queue) because() string {
	if q.Cause == "" {
		return ""
	}
	if strings.HasPrefix(q.Cause, ByHand) {
		return ", " + q.Cause
	}
	return " because Zoho answered " + q.Cause
}

// until says when the deadline ends the wait.
func (w *Why) until() string {
	if w.Deadline.IsZero() {
		return ""
	}
	if left := time.Until(w.Deadline); left > 0 {
		return fmt.Sprintf(", until its deadline at %s (in %s)", clock(w.Deadline), ago(left))
	}
	return ", and its deadline is over: about to be answered so"
}

// clock is a time of day, with the date where it isn't today.
func clock(t time.Time) string {
	t = t.Local()
	if y, d := time.Now().Year(), time.Now().YearDay(); t.Year() != y || t.YearDay() != d {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("15:04:05")
}

// ago is a duration in words short enough for a sentence.
func ago(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
