package consumer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/dead"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/relay"
)

// faulty is a JetStream that takes nothing at subjects with a prefix: for good, as where
// the server's max_payload was lowered, or once.
type faulty struct {
	jetstream.JetStream
	mu     sync.Mutex
	prefix string
	err    error
	once   bool
}

func (f *faulty) fail(prefix string, err error, once bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.prefix, f.err, f.once = prefix, err, once
}

func (f *faulty) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	f.mu.Lock()
	prefix, err := f.prefix, f.err
	hit := prefix != "" && strings.HasPrefix(msg.Subject, prefix)
	if hit && f.once {
		f.prefix = ""
	}
	f.mu.Unlock()
	if hit {
		return nil, err
	}
	return f.JetStream.PublishMsg(ctx, msg, o...)
}

// log is what a worker says, to be read while it does.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// settling is a world with a worker whose work is tried request by request.
type settling struct {
	*world
	js    *faulty
	c     *Consumer
	log   *log
	inbox *nats.Subscription // where callers hear of answers
}

func settle(t *testing.T, do does) *settling {
	t.Helper()
	s := &settling{world: newWorld(t), log: &log{}}
	s.js = &faulty{JetStream: s.world.js}
	conn, err := nats.Connect(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	s.c = s.with(do, s.js, conn, slog.NewTextHandler(s.log, nil))
	s.c.mu.Lock()
	s.c.leaving[s.c.directory.queue("demo")] = true // or the worker would serve it
	s.c.mu.Unlock()
	hears := s.world.js.Conn()
	if s.inbox, err = hears.SubscribeSync(hears.NewInbox()); err == nil {
		err = hears.Flush() // the worker has a connection of its own
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// request is one that was handed over.
func (s *settling) request(id, method string) (*entry, *nats.Subscription) {
	delivery, acks := s.delivery()
	e := &entry{
		subject: "zoho.requests.demo", connection: "demo", sequence: uint64(len(id)), data: []byte(id + method), delivery: delivery, since: time.Now(),
		stored: time.Now(), request: &envelope.Request{ID: id, Method: method, Path: "/crm/v8/Leads", ReplyTo: s.inbox.Subject},
	}
	e.entered, e.digest = e.stored, [32]byte{1}
	return e, acks
}

// last is the last message at a subject, nil where there is none.
func (s *settling) last(stream, subject string) *jetstream.RawStreamMsg {
	s.t.Helper()
	from, err := s.world.js.Stream(s.t.Context(), stream)
	if err != nil {
		s.t.Fatal(err)
	}
	msg, err := from.GetLastMsgForSubject(s.t.Context(), subject)
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		s.t.Fatal(err)
	}
	return msg
}

func (s *settling) letters() uint64 {
	s.t.Helper()
	stream, err := s.world.js.Stream(s.t.Context(), DeadStream)
	if err != nil {
		s.t.Fatal(err)
	}
	return stream.CachedInfo().State.Msgs
}

// replies are how many answers callers have heard that weren't looked at.
func (s *settling) replies() int {
	s.t.Helper()
	for _, conn := range []*nats.Conn{s.c.Conn, s.world.js.Conn()} {
		if err := conn.Flush(); err != nil && !conn.IsClosed() {
			s.t.Fatal(err)
		}
	}
	n, _, err := s.inbox.Pending()
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// unsettled fails where a request that has to come again was acked, or answered.
func (s *settling) unsettled(e *entry, wait *relay.Wait, acks *nats.Subscription, pause time.Duration) {
	s.t.Helper()
	if wait == nil || wait.Reason != relay.WaitStorage || wait.For != pause || !e.again {
		s.t.Errorf("it waits: %+v, handed over again: %v", wait, e.again)
	}
	replies := s.replies()
	if n, _, _ := acks.Pending(); n != 0 || replies != 0 {
		s.t.Errorf("%d acks, %d replies of what isn't stored", n, replies)
	}
}

// fails is a relay with a bug: what the worker makes of its panic is what is tested.
func fails(*relay.Delivery) relay.Result { panic("a bug, played by the test") }

// A request is acked when its answer is stored, and its caller was told, and not before:
// what can't be stored or sent is tried again.
func TestNothingIsAckedBeforeItIsStored(t *testing.T) {
	t.Parallel()
	s := settle(t, func(d *relay.Delivery) relay.Result {
		if d.Request.ID == "panics" {
			return fails(d)
		}
		return answeredOf(d)
	})
	refusal := &envelope.Error{Code: envelope.InvalidRequest, Message: "no"}
	for _, c := range []struct {
		id, full string // nothing can be stored at that prefix
		refused  *envelope.Error
		pause    time.Duration
		letters  uint64 // that are stored all the same
	}{
		{id: "answered", full: "zoho.responses.", pause: time.Second},
		{id: "refused", full: "zoho.responses.", refused: refusal, pause: time.Second},
		{id: "unclaimed", full: "zoho.claims.", refused: refusal, pause: time.Second},
		{id: "panics", full: "zoho.responses.", pause: time.Second, letters: 1},
		{id: "panics", full: "zoho.dead.", pause: time.Minute},
		{id: "", full: "zoho.dead.", refused: refusal, pause: time.Minute},
	} {
		before := s.letters()
		e, acks := s.request(c.id, "PUT")
		e.refused = c.refused
		s.js.fail(c.full, nats.ErrMaxPayload, false)
		s.unsettled(e, s.c.work("q", e), acks, c.pause)
		if e.unstored.Load() == nil {
			t.Errorf("%s: nobody is told why", c.id)
		}
		if n := s.letters() - before; n != c.letters {
			t.Errorf("%s, %s: %d dead letters", c.id, c.full, n)
		}
		s.js.fail("", nil, false)
		if wait := s.c.work("q", e); wait != nil || e.unstored.Load() != nil {
			t.Errorf("%s: waits when it can be stored: %+v", c.id, wait)
		}
		s.wantAck(acks, "+ACK")
		want := 1
		if c.id == "" {
			want = 0
		}
		if s.replies() != want || want == 1 && s.last(ResponseStream, ResponseSubject("demo", c.id)) == nil {
			t.Errorf("%s: not answered once, or not stored", c.id)
		}
		for range want {
			_, _ = s.inbox.NextMsg(0)
		}
	}
	// One whose caller can't be told: the connection is gone.
	e, acks := s.request("told", "PUT")
	s.c.Conn.Close()
	s.unsettled(e, s.c.work("q", e), acks, time.Second)
}

// What the worker itself failed on is answered, kept as a dead letter, and told as a
// warning; nobody sends it any more. Of two copies there is one letter.
func TestRefusedForGood(t *testing.T) {
	t.Parallel()
	s := settle(t, fails)
	for range 2 {
		e, acks := s.request("panics", "POST")
		e.header = nats.Header{"Nats-Msg-Id": {"callers"}, "Traceparent": {"x"}}
		if wait := s.c.work("q", e); wait != nil {
			t.Errorf("waits: %+v", wait)
		}
		s.wantAck(acks, "+ACK")
	}
	if !strings.Contains(s.log.String(), `level=WARN msg="request settled"`) {
		t.Errorf("the log has no warning:\n%s", s.log)
	}
	letter := s.last(DeadStream, "zoho.dead.demo")
	if letter == nil || s.letters() != 1 {
		t.Fatalf("%d dead letters", s.letters())
	}
	for name, want := range map[string]string{
		dead.OriginalPrefix + "Nats-Msg-Id": "callers", "Traceparent": "x", dead.CodeHeader: string(envelope.Internal), dead.SubjectHeader: "zoho.requests.demo",
	} {
		if got := letter.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	// By whatever content: an envelope that couldn't be read has no digest of its own.
	mine, others := [32]byte{1}, sha256.Sum256([]byte("refusedPOST"))
	bad, _ := s.request("refused", "POST")
	bad.refused, bad.digest = &envelope.Error{Code: envelope.InvalidRequest}, [32]byte{}
	s.c.work("q", bad)
	for id, digest := range map[string][32]byte{"panics": mine, "refused": others} {
		if _, err := s.c.Ledger.Claim(t.Context(), "demo", id, digest); !errors.Is(err, ledger.ErrExpired) {
			t.Errorf("%s can still be sent: %v", id, err)
		}
	}
	// A claim that stands serves as well; one that was lost is sealed.
	held, err := s.c.Ledger.Claim(t.Context(), "demo", "held", mine)
	if err != nil {
		t.Fatal(err)
	}
	claim, err := s.c.Ledger.Claim(t.Context(), "demo", "lost", mine)
	if err != nil {
		t.Fatal(err)
	}
	lost, err := claim.Lose(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"held", "lost"} {
		e, acks := s.request(id, "POST")
		e.refused = &envelope.Error{Code: envelope.InvalidRequest}
		if wait := s.c.work("q", e); wait != nil {
			t.Errorf("%s waits: %+v", id, wait)
		}
		s.wantAck(acks, "+ACK")
	}
	if held.Permit() != nil {
		t.Error("a claim that stood does no more")
	}
	if _, err := s.c.Ledger.Resume(t.Context(), "demo", "lost", mine, lost); err == nil {
		t.Error("a lost request that was refused is taken over")
	}
}

// Of two answers the first stored stands, and everybody gets that one; an id's place
// belongs to the request that had it first. What is answered to an inbox and may be
// carried out again isn't stored.
func TestWhichAnswerStands(t *testing.T) {
	t.Parallel()
	s := settle(t, func(d *relay.Delivery) relay.Result {
		r := answeredOf(d)
		if d.Request.ID == "conflict" {
			r.Response.Error = &envelope.Error{Code: envelope.IDConflict, Message: "no"}
		}
		return r
	})
	// The caller hears what is stored.
	const there = "the first answer"
	store := func(id string, digest [32]byte) {
		t.Helper()
		response := &envelope.Response{ID: id, Connection: "demo"}
		if _, err := s.c.Responses.store(t.Context(), "demo", response, digest, []byte(there), func(error) {}); err != nil {
			t.Fatal(err)
		}
	}
	store("repeated", [32]byte{1})
	store("another's", [32]byte{2})
	for _, c := range []struct {
		id, method string
		alone      bool // nobody hears of it
		name       string
		op         bool // may be repeated
		says       string
		stored     bool
		letters    uint64
	}{
		{id: "first", method: "PUT", says: `"status":200`, stored: true},
		{id: "first-alone", method: "PUT", alone: true, stored: true},
		{id: "repeated", method: "PUT", says: there, stored: true},
		{id: "another's", method: "PUT", says: `"status":200`, stored: true},
		{id: "another's", method: "PUT", alone: true, stored: true, letters: 1},
		{id: "conflict", method: "PUT", says: `"id_conflict"`},
		{id: "conflict", method: "PUT", alone: true, letters: 1},
		{id: "read", method: "GET", says: `"status":200`},
		{id: "read-operation", method: "GET", name: "records.get", op: true, says: `"status":200`},
		{id: "function-by-get", method: "GET", name: "function", says: `"status":200`, stored: true},
	} {
		before := s.letters()
		e, acks := s.request(c.id, c.method)
		e.op.Name, e.op.Repeatable = c.name, c.op
		if c.alone {
			e.request.ReplyTo = ""
			e.data = []byte("alone " + c.id) // or its letter would be the same one
		}
		if wait := s.c.work("q", e); wait != nil {
			t.Errorf("%+v waits: %+v", c, wait)
		}
		s.wantAck(acks, "+ACK")
		if c.alone != (s.replies() == 0) {
			t.Errorf("%+v: %d replies", c, s.replies())
		}
		if !c.alone {
			if msg, err := s.inbox.NextMsg(time.Minute); err != nil || !strings.Contains(string(msg.Data), c.says) {
				t.Errorf("%+v: told %v, %v", c, msg, err)
			}
		}
		if stored := s.last(ResponseStream, ResponseSubject("demo", c.id)) != nil; stored != c.stored || s.letters()-before != c.letters {
			t.Errorf("%+v: stored %v, %d dead letters", c, stored, s.letters()-before)
		}
	}
	// Refused, and there is none: that is no answer that stands.
	s.js.fail("zoho.responses.", &jetstream.APIError{ErrorCode: jetstream.JSErrCodeStreamWrongLastSequence}, true)
	store("odd", [32]byte{1})
	if s.last(ResponseStream, ResponseSubject("demo", "odd")) == nil {
		t.Error("a response that was refused without another in its place isn't stored")
	}
}

// What is more than a message holds is said, in place of it; what is said already stays.
func TestMoreThanAMessageHolds(t *testing.T) {
	t.Parallel()
	large := bytes.Repeat([]byte("x"), 2<<20)
	s := settle(t, func(d *relay.Delivery) relay.Result {
		r := answeredOf(d)
		switch d.Request.ID {
		case "stored":
			return relay.Result{Stored: large} // when a message could be larger
		case "unknown":
			r.Response.Error = &envelope.Error{Code: envelope.OutcomeUnknown, Message: "why"}
		}
		r.Response.Body = envelope.Body{Kind: envelope.TextBody, Data: large}
		return r
	})
	for id, code := range map[string]envelope.Code{"stored": envelope.TooLarge, "large": envelope.TooLarge, "unknown": envelope.OutcomeUnknown} {
		e, acks := s.request(id, "PUT")
		if wait := s.c.work("q", e); wait != nil {
			t.Errorf("%s waits: %+v", id, wait)
		}
		s.wantAck(acks, "+ACK")
		msg, err := s.inbox.NextMsg(time.Minute)
		if err != nil || !strings.Contains(string(msg.Data), `"`+string(code)+`"`) {
			t.Errorf("%s: told %v, %v", id, msg, err)
		}
	}
	// A dead letter has room for the message at least, and says what it has no room for.
	e, _ := s.request("", "PUT")
	e.refused, e.header = &envelope.Error{Code: envelope.InvalidRequest, Message: "why"}, nats.Header{"Long": {strings.Repeat("x", 64<<10)}}
	if wait := s.c.work("q", e); wait != nil {
		t.Errorf("a dead letter waits: %+v", wait)
	}
	letter := s.last(DeadStream, "zoho.dead.demo")
	if letter == nil || !bytes.Equal(letter.Data, e.data) || letter.Header.Get("Long") != "" || letter.Header.Get(dead.ReasonHeader) != "why" {
		t.Fatalf("%+v", letter)
	}
	if life := letter.Header.Values(dead.LifeHeader); !strings.Contains(life[len(life)-1], "did not fit") {
		t.Errorf("its life: %v", life)
	}
}

// What a request's life was is told with its last calls, and how many there were before.
func TestLifeOfADeadLetter(t *testing.T) {
	t.Parallel()
	s := settle(t, answeredOf)
	e, _ := s.request("", "PUT")
	e.refused = &envelope.Error{Code: envelope.InvalidRequest}
	for i := range triesTold + 2 {
		e.tries = append(e.tries, try{began: time.Now(), status: 500 + i})
	}
	e.tries, e.untold = e.tries[2:], 2
	s.c.work("q", e)
	life := s.last(DeadStream, "zoho.dead.demo").Header.Values(dead.LifeHeader)
	if len(life) != 2+triesTold || !strings.Contains(life[0], "in hand of worker") || !strings.Contains(life[1], "2 calls of Zoho before") || !strings.Contains(life[2], "502") {
		t.Errorf("%d lines: %q", len(life), life)
	}
}

// What is in the stream under a request's sequence may be another by now: after a lost
// connection or consumer it is looked up before it is acked, and another one stays.
func TestAckOfAnotherEra(t *testing.T) {
	t.Parallel()
	s := settle(t, answeredOf)
	_, l := orgOf(s.c.directory.limits(""), (&state{}).State, laneKey{"demo", Interactive})
	publish := func() *jetstream.RawStreamMsg {
		t.Helper()
		ack, err := s.world.js.Publish(t.Context(), "zoho.requests.demo", []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		msg, err := s.c.Stream.GetMsg(t.Context(), ack.Sequence)
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	for name, c := range map[string]struct {
		lane   *lane
		change func()
		gone   bool
		other  bool
		acked  bool
	}{
		"nothing happened":              {change: func() {}, other: true, acked: true},
		"another stream, and there":     {change: func() { s.c.eras.Add(1) }, acked: true},
		"another stream, and gone":      {change: func() { s.c.eras.Add(1) }, gone: true},
		"another stream, and another":   {change: func() { s.c.eras.Add(1) }, other: true},
		"a lost consumer, and there":    {lane: l, change: func() { l.losses.Add(1) }, acked: true},
		"a lost consumer, and another":  {lane: l, change: func() { l.losses.Add(1) }, other: true},
		"another lane's lost consumer":  {change: func() { l.losses.Add(1) }, other: true, acked: true},
		"a lost connection, and there":  {change: s.reconnect, acked: true},
		"a lost connection, and not it": {change: s.reconnect, other: true},
	} {
		msg := publish()
		delivery, acks := s.delivery()
		e := &entry{connection: "demo", sequence: msg.Sequence, entered: msg.Time, delivery: delivery, lane: c.lane, era: s.c.era(c.lane)}
		if c.other {
			e.entered = e.entered.Add(-time.Second)
		}
		if c.gone {
			if err := s.c.Stream.DeleteMsg(t.Context(), msg.Sequence); err != nil {
				t.Fatal(err)
			}
		}
		c.change()
		if err := s.c.done(e); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.replies() // what was sent has come
		if n, _, _ := acks.Pending(); n > 0 != c.acked {
			t.Errorf("%s: %d acks", name, n)
		}
	}
}

// reconnect has the worker's connection lost and made again.
func (s *settling) reconnect() {
	s.t.Helper()
	before := s.c.Conn.Stats().Reconnects
	if err := s.c.Conn.ForceReconnect(); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "it is connected again", func() bool { return s.c.Conn.Stats().Reconnects > before && s.c.Conn.IsConnected() })
}

// Where the stream has many consumers, what is settled is deleted, and the server tells of
// every 64th; what is beyond those under way is acked.
func TestDeletedWhereThereAreManyConsumers(t *testing.T) {
	t.Parallel()
	s := settle(t, answeredOf)
	settled := func() (acks *nats.Subscription, gone func() bool) {
		t.Helper()
		ack, err := s.world.js.Publish(t.Context(), "zoho.requests.demo", []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		delivery, acks := s.delivery()
		if err := s.c.done(&entry{sequence: ack.Sequence, delivery: delivery, era: s.c.era(nil)}); err != nil {
			t.Fatal(err)
		}
		return acks, func() bool {
			_, err := s.c.Stream.GetMsg(t.Context(), ack.Sequence)
			return errors.Is(err, jetstream.ErrMsgNotFound)
		}
	}
	s.c.consumers.Store(ackedMost)
	acks, _ := settled()
	s.wantAck(acks, "+ACK")
	s.c.consumers.Store(ackedMost + 1)
	for range toldEvery {
		acks, gone := settled()
		eventually(t, "it is deleted", gone)
		if n, _, _ := acks.Pending(); n != 0 {
			t.Fatal("it is acked as well")
		}
	}
	eventually(t, "the server tells", func() bool { return s.c.removal.done.Load() == toldEvery })
	s.c.removal.asked.Store(toldEvery + deletionsMost)
	acks, _ = settled()
	s.wantAck(acks, "+ACK")
	// What was never handed over is deleted, however many consumers there are.
	ack, err := s.world.js.Publish(t.Context(), "zoho.requests.demo", []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.c.done(&entry{sequence: ack.Sequence, era: s.c.era(nil)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.c.Stream.GetMsg(t.Context(), ack.Sequence); !errors.Is(err, jetstream.ErrMsgNotFound) {
		t.Errorf("it is there: %v", err)
	}
}

// For how long a request has waited is told by the server's clock.
func TestWaitedByTheServersClock(t *testing.T) {
	t.Parallel()
	c := stub(nil)
	now := time.Now()
	c.Clock.Observe(now.Add(time.Hour), now)
	s := &settlement{Consumer: c, entry: &entry{stored: now.Add(time.Hour - 2*time.Second)}}
	if s.log(now); s.waited < 2*time.Second || s.waited > time.Minute {
		t.Errorf("waited for %s", s.waited)
	}
}

// What is known of a request's sendings is there when it is tried again.
func TestSendingsAreRemembered(t *testing.T) {
	t.Parallel()
	s := settle(t, func(d *relay.Delivery) relay.Result {
		if d.Sendings.Attempts++; d.Redelivered {
			return answeredOf(d)
		}
		return relay.Result{Wait: &relay.Wait{Reason: relay.WaitRetry, For: time.Hour}}
	})
	e, acks := s.request("again", "PUT")
	if wait := s.c.work("q", e); wait == nil || wait.For != time.Hour || e.sendings.Attempts != 1 {
		t.Errorf("waits %+v, after %d attempts", wait, e.sendings.Attempts)
	}
	if wait := s.c.work("q", e); wait != nil || e.sendings.Attempts != 2 {
		t.Errorf("waits %+v, after %d attempts", wait, e.sendings.Attempts)
	}
	s.wantAck(acks, "+ACK")
}
