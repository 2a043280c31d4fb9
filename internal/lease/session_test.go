package lease

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
)

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
	if !a.renew(t.Context()) || a.ID() == "" || len(a.lost) != 1 {
		t.Errorf("no other session: %q", a.ID())
	}
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
			a := begin(t, s, long)
			id := a.ID()
			for range 2 {
				a.net.set(fault)
				if kept := a.renew(t.Context()); kept != (name == "refused") {
					t.Errorf("renewed: %v", kept)
				}
				a.net.set(nil)
				if !a.renew(t.Context()) {
					t.Error("not renewed after that")
				}
			}
			if a.ID() != id || len(a.lost) > 0 {
				t.Error("the session is over")
			}
		})
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

// The end of another's session is noticed when it comes, not at the next look at all of them.
func TestEndIsNoticedInTime(t *testing.T) {
	t.Parallel()
	b := New(Options{Term: time.Hour})
	for left, want := range map[time.Duration]time.Duration{ // 10 minutes are between two looks
		30 * time.Minute: 10 * time.Minute, 5 * time.Minute: 6 * time.Minute, -time.Minute: 10 * time.Minute,
	} {
		b.others["a"] = &seen{at: time.Now().Add(left - 70*time.Minute)}
		if over, next := b.notice(); over != (left < 0) || (want-next).Abs() > time.Minute/2 {
			t.Errorf("%v left: over %v, looks again in %v", left, over, next)
		}
	}
	if over, _ := b.notice(); over {
		t.Error("noticed twice")
	}
}

// Nobody is taken for gone before the server's clock says that his session is over and a
// sixth more: since it was renewed, or where there is no word of it, since the stream was made.
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
			if lasted := look().TimeStamp.Sub(since); lasted < short+short/6 {
				t.Errorf("gone after %s", lasted)
			}
		})
	}
}
