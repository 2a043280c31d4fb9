package consumer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/dead"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/failpoint"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/trace"
	"zoho-worker/internal/zoho"
)

// done takes the request off the stream.
func (c *Consumer) done(e *entry) error {
	if there, err := c.there(e); !there {
		return err
	}
	if delivery := c.hand.delivery(e); delivery != nil {
		if c.consumers.Load() > ackedMost {
			return c.removal.remove(e.sequence, delivery)
		}
		return delivery.Ack()
	}
	return c.Stream.DeleteMsg(c.calling, e.sequence)
}

// era is in which life of the stream of requests this worker is, as far as it can
// tell: a server that it was cut off from, or a lane's consumer that went, may have come
// back with another stream. Each of these only counts up.
func (c *Consumer) era(l *lane) uint64 {
	n := c.Conn.Stats().Reconnects + c.eras.Load()
	if l != nil {
		n += l.losses.Load()
	}
	return n
}

// there reports whether the stream still has the request. One that came in an earlier
// era may be gone, and its sequence, by which acks and deletions go, be another's.
func (c *Consumer) there(e *entry) (bool, error) {
	if e.era == c.era(e.lane) {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(c.calling, 5*time.Second)
	defer cancel()
	msg, err := c.Stream.GetMsg(ctx, e.sequence)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return false, nil
	case err != nil:
		return false, err
	case !msg.Time.Equal(e.entered):
		c.Logger.Warn("the stream of requests has lost the request, and another has its sequence: that one stays",
			"connection", e.connection, "sequence", e.sequence)
		return false, nil
	}
	return true, nil
}

// work relays and settles a request that is decoded; it returns why the request
// has to wait, nil where it is settled, or comes again by itself.
func (c *Consumer) work(queue string, e *entry) (wait *relay.Wait) {
	begun := time.Now()
	s := &settlement{Consumer: c, entry: e, queue: queue}
	s.ctx, s.span = c.Tracer.Receive(c.calling, e.header, e.connection)
	defer s.span.End()
	defer func() {
		if p := recover(); p != nil {
			c.Logger.Error("a request made the worker panic", "connection", s.connection, "id", s.id(),
				"panic", p, "stack", string(debug.Stack()))
			s.refuse(&envelope.Error{Code: envelope.Internal, Message: "the worker failed on this request: whether it was carried out is not known"})
			wait = s.end(begun)
		}
	}()
	if e.refused != nil {
		s.refuse(e.refused)
		return s.end(begun)
	}
	failpoint.Hit(failpoint.Decoded)
	d := &relay.Delivery{
		Connection: e.connection, Request: e.request, Operation: e.op, Digest: e.digest,
		ReceivedAt: e.stored, Redelivered: e.again, Stopping: c.pulling.Done(), Observer: e,
		Waited: e.waited, Sendings: e.sendings, Idle: e.idle || e.lane == nil, Heavy: e.ask.Heavy,
	}
	result := c.Relay.Do(s.ctx, d)
	e.sendings = d.Sendings
	defer result.Release()
	switch {
	case result.Wait != nil:
		c.metrics.waits[result.Wait.Reason].Inc()
		s.span.String("zoho.wait", string(result.Wait.Reason))
		c.Logger.Debug("request waits", "connection", s.connection, "queue", queue, "id", s.id(),
			"reason", result.Wait.Reason, "for", result.Wait.For, "why", result.Wait.Why)
		e.again = true // what was tried before may have left something
		return result.Wait
	case result.Stored != nil:
		s.repeat(result.Stored)
	default:
		s.answer(result.Response)
	}
	return s.end(begun)
}

// end says what became of a request that was tried. One whose answer could not be
// stored or sent stays in hand, and is tried again: a stored response is
// repeated, a read carried out once more.
func (s *settlement) end(begun time.Time) *relay.Wait {
	s.log(begun)
	if s.outcome != outcomeNotStored {
		return nil
	}
	s.again = true
	return &relay.Wait{Reason: relay.WaitStorage, For: max(s.pause, time.Second)}
}

func asError(err error) *envelope.Error {
	var e *envelope.Error
	if errors.As(err, &e) {
		return e
	}
	return &envelope.Error{Code: envelope.Internal, Message: "the envelope could not be read"}
}

// settlement is how one request ends. It is a slog.LogValuer: what the wide line
// says of the request.
type settlement struct {
	*Consumer
	*entry
	ctx      context.Context // Consumer.calling, with the span
	span     trace.Span
	queue    string
	response *envelope.Response
	outcome  string
	pause    time.Duration // before what is not stored is tried again; 0: a short one

	// What only the line says.
	operation    string
	waited, took time.Duration
}

