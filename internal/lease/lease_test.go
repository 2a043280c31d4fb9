package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/register"
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

// An org is one worker's, until it gives it up: to anybody, or to one.
func TestTakeReleaseHandOver(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a, b := begin(t, s, long), begin(t, s, long)
	ctx := t.Context()
	h, err := a.Take(ctx, "q")
	if err != nil || h.Crashed || !h.Lasts() || h.Owner() != a.ID() {
		t.Fatalf("taken: %+v, %v", h, err)
	}
	if _, err := b.Take(ctx, "q"); !errors.Is(err, ErrHeld) {
		t.Fatalf("taken twice: %v", err)
	}
	eventually(t, "b knows the owner", func() bool { return b.Owner("q") == a.ID() })
	if a.Owner("q") != "" || !a.Mine("q") || b.Mine("q") {
		t.Error("whose it is")
	}
	if err := h.Save(ctx, set(`{"n":1}`)); err != nil {
		t.Fatal(err)
	}
	if err := h.Release(ctx, b.ID(), set(`{"n":2}`)); err != nil {
		t.Fatal(err)
	}
	if h.Lasts() {
		t.Error("released, and still held")
	}
	if err := h.Save(ctx, set(`{"n":3}`)); !errors.Is(err, ErrLost) {
		t.Errorf("saved after it was released: %v", err)
	}
	if _, err := a.Take(ctx, "q"); !errors.Is(err, ErrHeld) {
		t.Errorf("taken back although it was handed to another: %v", err)
	}
	eventually(t, "b hears that it has it", func() bool { return b.Mine("q") })
	h, err = b.Take(ctx, "q")
	if err != nil || h.Crashed || string(h.State()) != `{"n":2}` {
		t.Fatalf("handed over: %+v, %v", h, err)
	}
	if err := h.Release(ctx, "", set(`{"n":4}`)); err != nil {
		t.Fatal(err)
	}
	h, err = a.Take(ctx, "q")
	if err != nil || h.Crashed || string(h.State()) != `{"n":4}` {
		t.Fatalf("given up and taken: %+v, %v", h, err)
	}
	// A session that is ended needn't be waited for, and its worker did not crash.
	a.Close(ctx)
	if h.Lasts() || a.ID() != "" {
		t.Error("closed, and still held")
	}
	h, err = b.Take(ctx, "q")
	if err != nil || h.Crashed {
		t.Fatalf("after the owner's end: %+v, %v", h, err)
	}
}

// Only one of many that want an org at the same time gets it.
func TestTakeTogether(t *testing.T) {
	t.Parallel()
	s := serve(t)
	workers := []*worker{begin(t, s, long), begin(t, s, long), begin(t, s, long)}
	for i := range 20 {
		queue := fmt.Sprintf("q%d", i)
		var mu sync.Mutex
		var all sync.WaitGroup
		held := 0
		for _, w := range workers {
			all.Go(func() {
				_, err := w.Take(t.Context(), queue)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					held++
				case !errors.Is(err, ErrHeld):
					t.Error(err)
				}
			})
		}
		if all.Wait(); held != 1 {
			t.Fatalf("%d workers have %s", held, queue)
		}
	}
}

// A worker that can't renew its session takes it for over before anybody else
// does, saves nothing any more, and comes back as another.
func TestSuspended(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a, b := begin(t, s, short), begin(t, s, short)
	take(t, a, "q")
	begun := a.net.writes()
	eventually(t, "a renewal", func() bool { return a.net.writes() > begun+1 })
	h := take(t, a, "q") // anew, if the machine was so slow that the session ended
	a.net.set(cut)
	taken := take(t, b, "q")
	if h.Lasts() || a.ID() == h.Owner() {
		t.Fatal("another has it while its owner believes that it has it")
	}
	if !taken.Crashed || taken.Own {
		t.Errorf("taken over, and the owner before did not crash, or was the same: %+v", taken)
	}
	if err := h.Save(t.Context(), set(`{}`)); !errors.Is(err, ErrLost) {
		t.Errorf("saved: %v", err)
	}
	<-a.lost
	a.net.set(nil)
	eventually(t, "another session", func() bool { return a.ID() != "" })
	if a.ID() == h.Owner() || h.Lasts() {
		t.Error("the session that was over came back")
	}
	if err := h.Save(t.Context(), set(`{}`)); !errors.Is(err, ErrLost) {
		t.Errorf("saved: %v", err)
	}
}

