package chaos

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"zoho-worker/internal/zoho/zohotest"
)

// TestTwoOfThreeDown takes two of three NATS nodes away for a minute (F13). What
// is begun may end; after that no insert is sent, because none can be claimed,
// and no worker is ready. When the nodes are back everything goes on by itself.
func TestTwoOfThreeDown(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of make chaos-short: two minutes; make chaos runs it")
	}
	const down, begun = time.Minute, callTimeout + 5*time.Second
	w := newWorld(t, options{nodes: 3})
	seed := number(t, "CHAOS_SEED", uint64(rand.Uint32()))
	posts := func() int { return w.zoho.Count(zohotest.Match{Method: "POST"}) }
	w.trial("three nats-servers, two down for a minute", seed, func(w *world) map[string]int {
		time.Sleep(4 * time.Second)
		w.settle()
		start := time.Now()
		up, ok := killTwoNodes(w, strike{pick: rand.New(rand.NewPCG(seed, 0)).IntN(3)})
		if !ok {
			t.Fatal("no node to kill")
		}
		time.Sleep(begun)
		before := posts()
		time.Sleep(down - begun)
		if after := posts(); after > before {
			t.Errorf("%d inserts were sent while none could be claimed", after-before)
		}
		for i := range w.workers {
			if status := w.readyz(i); status != http.StatusServiceUnavailable {
				t.Errorf("worker %d answers %d to /readyz", i+1, status)
			}
		}
		up()
		back := time.Now()
		w.span("NATS two of three down", start)
		w.settle()
		before = posts()
		for deadline := time.Now().Add(patience); posts() == before; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("no insert is sent although NATS is back")
			}
		}
		fmt.Printf("two of three nodes were down for %s; the first insert after their return came after %s\n",
			down, time.Since(back).Round(100*time.Millisecond))
		time.Sleep(3 * time.Second)
		return nil
	})
}

var httpAddr = regexp.MustCompile(`worker started .*http=(\S+)`)

// readyz asks a worker; 0 where it doesn't answer.
func (w *world) readyz(worker int) int {
	w.t.Helper()
	log, err := os.ReadFile(filepath.Join(w.dir, w.workers[worker].name+".log"))
	if err != nil {
		w.t.Fatal(err)
	}
	all := httpAddr.FindAllSubmatch(log, -1)
	if len(all) == 0 {
		w.t.Fatalf("%s has not started", w.workers[worker].name)
	}
	client := &http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + string(all[len(all)-1][1]) + "/readyz")
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestGaps measures for how long nobody is answered when a NATS node dies (F9)
// and when streams and consumers change their leaders (F10).
func TestGaps(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of make chaos-short: two minutes; make chaos runs it")
	}
	w := newWorld(t, options{nodes: 3})
	seed := number(t, "CHAOS_SEED", uint64(rand.Uint32()))
	const rounds = 3
	type window struct{ from, to time.Time }
	windows := map[string][]window{}
	b := w.trial("three nats-servers, gaps", seed, func(w *world) map[string]int {
		time.Sleep(3 * time.Second)
		for i := range rounds {
			for _, kind := range []string{"in peace", "leaders step down", "node dies"} {
				w.settle()
				from := time.Now()
				switch kind {
				case "leaders step down":
					stepDown(w, strike{})
				case "node dies":
					up, _ := killNode(w, strike{pick: i})
					time.Sleep(8 * time.Second)
					up()
				}
				time.Sleep(4 * time.Second)
				windows[kind] = append(windows[kind], window{from, time.Now()})
				w.span("NATS "+kind, from)
			}
		}
		return nil
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	var replies []time.Time
	for _, at := range b.replied {
		replies = append(replies, at)
	}
	slices.SortFunc(replies, time.Time.Compare)
	for _, kind := range []string{"in peace", "leaders step down", "node dies"} {
		longest := time.Duration(0)
		for _, win := range windows[kind] {
			last := win.from
			for _, at := range replies {
				if at.After(win.from) && at.Before(win.to) {
					longest, last = max(longest, at.Sub(last)), at
				}
			}
			longest = max(longest, win.to.Sub(last))
		}
		fmt.Printf("%s: nobody was answered for %s at most, in %d tries\n", kind, longest.Round(10*time.Millisecond), rounds)
		if longest > 30*time.Second {
			t.Errorf("%s: nobody was answered for %s", kind, longest)
		}
	}
}
