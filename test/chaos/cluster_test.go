package chaos

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
)

// The books read what is stored, however the cluster is at that moment: two of
// three nodes go down right before, so that no stream has a leader. The books of
// seed 77 once gave up at such a moment and called 502 stored responses lost.
func TestBooksReadThroughElections(t *testing.T) {
	w, _, js := startCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	until(ctx, t, func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{
			Name: consumer.ResponseStream, Subjects: []string{"zoho.responses.*.*"}, Replicas: 3,
		})
		return err
	})
	const n = 300
	for i := range n {
		subject := consumer.ResponseSubject("north", fmt.Sprint(i))
		until(ctx, t, func(ctx context.Context) error {
			_, err := js.Publish(ctx, subject, []byte("{}"), jetstream.WithMsgID(subject))
			return err
		})
	}
	end, ok := killTwoNodes(w, strike{pick: 1})
	if !ok {
		t.Fatal("no node to kill")
	}
	go func() {
		time.Sleep(3 * time.Second)
		end()
	}()
	w.js = js
	b := &books{load: &load{world: w}}
	responses, written, err := b.stored()
	if err != nil || len(responses) != n || written != n || len(b.doubled) > 0 {
		t.Errorf("%d of %d responses, %d written, %d doubled: %v", len(responses), n, written, len(b.doubled), err)
	}
}

// until tries something again that a cluster can't do at the moment.
func until(ctx context.Context, t *testing.T, try func(context.Context) error) {
	t.Helper()
	for {
		attempt, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := try(attempt)
		cancel()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
