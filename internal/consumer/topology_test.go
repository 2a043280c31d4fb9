package consumer_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consumer"
)

// A worker's start leaves the limits and the compression that somebody has set by hand,
// and brings what is the worker's own up to date.
func TestEnsureKeepsLimits(t *testing.T) {
	t.Parallel()
	js := natstest.Start(t).JetStream()
	ensure := func(retention time.Duration) {
		t.Helper()
		if err := (consumer.Topology{Replicas: 1, Retention: retention}).Ensure(t.Context(), js); err != nil {
			t.Fatal(err)
		}
	}
	config := func(name string) jetstream.StreamConfig {
		t.Helper()
		stream, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return stream.CachedInfo().Config
	}
	ensure(time.Hour)
	// Decisions are made by what the leader says, and nothing but notices makes room for others.
	list := js.ListStreams(t.Context())
	for info := range list.Info() {
		c := info.Config
		full := c.Discard == jetstream.DiscardNew || c.Name == consumer.EventStream
		if own := !strings.HasPrefix(c.Name, "OBJ_"); own && (c.AllowDirect || !full || c.Storage != jetstream.FileStorage) {
			t.Errorf("%s: %+v", c.Name, c)
		}
		if c.Name == consumer.ResponseStream && c.MaxMsgsPerSubject != 1 {
			t.Errorf("%d responses to a request", c.MaxMsgsPerSubject)
		}
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	const limit, consumers = 1 << 30, 50_000
	streams := []string{consumer.RequestStream, consumer.ResponseStream, "OBJ_" + consumer.BodyBucket}
	for _, name := range streams {
		by := config(name)
		by.MaxBytes, by.MaxConsumers, by.AllowDirect, by.Compression = limit, consumers, true, jetstream.S2Compression
		if _, err := js.UpdateStream(t.Context(), by); err != nil {
			t.Fatal(err)
		}
	}
	for _, retention := range []time.Duration{time.Hour, 2 * time.Hour} {
		ensure(retention)
		for _, name := range streams {
			got := config(name)
			switch own := !strings.HasPrefix(name, "OBJ_"); {
			case got.MaxBytes != limit || own && got.MaxConsumers != consumers:
				t.Errorf("%s has limits of %d bytes and %d consumers after a start with a retention of %s, not those set by hand", name, got.MaxBytes, got.MaxConsumers, retention)
			case got.Compression != jetstream.S2Compression:
				t.Errorf("%s isn't compressed any more after a start with a retention of %s", name, retention)
			case own && got.AllowDirect:
				t.Errorf("%s is read from any replica after a start", name)
			case name != consumer.RequestStream && got.MaxAge != retention:
				t.Errorf("%s keeps for %s, not %s", name, got.MaxAge, retention)
			}
		}
	}
}

// How many requests of a lane may wait can be bounded by hand, and stays bounded. What
// one caller has too many of is refused to that one, and to nobody else.
func TestEnsureKeepsTheLimitOfALane(t *testing.T) {
	t.Parallel()
	js := natstest.Start(t).JetStream()
	topology := consumer.Topology{Replicas: 1, Retention: time.Hour}
	if err := topology.Ensure(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), consumer.RequestStream)
	if err != nil {
		t.Fatal(err)
	}
	by := stream.CachedInfo().Config
	by.MaxMsgsPerSubject, by.DiscardNewPerSubject = 2, true
	by.Metadata = nil // as of another version, which the next start brings up to date
	if _, err := js.UpdateStream(t.Context(), by); err != nil {
		t.Fatal(err)
	}
	if err := topology.Ensure(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	for i, subject := range []string{"zoho.requests.acme", "zoho.requests.acme", "zoho.requests.acme", "zoho.requests.acme.bulk", "zoho.requests.globex"} {
		_, err := js.Publish(t.Context(), subject, []byte("{}"))
		if refused := err != nil; refused != (i == 2) {
			t.Errorf("request %d, to %s: %v", i, subject, err)
		}
	}
}
