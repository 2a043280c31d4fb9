package consumer

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
)

// noTokens is a token source that nobody asks.
type noTokens struct{}

func (noTokens) Look(string) token.View    { return token.View{} }
func (noTokens) Watch(func(string)) func() { return func() {} }

// stub is a worker that has looked at the stream and does nothing by itself.
func stub(stream jetstream.Stream) *Consumer {
	c := New(Options{Clock: &register.Clock{}, Decoder: &envelope.Decoder{}, Tokens: noTokens{}, Logger: slog.New(slog.DiscardHandler), MaxInFlight: 10})
	c.Stream, c.waiting = stream, map[string]int{}
	return c
}

// serve has the stub serve the org of some connections.
func (c *Consumer) serveOrgOf(status connection.Status, names ...string) *org {
	for _, name := range names {
		c.directory.put(&connection.Connection{Name: name, Location: "us", OrgID: "1", Status: status, Concurrency: 5})
	}
	o, l := orgOf(flow.Limits{Places: 5}, flow.State{}, laneKey{})
	delete(o.lanes, l.laneKey)
	o.Consumer, o.name, o.quiet = c, c.directory.queue(names[0]), time.Now()
	c.orgs[o.name] = o
	return o
}

// named are n names of connections.
func named(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprint("c", i))
	}
	return names
}

// stored is a stream with a number of requests by subject, whose consumers have some
// in hand; it counts what it is asked.
type stored struct {
	jetstream.Stream
	subjects map[string]uint64
	inHand   map[string]int // by consumer
	fails    func(asked int) error
	asked    int // for consumers
	read     int
}

func (s *stored) Info(context.Context, ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	return &jetstream.StreamInfo{State: jetstream.StreamState{Subjects: s.subjects}}, nil
}

func (s *stored) Consumer(_ context.Context, name string) (jetstream.Consumer, error) {
	s.asked++
	if s.fails != nil {
		if err := s.fails(s.asked); err != nil {
			return nil, err
		}
	}
	n, ok := s.inHand[name]
	if !ok {
		return nil, jetstream.ErrConsumerNotFound
	}
	return handed{n: n}, nil
}

func (s *stored) GetMsg(context.Context, uint64, ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	s.read++
	return nil, jetstream.ErrMsgNotFound
}

// handed is a consumer that has handed out n requests.
type handed struct {
	jetstream.Consumer
	n int
}

func (h handed) CachedInfo() *jetstream.ConsumerInfo {
	return &jetstream.ConsumerInfo{NumAckPending: h.n}
}

// What a worker before has in hand of many lanes is counted in the end, however few of
// them can be asked about at a time.
func TestLanesOfAnInheritedOrgAreCounted(t *testing.T) {
	t.Parallel()
	s := &stored{subjects: map[string]uint64{}, inHand: map[string]int{}}
	names := named(12)
	for _, name := range names {
		s.subjects[requestPrefix+name], s.inHand[name] = 3, 1
	}
	s.fails = func(asked int) error {
		if asked%6 == 0 {
			return context.DeadlineExceeded
		}
		return nil
	}
	o := stub(s).serveOrgOf(connection.Active, names...)
	o.inherited = true
	for range len(names) {
		found, all := o.find(o)
		if !all {
			continue
		}
		if len(found) != len(names) || o.foreign() != len(names) {
			t.Errorf("%d lanes, %d requests in hand", len(found), o.foreign())
		}
		return
	}
	t.Errorf("only %d lanes are counted", len(o.before))
}

// An org whose requests wait for a person is not given up for want of work: its next
// owner would read all their deadlines anew.
func TestParkedOrgIsKept(t *testing.T) {
	t.Parallel()
	c := stub(nil)
	o := c.serveOrgOf(connection.Revoked, "gone", "other")
	o.quiet, c.waiting["other"] = time.Now().Add(-time.Hour), 1
	c.tidy(t.Context())
	if c.orgs[o.name] != o || o.closed {
		t.Error("it is given up")
	}
}

// What there is no time for is not given up by half: closed, and not released.
func TestNoTimeToGiveUp(t *testing.T) {
	t.Parallel()
	c := stub(nil)
	o := c.serveOrgOf(connection.Active, "demo")
	ended, end := context.WithCancel(t.Context())
	end()
	c.giveUpAll(ended, []*org{o}, nil)
	if c.orgs[o.name] != o || o.closed {
		t.Error("it is closed")
	}
}

// counting is a relay that answers when the test lets it, and knows how many requests
// were under way at once.
type counting struct {
	held    func(id string) bool
	release chan struct{}

	mu             sync.Mutex
	running, most  int
	started, ended []string
}

