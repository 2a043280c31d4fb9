package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"zoho-worker/internal/app"
	"zoho-worker/internal/zoho/zohotest"
)

// A worker that is stopped with 500 calls in flight cuts none of them, and gives
// none of their requests to anybody else: each is answered by the call it had.
func TestStopWith500InFlight(t *testing.T) {
	t.Parallel()
	const orgs, places = 20, 25
	r := newRig(t, zohotest.Options{})
	for o := range orgs {
		id := fmt.Sprint(880000000 + o)
		r.Zoho.AddOrg(zohotest.Org{ID: id, Name: "Org", Concurrency: places})
		r.connect(fmt.Sprint("org", o), id, places)
	}
	hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Method: "POST"})
	first := r.worker(func(c *app.Config) { c.MaxInFlight, c.CallTimeout, c.StopTimeout = 600, 30*time.Second, 60*time.Second })
	for o := range orgs {
		for i := range places {
			r.publish(fmt.Sprint("org", o), insert(fmt.Sprint("stop-", i), fmt.Sprint("Stop", o, "-", i)))
		}
	}
	for n := range orgs * places {
		select {
		case <-hold.Reached():
		case <-time.After(patience):
			t.Fatalf("%d of %d calls in flight", n, orgs*places)
		}
	}
	stopped := stopping(first)
	// Another worker is there to take what is given back.
	r.worker()
	hold.Release()
	<-stopped
	for o := range orgs {
		for id, response := range r.awaitAll(fmt.Sprint("org", o), places) {
			if response.Status != 201 || response.Error != nil || response.Attempts != 1 {
				t.Fatalf("%s is %s", id, response.AppendJSON(nil))
			}
		}
	}
	r.drained()
	if n := r.Zoho.Count(zohotest.Match{Method: "POST"}); n != orgs*places {
		t.Errorf("the simulator saw %d POSTs for %d requests", n, orgs*places)
	}
}

// A worker that is stopped while NATS is away keeps to its budget, however many
// orgs it serves.
func TestStopBudgetWithoutNATS(t *testing.T) {
	t.Parallel()
	took := map[int]time.Duration{}
	for _, orgs := range []int{1, 8} {
		r := newRig(t, zohotest.Options{})
		var names []string
		for i := range orgs {
			org, name := fmt.Sprint(7000+i), fmt.Sprint("c", i)
			r.Zoho.AddOrg(zohotest.Org{ID: org, Name: name, Concurrency: 5})
			r.Zoho.Seed(org, "Leads", map[string]any{"Last_Name": "Seed"})
			r.connect(name, org, 5)
			names = append(names, name)
		}
		w := r.worker()
		for _, name := range names {
			wantStatus(t, r.call(name, list("get")), 200)
		}
		r.NATS.Shutdown()
		r.NATS.WaitForShutdown()
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
		begun := time.Now()
		w.Stop(ctx)
		took[orgs] = time.Since(begun)
		cancel()
	}
	if took[8] > 3*took[1] {
		t.Errorf("%s with one org, %s with eight", took[1], took[8])
	}
}
