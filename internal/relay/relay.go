// Package relay carries out one request: it alone knows the whole way from a
// decoded envelope to a final response.
//
// It does not know JetStream's deliveries, acks or consumers: it returns either
// a final response or how long the request has to wait, never both and never
// neither, and its caller settles the message.
//
// Invariants: a request that is not repeatable is claimed in the ledger before
// its first byte leaves, and is never sent again unless it is proved that
// nothing was sent, or its probe shows that it was not carried out; waiting uses
// up no attempt; whatever the worker decides after an attempt, judge decided it.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/failpoint"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/token"
	"zoho-worker/internal/trace"
	"zoho-worker/internal/zoho"
)

// Delivery is a request as JetStream handed it over.
type Delivery struct {
	Connection string
	Request    *envelope.Request
	// Operation is what the request asks for.
	Operation zoho.Operation
	// Digest is the request's content, see envelope.Request.Digest.
	Digest [32]byte
	// ReceivedAt is when the server stored the request, by its clock.
	ReceivedAt time.Time
	// Redelivered says that the request was handed over before: to this worker,
	// which let it wait, or to one that may be dead.
	Redelivered bool
	// Idle says that the request has no place of its org: it is answered without a
	// call, or has to come again.
	Idle bool
	// Heavy says that its place is one for heavy calls, as a lookup by COQL is.
	Heavy bool
	// Stopping is closed when the worker stops: pauses end, calls go on.
	Stopping <-chan struct{}
	// Waited is what the request has waited for since it was tried last, "" where
	// it was not tried before.
	Waited string
	// Sendings are those before; Do adds its own. Its caller keeps them while the
	// request waits.
	Sendings Sendings
	// Observer is told of each attempt.
	Observer Observer
}

// Sendings is what is known of how a request was sent to Zoho.
type Sendings struct {
	Attempts int // of this worker
	Credits  int // that they cost, and its lookups
	// Doubt says that one of them may have been carried out, and brought no answer.
	Doubt bool
	// Elsewhere says that another worker may have sent it.
	Elsewhere bool
}

// Observer keeps the limits of the org that a request belongs to.
type Observer interface {
	// Attempted takes in what became of a call that began at the instant began, and
	// what it cost of the org's credits.
	Attempted(answer *zoho.Answer, began time.Time, credits int)
	// Remaining are the credits that the org has left, as far as is known.
	Remaining() (credits int64, known bool)
	// Paused is for how long none of the request's calls may begin, 0 where one may.
	Paused() time.Duration
}

// Result is what became of a request: exactly one of Response, Stored and Wait is set.
type Result struct {
	// Response is the final answer.
	Response *envelope.Response
	// Stored is the final answer as it is stored already: repeat it as it is.
	Stored []byte
	// Wait says that the request has to come again.
	Wait *Wait

	last *zoho.Answer // whose memory Response may hold
}

// Release gives the memory of Response's body back: nothing may read it any more.
func (r Result) Release() {
	if r.last != nil {
		r.last.Release()
	}
}

// Wait is why and for how long a request waits; it has used up nothing.
type Wait struct {
	For    time.Duration
	Reason Reason
	// Why is the reason in words, where there is more to say.
	Why string
}

// Reason is a closed list: it is a metric label.
type Reason string

// The reasons to wait.
const (
	WaitToken    Reason = "token"    // no access token can be had now
	WaitRevoked  Reason = "revoked"  // the grant is dead: until re-authorization
	WaitClaim    Reason = "claim"    // another worker is at it, or was
	WaitPause    Reason = "pause"    // Zoho said 429, or the org is paused
	WaitProbe    Reason = "probe"    // its outcome is looked up, and can't be told yet
	WaitRetry    Reason = "retry"    // Zoho asked for a long pause before the next attempt
	WaitStorage  Reason = "storage"  // JetStream did not answer: nothing may be sent
	WaitStopping Reason = "stopping" // this worker stops: somebody else's turn
)