func (s *settlement) id() string {
	if s.request == nil {
		return ""
	}
	return s.request.ID
}

// refuse answers an envelope that can't be carried out, or sets it aside where
// nobody can be answered. What the worker itself failed on is set aside as well:
// its requester can't tell why, whoever runs the worker has to see it.
func (s *settlement) refuse(e *envelope.Error) {
	if s.id() == "" {
		s.bury(e)
		return
	}
	if e.Code == envelope.Internal && !s.storeLetter(e) {
		return
	}
	if s.digest == [32]byte{} {
		s.digest = sha256.Sum256(s.data)
	}
	// Nobody may send a request of this id against its stored refusal.
	err := insist(s.calling, s.tried, func(ctx context.Context) error {
		err := s.Ledger.Close(ctx, s.connection, s.request.ID, s.digest)
		var held *ledger.HeldError
		var lost *ledger.LostError
		if errors.As(err, &lost) {
			err = s.Ledger.Seal(ctx, s.connection, s.request.ID, lost)
		}
		if errors.As(err, &held) || errors.Is(err, ledger.ErrExpired) {
			return nil // a claim that stands, as of a worker that panicked, serves as well
		}
		return err
	})
	if err != nil {
		s.outcome = outcomeNotStored
		s.Logger.Error("refusal not stored: the request comes again", "connection", s.connection, "id", s.id(), "err", err)
		return
	}
	s.answer(&envelope.Response{
		ID: s.request.ID, Connection: s.connection, ReceivedAt: s.stored, FinishedAt: s.Clock.Now(), Error: e,
	})
}

// answer stores the response, replies, and acks: in this order, so that whatever
// dies in between, redelivery repairs.
func (s *settlement) answer(response *envelope.Response) {
	s.response, s.outcome = response, outcomeAnswered
	ctx, span := trace.Begin(s.ctx, "respond")
	defer span.End()
	buffer := encoded.Get().(*[]byte)
	// To publish copies it, so that it is free again when this returns.
	defer encoded.Put(buffer)
	data := s.encode((*buffer)[:0], response)
	if cap(data) <= maxKept {
		*buffer = data[:0]
	}
	switch {
	case response.Error != nil && response.Error.Code == envelope.IDConflict:
		// The id's place belongs to the request that had it first.
		if s.request.ReplyTo == "" {
			s.bury(response.Error)
			return
		}
	case s.fleeting():
	default:
		there, err := s.Responses.store(ctx, s.connection, response, s.digest, data, s.tried)
		if err != nil {
			s.outcome = outcomeNotStored
			s.Logger.Error("response not stored: the request comes again", "connection", s.connection, "id", s.id(), "err", err)
			return
		}
		if there != nil {
			// Another worker answered first, or another request had the id.
			s.outcome = outcomeRepeated
			if there.Digest == s.digest {
				data = there.Data
			} else if s.request.ReplyTo == "" {
				s.bury(&envelope.Error{Code: envelope.IDConflict, Message: "the id was answered for a request with other content"})
				return
			}
		}
		failpoint.Hit(failpoint.Stored)
	}
	if s.reply(data) {
		s.ack()
	}
}

// repeat sends a response that is stored already.
func (s *settlement) repeat(data []byte) {
	s.outcome = outcomeRepeated
	_, span := trace.Begin(s.ctx, "respond")
	defer span.End()
	if s.reply(data) {
		s.ack()
	}
}

// fleeting responses are not stored: a read is safe to carry out again, and an
// inbox belongs to a caller that waits. The reply precedes the ack on the same
// connection, so the server has the one before the other.
func (s *settlement) fleeting() bool {
	return s.request.Method == "GET" && (s.op.Name == "" || s.op.Repeatable) &&
		(strings.HasPrefix(s.request.ReplyTo, nats.InboxPrefix) || strings.HasPrefix(s.request.ReplyTo, envelope.WayBack))
}

// encoded holds the memory of responses that are being published; one that grew
// larger than maxKept is left to the collector.
var encoded = sync.Pool{New: func() any { return new([]byte) }}

const maxKept = 64 << 10

// encode makes the response fit into a message, in dst's memory.
func (s *settlement) encode(dst []byte, response *envelope.Response) []byte {
	data := response.AppendJSON(slices.Grow(dst, 512+len(response.Body.Data)*5/4))
	if limit := int(s.Conn.MaxPayload()) - headroom; len(data) > limit {
		response.Body = envelope.Body{}
		if response.Error == nil { // what is there says more
			response.Error = &envelope.Error{
				Code:    envelope.TooLarge,
				Message: fmt.Sprintf("the response has %d bytes and a message holds %d: ask for fewer records or fields", len(data), limit),
			}
		}
		data = response.AppendJSON(data[:0])
	}
	return data
}

