package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"zoho-worker/internal/connection/natstest"
)

// step is what one of the workers does next.
type step struct {
	what  string
	queue string
	pause time.Duration
}

// Several workers take, save, hand over and give up the same orgs, in any order,
// while any of them may be suspended or die, and any of their writes may be lost,
// late, unacknowledged or falsely refused. At no instant do two of them believe
// that they own the same org, and no session that was over comes back.
func TestOneOwnerUnderFaults(t *testing.T) {
	t.Parallel()
	s := serve(t)
	reached := &tally{n: map[string]int{}}
	// It is real time that passes here: as many runs as fit.
	end := time.Now().Add(10 * time.Second)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		if run++; run > 1 && time.Now().After(end) {
			return
		}
		schedules := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{
				what: rapid.SampledFrom([]string{
					"take", "take", "take", "insist", "insist", "save", "save", "release", "hand over", "update",
					"suspend", "late", "unacknowledged", "refused", "die",
				}).Draw(rt, "what"),
				queue: fmt.Sprintf("%d-%s", run, rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "queue")),
				pause: time.Duration(rapid.IntRange(0, 300).Draw(rt, "pause")) * time.Millisecond,
			}
		}), 10, 18), 3, 3).Draw(rt, "schedules")
		if wrong := newScene(t, s, reached).play(schedules); wrong != "" {
			rt.Fatal(wrong)
		}
	})
	// Else the test is for nothing.
	if reached.n["taken"] == 0 {
		t.Errorf("never taken, only %v", reached.n)
	}
	t.Logf("%d runs, %v", run, reached.n)
}

// tally counts what was reached.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (r *tally) note(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n[what]++
}

// scene is some workers, and somebody who watches them.
type scene struct {
	t       *testing.T
	server  *natstest.Server
	reached *tally
	outside jetstream.JetStream

	mu    sync.Mutex
	holds map[string][]*Hold // by org, all there ever were
	wrong string
}

func newScene(t *testing.T, s *natstest.Server, reached *tally) *scene {
	return &scene{t: t, server: s, reached: reached, outside: s.JetStream(), holds: map[string][]*Hold{}}
}

func (s *scene) play(schedules [][]step) string {
	over := make(chan struct{})
	var watching, playing sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
				s.watch()
			}
		}
	})
	for _, schedule := range schedules {
		playing.Go(func() { s.follow(schedule) })
	}
	playing.Wait()
	close(over)
	watching.Wait()
	return s.wrong
}

// believes is what a worker believes that hears of nothing but its own session:
// more than Lasts says, which also hears of the records. It changes once only.
func believes(h *Hold) bool { return h.book.ID() == h.owner }

// watch looks for an org of two. What a worker believes before and after, it
// believed between.
func (s *scene) watch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for queue, holds := range s.holds {
		first := slices.IndexFunc(holds, believes)
		if first < 0 {
			continue
		}
		for _, h := range holds {
			if h.Owner() != holds[first].Owner() && believes(h) && believes(holds[first]) {
				s.wrong = fmt.Sprintf("%s is of %s and of %s", queue, holds[first].Owner(), h.Owner())
			}
		}
	}
}

// follow is one worker's life, or lives.
func (s *scene) follow(schedule []step) {
	w := begin(s.t, s.server, short)
	ctx := context.Background()
	held := map[string]*Hold{}
	past := map[string]bool{} // sessions that are over
	session := ""
	for i, next := range schedule {
		h := held[next.queue]
		switch next.what {
		case "take", "insist":
			if h != nil && h.Lasts() {
				break
			}
			h, err := w.Take(ctx, next.queue)
			for end := time.Now().Add(2 * time.Second); err != nil && next.what == "insist" && time.Now().Before(end); {
				time.Sleep(20 * time.Millisecond)
				h, err = w.Take(ctx, next.queue)
			}
			switch {
			case err == nil:
				s.reached.note("taken")
				if h.Crashed {
					s.reached.note("taken over")
				}
				held[next.queue] = h
				s.mu.Lock()
				s.holds[next.queue] = append(s.holds[next.queue], h)
				s.mu.Unlock()
				s.watch()
			case errors.Is(err, ErrHeld):
				s.reached.note("held by another")
			}
		case "save":
			if h == nil {
				break
			}
			lasted := h.Lasts()
			err := h.Save(ctx, count)
			if err == nil && !lasted {
				s.fail("%s saved for %s, which it had lost", h.Owner(), next.queue)
			}
			if errors.Is(err, ErrLost) {
				s.reached.note("lost")
			}
		case "release", "hand over":
			if h == nil {
				break
			}
			to := ""
			if next.what == "hand over" {
				for id := range w.Others() {
					to = id
				}
			}
			if h.Release(ctx, to, count) == nil {
				s.reached.note("released")
				if h.Lasts() {
					s.fail("%s released %s and has it", h.Owner(), next.queue)
				}
			}
			// Whoever gives an org up serves it no more, whether it is known to be given up or not.
			delete(held, next.queue)
			s.mu.Lock()
			s.holds[next.queue] = slices.DeleteFunc(s.holds[next.queue], func(other *Hold) bool { return other == h })
			s.mu.Unlock()
		case "update":
			_ = Update(ctx, s.outside, next.queue, count)
		case "suspend":
			w.net.set(cut)
			time.Sleep(3 * time.Second) // longer than others wait for a short session
			w.net.set(nil)
		case "late":
			w.net.set(func(_ context.Context, publish func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
				time.Sleep(700 * time.Millisecond)
				return publish(ctx)
			})
			time.Sleep(400 * time.Millisecond)
			w.net.set(nil)
		case "unacknowledged":
			w.net.set(unacknowledged)
		case "refused":
			w.net.set(refused)
		case "die":
			w.net.set(cut)
			s.reached.note("dead")
			w = begin(s.t, s.server, short)
			held, session = map[string]*Hold{}, ""
		}
		time.Sleep(next.pause)
		if i%3 == 2 {
			w.net.set(nil)
		}
		if id := w.ID(); id != session {
			past[session] = true
			if session = id; id != "" && past[id] {
				s.fail("session %s came back", id)
			}
		}
	}
}

func (s *scene) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = fmt.Sprintf(format, args...)
}

// count is a change that shows whether it was made.
func count(data json.RawMessage) (json.RawMessage, error) {
	n := 0
	if len(data) > 0 {
		if err := json.Unmarshal(data, &n); err != nil {
			return nil, err
		}
	}
	return json.Marshal(n + 1)
}
