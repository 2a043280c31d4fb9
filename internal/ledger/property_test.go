package ledger

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"zoho-worker/internal/register"
)

// Two workers have the same request, as after a redelivery, and go through it
// as package relay does, in steps. Between any two steps one may be suspended
// or die, and any write may be lost, unacknowledged, falsely refused or late.
// Whatever happens, the request is sent at most once, and never after it was
// answered.
func TestSentOnceUnderFaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reached := map[string]int{}
		property := func(rt *rapid.T) {
			w := &world{rt: rt, server: newServer(), reached: reached}
			w.server.fault = func() fault {
				if rapid.IntRange(0, 5).Draw(rt, "faulty") > 0 {
					return none
				}
				return fault(rapid.IntRange(0, int(faults)-1).Draw(rt, "fault"))
			}
			workers := []*worker{{world: w}, {world: w}}
			for range rapid.IntRange(20, 120).Draw(rt, "steps") {
				who := workers[rapid.IntRange(0, 1).Draw(rt, "worker")]
				switch rapid.SampledFrom([]string{"step", "step", "step", "step", "step", "step", "step", "step", "time", "time", "die", "late"}).Draw(rt, "what") {
				case "step":
					who.step()
				case "time":
					time.Sleep(rapid.SampledFrom([]time.Duration{time.Second, 4 * time.Second, 12 * time.Second}).Draw(rt, "pause"))
				case "die":
					*who = worker{world: w}
				case "late":
					w.server.arrive()
				}
			}
		}
		for range 10 { // a hundred each
			rapid.Check(inBubble{t}, property)
		}
		// Else the test is for nothing.
		for _, what := range []string{"sent", "answered", "unknown", "refused", "late to send", "extended", "released", "no longer the holder"} {
			if reached[what] == 0 {
				t.Errorf("never reached: %s, only %v", what, reached)
			}
		}
	})
}

// inBubble keeps rapid from asking for the deadline, which a bubble has none of.
type inBubble struct{ testing.TB }

// world is what the workers share.
type world struct {
	rt       *rapid.T
	server   *server
	clock    register.Clock
	sent     int
	answered string
	reached  map[string]int
}

func (w *world) note(what string) { w.reached[what]++ }

func (w *world) answer(with string) {
	if w.answered == "" { // create-only, as the responses are
		w.answered = with
		w.note(with)
	}
}

// worker is where one of them is on its way. The zero value is at the beginning.
type worker struct {
	*world
	at    string
	claim *Claim
}

const call = 5 * time.Second

var digest = [32]byte{1}

// step goes one step on.
func (w *worker) step() {
	l, ctx := Open(w.server, &w.clock, call), w.rt.Context()
	switch w.at {
	case "": // handed over
		if w.answered == "" {
			w.at = "look"
			if rapid.IntRange(0, 9).Draw(w.rt, "refuse") == 0 {
				w.at = "refuse"
			}
		}
	case "refuse": // its deadline is over, say
		if err := l.Close(ctx, "demo", "1", digest); err != nil {
			w.standing(err)
			w.at = ""
			return
		}
		w.at = "say refused"
	case "say refused":
		if w.sent > 0 && w.answered == "" {
			w.rt.Fatalf("refused, and sent all the same")
		}
		w.answer("refused")
		w.at = ""
	case "look":
		w.at = "claim"
		w.standing(l.Look(ctx, "demo", "1", digest))
	case "claim":
		claim, err := l.Claim(ctx, "demo", "1", digest)
		if err != nil {
			w.standing(err)
			return
		}
		w.claim, w.at = claim, "send"
	case "send":
		if w.claim.Permit() != nil {
			w.note("late to send")
			w.at = "unsent"
			return
		}
		if rapid.IntRange(0, 3).Draw(w.rt, "refused connection") == 0 {
			w.at = "unsent"
			return
		}
		if w.answered != "" {
			w.rt.Fatalf("sent after the answer %q", w.answered)
		}
		if w.sent++; w.sent > 1 {
			w.rt.Fatalf("sent %d times", w.sent)
		}
		w.note("sent")
		w.at = "answer"
	case "unsent":
		if rapid.Bool().Draw(w.rt, "give back") {
			if w.claim.Release(ctx) == nil {
				w.note("released")
			}
			w.claim, w.at = nil, ""
			return
		}
		err := w.claim.Extend(ctx)
		switch {
		case err == nil:
			w.note("extended")
			w.at = "send"
		case errors.Is(err, register.ErrConflict):
			w.note("no longer the holder")
			w.claim, w.at = nil, ""
		default:
			_ = w.claim.Release(ctx)
			w.claim, w.at = nil, ""
		}
	case "answer":
		w.answer("answered")
		w.claim, w.at = nil, ""
	}
}

// standing is relay's: a lease that is over is answered, anything else waits.
func (w *worker) standing(err error) {
	switch {
	case err == nil:
	case errors.Is(err, ErrExpired):
		w.answer("unknown")
		w.at = ""
	default:
		w.at = ""
	}
}
