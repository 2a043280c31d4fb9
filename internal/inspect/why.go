package inspect

import (
	"cmp"
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
	"zoho-worker/internal/flow"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/zoho"
)

// State is what a request waits for. The list is closed.
type State string

// The states of a request.
const (
	Answered      State = "answered"
	Unknown       State = "unknown"       // neither a request nor a response is there
	Unseen        State = "unseen"        // not found, and not everything was looked at
	InCall        State = "in_hand"       // it is under way
	Returned      State = "returned"      // it was tried or handed out, and comes again
	Paused        State = "paused"        // the org, or what is heavy of it, is paused
	Queued        State = "queued"        // others are before it, or the org has no free place
	Heavy         State = "heavy"         // it is heavy, and as many heavy calls as may be are in flight
	Credits       State = "credits"       // the credits don't allow it now
	Ordered       State = "ordered"       // it waits for the one before it
	Token         State = "token"         // there is no access token now
	Authorization State = "authorization" // the connection is revoked
	Stranger      State = "stranger"      // nobody knows the connection
	NoWorker      State = "no_worker"
)

// States returns the closed list.
func States() []State {
	return []State{
		Answered, Unknown, Unseen, InCall, Returned, Paused, Queued, Heavy, Credits, Ordered, Token, Authorization, Stranger, NoWorker,
	}
}

// Why is why a request is not answered yet, or that it is.
type Why struct {
	Connection string    `json:"connection"`
	ID         string    `json:"id"`
	State      State     `json:"state"`
	Sentence   string    `json:"sentence"`
	Sequence   uint64    `json:"sequence,omitempty"`
	StoredAt   time.Time `json:"stored_at,omitzero"`
	Deadline   time.Time `json:"deadline,omitzero"`
	Lane       string    `json:"lane,omitempty"`
	Queue      *Queue    `json:"queue,omitempty"`
	// Place is how many requests of its lane are before it; PlaceAtLeast says that
	// there may be more.
	Place        int            `json:"place,omitempty"`
	PlaceAtLeast bool           `json:"place_at_least,omitempty"`
	Estimate     *time.Duration `json:"estimate_ns,omitempty"`

	subject string
	now     time.Time         // of the server, when it was looked
	request *envelope.Request // nil where it can't be decoded
	weight  zoho.Weight
	rate    float64 // requests of its lane that are settled a second; 0: not known
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
		return w.say(Unknown, "there is neither a request %s of %s nor a response to it: it was never published, was answered to an inbox only (a GET), is a dead letter, or its response is no longer kept", id, name), nil
	}
	return w, r.explain(ctx, w, found, true)
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
	return w, r.explain(ctx, w, msg, false)
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
	w.say(Answered, "answered %s ago, at %s, %s after %s", ago(r.Now(ctx).Sub(entry.Time)), clock(entry.Time), what, attempts(response.Attempts))
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

// decoder takes every reply_to that some worker may be allowed to answer to: which
// prefixes this one's has, is not known here.
var decoder = &envelope.Decoder{MaxBytes: 64 << 20, ReplyPrefixes: func() (all []string) {
	for c := '!'; c <= '~'; c++ {
		all = append(all, string(c))
	}
	return all
}()}

// explain says why a request that is in the stream is not answered.
func (r *Reader) explain(ctx context.Context, w *Why, msg *jetstream.RawStreamMsg, measure bool) error {
	w.Sequence, w.subject, w.StoredAt = msg.Sequence, msg.Subject, consumer.StoredAt(msg.Subject, msg.Header, msg.Time)
	_, w.Lane = laneOf(msg.Subject)
	request, err := decoder.Decode(msg.Data, w.StoredAt)
	if err == nil {
		w.request, w.Deadline = request, request.Deadline
		w.weight = zoho.OperationOf(request.Method, request.Path).Weigh(request)
	}
	var hand *consumer.InHand
	var record *connection.Connection
	var there *stored
	var rerr, serr error
	var asking sync.WaitGroup
	asking.Go(func() { hand = r.hand(ctx, w) })
	asking.Go(func() { record, rerr = r.connection(ctx, nil, w.Connection) })
	asking.Go(func() { there, serr = r.stored(ctx) })
	asking.Wait()
	if serr != nil {
		return serr
	}
	w.now = there.now
	switch {
	case hand != nil && hand.Fault == "":
		q := &Queue{Name: hand.Org.Queue}
		q.see(hand.Org, there)
		q.finish()
		w.Queue, w.Place = q, hand.Before
		if measure && !hand.Running && q.Paused == 0 {
			w.rate = r.rate(ctx, there.stream, w)
		}
		w.inHand(hand, record, r.claim(ctx, w))
		return nil
	case errors.Is(rerr, ErrNoConnection) && len(r.Workers(ctx)) == 0:
		w.say(NoWorker, "there is no connection %s, and no worker that would answer so: start one (worker run)", w.Connection)
		return nil
	case errors.Is(rerr, ErrNoConnection):
		w.say(Stranger, "there is no connection %s: the request is about to be answered unknown_connection", w.Connection)
		return nil
	case rerr != nil:
		return rerr
	case record.Status == connection.Revoked:
		w.revoked(record)
		return nil
	case record.Status != connection.Active:
		w.say(Authorization, "the record of connection %s can't be read: the request waits for somebody to mend it%s", w.Connection, w.until())
		return nil
	case hand != nil:
		w.say(Authorization, "worker %s (pid %d) can't use connection %s (%s): the request waits until it can%s", hand.Host, hand.PID, w.Connection, hand.Fault, w.until())
		return nil
	}
	if w.Queue, err = r.queue(ctx, record, there); err != nil {
		return err
	}
	if w.Queue.Owner == "" {
		w.say(NoWorker, "no worker has taken up the queue %s of %s (is one running?)%s%s", w.Queue.Name, w.Connection, w.Queue.pause("; it is"), w.until())
		return nil
	}
	return r.inStream(ctx, there, w, measure)
}