// headroom is what a message's headers may take of the server's max_payload.
const headroom = 4 << 10

// reply reports whether the reply is on its way. If it is not, the request is
// given back: a stored response is repeated, a read carried out again.
func (s *settlement) reply(data []byte) bool {
	if s.request == nil || s.request.ReplyTo == "" {
		return true
	}
	err := s.send(data)
	if errors.Is(err, nats.ErrMaxPayload) {
		// It was stored when a message could be larger, and would come again for ever.
		err = s.send((&envelope.Response{
			ID: s.request.ID, Connection: s.connection, ReceivedAt: s.stored, FinishedAt: s.Clock.Now(),
			Error: &envelope.Error{
				Code: envelope.TooLarge,
				Message: fmt.Sprintf("the response is stored at %s, its %d bytes are more than a message holds now, %d",
					ResponseSubject(s.connection, s.request.ID), len(data), s.Conn.MaxPayload()),
			},
		}).AppendJSON(nil))
	}
	if err != nil {
		s.outcome = outcomeNotStored
		s.Logger.Warn("reply not sent: the request comes again", "connection", s.connection, "id", s.id(), "err", err)
		return false
	}
	failpoint.Hit(failpoint.Replied)
	return true
}

// send sends a reply.
func (s *settlement) send(data []byte) error {
	header := trace.Inject(s.ctx, nil)
	if header == nil {
		return s.Conn.Publish(s.request.ReplyTo, data)
	}
	return s.Conn.PublishMsg(&nats.Msg{Subject: s.request.ReplyTo, Data: data, Header: header})
}

func (s *settlement) ack() {
	if err := s.done(s.entry); err != nil {
		s.Logger.Debug("request not acked: its response will be repeated", "connection", s.connection, "id", s.id(), "err", err)
	}
	failpoint.Hit(failpoint.Acked)
}

// bury keeps the message whole for a person, with the reason, and acks it.
func (s *settlement) bury(e *envelope.Error) {
	if s.storeLetter(e) {
		s.outcome = outcomeDead
		s.response = &envelope.Response{Error: e}
		s.ack()
	}
}

// storeLetter stores the dead letter; false: the request comes again.
func (s *settlement) storeLetter(e *envelope.Error) bool {
	msg := &nats.Msg{Subject: "zoho.dead." + s.connection, Data: s.data, Header: nats.Header{}}
	for name, values := range s.header {
		// The server acts on its own headers: kept for reading, not for acting.
		if strings.HasPrefix(name, "Nats-") {
			name = dead.OriginalPrefix + name
		}
		msg.Header[name] = values
	}
	ours := nats.Header{
		dead.CodeHeader:     {string(e.Code)},
		dead.ReasonHeader:   {strings.ToValidUTF8(e.Message, "?")},
		dead.SubjectHeader:  {s.subject},
		dead.ReceivedHeader: {s.stored.UTC().Format(time.RFC3339Nano)},
		dead.LifeHeader:     s.life(),
		// The same message buried twice is one dead letter.
		jetstream.MsgIDHeader: {dead.MsgID(RequestStream, s.sequence, s.data)},
	}
	maps.Copy(msg.Header, ours)
	if msg.Size() > int(s.Conn.MaxPayload()) || register.HeaderSize(msg.Header) > register.MaxHeader {
		// The stream of requests takes no message that doesn't leave room for these.
		ours.Add(dead.LifeHeader, dead.Event{At: s.Clock.Now(), What: "its own headers did not fit into the dead letter"}.String())
		msg.Header = ours
	}
	err := insist(s.calling, s.tried, func(ctx context.Context) error {
		_, err := s.JetStream.PublishMsg(ctx, msg)
		return err
	})
	if err != nil {
		s.outcome = outcomeNotStored
		s.Logger.Error("dead letter not stored: the request comes again", "connection", s.connection, "err", err)
	}
	if errors.Is(err, nats.ErrMaxPayload) {
		s.pause = time.Minute // until the server's max_payload is again what it was when this was published
	}
	return err == nil
}