func (r *counting) Do(_ context.Context, d *relay.Delivery) relay.Result {
	r.mu.Lock()
	r.running++
	r.most = max(r.most, r.running)
	r.started = append(r.started, d.Request.ID)
	r.mu.Unlock()
	if r.held(d.Request.ID) {
		<-r.release
	}
	r.mu.Lock()
	r.running--
	r.ended = append(r.ended, d.Request.ID)
	r.mu.Unlock()
	return relay.Result{Response: &envelope.Response{ID: d.Request.ID, Connection: d.Connection, Status: 200, ReceivedAt: d.ReceivedAt, FinishedAt: d.ReceivedAt}}
}

func (r *counting) has(list *[]string, id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(*list, id)
}

// delayed is a JetStream that keeps the next write back to subjects with the prefix,
// "zoho.queues." where there is none, once it is armed.
type delayed struct {
	jetstream.JetStream
	prefix           string
	armed            atomic.Bool
	reached, release chan struct{}
}

func (d *delayed) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if strings.HasPrefix(msg.Subject, cmp.Or(d.prefix, "zoho.queues.")) && d.armed.CompareAndSwap(true, false) {
		close(d.reached)
		<-d.release
	}
	return d.JetStream.PublishMsg(ctx, msg, o...)
}

// world is a server with one connection, of an org that has one place.
type world struct {
	*natstest.Server
	t     *testing.T
	js    jetstream.JetStream
	store *connection.Store
	relay *counting
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{Server: natstest.Start(t), t: t, relay: &counting{held: func(string) bool { return false }, release: make(chan struct{})}}
	w.js = w.JetStream()
	if err := (Topology{Replicas: 1, Retention: time.Hour}).Ensure(t.Context(), w.js); err != nil {
		t.Fatal(err)
	}
	keyring, err := secret.ParseKeyring(secret.Generate().Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if w.store, err = connection.Open(t.Context(), w.js, keyring, connection.Options{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.store.Close)
	if _, err := w.store.Add(t.Context(), connection.Connection{Name: "demo", Location: "us", OrgID: "1", UserID: "u", Concurrency: 1}, secret.New("1000.x")); err != nil {
		t.Fatal(err)
	}
	return w
}

// requests is the stream of requests.
func (w *world) requests(js jetstream.JetStream) jetstream.Stream {
	w.t.Helper()
	stream, err := js.Stream(w.t.Context(), RequestStream)
	if err != nil {
		w.t.Fatal(err)
	}
	return stream
}

// worker starts one that looks at the stream only when it is told to.
func (w *world) worker(js jetstream.JetStream) *Consumer {
	w.t.Helper()
	clock := &register.Clock{}
	c := New(Options{
		Conn: js.Conn(), JetStream: js, Stream: w.requests(js), Relay: w.relay, Connections: w.store, Tokens: noTokens{}, Responses: NewResponses(js),
		Ledger: ledger.Open(js, clock, time.Minute), Clock: clock, Decoder: &envelope.Decoder{}, MaxInFlight: 10, Look: time.Hour,
		Version: "0.0.0", Logger: slog.New(slog.DiscardHandler),
	})
	if err := c.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Stop(context.Background()) })
	return c
}

func (w *world) publish(id string) {
	w.t.Helper()
	if _, err := w.js.Publish(w.t.Context(), "zoho.requests.demo", fmt.Appendf(nil, `{"id":%q,"method":"PUT","url":"/v8/Leads","body":{}}`, id)); err != nil {
		w.t.Fatal(err)
	}
}

// eventually waits for something that has no signal of its own.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

func (c *Consumer) orgNow(queue string) *org {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.orgs[queue]
}

// takes reports whether the worker serves the org, or is about to.
func (c *Consumer) takes(queue string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.orgs[queue] != nil || c.taking[queue] != nil
}

// A connection whose record changes while a worker starts is served as it is now: one
// that was authorized again in that moment would wait for it for ever.
func TestConnectionChangesDuringStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	js := &delayed{JetStream: w.JetStream(), prefix: "zoho.workers.", reached: make(chan struct{}), release: make(chan struct{})}
	js.armed.Store(true)
	told := make(chan struct{}, 1)
	defer w.store.Subscribe(func(*connection.Connection) { told <- struct{}{} })()
	go func() {
		defer close(js.release)
		<-js.reached // its session is written last
		if err := w.store.Remove(context.Background(), "demo", "test"); err != nil {
			t.Error(err)
		}
		<-told
	}()
	c := w.worker(js)
	eventually(t, "the worker knows", func() bool { return c.directory.queue("demo") == "" })
}

