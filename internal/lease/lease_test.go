package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/register"
)

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
