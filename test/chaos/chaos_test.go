package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

func TestChaosOneServer(t *testing.T) { chaos(t, "one nats-server", 1) }

func TestChaosCluster(t *testing.T) { chaos(t, "three nats-servers", 3) }

// number is an environment variable's value, or otherwise.
func number(t testing.TB, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func chaos(t *testing.T, name string, nodes int, change ...func(*options)) {
	length := length(t)
	seed := number(t, "CHAOS_SEED", uint64(rand.Uint32()))
	fmt.Printf("chaos with %s for %s: CHAOS_SEED=%d\n", name, length, seed)
	plan := schedule(seed, length, nodes > 1)
	o := options{nodes: nodes, lasts: length}
	for _, f := range change {
		f(&o)
	}
	newWorld(t, o).trial(name, seed, func(w *world) map[string]int { return w.strikeAll(plan) })
	if t.Failed() {
		t.Logf("the schedule of seed %d:", seed)
		for _, s := range plan {
			t.Log(s)
		}
	}
}

// length is for how long faults strike.
func length(t testing.TB) time.Duration {
	t.Helper()
	if minutes := number(t, "CHAOS_MINUTES", 0); minutes > 0 {
		return time.Duration(minutes) * time.Minute
	}
	return time.Duration(number(t, "CHAOS_SECONDS", 45)) * time.Second
}

// trial puts the world under load, does something to it, waits until all is
// quiet, and balances the books. When cause returns nothing is wrong any more.
func (w *world) trial(name string, seed uint64, cause func(*world) (caused map[string]int)) *books {
	w.t.Helper()
	l := newLoad(w)
	b := &books{load: l}
	stopWorkers, stopLoad := make(chan struct{}), make(chan struct{})
	supervised, loaded := make(chan []string, 1), make(chan struct{})
	go func() { supervised <- w.supervise(stopWorkers) }()
	go func() {
		defer close(loaded)
		l.run(seed, stopLoad)
	}()
	b.caused = cause(w)
	close(stopLoad)
	<-loaded
	b.drain()
	drained := b.drained
	b.replay()
	responses, written := b.drain()
	b.drained = drained
	close(stopWorkers)
	b.ownEnds = <-supervised
	b.balance(responses, written)
	results.add(column{name, seed, b})
	for _, list := range [][]string{b.lost, b.doubled, b.wrong} {
		for i, text := range list {
			if i == 20 {
				w.t.Errorf("and %d more", len(list)-i)
				break
			}
			w.t.Error(text)
		}
	}
	return b
}

// A run of a day is a day under load, and none is so dense that its books can't be kept.
func TestLoadLastsAsLongAsTheFaults(t *testing.T) {
	for _, lasts := range []time.Duration{0, 45 * time.Second, 30 * time.Minute, 24 * time.Hour} {
		pause := pauseFor(lasts)
		each := mostOrders / requesters
		if mean := time.Duration(each) * pause / 2; mean < lasts || pause < leastPause {
			t.Errorf("pauses of %s at most: the load ends after about %s of %s", pause, mean, lasts)
		}
	}
	if pauseFor(45*time.Second) != leastPause {
		t.Error("a short run is less dense than it may be")
	}
}