// hand asks the workers which of them has the request in hand. Where none has, the
// answer is of one that can't use its connection.
func (r *Reader) hand(ctx context.Context, w *Why) (hand *consumer.InHand) {
	r.ask(ctx, "zoho.hand."+w.Connection, strconv.AppendUint(nil, w.Sequence, 10), func(data []byte) (enough bool) {
		var h consumer.InHand
		if json.Unmarshal(data, &h) != nil {
			return false
		}
		if hand == nil || h.Fault == "" {
			hand = &h
		}
		return h.Fault == ""
	})
	return hand
}

// revoked is for a request whose connection waits for a person.
func (w *Why) revoked(record *connection.Connection) {
	since, reason := "", "Zoho no longer accepts its refresh token"
	if record != nil {
		if !record.RevokedAt.IsZero() {
			since = " since " + clock(record.RevokedAt)
		}
		reason = cmp.Or(record.StatusReason, reason)
	}
	w.say(Authorization, "connection %s is revoked%s (%s): the request waits for somebody to authorize it again%s", w.Connection, since, reason, w.until())
}

// inHand is for a request that its org's worker has in hand.
func (w *Why) inHand(h *consumer.InHand, record *connection.Connection, claim string) {
	worker := fmt.Sprintf("in hand of worker %s (pid %d) since %s", h.Host, h.PID, clock(h.Since))
	again := ""
	if left := h.Until.Sub(w.now); left > 0 {
		again = fmt.Sprintf(", looked at again in %s, at %s", ago(left), clock(h.Until))
	}
	calls := ""
	switch h.Calls {
	case 0:
	case 1:
		calls = "; 1 call so far: " + h.Last
	default:
		calls = fmt.Sprintf("; %d calls so far, the last: %s", h.Calls, h.Last)
	}
	because := ""
	if h.Why != "" {
		because = " (" + h.Why + ")"
	}
	waits := func(state State, format string, args ...any) {
		w.say(state, "%s, %s%s%s%s%s%s", worker, fmt.Sprintf(format, args...), because, claim, again, w.until(), calls)
	}
	if h.Running && h.Unstored != "" {
		w.say(InCall, "%s: its answer is there, and JetStream does not store it (%s); that is tried again every few seconds", worker, h.Unstored)
		return
	}
	if h.Running {
		w.say(InCall, "under way: %s, for %s%s%s", worker, ago(w.now.Sub(h.Since)), claim, calls)
		return
	}
	switch h.Waits {
	case string(flow.Paused), string(flow.HeavyPaused), string(flow.HeavyFull), string(flow.CreditsOut), string(flow.Reserved), string(flow.BudgetSpent):
		w.held(flow.Reason(h.Waits), h.Until)
	case consumer.WaitOrder:
		what := "its connection is ordered"
		if w.request != nil && w.request.OrderKey != "" {
			what = fmt.Sprintf("its order key is %q", w.request.OrderKey)
		}
		waits(Ordered, "%s: it starts when the one before it is answered", what)
	case string(relay.WaitToken):
		waits(Token, "there is no access token of %s now", w.Connection)
	case string(relay.WaitRevoked):
		w.revoked(record)
	case string(relay.WaitClaim):
		waits(Returned, "another worker sends it, or did when it died")
	case string(relay.WaitProbe):
		waits(Returned, "an answer to it was lost: it is looked up whether Zoho carried it out")
	case string(relay.WaitRetry):
		waits(Returned, "Zoho failed on it: it is tried again")
	case string(relay.WaitStorage), string(relay.WaitStopping):
		waits(Returned, "it could not be tried: it comes again (%s)", h.Waits)
	default:
		w.queued()
	}
}