// So does one that slept with its machine, whose monotonic clock stood still.
func TestAsleep(t *testing.T) {
	t.Parallel()
	a := begin(t, serve(t), long)
	h := take(t, a, "q")
	a.mu.Lock()
	a.until = natstest.Dated(a.until, -time.Hour)
	a.mu.Unlock()
	if h.Lasts() || a.ID() == h.Owner() {
		t.Fatal("the session lasts")
	}
	<-a.lost
	eventually(t, "another session", func() bool { return a.ID() != "" })
}

// A renewal that is acknowledged after the session's end brings nothing back.
func TestLateRenewal(t *testing.T) {
	t.Parallel()
	a := begin(t, serve(t), short)
	arrive := make(chan struct{})
	var once sync.Once
	h := take(t, a, "q")
	a.net.set(func(ctx context.Context, publish func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
		late := false
		once.Do(func() { late = true })
		if !late {
			return publish(ctx)
		}
		<-arrive
		return publish(context.WithoutCancel(ctx))
	})
	eventually(t, "the end of the session", func() bool { return !h.Lasts() })
	close(arrive)
	eventually(t, "another session", func() bool { return a.ID() != "" })
	if a.ID() == h.Owner() || h.Lasts() {
		t.Error("the session that was over came back")
	}
}

// A renewal that was stored and not acknowledged, or refused although it was
// stored, doesn't end the session.
func TestUnclearRenewal(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for name, fault := range map[string]func(context.Context, func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error){
		"not acknowledged": unacknowledged, "refused": refused,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := begin(t, s, 9*time.Second) // renewed every 3 s
			id := a.ID()
			for range 2 {
				before := a.net.writes()
				a.net.set(fault)
				eventually(t, "a renewal", func() bool { return a.net.writes() > before })
				a.net.set(nil)
				before = a.net.writes()
				eventually(t, "another", func() bool { return a.net.writes() > before })
			}
			if a.ID() != id || len(a.lost) > 0 {
				t.Error("the session is over")
			}
		})
	}
}

// A write that was refused although it was stored counts as done; one that
// is not known to be stored can be repeated.
func TestFalseConflict(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a := begin(t, s, long)
	ctx := t.Context()
	a.net.set(refused)
	h, err := a.Take(ctx, "q")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Save(ctx, set(`{"n":1}`)); err != nil {
		t.Fatal(err)
	}
	a.net.set(unacknowledged)
	if err := h.Save(ctx, set(`{"n":2}`)); err == nil || errors.Is(err, ErrLost) {
		t.Fatalf("not acknowledged: %v", err)
	}
	if _, err := a.Take(ctx, "r"); err == nil || errors.Is(err, ErrHeld) {
		t.Fatalf("not acknowledged: %v", err)
	}
	a.net.set(nil)
	if err := h.Save(ctx, set(`{"n":3}`)); err != nil {
		t.Fatal(err)
	}
	if record, err := Read(ctx, s.JetStream(), "q"); err != nil || string(record.State) != `{"n":3}` || record.Owner != a.ID() {
		t.Errorf("%+v, %v", record, err)
	}
	if h, err = a.Take(ctx, "r"); err != nil || h.Crashed {
		t.Errorf("taken again: %v", err)
	}
}

