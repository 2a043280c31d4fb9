package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"zoho-worker/internal/zoho/zohotest"
)

// An event is something that an org's limits do without notice, and is over after
// a while.
type event struct {
	name  string
	mix   float64 // share of heavy calls in the org's load
	lasts time.Duration
	begin func(w *world, o *org)
	end   func(w *world, o *org)
	// pauses says whether all calls must cease, or only the heavy ones.
	heavyOnly bool
}

var limits = func(o *org) zohotest.Limits {
	return zohotest.Limits{Concurrency: o.places, SubConcurrency: 10, Credits: 1_000_000}
}

var events = []event{
	{
		name: "the places fall to a quarter", lasts: 20 * time.Second,
		begin: func(w *world, o *org) {
			l := limits(o)
			l.Concurrency = o.places / 4
			w.zoho.SetLimits(o.id, l)
		},
		end: func(w *world, o *org) { w.zoho.SetLimits(o.id, limits(o)) },
	},
	{
		name: "the credits are used up by somebody else, for 20 s", lasts: 30 * time.Second,
		begin: func(w *world, o *org) {
			c := w.zoho.Counts(o.id)
			l := limits(o)
			w.zoho.SpendCredits(o.id, l.Credits-c.CreditsUsed, 24*time.Hour-20*time.Second)
		},
		end: func(*world, *org) {},
	},
	{
		name: "the heavy places fall to 3", mix: 0.5, lasts: 20 * time.Second, heavyOnly: true,
		begin: func(w *world, o *org) {
			l := limits(o)
			l.SubConcurrency = 3
			w.zoho.SetLimits(o.id, l)
		},
		end: func(w *world, o *org) { w.zoho.SetLimits(o.id, limits(o)) },
	},
}

// surprise lets each event happen to an org of its own under load, once for each
// way in which Zoho may word its 429.
func surprise(ctx context.Context, s settings, w *world, b *binaries) (report, error) {
	random := rand.New(rand.NewPCG(s.seed, 3))
	w.zoho.SetLatencyBetween(80*time.Millisecond, 160*time.Millisecond)
	answers, err := w.listen()
	if err != nil {
		return report{}, err
	}
	if err := w.startWorkers(ctx, b.worker, s.workers, s.inFlight); err != nil {
		return report{}, err
	}
	var t table
	fmt.Fprintf(&t, "%d workers; each event strikes an org with 20 places under full load. Made by `make bench-flow BENCH=\"-scenario surprise\"`.\n\n", s.workers)
	t.head("event", "Zoho's words", "429s", "from the first 429 to the last call before a pause", "calls in the event", "429s in the last half", "calls in the 5 s after")
	quick, worst := true, time.Duration(0)
	serial := 0
	for _, words := range []struct{ name, text string }{
		{"the cause", ""}, {"all causes at once", zohotest.DocumentedMessage}, {"nothing", zohotest.BareMessage},
	} {
		w.zoho.SetThrottleMessage(words.text)
		for _, e := range events {
			serial++
			o := &org{id: fmt.Sprint(5000 + serial), edition: "enterprise", places: 20, credits: 1_000_000}
			if err := w.add(ctx, o, 1); err != nil {
				return report{}, err
			}
			progress("%s, Zoho says %s", e.name, words.name)
			x, err := w.strike(ctx, o, e, random)
			if err != nil {
				return report{}, err
			}
			onset := "no pause seen"
			if x.paused {
				onset = ms(x.onset)
				worst = max(worst, x.onset)
			}
			if x.refused == 0 {
				onset = "–"
			}
			quick = quick && (x.refused == 0 || x.paused && x.onset < time.Second)
			t.row(e.name, words.name, x.refused, onset, thousands(x.calls), x.late, thousands(x.after))
		}
	}
	t.WriteString("\nA pause has full jitter, and is seen as one from 150 ms on. No 429 where the credits end: Zoho's header says what is left, so the calls cease before one.\n")
	problems := answers.problems()
	said := "nothing was answered with an error"
	if problems != "" {
		said = "**answered with errors: " + problems + "**"
	}
	verdict := "the pause reached every worker within " + ms(worst)
	if !quick {
		verdict = "**not every event brought a pause within a second** (longest seen " + ms(worst) + ")"
	}
	return report{
		text: t.String(), kept: problems == "",
		sentence: fmt.Sprintf("Of %d surprises in three wordings, %s, and %s.", len(events), verdict, said),
	}, nil
}

// struck is what an event brought about.
type struck struct {
	refused int
	calls   int
	late    int // refused in the second half
	after   int
	onset   time.Duration
	paused  bool
}

// gap is the silence that counts as a pause: many times what lies between two
// calls of an org with 20 places that take 120 ms.
const gap = 150 * time.Millisecond

func (w *world) strike(ctx context.Context, o *org, e event, random *rand.Rand) (x struck, err error) {
	if err := w.fill(ctx, o.connections[0], interactive, 12_000, mixture(random, e.mix, 0)); err != nil {
		return x, err
	}
	// Under full load before it happens.
	for begun := time.Now(); w.zoho.Counts(o.id).Calls < 500; time.Sleep(20 * time.Millisecond) {
		if time.Since(begun) > time.Minute || ctx.Err() != nil {
			return x, fmt.Errorf("org %s has had %d calls in a minute", o.id, w.zoho.Counts(o.id).Calls)
		}
	}
	var mu sync.Mutex
	var arrivals []time.Time
	var first time.Time
	match := zohotest.Match{Org: o.id}
	if e.heavyOnly {
		match.Path = "/crm/v8/coql"
	}
	defer w.zoho.OnCall(zohotest.Arrived, match, func(zohotest.Call) {
		mu.Lock()
		defer mu.Unlock()
		arrivals = append(arrivals, time.Now())
	})()
	defer w.zoho.OnCall(zohotest.Answered, zohotest.Match{Org: o.id, Where: func(c zohotest.Call) bool { return c.Status == 429 }}, func(zohotest.Call) {
		mu.Lock()
		defer mu.Unlock()
		if first.IsZero() {
			first = time.Now()
		}
	})()
	before := w.zoho.Counts(o.id)
	e.begin(w, o)
	wait := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := wait(e.lasts / 2); err != nil {
		return x, err
	}
	half := w.zoho.Counts(o.id)
	if err := wait(e.lasts / 2); err != nil {
		return x, err
	}
	now := w.zoho.Counts(o.id)
	e.end(w, o)
	x.refused, x.calls = now.Refused.Sum()-before.Refused.Sum(), now.Calls-before.Calls
	x.late = now.Refused.Sum() - half.Refused.Sum()
	ended := time.Now()
	if err := wait(5 * time.Second); err != nil {
		return x, err
	}
	x.after = w.zoho.Counts(o.id).Calls - now.Calls
	mu.Lock()
	defer mu.Unlock()
	last := first
	for _, at := range append(arrivals, ended.Add(time.Hour)) {
		if first.IsZero() || at.Before(first) {
			continue
		}
		if at.Sub(last) >= gap && last.Before(ended) {
			x.onset, x.paused = last.Sub(first), true
			break
		}
		last = at
	}
	return x, nil
}