// Reasons returns the closed list.
func Reasons() []Reason {
	return []Reason{WaitToken, WaitRevoked, WaitClaim, WaitPause, WaitProbe, WaitRetry, WaitStorage, WaitStopping}
}

// Connections knows the connections.
type Connections interface {
	// Get answers from memory, which is behind by a moment.
	Get(name string) (*connection.Connection, bool)
	// Fetch asks the stream's leader; its error is connection.ErrNotFound where there is none.
	Fetch(ctx context.Context, name string) (*connection.Connection, error)
}

// Tokens gets access tokens. The errors are *token.Unavailable, or the context's.
type Tokens interface {
	Token(ctx context.Context, c *connection.Connection) (token.Token, error)
	Renew(ctx context.Context, c *connection.Connection, failed token.Token) (token.Token, error)
}

// Caller sends one attempt to Zoho.
type Caller interface {
	Do(ctx context.Context, call *zoho.Call) *zoho.Answer
}

// Stored is a response that was stored before.
type Stored struct {
	Digest [32]byte
	Data   []byte
}

// Responses looks stored responses up, through the stream's leader; nil where there is none.
type Responses interface {
	Lookup(ctx context.Context, connection, id string) (*Stored, error)
}

// Objects loads bodies too large for a message. The error is ErrNoObject where
// the object isn't there, ErrNoRoom where there was none for it until ctx ended, or for
// long, and an *envelope.Error where it can't be sent. Release is called when the body is
// needed no more; it is nil where there is an error.
type Objects interface {
	Load(ctx context.Context, name string) (body []byte, release func(), err error)
}

// ErrNoObject says that a request names an object that isn't in the bucket.
var ErrNoObject = errors.New("no such object")

// ErrNoRoom says that the bodies that are being sent take all the memory for them.
var ErrNoRoom = errors.New("bodies that are being sent take up the room for this one")

// Options are the parts a Relay works with; all but Logger are required.
type Options struct {
	Connections Connections
	Tokens      Tokens
	Ledger      *ledger.Ledger
	Zoho        Caller
	Responses   Responses
	Objects     Objects
	Clock       *register.Clock
	// CallTimeout bounds one attempt. It must be no more than what the ledger
	// was opened with, or a call could outlive its claim.
	CallTimeout time.Duration
	Logger      *slog.Logger
	Metrics     prometheus.Registerer
}

// Relay carries out requests.
type Relay struct {
	Options
	metrics metrics
}

// New returns a relay.
func New(o Options) *Relay {
	return &Relay{Options: o, metrics: newMetrics(o.Metrics)}
}

// Do carries the request out as far as it can be now. It blocks for the length
// of the calls and the pauses between them, so its caller keeps the message alive.
func (r *Relay) Do(ctx context.Context, d *Delivery) Result {
	j := &job{Relay: r, Delivery: d, once: !d.Operation.MayRepeat(d.Request), credits: envelope.Credits{Used: d.Sendings.Credits}}
	defer func() {
		if j.free != nil {
			j.free()
		}
	}()
	result := j.finish(ctx, j.do(ctx))
	result.last = j.last
	return result
}

func (j *job) do(ctx context.Context) Result {
	// Reads are safe to carry out again and inserts are claimed; other writes
	// look first, so that an old copy can't undo what came after it.
	if j.Redelivered || (!j.once && j.Request.Method != "GET") {
		if result, known := j.history(ctx); known {
			return result
		}
	}
	c, err := j.Relay.connection(ctx, j.Delivery.Connection)
	switch {
	case errors.Is(err, connection.ErrNotFound):
		return j.fail(envelope.UnknownConnection, "there is no connection "+j.Delivery.Connection+": see `worker connections list`")
	case err != nil:
		return j.wait(WaitStorage, storagePause())
	}
	j.connection = c
	if j.left() <= 0 && (j.lost == nil || j.Idle) {
		if j.Waited != "" {
			return j.expired("while the request waited: " + j.Waited)
		}
		return j.expired(j.tried())
	}
	if j.Idle {
		return j.wait(WaitPause, time.Second) // a clock went back, or its connection is known now
	}
	if result, ok := j.load(ctx); !ok {
		return result
	}
	return j.send(ctx)
}

