package integration

import (
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zoho-worker/internal/zoho/zohotest"
)

// noise is what a busy machine may add to what a request waits.
const noise = time.Second

// waits are how long requesters wait, at a steady rate.
type waits struct {
	r    *rig
	mu   sync.Mutex
	took map[string][]time.Duration // by phase
	all  sync.WaitGroup
}

// during asks for the connection until stop is closed, at the rate of one
// request each pause, and notes what the answers take.
func (w *waits) during(phase, connection string, pause time.Duration, stop <-chan struct{}) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			w.all.Wait()
			return
		case <-tick.C:
		}
		w.all.Go(func() {
			inbox := nats.NewInbox()
			sub, err := w.r.nc.SubscribeSync(inbox)
			if err != nil {
				w.r.t.Error(err)
				return
			}
			defer func() { _ = sub.Unsubscribe() }()
			d := insert(w.r.id(phase), "Waits")
			d["reply_to"] = inbox
			begun := time.Now()
			w.r.publish(connection, d)
			if _, err := sub.NextMsg(patience); err != nil {
				w.r.t.Errorf("%s: no answer: %v", phase, err)
				return
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.took[phase] = append(w.took[phase], time.Since(begun))
		})
	}
}

// more waits until n more requests of the phase are answered.
func (w *waits) more(phase string, n int) {
	w.r.t.Helper()
	answered := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.took[phase])
	}
	want := answered() + n
	eventually(w.r.t, "more requests of the phase are answered: "+phase, func() bool { return answered() >= want })
}

// at is the percentile of a phase.
func (w *waits) at(phase string, percent int) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	took := slices.Sorted(slices.Values(w.took[phase]))
	if len(took) == 0 {
		w.r.t.Fatalf("%s: no request", phase)
	}
	return took[min(len(took)-1, len(took)*percent/100)]
}

// F5: what requesters wait while workers are restarted one after the other,
// against what they wait in peace. A request that a stopping worker drops would
// wait for AckWait, 30 s; what a restart costs is far less.
func TestRollingRestartIsHardlySeen(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.Zoho.SetLatency(20 * time.Millisecond)
	var running []*process
	for range 3 {
		running = append(running, r.process("ACK_WAIT=30s"))
	}
	r.started(3)
	w := &waits{r: r, took: map[string][]time.Duration{}}
	phase := func(name string, during func()) {
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			w.during(name, "demo", 25*time.Millisecond, stop)
		}()
		during()
		close(stop)
		<-done
	}
	phase("peace", func() { w.more("peace", 150) })
	phase("restarts", func() {
		for i := range 10 {
			w.more("restarts", 10)
			next := r.process("ACK_WAIT=30s")
			r.started(4 + i)
			running[0].signal(syscall.SIGTERM)
			running[0].exited()
			running = append(running[1:], next)
		}
	})
	for _, name := range []string{"peace", "restarts"} {
		t.Logf("%s: %d requests, 50th percentile %s, 99th %s, longest %s", name, len(w.took[name]), w.at(name, 50), w.at(name, 99), w.at(name, 100))
	}
	if p, q := w.at("restarts", 50), w.at("peace", 50); p > max(10*q, noise) {
		t.Errorf("half of the requests wait %s during restarts, and %s in peace", p, q)
	}
	if longest := w.at("restarts", 100); longest > 20*time.Second {
		t.Errorf("a request waited %s: as if a worker had died", longest)
	}
}

// F33: while Zoho throttles one org, the requests of another wait as they do
// without: measured by turns, in one run.
func TestThrottledNeighbourIsNotSeen(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	const other = "770000002"
	r.Zoho.AddOrg(zohotest.Org{ID: other, Name: "Throttled", Concurrency: 10})
	r.connect("throttled", other, 10)
	r.Zoho.SetLatency(20 * time.Millisecond)
	r.worker()
	r.worker()
	w := &waits{r: r, took: map[string][]time.Duration{}}
	for turn := range 6 {
		name := [2]string{"alone", "beside"}[turn%2]
		if name == "beside" {
			for range 5 {
				r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.Concurrency, 3*time.Second).If(func(c zohotest.Call) bool { return c.OrgID == other }))
			}
			for i := range 200 {
				r.publish("throttled", insert(fmt.Sprintf("throttled-%d-%d", turn, i), "Throttled"))
			}
		}
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			w.during(name, "demo", 25*time.Millisecond, stop)
		}()
		w.more(name, 100)
		close(stop)
		<-done
		if name == "beside" {
			r.drained()
		}
	}
	if n := r.Zoho.Count(zohotest.Match{Org: other, Where: func(c zohotest.Call) bool { return c.Status == 429 }}); n < 3 {
		t.Errorf("the other org was throttled %d times", n)
	}
	for _, name := range []string{"alone", "beside"} {
		t.Logf("%s: %d requests, 50th percentile %s, 90th %s, 99th %s", name, len(w.took[name]), w.at(name, 50), w.at(name, 90), w.at(name, 99))
	}
	// Were it paused with the other, half of its requests would wait longer than noise.
	if p, q := w.at("beside", 50), w.at("alone", 50); p > max(10*q, noise) {
		t.Errorf("half of the requests wait %s beside an org that is throttled, and %s alone", p, q)
	}
}
