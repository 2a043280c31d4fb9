package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/zoho/zohotest"
)

// busy has Zoho ask for a long pause before a request is tried again.
func (r *rig) busy(id, after string) {
	r.Zoho.Inject(zohotest.AnswerWith("busy", 503, "", "Retry-After", after).On("GET", "").If(func(c zohotest.Call) bool {
		return strings.Contains(c.RawQuery, "at="+id)
	}))
}

func marked(id string) doc {
	d := list(id)
	d["query"] = doc{"fields": "Last_Name", "at": id}
	return d
}

// A request that rests because Zoho asked for it, when its worker stops, doesn't
// hold ordered requests up with which it has nothing to do.
func TestRestingRequestAtRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.demo(5)
	r.busy("rests-1", "300")
	first := r.worker()
	r.publish("demo", marked("rests-1"))
	r.seen("it rests", func(s consumer.Sight) bool {
		return r.Zoho.Count(zohotest.Match{Method: "GET"}) == 1 && s.Running == 0 && s.Held == 1
	})
	stop(first)
	r.worker()
	wantStatus(t, r.call("demo", list("unordered")), 200)
	wantStatus(t, r.call("demo", ordered("B", 0)), 200)
}

// Requests that rest when their org changes hands are not counted as calls in flight.
func TestRestingRequestsAreNoCalls(t *testing.T) {
	t.Parallel()
	const places = 2
	r := newRig(t, zohotest.Options{})
	r.demo(places)
	first := r.worker()
	for i := range places {
		id := fmt.Sprint("rests-", i)
		r.busy(id, "300")
		r.publish("demo", marked(id))
	}
	r.seen("they rest", func(s consumer.Sight) bool {
		return r.Zoho.Count(zohotest.Match{Method: "GET"}) == places && s.Running == 0 && s.Held == places
	})
	hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Where: func(c zohotest.Call) bool { return strings.Contains(c.RawQuery, "at=held") }})
	for i := range places {
		r.publish("demo", marked(fmt.Sprint("held-", i)))
	}
	for range places {
		r.reached(hold)
	}
	r.worker()
	stopped := stopping(first)
	r.publish("demo", list("next"))
	r.seen("the second worker has it", func(s consumer.Sight) bool { return s.Running == 0 && s.Held >= 1 })
	hold.Release()
	<-stopped
	wantStatus(t, r.call("demo", list("after")), 200)
}

// A lane whose ordered requests fill a worker's hand while the first of them is
// still to be given back by the worker before goes on when it is.
func TestOrderedBacklogAtHandOver(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.demo(5)
	pulled, err := r.nc.SubscribeSync("$JS.API.CONSUMER.MSG.NEXT." + consumer.RequestStream + "." + consumer.Durable("demo", consumer.Interactive))
	if err != nil {
		t.Fatal(err)
	}
	first := r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, at("A-0"))
	defer hold.Release()
	cut := zohotest.CutRead(zohotest.Reset)
	cut.Match = at("A-0")
	r.Zoho.Inject(cut)
	const n, handed = 600, 512
	for i := range n {
		r.publish("demo", ordered("A", i))
	}
	r.reached(hold)
	r.worker()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		defer cancel()
		first.Stop(ctx)
	}()
	r.seen("the second worker has all in hand that the server hands out", func(s consumer.Sight) bool {
		return s.Running == 0 && s.Held == handed-1
	})
	// A pull for the one that is missing was open for as long as it may be, and is asked anew.
	for renewed := false; !renewed; {
		msg, err := pulled.NextMsg(patience)
		if err != nil {
			t.Fatalf("nothing is asked for: %v", err)
		}
		renewed = strings.HasPrefix(string(msg.Data), `{"batch":1,`)
	}
	hold.Release() // the call ends without an answer, and the request comes back
	<-stopped
	r.awaitAll("demo", n)
	r.inOrder("A", n+1)
}

// Requests of both lanes with the same key are not under way together, also while
// one of them is under way at the worker before.
func TestOneKeyInTwoLanesAtHandOver(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.demo(5)
	first := r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, at("A-0"))
	r.publish("demo", ordered("A", 0))
	r.reached(hold)
	r.worker()
	stopped := stopping(first)
	r.publish("demo", list("other"))
	wantStatus(t, r.await("demo", "other"), 200) // of the second worker: the first takes up nothing more
	r.publish("demo.bulk", ordered("A", 1))
	r.publish("demo.bulk", list("behind"))
	wantStatus(t, r.await("demo", "behind"), 200) // A-1 came before it, and was passed over
	if n := r.Zoho.Count(at("A-1")); n != 0 {
		t.Error("A-1 is called while A-0 is under way")
	}
	hold.Release()
	<-stopped
	r.awaitAll("demo", 4)
	r.inOrder("A", 2)
}