// connection looks in memory and, before it says that there is none, asks the leader.
func (r *Relay) connection(ctx context.Context, name string) (*connection.Connection, error) {
	if c, ok := r.Connections.Get(name); ok {
		return c, nil
	}
	if !envelope.ValidConnection(name) {
		return nil, connection.ErrNotFound
	}
	return r.Connections.Fetch(ctx, name)
}

// job is one request on its way.
type job struct {
	*Relay
	*Delivery
	once       bool
	connection *connection.Connection
	access     token.Token
	claim      *ledger.Claim
	// lost is the claim of a request that is to be looked up before anything else.
	lost *ledger.LostError
	// resumed says that the claim is a lost one, taken over.
	resumed bool
	// sent says that the claim can't be given back: a byte may have left.
	sent     bool
	body     []byte
	free     func() // of a body that isn't the envelope's; nil: there is none
	batch    *batch // of a request that is settled record by record
	credits  envelope.Credits
	refusals int
	renewed  bool
	last     *zoho.Answer
}

// load fetches a body that is kept in the object store.
func (j *job) load(ctx context.Context) (Result, bool) {
	j.body = j.Request.Body.Data
	if j.Request.Probe != nil || j.Request.RetryFailedRecords {
		var ok bool
		if j.batch, ok = newBatch(j.body); !ok {
			return j.fail(envelope.InvalidRequest, "body: has no records"), false
		}
	}
	if j.Request.Body.Kind != envelope.ObjectBody {
		return Result{}, true
	}
	// Callers share the bucket: whoever could name any object could have another's
	// body sent to an org of its own, and read it there.
	name := string(j.Request.Body.Data)
	if own := j.Delivery.Connection + "/"; !strings.HasPrefix(name, own) {
		return j.fail(envelope.InvalidRequest, "body_object: must begin with "+own+", as the objects of this connection do"), false
	}
	ctx, cancel := context.WithTimeout(ctx, j.left())
	defer cancel()
	body, release, err := j.Objects.Load(ctx, name)
	var refused *envelope.Error
	switch {
	case errors.As(err, &refused):
		return j.fail(refused.Code, refused.Message), false
	case errors.Is(err, ErrNoObject):
		return j.fail(envelope.InvalidRequest, "body_object: there is no such object in ZOHO_BODIES"), false
	case errors.Is(err, ErrNoRoom) && j.left() <= 0:
		return j.expired("while " + ErrNoRoom.Error()), false
	case errors.Is(err, ErrNoRoom):
		return j.wait(WaitStorage, storagePause()).because(ErrNoRoom.Error()), false
	case err != nil:
		return j.wait(WaitStorage, storagePause()), false
	}
	j.body, j.free = body, release
	return Result{}, true
}

