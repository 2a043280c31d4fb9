package ledger

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"zoho-worker/internal/register"
)

// Two workers have the same request, as after a redelivery, and go through it
// as package relay does, in steps. Between any two steps one may be suspended
// or die, any write may be lost, unacknowledged, falsely refused or late, and the
// server's clock may be set.
// Whatever happens, the request is sent at most once, and never after it was
// answered. One with a probe is looked up when it was lost, and sent again where
// it isn't there: it is carried out at most once, though Zoho may take as long
// as a call to do so, and never after its requester was told that nobody knows.
func TestSentOnceUnderFaults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reached := map[string]int{}
		property := func(rt *rapid.T) {
			w := &world{rt: rt, server: newServer(), reached: reached, probed: rapid.Bool().Draw(rt, "probed")}
			w.server.fault = func() fault {
				if rapid.IntRange(0, 5).Draw(rt, "faulty") > 0 {
					return none
				}
				return fault(rapid.IntRange(0, int(faults)-1).Draw(rt, "fault"))
			}
			w.look()
			workers := []*worker{{world: w}, {world: w}}
			for range rapid.IntRange(20, 120).Draw(rt, "steps") {
				who := workers[rapid.IntRange(0, 1).Draw(rt, "worker")]
				switch rapid.SampledFrom([]string{"step", "step", "step", "step", "step", "step", "step", "step", "time", "time", "die", "late", "clock"}).Draw(rt, "what") {
				case "step":
					who.step()
				case "time":
					time.Sleep(rapid.SampledFrom([]time.Duration{time.Second, 4 * time.Second, 12 * time.Second}).Draw(rt, "pause"))
				case "die":
					*who = worker{world: w}
				case "late":
					w.server.arrive()
				case "clock":
					w.server.ahead = rapid.SampledFrom([]time.Duration{-time.Hour, -8 * time.Second, 0, 8 * time.Second, time.Hour}).Draw(rt, "ahead")
					w.look()
				}
				w.check()
			}
			time.Sleep(call) // Zoho carries out what it was still at
			w.check()
		}
		for range 10 { // a hundred each
			rapid.Check(inBubble{t}, property)
		}
		// Else the test is for nothing.
		for _, what := range []string{"sent", "answered", "unknown", "refused", "late to send", "extended", "released", "no longer the holder", "confirmed", "resumed", "too early to tell", "given up", "sealed", "lost again", "carried out late"} {
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
	probed   bool
	sent     int
	executed []time.Time // when Zoho carries the request out, later than it was sent or not
	answered string
	reached  map[string]int
}

// look has the workers see what the server's clock says.
func (w *world) look() { w.clock.Observe(w.server.now(), time.Now()) }

// there reports whether a lookup finds the record.
func (w *world) there() bool {
	return slices.ContainsFunc(w.executed, func(at time.Time) bool { return !at.After(time.Now()) })
}

func (w *world) check() {
	if len(w.executed) > 1 {
		w.rt.Fatalf("carried out %d times", len(w.executed))
	}
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
	lost  *LostError
	// passed is how long it was lost when the lookup began.
	passed time.Duration
	found  bool
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
		if w.answered != "" && w.answered != "confirmed" {
			w.rt.Fatalf("sent after the answer %q", w.answered)
		}
		if w.sent++; w.sent > 1 && !w.probed {
			w.rt.Fatalf("sent %d times", w.sent)
		}
		w.note("sent")
		w.at = "answer"
		switch rapid.IntRange(0, 3).Draw(w.rt, "fate") {
		case 0: // it never reaches Zoho
			w.at = "lose"
		case 1: // Zoho is slow, and the answer gets lost
			w.executed = append(w.executed, time.Now().Add(rapid.SampledFrom([]time.Duration{time.Second, call}).Draw(w.rt, "slow")))
			w.note("carried out late")
			w.at = "lose"
		default:
			w.executed = append(w.executed, time.Now())
		}
	case "lose":
		if !w.probed {
			w.answer("unknown") // as relay: no claim is written
			w.claim, w.at = nil, ""
			return
		}
		lost, err := w.claim.Lose(ctx)
		w.claim, w.at = nil, ""
		if err == nil {
			w.note("given up")
			w.lost, w.at = lost, "probe"
		}
	case "probe":
		w.passed, w.at = w.clock.Passed(w.lost.Since), "probed"
	case "probed":
		w.found = w.there()
		w.at = "settle"
	case "settle":
		switch {
		case w.found:
			w.answer("confirmed")
			w.at = ""
		case rapid.IntRange(0, 5).Draw(w.rt, "give up") == 0:
			w.at = "seal"
		case w.passed < call:
			w.note("too early to tell")
			w.at = ""
		default:
			w.at = "resume"
		}
	case "resume":
		claim, err := l.Resume(ctx, "demo", "1", digest, w.lost)
		if err != nil {
			w.standing(err)
			return
		}
		w.note("resumed")
		w.claim, w.at = claim, "send"
	case "seal":
		if err := l.Seal(ctx, "demo", "1", w.lost); err != nil {
			w.standing(err)
			return
		}
		w.note("sealed")
		w.at = "say unknown"
	case "say unknown":
		w.answer("unknown")
		w.at = ""
	case "unsent":
		if rapid.Bool().Draw(w.rt, "give back") {
			resumed := w.claim.resumed
			if w.claim.Release(ctx) == nil {
				w.note("released")
				if resumed {
					w.note("lost again")
				}
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
	case w.probed && errors.As(err, &w.lost):
		w.at = "probe"
	case errors.Is(err, ErrExpired):
		w.answer("unknown")
		w.at = ""
	default:
		w.at = ""
	}
}