// What somebody else writes meanwhile is not lost, and the change is told.
func TestSaveMerges(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a := begin(t, s, long)
	ctx := t.Context()
	h := take(t, a, "q")
	put := func(name string) func(json.RawMessage) (json.RawMessage, error) {
		return func(data json.RawMessage) (json.RawMessage, error) {
			state := map[string]bool{}
			if len(data) > 0 {
				if err := json.Unmarshal(data, &state); err != nil {
					return nil, err
				}
			}
			state[name] = true
			return json.Marshal(state)
		}
	}
	want := map[string]bool{}
	var outside sync.WaitGroup
	js := s.JetStream()
	for i := range 20 {
		want[fmt.Sprint("in", i)], want[fmt.Sprint("out", i)] = true, true
	}
	// One after the other outside, so that no more than one comes between.
	outside.Go(func() {
		for i := range 20 {
			for {
				err := Update(ctx, js, "q", put(fmt.Sprint("out", i)))
				if err == nil {
					break
				}
				if !errors.Is(err, register.ErrConflict) {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := range 20 {
		for {
			err := h.Save(ctx, put(fmt.Sprint("in", i)))
			if err == nil {
				break
			}
			if !errors.Is(err, register.ErrConflict) {
				t.Fatal(err)
			}
		}
	}
	outside.Wait()
	record, err := Read(ctx, js, "q")
	got := map[string]bool{}
	if err != nil || json.Unmarshal(record.State, &got) != nil || !maps.Equal(got, want) || record.Owner != a.ID() {
		t.Errorf("%+v, %v", record, err)
	}
	eventually(t, "the record is known", func() bool {
		known, _ := a.Record("q")
		return string(known.State) == string(record.State)
	})
	failed := errors.New("no")
	if err := h.Save(ctx, func(json.RawMessage) (json.RawMessage, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("a change that failed: %v", err)
	}
	if !h.Lasts() {
		t.Error("no longer held")
	}
}

// Whatever an org's record says, it can be taken; one that names a session that
// nobody has seen, too, and nobody waits for it.
func TestOddRecords(t *testing.T) {
	t.Parallel()
	s := serve(t)
	js := s.JetStream()
	for queue, data := range map[string]string{
		"noise": "}{", "list": `[]`, "nothing": "", "odd": `{"owner":7}`,
		"ghost": `{"owner":"nobody","state":{"n":1}}`,
	} {
		if _, err := js.Publish(t.Context(), queuePrefix+queue, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	a := begin(t, s, short)
	if a.Owner("ghost") != "" {
		t.Error("a session that isn't there has the org")
	}
	for _, queue := range []string{"noise", "list", "nothing", "odd"} {
		if h := take(t, a, queue); h.Crashed {
			t.Errorf("%s: crashed", queue)
		}
	}
	// The stream of the sessions was just made: who served may not have noticed yet.
	if h := take(t, a, "ghost"); !h.Crashed || string(h.State()) != `{"n":1}` {
		t.Errorf("ghost: %+v", h)
	}
}

// The server's clock goes back as a worker dies: its last sign of life seems to be of
// the future, and its orgs go to another all the same, when that has waited for itself.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a := begin(t, s, short)
	h := take(t, a, "q")
	a.net.set(cut)
	<-a.lost
	b := &worker{net: &network{JetStream: s.JetStream(), behind: time.Hour}}
	b.Book = New(Options{JS: b.net, Term: short})
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.Background()) })
	if taken := take(t, b, "q"); !taken.Crashed || taken.Owner() == h.Owner() {
		t.Errorf("%+v", taken)
	}
}

// The streams are lost: nobody takes an org while its owner believes that it
// has it, and everything begins anew.
func TestStreamsWiped(t *testing.T) {
	t.Parallel()
	s := serve(t)
	js := s.JetStream()
	a, b := begin(t, s, short), begin(t, s, short)
	h := take(t, a, "q")
	eventually(t, "b knows the owner", func() bool { return b.Owner("q") != "" })
	if err := js.DeleteStream(t.Context(), WorkerStream); err != nil {
		t.Fatal(err)
	}
	s.Create(js, StreamConfigs(1)[0])
	taken := take(t, b, "q")
	if h.Lasts() {
		t.Fatal("another has it while its owner believes that it has it")
	}
	eventually(t, "another session", func() bool { return a.ID() != "" && a.ID() != h.Owner() })

	if err := js.DeleteStream(t.Context(), QueueStream); err != nil {
		t.Fatal(err)
	}
	s.Create(js, StreamConfigs(1)[1])
	if err := taken.Save(t.Context(), set(`{}`)); !errors.Is(err, ErrLost) {
		t.Errorf("saved to a stream that is empty: %v", err)
	}
	eventually(t, "a takes it and saves", func() bool { return take(t, a, "q").Save(t.Context(), set(`{}`)) == nil })
}

// The stream is made anew right after it stored what this worker wrote, and that is known
// before the worker goes on: what it wrote is of the old one, whatever its number.
func TestRemadeBehindAWrite(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a, b := begin(t, s, long), begin(t, s, long)
	h := take(t, a, "q")
	for range 3 { // numbers that the new stream doesn't reach
		if err := h.Save(t.Context(), set(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	remade := sync.OnceFunc(func() {
		epoch, js := a.epoch(), s.JetStream()
		if err := js.DeleteStream(context.Background(), QueueStream); err != nil {
			t.Error(err)
		}
		s.Create(js, StreamConfigs(1)[1])
		eventually(t, "a sees that the stream is another one", func() bool { return a.epoch() > epoch })
	})
	a.net.set(func(ctx context.Context, publish func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
		ack, err := publish(ctx)
		remade()
		return ack, err
	})
	if err := h.Save(t.Context(), set(`{}`)); err != nil {
		t.Fatal(err)
	}
	a.net.set(nil)
	take(t, b, "q")
	eventually(t, "a hears who has it", func() bool { return !h.Lasts() })
}

// The server is away for longer than a session lasts: everybody begins anew.
func TestServerAway(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a := begin(t, s, short)
	h := take(t, a, "q")
	s.Stop()
	<-a.lost
	if h.Lasts() || a.ID() != "" {
		t.Error("held without a session")
	}
	if _, err := a.Take(t.Context(), "q"); err == nil {
		t.Error("taken without a session")
	}
	s.Restart()
	if h = take(t, a, "q"); !h.Crashed || !h.Own {
		t.Errorf("the session before this one did not end the org's tenure, or was another's: %+v", h)
	}
}

// An earlier session of the worker's own seems to last for a while, and is nobody
// whom an org can be handed to.
func TestOwnPast(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a, b := begin(t, s, long), begin(t, s, long)
	first := a.ID()
	eventually(t, "a sees b and itself", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.Book.others) == 2
	})
	a.Book.lost(first)
	if err := a.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if others := a.Others(); len(others) != 1 || a.ID() == first {
		t.Errorf("others are %v, the session was %s and is %s", others, first, a.ID())
	}
	if _, there := a.Others()[b.ID()]; !there {
		t.Error("the other worker is gone")
	}
}

// Others are seen with what they say, until they end.
func TestOthers(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a := begin(t, s, long)
	changed := make(chan string, 100)
	b := New(Options{JS: s.JetStream(), Term: long, About: func() Session { return Session{Host: "b", Free: 7} }, Changed: func(q string) { changed <- q }})
	b.Close(t.Context()) // one that was never started, too
	b = New(b.options)
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a sees b", func() bool { return a.Others()[b.ID()].Free == 7 })
	eventually(t, "b sees a", func() bool { return len(b.Others()) == 1 })
	a.Close(t.Context())
	eventually(t, "b hears of a's end", func() bool { return <-changed == "" && len(b.Others()) == 0 })
	b.Close(t.Context())
	b.Close(t.Context())
}

// A worker that begins doesn't take those for alive that died before.
func TestDeadBeforeTheBeginning(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a, b := begin(t, s, short), begin(t, s, short)
	id := take(t, a, "q").Owner()
	a.net.set(cut)
	eventually(t, "its session is over for the others", func() bool {
		_, there := b.Others()[id]
		return a.ID() == "" && !there
	})
	c := begin(t, s, short)
	if _, there := c.Others()[id]; there || c.Owner("q") != "" {
		t.Errorf("it takes it for alive: %v, and %q for the owner", there, c.Owner("q"))
	}
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

// A worker that takes an org over from one that died, and isn't told that it has
// it, knows at its next try that the owner before died.
func TestTakenOverUnacknowledged(t *testing.T) {
	t.Parallel()
	s := serve(t)
	a := begin(t, s, short)
	take(t, a, "q")
	a.net.set(cut)
	net := &forgetful{JetStream: s.JetStream()}
	b := New(Options{JS: net, Term: short})
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer b.Close(context.Background())
	net.loses.Store(true)
	eventually(t, "its write is lost", func() bool {
		_, err := b.Take(t.Context(), "q")
		return err != nil && !net.loses.Load()
	})
	var h *Hold
	eventually(t, "it has the org", func() bool {
		var err error
		h, err = b.Take(t.Context(), "q")
		return err == nil
	})
	if !h.Crashed {
		t.Error("the owner before died, and the new one doesn't know")
	}
}

// Nobody is taken for gone before the server's clock says that his session and a margin are
// over: since it was renewed, or where there is no word of it, since the stream was made.
func TestNobodyIsGoneEarly(t *testing.T) {
	t.Parallel()
	for _, owner := range []string{"silent", "unknown"} {
		t.Run(owner, func(t *testing.T) {
			t.Parallel()
			s := serve(t)
			js := s.JetStream()
			look := func() *jetstream.StreamInfo {
				stream, err := js.Stream(t.Context(), WorkerStream)
				if err != nil {
					t.Fatal(err)
				}
				return stream.CachedInfo()
			}
			put := func(subject, text string) {
				if _, err := js.Publish(t.Context(), subject, []byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			b := begin(t, s, short)
			since := look().Created
			if owner == "silent" {
				since = look().TimeStamp
				put(workerPrefix+owner, `{}`)
			}
			put(queuePrefix+"q", `{"queue":"q","owner":"`+owner+`"}`)
			take(t, b, "q")
			if lasted := look().TimeStamp.Sub(since); lasted < short+margin {
				t.Errorf("gone after %s", lasted)
			}
		})
	}
}