// send calls Zoho until there is a final response or a reason to wait.
func (j *job) send(ctx context.Context) Result {
	var pause *backoff.ExponentialBackOff
	err := j.token(ctx)
	for {
		if j.left() <= 0 && j.lost == nil { // a body or a token took as long
			return j.expired(j.tried())
		}
		if err != nil {
			return j.withoutToken(err)
		}
		if j.Observer.Paused() > 0 { // since it was started, or called last
			return j.wait(WaitPause, 0)
		}
		if j.lost != nil {
			if !j.Heavy && j.Request.Probe.Queries() {
				return Result{Wait: &Wait{Reason: WaitProbe}} // comes again in such a place
			}
			if result, ok := j.settle(ctx); !ok {
				return result
			}
		}
		if j.once {
			claiming, span := trace.Begin(ctx, "claim")
			result, ok := j.secure(claiming)
			span.End()
			if !ok {
				return result
			}
		}
		answer := j.attempt(ctx)
		v := judge(facts{
			answer: answer, method: j.Request.Method, operation: j.Operation, repeatable: !j.once, uniqueField: j.Request.UniqueField,
			deletes: j.deletes(), renewed: j.renewed, refusals: j.refusals, doubt: j.Sendings.Doubt,
			elsewhere: j.Sendings.Elsewhere && !j.once && j.writes(), // what is once was proved to be unsent
		})
		j.Sendings.Doubt = j.Sendings.Doubt || j.sent && v.action == repeat && j.writes()
		switch {
		case v.action == lost && j.Request.Probe != nil:
			if !j.lose() {
				return j.wait(WaitStorage, storagePause())
			}
			continue // and look it up
		case v.action == deliver && j.collect(answer):
			// and send the records that failed for a passing reason again
		case v.action == deliver, v.action == lost:
			return j.conclude(v)
		case v.action == hold:
			j.Sendings.Attempts-- // it uses up none
			if !j.alone() {
				// For how long is for whoever keeps the org's limits to say: it was told.
				return j.wait(WaitPause, 0)
			}
		case v.action == renew:
			j.renewed = true
			renewing, span := trace.Begin(ctx, "token")
			j.access, err = j.Tokens.Renew(renewing, j.connection, j.access)
			span.End()
			continue
		}
		if pause == nil {
			pause = newBackoff()
		}
		d := max(pause.NextBackOff(), answer.RetryAfter)
		if j.alone() {
			d = max(d, j.Observer.Paused()+time.Millisecond) // it can't be given back
		}
		switch {
		case d >= j.left():
			return j.expired(j.tried())
		case d > maxPause:
			return j.wait(WaitRetry, d)
		}
		if d, err = j.keep(ctx, d); err != nil {
			return j.wait(WaitStorage, storagePause())
		}
		if !j.sleep(ctx, d) {
			return j.wait(WaitStopping, 0)
		}
		err = j.token(ctx)
	}
}

// token gets an access token and takes the time that it takes, until the deadline.
func (j *job) token(ctx context.Context) (err error) {
	begun := time.Now()
	ctx, span := trace.Begin(ctx, "token")
	defer span.End()
	if left := j.left(); left > 0 { // else it is for a last look
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left)
		defer cancel()
	}
	j.access, err = j.Tokens.Token(ctx, j.connection)
	j.metrics.tokenWait.Observe(time.Since(begun).Seconds())
	return err
}

// attempt sends the request once, or what of it is pending.
func (j *job) attempt(ctx context.Context) *zoho.Answer {
	call := &zoho.Call{
		Method: j.Request.Method, Path: j.Request.Path, RawQuery: j.Request.RawQuery,
		Headers: j.Request.Headers, ContentType: contentType(j.Request.Body.Kind), Body: j.batch.body(j.body),
	}
	call.Timeout = j.CallTimeout
	if j.once {
		call.Permit = j.claim.Permit
		// A lease that is over is Permit's to refuse.
		call.Timeout = max(min(call.Timeout, j.claim.Left()), time.Millisecond)
	}
	ctx, span := trace.BeginCall(ctx, "attempt")
	j.sent = true // until it is proved otherwise, a panic included
	answer := j.exchange(ctx, call, j.Operation.Cost(j.Request, call.Body))
	if span.On() {
		span.String("http.request.method", call.Method)
		span.String("url.path", call.Path)
		span.Int("http.response.status_code", answer.Status)
		span.String("zoho.datacenter", call.Location)
		if answer.Status == 0 || answer.Status >= 400 {
			span.Fail(class(answer.Status))
		}
		span.End()
	}
	failpoint.Hit(failpoint.Answered)
	j.Sendings.Attempts++
	j.last = answer
	j.sent = j.carriedOut(answer)
	if j.batch != nil {
		j.batch.doubt = j.batch.doubt || j.sent
	}
	if answer.Status == 500 {
		j.refusals++
	}
	return answer
}

// carriedOut reports whether a call may have been: not if nothing left, or Zoho
// refused it at the door.
func (j *job) carriedOut(a *zoho.Answer) bool { return !a.Unsent && !j.Operation.Refused(a) }