// inStream is for a request that no worker has in hand, of an org that is served.
func (r *Reader) inStream(ctx context.Context, there *stored, w *Why, measure bool) error {
	q := w.Queue
	lane, err := there.stream.Consumer(ctx, w.durable())
	var last uint64
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
	case err != nil:
		return err
	default:
		last = lane.CachedInfo().Delivered.Stream
	}
	if last >= w.Sequence && q.PausedUntil.IsZero() {
		w.say(Returned, "was handed to a worker, and comes again by itself%s: its worker gave it back, or died%s", r.claim(ctx, w), w.until())
		return nil
	}
	w.Place, w.PlaceAtLeast = before(ctx, there.stream, w.subject, last, w.Sequence)
	for _, l := range q.Lanes {
		if l.Connection == w.Connection && l.Lane == w.Lane {
			w.Place += l.Held
		}
	}
	switch {
	case q.Paused > 0:
		w.held(flow.Paused, q.PausedUntil)
		return nil
	case w.weight.Heavy && q.HeavyPause != nil:
		w.held(flow.HeavyPaused, q.HeavyPause.Until)
		return nil
	case q.Blocked == flow.CreditsOut, q.Blocked == flow.Reserved && w.bulk():
		w.held(q.Blocked, time.Time{})
		return nil
	}
	if measure {
		w.rate = r.rate(ctx, there.stream, w)
	}
	w.queued()
	return nil
}

// durable is the name of the lane's JetStream consumer.
func (w *Why) durable() string { return consumer.Durable(w.Connection, consumer.Lane(w.Lane)) }

func (w *Why) bulk() bool { return strings.HasPrefix(w.Lane, string(consumer.Bulk)) }

// claim says how the claim of a request stands that is sent once.
func (r *Reader) claim(ctx context.Context, w *Why) string {
	if w.ID == "" {
		return ""
	}
	since, lease, claimed := ledger.Standing(ctx, r.JS, w.Connection, w.ID)
	if !claimed {
		return ""
	}
	left := since.Add(lease).Sub(w.now)
	if left <= 0 {
		end := "it will be answered outcome_unknown"
		if w.request != nil && w.request.Probe != nil {
			end = "it will be looked up whether Zoho carried it out"
		}
		return fmt.Sprintf(" (claimed at %s, and the claim is over: %s)", clock(since), end)
	}
	return fmt.Sprintf(" (claimed by a worker at %s, for another %s at most)", clock(since), ago(left))
}

// before counts the requests of the lane that are handed out before the one at
// sequence, up to a bound; more says that there may be more.
func before(ctx context.Context, stream jetstream.Stream, subject string, last, sequence uint64) (n int, more bool) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for next := last + 1; next < sequence; {
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
	return n, false
}

// rate is how many requests of the lane are settled a second, as it is now.
func (r *Reader) rate(ctx context.Context, stream jetstream.Stream, w *Why) float64 {
	settled := func() (int64, bool) {
		there, err := stream.Consumer(ctx, w.durable())
		if err != nil {
			return 0, false
		}
		info := there.CachedInfo()
		return int64(info.Delivered.Consumer) - int64(info.NumAckPending), true
	}
	begun := time.Now()
	first, ok := settled()
	if !ok {
		return 0
	}
	select {
	case <-time.After(rateMeasure):
	case <-ctx.Done():
		return 0
	}
	last, ok := settled()
	if !ok || last < first {
		return 0
	}
	return float64(last-first) / time.Since(begun).Seconds()
}

// place says how many are before it.
func (w *Why) place() string {
	lane := ""
	if w.Lane != "" {
		lane = " of its lane " + w.Lane
	}
	switch {
	case w.PlaceAtLeast:
		return fmt.Sprintf("at least %d requests%s are before it", w.Place, lane)
	case w.Place == 0:
		return "it is the next" + lane
	case w.Place == 1:
		return "1 request" + lane + " is before it"
	}
	return fmt.Sprintf("%d requests%s are before it", w.Place, lane)
}

