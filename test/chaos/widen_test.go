package chaos

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// startCluster starts three NATS servers and nothing else.
func startCluster(t *testing.T) (*world, *nats.Conn, jetstream.JetStream) {
	t.Helper()
	dir, err := os.MkdirTemp("", "zoho-chaos-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{options: options{nodes: 3}, t: t, dir: dir}
	w.startNATS(program(t, "nats-server"), 3)
	var urls []string
	for _, p := range w.natsProxies {
		urls = append(urls, "nats://"+p.Upstream)
	}
	nc, err := nats.Connect(strings.Join(urls, ","), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1),
		nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return w, nc, js
}

// What a queue that gets another connection depends on, in a cluster: a work
// queue's consumer whose subjects grow must be at the start of the stream
// before, or the server removes waiting messages of the new subject, those up
// to the ack floor, as soon as the consumer's leader changes. Seed 31 lost seven
// requests that way.
func TestWidenedConsumerKeepsMessages(t *testing.T) {
	_, nc, js := startCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const stream, each = "WORK", 10
	until(ctx, t, func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{
			Name: stream, Subjects: []string{"work.>"}, Retention: jetstream.WorkQueuePolicy, Replicas: 3,
		})
		return err
	})
	config := func(subjects ...string) jetstream.ConsumerConfig {
		return jetstream.ConsumerConfig{
			Durable: "queue", FilterSubjects: subjects, AckPolicy: jetstream.AckExplicitPolicy, MemoryStorage: true, Replicas: 3,
		}
	}
	queue, err := js.CreateConsumer(ctx, stream, config("work.north"))
	if err != nil {
		t.Fatal(err)
	}
	for range each {
		for _, name := range []string{"south", "north"} {
			if _, err := js.Publish(ctx, "work."+name, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	batch, err := queue.Fetch(each, jetstream.FetchMaxWait(5*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for m := range batch.Messages() {
		if err := m.DoubleAck(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := js.PauseConsumer(ctx, stream, "queue", time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := js.ResetConsumerToSequence(ctx, stream, "queue", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := js.UpdateConsumer(ctx, stream, config("work.north", "work.south")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		answer, err := nc.Request(fmt.Sprintf("$JS.API.CONSUMER.LEADER.STEPDOWN.%s.queue", stream), nil, 5*time.Second)
		if err != nil || !strings.Contains(string(answer.Data), `"success":true`) {
			t.Fatal("the leader doesn't step down: ", err)
		}
		time.Sleep(2 * time.Second) // the new one looks at the stream at once
	}
	there, err := js.Stream(ctx, stream)
	if err != nil {
		t.Fatal(err)
	}
	if n := there.CachedInfo().State.Msgs; n != each {
		t.Errorf("of %d messages that nobody got, %d are left", each, n)
	}
}
