package console

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consumer"
)

func newBoard(t *testing.T) (*board, jetstream.JetStream, *time.Time) {
	t.Helper()
	js := natstest.Start(t).JetStream()
	if err := (consumer.Topology{Replicas: 1, Retention: 24 * time.Hour}).Ensure(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	return &board{js: js, now: func() time.Time { return now }, logger: slog.New(slog.DiscardHandler)}, js, &now
}

func respond(t *testing.T, js jetstream.JetStream, name string) {
	t.Helper()
	if _, err := js.Publish(t.Context(), consumer.ResponseSubject(name, "1"), []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
}

// Of many connections each is looked at in its turn, and none is called unused that
// was not looked at.
func TestLastUsesOfMany(t *testing.T) {
	t.Parallel()
	b, js, now := newBoard(t)
	const number = 5 * useMost / 2
	var names []string
	for i := range number {
		names = append(names, fmt.Sprintf("c%03d", i))
	}
	respond(t, js, names[number-1])
	if uses := b.lastUses(t.Context(), names); !uses[names[0]].known || uses[names[number-1]].known {
		t.Fatalf("the first look: %+v, %+v", uses[names[0]], uses[names[number-1]])
	}
	var uses map[string]use
	for range 3 {
		*now = now.Add(useAge) // by now the first are to be looked at again
		uses = b.lastUses(t.Context(), names)
	}
	if u := uses[names[number-1]]; u.At.IsZero() || !u.known {
		t.Errorf("the last is not looked at: %+v", u)
	}
}

// A browser that goes away takes nothing from the others.
func TestBoardOfWhoeverLeft(t *testing.T) {
	t.Parallel()
	b, js, _ := newBoard(t)
	respond(t, js, "acme")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	b.look(gone)
	b.lastUses(gone, []string{"acme"})
	if _, known := b.look(t.Context()); !known {
		t.Error("the queues are not known")
	}
	if u := b.lastUses(t.Context(), []string{"acme"})["acme"]; u.At.IsZero() {
		t.Errorf("acme is called unused: %+v", u)
	}
}

// What was known of a connection stays where the server doesn't say.
func TestLastUsesWithoutServer(t *testing.T) {
	t.Parallel()
	b, js, now := newBoard(t)
	respond(t, js, "acme")
	before := b.lastUses(t.Context(), []string{"acme", "other"})
	if err := js.DeleteStream(t.Context(), consumer.ResponseStream); err != nil {
		t.Fatal(err)
	}
	*now = now.Add(useAge)
	after := b.lastUses(t.Context(), []string{"acme", "other", "new"})
	if !after["acme"].At.Equal(before["acme"].At) || before["acme"].At.IsZero() || after["new"].known {
		t.Errorf("%+v, then %+v", before, after)
	}
}
