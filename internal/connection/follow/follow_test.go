package follow_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/follow"
	"zoho-worker/internal/connection/natstest"
)

// emptied is a stream whose values age out right before they are read.
type emptied struct{ jetstream.JetStream }

func (e emptied) OrderedConsumer(ctx context.Context, name string, config jetstream.OrderedConsumerConfig) (jetstream.Consumer, error) {
	stream, err := e.Stream(ctx, name)
	if err == nil {
		err = stream.Purge(ctx)
	}
	if err != nil {
		return nil, err
	}
	return e.JetStream.OrderedConsumer(ctx, name, config)
}

// A stream that was seen with values and has none when it is read is read whole.
func TestStartWhileTheLastValueEnds(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js, jetstream.StreamConfig{Name: "VALUES", Subjects: []string{"values.*"}, MaxMsgsPerSubject: 1})
	if _, err := js.Publish(t.Context(), "values.a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	f, err := follow.Start(ctx, emptied{js}, follow.Options{
		Stream: "VALUES", Check: 50 * time.Millisecond, Apply: func(follow.Change) {}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
