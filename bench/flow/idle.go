package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"zoho-worker/internal/zoho/zohotest"
)

// firsts are the idle orgs whose first request is timed.
const firsts = 200

// idle measures many connections of which few are active.
func idle(ctx context.Context, s settings, w *world, b *binaries) (report, error) {
	w.zoho.SetLatencyBetween(smallDelay, smallDelay)
	orgs := make([]*org, s.connections)
	progress("adding %s connections", thousands(len(orgs)))
	var adding sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for worker := range 8 {
		adding.Go(func() {
			for i := worker; i < len(orgs); i += 8 {
				e := editions[i%len(editions)]
				o := &org{id: fmt.Sprint(100_001 + i), edition: e.name, places: e.places, credits: e.credits}
				err := w.add(ctx, o, 1)
				mu.Lock()
				orgs[i] = o
				if err != nil {
					failed = err
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	adding.Wait()
	if failed != nil {
		return report{}, failed
	}
	answers, err := w.listen()
	if err != nil {
		return report{}, err
	}
	if err := w.startWorkers(ctx, b.worker, s.workers, s.inFlight); err != nil {
		return report{}, err
	}
	var t table
	fmt.Fprintf(&t, "%d workers, %s connections, each of an org of its own, %d of them active; Zoho takes %d ms. Made by `make bench-flow BENCH=\"-scenario idle\"`.\n\n",
		s.workers, thousands(s.connections), s.active, smallDelay.Milliseconds())
	t.head("", "calls a second", "resident, each worker", "CPU of one core, each worker")
	span := 20 * time.Second
	rest := func(name string) (usage, error) {
		before, err := w.workersUsage()
		if err != nil {
			return before, err
		}
		calls := totals(w.zoho.AllCounts()).Calls
		select {
		case <-time.After(span):
		case <-ctx.Done():
			return before, ctx.Err()
		}
		after, err := w.workersUsage()
		n := int64(len(w.workers))
		after.cpu = (after.cpu - before.cpu) / time.Duration(n)
		after.resident /= n
		calls = totals(w.zoho.AllCounts()).Calls - calls
		t.row(name, fmt.Sprintf("%.0f", float64(calls)/span.Seconds()), fmt.Sprintf("%d MiB", after.resident>>20), percent(after.cpu.Seconds()/span.Seconds()))
		return after, err
	}
	progress("at rest")
	time.Sleep(5 * time.Second) // what a start does
	quiet, err := rest("at rest, no request yet")
	if err != nil {
		return report{}, err
	}
	// Active: a request a second each.
	progress("%d active", s.active)
	active, stop := context.WithCancel(ctx)
	var asking sync.WaitGroup
	for _, o := range orgs[:s.active] {
		asking.Go(func() {
			_, _ = w.trickle(active, answers, o.connections[0], time.Second, time.Hour)
		})
	}
	time.Sleep(5 * time.Second) // their tokens
	busy, err := rest(fmt.Sprintf("%d active, a request a second each", s.active))
	if err != nil {
		stop()
		return report{}, err
	}
	progress("first requests of idle orgs")
	random := rand.New(rand.NewPCG(s.seed, 2))
	pick := random.Perm(len(orgs) - s.active)[:min(firsts, len(orgs)-s.active)]
	starts := func() (spans, error) { return w.starts(ctx, orgs[s.active:], pick, 25*time.Millisecond) }
	cold, err := starts()
	if err != nil {
		stop()
		return report{}, err
	}
	time.Sleep(20 * time.Second) // longer than a worker listens to an org without requests
	again, err := starts()
	stop()
	asking.Wait()
	if err != nil {
		return report{}, err
	}
	if _, err := rest("at rest after that"); err != nil {
		return report{}, err
	}
	t.WriteString("\n")
	t.head("an idle org's first request, from its publication to its arrival at Zoho", "p50", "p99")
	t.row(fmt.Sprintf("%d orgs that had none before, the minting of a token included", len(cold)), ms(cold.quantile(0.5)), ms(cold.quantile(0.99)))
	t.row("the same orgs, 20 s later", ms(again.quantile(0.5)), ms(again.quantile(0.99)))
	problems := answers.problems()
	if problems != "" {
		fmt.Fprintf(&t, "\nAnswers with errors: %s.\n", problems)
	}
	refused := totals(w.zoho.AllCounts()).Refused.Sum()
	return report{
		text: t.String(), kept: refused == 0 && problems == "",
		sentence: fmt.Sprintf("With %s connections, %d active, a worker has %d MiB (%d at rest, %s of a core); an idle org's first request starts after %s (p50) and %s (p99); %d calls were over a limit.",
			thousands(s.connections), s.active, busy.resident>>20, quiet.resident>>20, percent(quiet.cpu.Seconds()/span.Seconds()), ms(again.quantile(0.5)), ms(again.quantile(0.99)), refused),
	}, nil
}

// starts publishes a request of each of the picked orgs, one after the other, and
// times it to the arrival of its call at Zoho.
func (w *world) starts(ctx context.Context, orgs []*org, pick []int, pace time.Duration) (spans, error) {
	var mu sync.Mutex
	published, arrived := map[string]time.Time{}, map[string]time.Time{}
	remove := w.zoho.OnCall(zohotest.Arrived, zohotest.Match{}, func(c zohotest.Call) {
		now := time.Now()
		mu.Lock()
		defer mu.Unlock()
		if _, ours := published[c.OrgID]; ours && arrived[c.OrgID].IsZero() {
			arrived[c.OrgID] = now
		}
	})
	defer remove()
	for _, i := range pick {
		o := orgs[i]
		_, data := w.request(o.connections[0], interactive, light, "", 0)
		mu.Lock()
		published[o.id] = time.Now()
		mu.Unlock()
		if _, err := w.js.Publish(ctx, subject(o.connections[0], interactive), data); err != nil {
			return nil, err
		}
		time.Sleep(pace)
	}
	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(20 * time.Millisecond) {
		mu.Lock()
		n := len(arrived)
		mu.Unlock()
		if n == len(pick) {
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	var took spans
	for id, at := range published {
		d := time.Minute
		if !arrived[id].IsZero() {
			d = arrived[id].Sub(at)
		}
		took = append(took, d)
	}
	return took, nil
}
