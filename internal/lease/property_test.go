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
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"zoho-worker/internal/connection/natstest"
)

// brief is the term of a session: what passes for a suspension is a multiple of it.
const brief = 450 * time.Millisecond

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
	// It is real time that passes here, most of it by waiting: many scenes at once, and
	// as many runs as fit.
	const scenes, workers = 5, 3
	end := time.Now().Add(3 * time.Second)
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
				queue: rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "queue"),
				pause: time.Duration(rapid.IntRange(0, 150).Draw(rt, "pause")) * time.Millisecond,
			}
		}), 8, 14), scenes*workers, scenes*workers).Draw(rt, "schedules")
		var playing errgroup.Group
		for i := range scenes {
			playing.Go(func() error {
				return newScene(t, s, fmt.Sprintf("%d-%d-", run, i), reached).play(schedules[i*workers:][:workers])
			})
		}
		if err := playing.Wait(); err != nil {
			rt.Fatal(err)
		}
	})
	// Else the test is for nothing.
	if reached.n["taken"] == 0 {
		t.Errorf("never taken, only %v", reached.n)
	}
	t.Logf("%d runs of %d scenes, %v", run, scenes, reached.n)
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
	prefix  string // of the names of its orgs
	reached *tally
	outside jetstream.JetStream

	mu    sync.Mutex
	holds map[string][]*Hold // by org, all there ever were
	wrong error
}

func newScene(t *testing.T, s *natstest.Server, prefix string, reached *tally) *scene {
	return &scene{t: t, server: s, prefix: prefix, reached: reached, outside: s.JetStream(), holds: map[string][]*Hold{}}
}

func (s *scene) play(schedules [][]step) error {
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
				s.wrong = fmt.Errorf("%s is of %s and of %s", queue, holds[first].Owner(), h.Owner())
			}
		}
	}
}

// follow is one worker's life, or lives.
func (s *scene) follow(schedule []step) {
	w := begin(s.t, s.server, brief)
	ctx := context.Background()
	held := map[string]*Hold{}
	past := map[string]bool{} // sessions that are over
	session := ""
	for i, next := range schedule {
		next.queue = s.prefix + next.queue
		h := held[next.queue]
		switch next.what {
		case "take", "insist":
			if h != nil && h.Lasts() {
				break
			}
			h, err := w.Take(ctx, next.queue)
			for end := time.Now().Add(3 * brief); err != nil && next.what == "insist" && time.Now().Before(end); {
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
			// Whoever gives an org up serves it no more from here on, whatever becomes of it: another may
			// have it before this one hears so.
			delete(held, next.queue)
			s.mu.Lock()
			s.holds[next.queue] = slices.DeleteFunc(s.holds[next.queue], func(other *Hold) bool { return other == h })
			s.mu.Unlock()
			if h.Release(ctx, to, count) == nil {
				s.reached.note("released")
				if h.Lasts() {
					s.fail("%s released %s and has it", h.Owner(), next.queue)
				}
			}
		case "update":
			_ = Update(ctx, s.outside, next.queue, count)
		case "suspend":
			w.net.set(cut)
			time.Sleep(2 * brief) // longer than others wait for a session
			w.net.set(nil)
		case "late":
			w.net.set(func(_ context.Context, publish func(context.Context) (*jetstream.PubAck, error)) (*jetstream.PubAck, error) {
				time.Sleep(brief * 7 / 6) // longer than a session lasts
				return publish(ctx)
			})
			time.Sleep(brief * 2 / 3)
			w.net.set(nil)
		case "unacknowledged":
			w.net.set(unacknowledged)
		case "refused":
			w.net.set(refused)
		case "die":
			w.net.set(cut)
			s.reached.note("dead")
			w = begin(s.t, s.server, brief)
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
	s.wrong = fmt.Errorf(format, args...)
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
