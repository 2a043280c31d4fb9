package chaos

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho/zohotest"
)

// TestRefusedForMinutes has Zoho refuse connections for five minutes (F35), which
// is many of the longest pauses between two attempts. What is published meanwhile
// is done when Zoho is back: each once, nothing unknown, workers ready all along.
func TestRefusedForMinutes(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of make chaos-short: five minutes; make chaos runs it")
	}
	const down, each = 5 * time.Minute, 20
	w := newWorld(t, options{nodes: 1})
	publish := func(name string, d doc) {
		data := fmt.Appendf(nil, `{"id":%q,"method":%q,"url":"/v8/Leads","deadline":%q`, d["id"], d["method"], time.Now().Add(longest).UTC().Format(time.RFC3339))
		if body := d["body"]; body != nil {
			data = fmt.Appendf(data, `,"body":%s`, body)
		}
		if _, err := w.js.Publish(t.Context(), "zoho.requests."+name, append(data, '}')); err != nil {
			t.Fatal(err)
		}
	}
	await := func(name, id string) *envelope.Response {
		t.Helper()
		watch, err := w.js.OrderedConsumer(t.Context(), consumer.ResponseStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{consumer.ResponseSubject(name, id)}})
		if err != nil {
			t.Fatal(err)
		}
		msg, err := watch.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatalf("no response to %s of %s: %v", id, name, err)
		}
		r, err := envelope.DecodeResponse(msg.Data())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	insert := func(id string) doc {
		return doc{"id": id, "method": "POST", "body": fmt.Sprintf(`{"data":[{"Last_Name":%q}]}`, "Record "+id)}
	}
	// Every worker has served, and has connections to Zoho that are kept.
	for _, c := range tenants {
		publish(c.name, insert(c.name+"-before"))
	}
	for _, c := range tenants {
		if r := await(c.name, c.name+"-before"); r.Status != 201 {
			t.Fatalf("%s", r.AppendJSON(nil))
		}
	}
	posts := func() int { return w.zoho.Count(zohotest.Match{Method: "POST", Endpoint: zohotest.API}) }
	before := posts()
	up, _ := cut(zohoProxy)(w, strike{})
	ctx, cancel := context.WithTimeout(t.Context(), down)
	defer cancel()
	for i := range each {
		for _, c := range tenants {
			publish(c.name, insert(fmt.Sprintf("%s-%d", c.name, i)))
		}
	}
	<-ctx.Done()
	for i := range w.workers {
		if status := w.readyz(i); status != http.StatusOK {
			t.Errorf("worker %d answers %d to /readyz: Zoho's trouble is not its own", i+1, status)
		}
	}
	if n := posts() - before; n != 0 {
		t.Errorf("%d calls reached Zoho while it refused them", n)
	}
	up()
	back := time.Now()
	for i := range each {
		for _, c := range tenants {
			if r := await(c.name, fmt.Sprintf("%s-%d", c.name, i)); r.Status != 201 || r.Error != nil {
				t.Errorf("%s", r.AppendJSON(nil))
			}
		}
	}
	if n := posts() - before; n != each*len(tenants) {
		t.Errorf("%d inserts of %d requests", n, each*len(tenants))
	}
	fmt.Printf("Zoho refused connections for %s; %d requests were done %s after it was back\n", down, each*len(tenants), time.Since(back).Round(time.Second))
}