// limits says what of the org's limits is used.
func (w *Why) limits() string {
	q := w.Queue
	said := fmt.Sprintf("%d of the org's %d places are taken", q.InFlight, q.Places)
	if q.lowered {
		said += " (fewer than configured, because Zoho refused more)"
	}
	if w.weight.Heavy {
		said += fmt.Sprintf(", %d of %d for heavy calls", q.Heavy, q.HeavyPlaces)
	}
	return said
}

// queued is for a request that waits for its turn.
func (w *Why) queued() {
	turn := ""
	if w.bulk() {
		turn = ", interactive requests go before bulk ones"
	}
	switch {
	case w.rate > 0:
		d := time.Duration(float64(w.Place+1) / w.rate * float64(time.Second))
		w.estimate(d)
		turn += fmt.Sprintf("; at %.3g a second its turn comes in about %s", w.rate, ago(d))
	case w.Queue.Blocked == consumer.WaitWorker:
		turn += "; its worker has as many requests under way as it may (--max-in-flight)"
	case w.Queue.InFlight > 0 && w.Queue.InFlight >= w.Queue.Places:
		turn += "; it starts when a call ends"
	}
	w.say(Queued, "in queue %s: %s, %s%s%s", w.Queue.Name, w.place(), w.limits(), turn, w.until())
}

// held is for a request whose org may not start it now, until then where that is
// known.
func (w *Why) held(reason flow.Reason, until time.Time) {
	q := w.Queue
	again := ""
	if left := until.Sub(w.now); left > 0 {
		again = fmt.Sprintf("; looked at again in %s, at %s", ago(left), clock(until))
		w.estimate(left)
	}
	switch reason {
	case flow.Paused:
		w.say(Paused, "in queue %s%s; then %s%s", q.Name, q.pause(", which is"), w.place(), w.until())
	case flow.HeavyPaused:
		said := ""
		if p := q.HeavyPause; p != nil {
			said = paused(p.Until.Sub(w.now), p.Until, p.Cause, p.For)
		}
		w.say(Paused, "in queue %s, whose heavy calls are%s; then %s%s", q.Name, said, w.place(), w.until())
	case flow.HeavyFull:
		w.say(Heavy, "in queue %s: %s, %s; light requests go past it%s", q.Name, w.place(), w.limits(), w.until())
	case flow.CreditsOut:
		w.say(Credits, "in queue %s: the org's credits of 24 hours are used up (%s)%s; then %s%s", q.Name, q.credits(), again, w.place(), w.until())
	case flow.Reserved:
		w.say(Credits, "in queue %s: what is left of the org's credits is kept for interactive requests, and this is a bulk one (%s)%s; then %s%s",
			q.Name, q.credits(), again, w.place(), w.until())
	case flow.BudgetSpent:
		w.say(Credits, "in queue %s: connection %s has used its share of the org's credits of 24 hours (%s)%s; then %s%s",
			q.Name, w.Connection, q.credits(), again, w.place(), w.until())
	default:
		w.queued()
	}
}

// ByHand begins the cause of a pause that a person made.
const ByHand = "by hand"

func (w *Why) estimate(d time.Duration) { w.Estimate = &d }

// credits says how the credits stand.
func (q *Queue) credits() string {
	if q.Credits == nil {
		return "how many is not known"
	}
	said := fmt.Sprintf("%d used by this client", q.Credits.Used)
	if q.Credits.Remaining != nil {
		said = fmt.Sprintf("%d are left, ", *q.Credits.Remaining) + said
	}
	if at := q.Credits.OutAt; !at.IsZero() && *q.Credits.Remaining > 0 {
		said += ", at this pace none are left at " + clock(at)
	}
	return said
}

// pause says until when the queue is paused and for what, behind these words; ""
// where it isn't.
func (q *Queue) pause(words string) string {
	if q.Paused <= 0 {
		return ""
	}
	return words + paused(q.Paused, q.PausedUntil, q.Cause, q.For)
}

// paused says for how long, and why.
func paused(d time.Duration, until time.Time, cause string, limit flow.Cause) string {
	said := fmt.Sprintf(" paused for another %s, until %s", ago(d), clock(until))
	switch {
	case cause == "":
		return said
	case strings.HasPrefix(cause, ByHand):
		return said + ", " + cause
	}
	said += ", because Zoho answered " + cause
	if words := limit.Words(); words != "" {
		said += " (taken for its limit of " + words + ")"
	}
	return said
}

// until says when the deadline ends the wait.
func (w *Why) until() string {
	if w.Deadline.IsZero() {
		return ""
	}
	if left := w.Deadline.Sub(w.now); left > 0 {
		return fmt.Sprintf(", until its deadline at %s (in %s)", clock(w.Deadline), ago(left))
	}
	return ", and its deadline is over: the next worker that looks answers so"
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