// A pause that is made while the org's record is being written is written next, not
// with what is used of the credits: a worker that takes the org over would send on.
func TestPauseWhileTheRecordIsWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	js := &delayed{JetStream: w.JetStream(), reached: make(chan struct{}), release: make(chan struct{})}
	c := w.worker(js)
	w.publish("first")
	eventually(t, "it is answered", func() bool { return w.relay.has(&w.relay.ended, "first") })
	o := c.orgNow(c.directory.queue("demo"))
	js.armed.Store(true)
	o.save()
	<-js.reached
	o.mu.Lock()
	now := o.Clock.Now()
	o.flow.Refused(now, flow.Ask{Connection: "demo"}, flow.Refusal{Began: now, RetryAfter: time.Hour})
	o.mu.Unlock()
	o.save()
	close(js.release)
	eventually(t, "the record is written", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return !o.saving
	})
	if there := DecodeState(o.hold.State()); there.Pause == nil {
		t.Errorf("no word of the pause: %s", o.hold.State())
	}
}

// A request that comes while its org is given up is not begun before the org is
// released: whoever has it next would not know of that call.
func TestRequestWhileItsOrgIsGivenUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	js := &delayed{JetStream: w.JetStream(), reached: make(chan struct{}), release: make(chan struct{})}
	w.relay.held = func(id string) bool { return id == "second" }
	first := w.worker(js)
	w.publish("first")
	eventually(t, "the first is answered", func() bool { return w.relay.has(&w.relay.ended, "first") })
	queue := first.directory.queue("demo")
	js.armed.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	given := make(chan struct{})
	go func() {
		defer close(given)
		first.giveUp(ctx, first.orgNow(queue), "")
	}()
	<-js.reached
	w.publish("second")
	if first.activate("demo"); first.takes(queue) {
		t.Error("it is taken up again before it is released")
		eventually(t, "the second is begun", func() bool { return w.relay.has(&w.relay.started, "second") })
	}
	close(js.release)
	<-given
	eventually(t, "the second is begun", func() bool { return w.relay.has(&w.relay.started, "second") })
	second := w.worker(w.JetStream())
	w.publish("third")
	eventually(t, "the third is in hand, or begun", func() bool {
		return first.hand.len()+second.hand.len() == 2 || w.relay.has(&w.relay.started, "third")
	})
	for _, c := range []*Consumer{first, second} {
		if o := c.orgNow(queue); o != nil {
			o.kick() // what can be begun is
		}
	}
	close(w.relay.release)
	eventually(t, "the third is answered", func() bool { return w.relay.has(&w.relay.ended, "third") })
	if w.relay.most != 1 {
		t.Errorf("%d calls were in flight of an org with one place", w.relay.most)
	}
}

// An org that this worker closed and could not release is taken up again at the first
// word of a request: the others hold this worker for its owner.
func TestClosedAndNotReleased(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.worker(w.JetStream())
	w.publish("first")
	eventually(t, "the first is answered", func() bool { return w.relay.has(&w.relay.ended, "first") })
	queue := c.directory.queue("demo")
	ended, end := context.WithTimeout(t.Context(), time.Minute)
	end()
	c.giveUp(ended, c.orgNow(queue), "")
	if !c.leases.Mine(queue) {
		t.Fatal("it is released")
	}
	c.woke("demo")
	eventually(t, "it is served again", func() bool { return c.orgNow(queue) != nil })
}

// Orgs that are shared stay where they are, however different the workers are: each
// hands one over in its turn, until none does.
func TestSharedOrgsComeToRest(t *testing.T) {
	t.Parallel()
	const each = 50 // requests in flight of an org
	for _, sizes := range [][]int{{512, 512}, {512, 64}, {64, 512}, {512, 128, 64}, {100, 100, 100, 100}} {
		orgs := make([]int, len(sizes))
		orgs[0] = 10
		session := func(i int) lease.Session {
			return lease.Session{Orgs: orgs[i], Free: max(0, sizes[i]-each*orgs[i])}
		}
		quiet := 0
		for turn := range 100 {
			from, sessions := turn%len(sizes), map[string]lease.Session{}
			for i := range sizes {
				if i != from {
					sessions[strconv.Itoa(i)] = session(i)
				}
			}
			to := lighter(byFree(sessions), sessions, orgs[from], sizes[from], each*orgs[from] > sizes[from])
			if quiet++; to != "" && orgs[from] > 1 {
				i, err := strconv.Atoi(to)
				if err != nil {
					t.Fatal(err)
				}
				orgs[from]--
				orgs[i]++
				quiet = 0
			}
		}
		if quiet < len(sizes) {
			t.Errorf("workers with %v places still hand orgs over: they have %v", sizes, orgs)
		}
	}
}