// writes reports whether it matters if the request was carried out.
func (j *job) writes() bool { return j.Request.Method != "GET" && j.Operation.Class() != "read" }

// deletes is the id of the one record that the request deletes, else "".
func (j *job) deletes() string {
	// Of /crm/v8/Leads the query names the records, in whatever spelling; with
	// X-EXTERNAL the path ends with the value of a field.
	if j.Operation.Name != "records.delete" || strings.Count(j.Request.Path, "/") < 4 ||
		strings.Contains(j.Request.RawQuery, "ids=") || header(j.Request.Headers, "X-EXTERNAL") != "" {
		return ""
	}
	id := path.Base(j.Request.Path)
	if strings.Trim(id, "0123456789") != "" {
		return ""
	}
	return id
}

// exchange makes one call of the request's connection and counts it.
func (j *job) exchange(ctx context.Context, call *zoho.Call, credits int) *zoho.Answer {
	call.Location, call.Environment = j.connection.Location, zoho.Environment(j.connection.Environment)
	call.Token = j.access.Access
	began := time.Now()
	answer := j.Zoho.Do(ctx, call)
	if !j.carriedOut(answer) {
		credits = 0
	}
	j.Sendings.Credits += credits
	j.credits.Used = j.Sendings.Credits
	j.metrics.attempt(call.Method, j.connection, answer)
	j.Observer.Attempted(answer, began, credits)
	j.credits.Remaining, j.credits.Known = j.Observer.Remaining()
	return answer
}

func contentType(k envelope.BodyKind) string {
	switch k {
	case envelope.JSONBody:
		return "application/json"
	case envelope.TextBody:
		return "text/plain; charset=utf-8"
	case envelope.BytesBody, envelope.ObjectBody:
		return "application/octet-stream"
	}
	return ""
}

// withoutToken makes the request wait for a token, or for re-authorization.
func (j *job) withoutToken(err error) Result {
	var u *token.Unavailable
	if !errors.As(err, &u) {
		return j.wait(WaitToken, time.Second)
	}
	if u.Reason == token.Revoked {
		// Re-authorization brings the request back at once, by way of its queue,
		// unless it comes before this worker has heard of the revocation.
		return j.wait(WaitRevoked, maxTokenWait).because(u.Error())
	}
	// Spread those that wait for the same instant.
	return j.wait(WaitToken, min(max(time.Until(u.Until), 0), maxTokenWait)+rand.N(500*time.Millisecond)).because(u.Error())
}

// maxTokenWait bounds a wait for a token, however long the connection is blocked.
// Word of a changed token record or connection ends it earlier; this is for word
// that is missed.
const maxTokenWait = 30 * time.Second

// conclude makes the final response from the last answer and the verdict on it.
func (j *job) conclude(v verdict) Result {
	response := j.response()
	if v.record != "" {
		response.Status = 200
		response.Outcome, response.Records = envelope.Confirmed, &envelope.Records{Succeeded: 1}
		response.Body = envelope.Body{Kind: envelope.JSONBody, Data: fmt.Appendf(nil,
			`{"data":[{"code":"SUCCESS","details":{"id":%q},"message":"record already %s","status":"success"}]}`, v.record, v.done)}
	}
	if n := j.batch.merge(response, j.last); n > 0 && v.code == "" {
		v.code = envelope.OutcomeUnknown
		v.message = fmt.Sprintf("%d of %d records were sent and no answer came: look them up before sending them again", n, len(j.batch.settled))
	}
	if v.code == envelope.OutcomeUnknown {
		j.metrics.unknown.WithLabelValues(unknownNoAnswer).Inc()
	}
	if v.code != "" {
		response.Error = &envelope.Error{Code: v.code, Message: v.message}
	}
	return Result{Response: response}
}

