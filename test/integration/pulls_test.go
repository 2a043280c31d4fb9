package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/zoho/zohotest"
)

// handedOut is how many requests of the connection's lane the server has handed
// out and not heard of again, and how many pulls are open, to which it would hand more.
func (r *rig) handedOut(name string) (requests, pulls int) {
	r.t.Helper()
	c, err := r.js.Consumer(r.t.Context(), consumer.RequestStream, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return 0, 0
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return c.CachedInfo().NumAckPending, c.CachedInfo().NumWaiting
}

// A worker asks for what it has room for: the rest waits in the stream, where
// another worker can have it. The more is settled, the more it asks for.
func TestAskedForWhatThereIsRoomFor(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(2)
	const n, window = 100, 16
	hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Method: "GET"})
	for i := range n {
		r.publish("demo", list(fmt.Sprint("get-", i)))
	}
	r.worker()
	r.reached(hold)
	r.reached(hold)
	eventually(t, "the worker has what it asked for", func() bool {
		requests, pulls := r.handedOut("demo")
		return requests >= window && pulls == 0
	})
	if got, _ := r.handedOut("demo"); got != window {
		t.Errorf("%d requests are handed out to a worker that has room for %d", got, window)
	}
	hold.Release()
	r.awaitAll("demo", n)
	r.drained()
	if got := len(r.Zoho.Find(zohotest.Match{Method: "GET", Path: "/crm/v8/Leads"})); got != n {
		t.Errorf("%d calls for %d requests", got, n)
	}
}

// A lane whose consumer is deleted, whose connection is lost, or both, goes on with
// what comes then.
func TestLanesGoOn(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(*rig){
		"consumer deleted": func(r *rig) {
			if err := r.js.DeleteConsumer(r.t.Context(), consumer.RequestStream, "demo"); err != nil {
				r.t.Fatal(err)
			}
		},
		"server restarted": func(r *rig) {
			if err := r.RestartNATS(); err != nil {
				r.t.Fatal(err)
			}
			r.connectedAgain()
		},
		"deleted and restarted": func(r *rig) {
			if err := r.js.DeleteConsumer(r.t.Context(), consumer.RequestStream, "demo"); err != nil {
				r.t.Fatal(err)
			}
			if err := r.RestartNATS(); err != nil {
				r.t.Fatal(err)
			}
			r.connectedAgain()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, zohotest.Options{})
			r.demo(5)
			r.worker()
			wantStatus(t, r.call("demo", list("before")), 200)
			r.drained() // a read whose ack is lost is made again
			harm(r)
			for i := range 40 { // more than a window
				r.publish("demo", list(fmt.Sprint("after-", i)))
			}
			r.awaitAll("demo", 40)
			r.drained()
			if got := len(r.Zoho.Find(zohotest.Match{Method: "GET", Path: "/crm/v8/Leads"})); got != 41 {
				t.Errorf("%d calls for 41 requests", got)
			}
		})
	}
}

// A lane whose pulls the server refuses for a while, as when somebody has set a
// limit on its consumer by hand, goes on when it no longer does; and what it had in
// hand all the time isn't taken for that of another worker, for which an ordered
// request would wait.
func TestRefusedPulls(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.demo(5)
	r.worker()
	limit := func(batch int) {
		t.Helper()
		c, err := r.js.Consumer(t.Context(), consumer.RequestStream, "demo")
		if err != nil {
			t.Fatal(err)
		}
		config := c.CachedInfo().Config
		config.MaxRequestBatch = batch
		if _, err := r.js.UpdateConsumer(t.Context(), consumer.RequestStream, config); err != nil {
			t.Fatal(err)
		}
	}
	hold := r.Zoho.Hold(zohotest.BodyRead, at("A-0"))
	r.publish("demo", ordered("A", 0))
	r.reached(hold)
	limit(1)
	for i := range 8 { // half of what it has asked for: it asks for more
		r.publish("demo", list(fmt.Sprint("get-", i)))
	}
	eventually(t, "all its pulls are refused", func() bool { _, pulls := r.handedOut("demo"); return pulls == 0 })
	limit(0)
	wantStatus(t, r.call("demo", ordered("B", 0)), 200)
	hold.Release()
	for _, response := range r.awaitAll("demo", 9) { // B-0 is heard already
		wantStatus(t, response, 200)
	}
	r.drained()
}

// A worker's memory has room for so much of what waits: the rest of it stays in the
// stream, whatever the size of the requests and the number of lanes they wait in.
func TestInHandIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	const (
		limit = 64 << 20 // of the worker's memory, of which a quarter is for what is in hand
		lanes = 12
		each  = 16 // no more than the worker takes in hand of small ones
		size  = 400 << 10
	)
	name := func(i int) string { return fmt.Sprint("org-", i) }
	for i := range lanes {
		org := fmt.Sprint(770_000_000 + i)
		r.Zoho.AddOrg(zohotest.Org{ID: org, Name: name(i), Concurrency: 2})
		r.connect(name(i), org, 2)
	}
	posts := zohotest.Match{Method: "POST"}
	hold := r.Zoho.Hold(zohotest.BodyRead, posts)
	padding := strings.Repeat("x", size)
	for i := range lanes {
		for n := range each {
			d := insert(fmt.Sprint("post-", n), "Large")
			d["body"] = doc{"data": []doc{{"Last_Name": "Large", "Description": padding}}}
			r.publish(name(i), d)
		}
	}
	r.process("CALL_TIMEOUT=2m", "STOP_TIMEOUT=3m", fmt.Sprint("GOMEMLIMIT=", limit))
	for range lanes { // none is left without any
		r.reached(hold)
	}
	settled := 0
	eventually(t, "every lane has what it may", func() bool {
		requests, asked := 0, 0
		for i := range lanes {
			n, pulls := r.handedOut(name(i))
			requests, asked = requests+n, asked+pulls
		}
		same := requests == settled
		settled = requests
		return same && asked == 0
	})
	// Twice the room, one of each lane, and what was on its way when the room was taken.
	if most := 3*limit/4 + lanes*size; settled*size > most {
		t.Errorf("%d requests of %d KiB are in hand, %d MiB, and there is room for %d MiB", settled, size>>10, settled*size>>20, most>>20)
	}
	t.Logf("%d of %d in hand", settled, lanes*each)
	hold.Release()
	for i := range lanes {
		for _, response := range r.awaitAll(name(i), each) {
			wantStatus(t, response, 201)
		}
	}
	r.drained()
	if n := r.Zoho.Count(posts); n != lanes*each {
		t.Errorf("%d calls for %d requests", n, lanes*each)
	}
}
