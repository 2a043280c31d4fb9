package consumer

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/register"
)

// mender is a consumer that only mends.
func mender(t *testing.T, js jetstream.JetStream) *Consumer {
	t.Helper()
	c := New(Options{
		JetStream: js, Clock: &register.Clock{}, MaxInFlight: 1,
		Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	t.Cleanup(func() {
		c.stopPull()
		c.stopCall(nil)
	})
	return c
}

// fill stores n requests of each connection.
func fill(t *testing.T, js jetstream.JetStream, n int, names ...string) {
	t.Helper()
	for i := range n {
		for _, name := range names {
			if _, err := js.Publish(t.Context(), "zoho.requests."+name, fmt.Appendf(nil, "%s-%d", name, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// fetch acks and returns n requests.
func fetch(t *testing.T, js jetstream.JetStream, queue string, n int) (got []string) {
	t.Helper()
	source, err := js.Consumer(t.Context(), RequestStream, durable(queue))
	if err != nil {
		t.Fatal(err)
	}
	for len(got) < n {
		msg, err := source.Next(jetstream.FetchMaxWait(15 * time.Second))
		if err != nil {
			t.Fatalf("%d of %d requests: %v", len(got), n, err)
		}
		if err := msg.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
		got = append(got, string(msg.Data()))
	}
	slices.Sort(got)
	return got
}

func streams(t *testing.T) jetstream.JetStream {
	t.Helper()
	s := natstest.Start(t)
	js := s.JetStream()
	if err := (Topology{Replicas: 1, Retention: 24 * time.Hour}).Ensure(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	return js
}

// A connection that joins a queue brings the requests that it had before.
func TestMendStartsOver(t *testing.T) {
	t.Parallel()
	js := streams(t)
	c := mender(t, js)
	c.directory.put(record("a", "1", connection.Active, 5))
	fill(t, js, 3, "b", "a")
	if _, err := ensureConsumer(t.Context(), js, c.directory.plan(org1).config()); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, js, org1, 3); !slices.Equal(got, []string{"a-0", "a-1", "a-2"}) {
		t.Fatalf("got %v", got)
	}
	c.directory.put(record("b", "1", connection.Active, 5))
	if err := c.mend(org1); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, js, org1, 3); !slices.Equal(got, []string{"b-0", "b-1", "b-2"}) {
		t.Fatalf("after the change got %v", got)
	}
	wantPlan(t, js, c, org1)
}

// A worker that dies between having a consumer start over and giving it its new
// subjects leaves it to the next one, which sees that they are missing.
func TestMendAfterACrash(t *testing.T) {
	t.Parallel()
	js := streams(t)
	c := mender(t, js)
	c.directory.put(record("a", "1", connection.Active, 5))
	fill(t, js, 3, "b", "a")
	if _, err := ensureConsumer(t.Context(), js, c.directory.plan(org1).config()); err != nil {
		t.Fatal(err)
	}
	fetch(t, js, org1, 3)
	c.directory.put(record("b", "1", connection.Active, 5))
	// The steps of remodel, up to the crash.
	if _, err := js.PauseConsumer(t.Context(), RequestStream, org1, time.Now().Add(6*settleDown)); err != nil {
		t.Fatal(err)
	}
	if _, err := js.ResetConsumerToSequence(t.Context(), RequestStream, org1, 1); err != nil {
		t.Fatal(err)
	}
	next := mender(t, js)
	next.directory.put(record("a", "1", connection.Active, 5))
	next.directory.put(record("b", "1", connection.Active, 5))
	source, err := ensureConsumer(t.Context(), js, next.directory.plan(org1).config())
	if err != nil {
		t.Fatal(err)
	}
	if next.directory.plan(org1).covers(source.CachedInfo().Config) {
		t.Fatal("the missing subjects are not seen")
	}
	if err := next.mend(org1); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, js, org1, 3); !slices.Equal(got, []string{"b-0", "b-1", "b-2"}) {
		t.Fatalf("after the crash got %v", got)
	}
	wantPlan(t, js, next, org1)
}

// Another limit is no reason to start over, and a queue without connections, or
// a parked one, has no consumer.
func TestMendLimitAndEnd(t *testing.T) {
	t.Parallel()
	js := streams(t)
	c := mender(t, js)
	c.directory.put(record("a", "1", connection.Active, 5))
	if err := c.mend(org1); err != nil {
		t.Fatal("no consumer yet:", err)
	}
	before, err := ensureConsumer(t.Context(), js, c.directory.plan(org1).config())
	if err != nil {
		t.Fatal(err)
	}
	c.directory.put(record("a", "1", connection.Active, 2))
	if err := c.mend(org1); err != nil {
		t.Fatal(err)
	}
	after := wantPlan(t, js, c, org1)
	if after.Paused || !after.Created.Equal(before.CachedInfo().Created) {
		t.Errorf("another limit: paused %v, created %s and %s", after.Paused, before.CachedInfo().Created, after.Created)
	}
	touched := c.directory.put(record("a", "1", connection.Revoked, 2))
	for range 2 { // another worker does the same
		for _, q := range touched {
			if err := c.mend(q); err != nil {
				t.Fatal(err)
			}
		}
	}
	stream, err := js.Stream(t.Context(), RequestStream)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Consumers; n != 0 {
		t.Errorf("%d consumers are left", n)
	}
}

func wantPlan(t *testing.T, js jetstream.JetStream, c *Consumer, queue string) *jetstream.ConsumerInfo {
	t.Helper()
	source, err := js.Consumer(t.Context(), RequestStream, durable(queue))
	if err != nil {
		t.Fatal(err)
	}
	if p := c.directory.plan(queue); !p.covers(source.CachedInfo().Config) {
		t.Fatalf("the consumer is %+v, the plan %+v", source.CachedInfo().Config, p)
	}
	return source.CachedInfo()
}