// expired answers a request whose deadline is over, or will be before anything
// more can be done for it.
func (j *job) expired(when string) Result {
	switch {
	case j.lost != nil:
		return j.unsettled("the deadline passed " + when)
	case j.batch.begun():
		return j.conclude(verdict{action: deliver})
	}
	code, message := envelope.DeadlineExceeded, "the deadline passed "+when
	if j.connection != nil && j.connection.Status == connection.Revoked {
		code = envelope.ReauthorizationRequired
		message = "the connection was revoked and not re-authorized before the deadline"
	}
	if j.last != nil && j.last.Err != nil {
		message += "; last: " + j.last.Err.Error()
	}
	return j.fail(code, message)
}

// tried says how far it came.
func (j *job) tried() string {
	if j.Sendings.Attempts == 0 {
		return "before it was sent to Zoho"
	}
	return fmt.Sprintf("after %d attempts", j.Sendings.Attempts)
}

func (j *job) fail(code envelope.Code, message string) Result {
	switch s := j.Sendings; {
	case j.once || !j.writes():
	case s.Doubt:
		message += "; a sending of it that brought no answer may have been carried out"
	case s.Elsewhere:
		message += "; whether it was sent before is not known"
	}
	response := j.response()
	response.Error = &envelope.Error{Code: code, Message: message}
	return Result{Response: response}
}

// response carries the last answer of Zoho, if there was one.
func (j *job) response() *envelope.Response {
	response := &envelope.Response{
		ID: j.Request.ID, Connection: j.Delivery.Connection, Attempts: j.Sendings.Attempts,
		ReceivedAt: j.ReceivedAt, FinishedAt: j.Clock.Now(),
	}
	if response.FinishedAt.Before(j.ReceivedAt) {
		response.FinishedAt = j.ReceivedAt // the server's clock is known to a few milliseconds
	}
	if j.credits.Used > 0 || j.credits.Known {
		response.Credits = &j.credits
	}
	if a := j.last; a != nil && a.Status != 0 {
		response.Status = a.Status
		response.Headers = a.Headers
		if a.BodyError == nil && !a.TooLarge {
			response.Body = envelope.BodyOf(header(a.Headers, "Content-Type"), a.Body)
			if j.Request.Method != "GET" && response.Body.Kind == envelope.JSONBody {
				response.Records = zoho.RecordsOf(a.Body)
			}
		}
	}
	return response
}

func header(headers []envelope.Header, name string) string {
	for _, h := range headers {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

// wait makes the request come again, at its deadline at the latest. One that
// has to wait although its deadline is over (another worker may be sending it,
// or nothing can be looked up) waits as long as any other, or it would come in a
// tight loop.
func (j *job) wait(reason Reason, d time.Duration) Result {
	if left := j.left(); left > 0 {
		d = min(d, left)
	} else if j.lost != nil {
		return j.unsettled("the deadline passed before it could be looked up")
	}
	return Result{Wait: &Wait{Reason: reason, For: max(0, d)}}
}

// because says in words why the request waits.
func (r Result) because(why string) Result {
	if r.Wait != nil { // a lost request whose deadline is over doesn't wait
		r.Wait.Why = why
	}
	return r
}

// left is the time until the deadline.
func (j *job) left() time.Duration { return j.Request.Deadline.Sub(j.Clock.Now()) }

// sleep reports whether the pause ran to its end.
func (j *job) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-j.Stopping:
	case <-ctx.Done():
	}
	return false
}

// maxPause is the longest pause spent inside Do; a longer one is spent in the stream.
const maxPause = 30 * time.Second

// newBackoff supplies the pauses between attempts, with full jitter. Their upper
// ends are 1 s, 2 s, 4 s, 8 s, 16 s, then 30 s each; the deadline ends them.
func newBackoff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(500*time.Millisecond),
		backoff.WithMultiplier(2),
		backoff.WithRandomizationFactor(1),
		backoff.WithMaxInterval(15*time.Second),
		backoff.WithMaxElapsedTime(0),
	)
}

// claimPause is between two looks at a request that another worker is at.
func claimPause() time.Duration { return time.Second + rand.N(time.Second) }

// storagePause is for a JetStream that did not answer.
func storagePause() time.Duration { return 2*time.Second + rand.N(3*time.Second) }