// life is what this worker knows of the request's life since it was published.
func (s *settlement) life() []string {
	now := s.Clock.Now()
	at := func(t time.Time) time.Time { return now.Add(-time.Since(t)) } // by the server's clock
	had := dead.Event{At: now, What: fmt.Sprintf("read out of the stream by worker %s (pid %d)", host, os.Getpid())}
	if delivery := s.hand.delivery(s.entry); delivery != nil {
		had = dead.Event{At: at(s.since), What: fmt.Sprintf("in hand of worker %s (pid %d)", host, os.Getpid())}
		if meta, err := delivery.Metadata(); err == nil {
			had.What += fmt.Sprintf(", delivery %d", meta.NumDelivered)
		}
	}
	lines := []string{had.String()}
	for i, t := range s.tries {
		if i == 0 && s.untold > 0 {
			lines = append(lines, dead.Event{At: at(t.began), What: fmt.Sprintf("%d calls of Zoho before this", s.untold)}.String())
		}
		lines = append(lines, dead.Event{At: at(t.began), What: t.what()}.String())
	}
	return lines
}

// describe says in the span what the wide line says.
func (s *settlement) describe(method, class string, code envelope.Code, status, attempts int) {
	s.span.String("zoho.request.id", s.id())
	s.span.String("zoho.queue", s.queue)
	s.span.String("http.request.method", method)
	s.span.String("zoho.class", class)
	s.span.String("zoho.outcome", s.outcome)
	s.span.Int("zoho.attempts", attempts)
	if status != 0 {
		s.span.Int("http.response.status_code", status)
	}
	if code != "" {
		s.span.String("zoho.code", string(code))
		s.span.Fail(string(code))
	}
}

// what is what became of the request, each zero where there is none.
func (s *settlement) what() (code envelope.Code, status, attempts int) {
	if s.response == nil {
		return "", 0, 0
	}
	if s.response.Error != nil {
		code = s.response.Error.Code
	}
	return code, s.response.Status, s.response.Attempts
}

// method is the request's, "" where it can't be called.
func (s *settlement) method() string {
	if s.request == nil || s.request.Path == "" {
		return ""
	}
	return s.request.Method
}

// log writes the one wide line of a request, and counts it.
func (s *settlement) log(begun time.Time) {
	method := s.method()
	code, status, attempts := s.what()
	class := none
	s.operation = none
	if method != "" {
		if s.op.Name == "" {
			s.op = zoho.OperationOf(method, s.request.Path)
		}
		s.operation, class = s.op.Name, s.op.Class()
	}
	now := time.Now()
	s.took = now.Sub(begun)
	s.waited = max(begun.Sub(s.stored.Add(now.Sub(s.Clock.Now()))), 0)
	s.metrics.settled(method, class, s.outcome, code)
	if s.span.On() {
		s.describe(method, class, code, status, attempts)
	}
	s.metrics.age.Observe((s.waited + s.took).Seconds())
	level := slog.LevelInfo
	if s.outcome == outcomeDead || code == envelope.Internal {
		level = slog.LevelWarn
	}
	handler := s.Logger.Handler()
	if !handler.Enabled(s.calling, level) {
		return
	}
	// By hand, because slog.Logger would look up the caller of each line, which no
	// handler here shows, for as much as a quarter of the line's price.
	line := slog.NewRecord(now, level, "request settled", 0)
	line.AddAttrs(slog.Any("", s))
	_ = handler.Handle(s.calling, line)
}

// LogValue implements slog.LogValuer.
func (s *settlement) LogValue() slog.Value {
	attrs := make([]slog.Attr, 0, 16)
	s.EachAttr(func(a slog.Attr) bool {
		attrs = append(attrs, a)
		return true
	})
	return slog.GroupValue(attrs...)
}

// EachAttr calls do with one attribute of the wide line after the other, until it
// returns false: a handler that asks for them one by one needs no memory for all.
func (s *settlement) EachAttr(do func(slog.Attr) bool) {
	code, status, attempts := s.what()
	more := do(slog.String("connection", s.connection)) && do(slog.String("queue", s.queue)) &&
		do(slog.String("method", s.method())) && do(slog.String("operation", s.operation)) && do(slog.String("id", s.id())) &&
		do(slog.Int("attempts", attempts)) && do(slog.String("outcome", s.outcome)) && do(slog.String("code", string(code))) &&
		do(slog.Int("status", status)) && do(slog.Float64("waited_ms", milliseconds(s.waited))) &&
		do(slog.Float64("took_ms", milliseconds(s.took)))
	if n := len(s.tries); more && n > 0 && s.tries[n-1].err != nil {
		_ = do(slog.String("err", s.tries[n-1].why()))
	}
}

// milliseconds to the microsecond.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
