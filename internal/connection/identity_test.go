package connection_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
)

// TestOneOfMany has many workers add the same Zoho user under different names
// in the same instant.
func TestOneOfMany(t *testing.T) {
	t.Parallel()
	server, k, _ := started(t)
	const n = 8
	stores := make([]*connection.Store, n)
	for i := range stores {
		stores[i] = open(t, server.JetStream(), k)
	}
	var wait sync.WaitGroup
	errs := make([]error, n)
	begin := make(chan struct{})
	for i, s := range stores {
		wait.Go(func() {
			<-begin
			c := acme()
			c.Name = fmt.Sprint("acme", i)
			_, errs[i] = s.Add(t.Context(), c, secret.New(fmt.Sprint("r", i)))
		})
	}
	close(begin)
	wait.Wait()
	added := 0
	for _, err := range errs {
		if err == nil {
			added++
		} else if _, ok := errors.AsType[connection.ErrDuplicate](err); !ok {
			t.Error(err)
		}
	}
	if added != 1 {
		t.Fatalf("%d were added, want one", added)
	}
}

func TestGrantsAreCounted(t *testing.T) {
	t.Parallel()
	_, _, s := started(t)
	c := add(t, s, acme(), "r0")
	id, ok := c.Identity()
	if !ok {
		t.Fatal("no identity")
	}
	for i := range 24 {
		if _, err := s.NoteGrant(t.Context(), id, secret.New(fmt.Sprint("r", i)), "acme"); err != nil {
			t.Fatal(err)
		}
	}
	name, grants, err := s.Holder(t.Context(), id)
	if err != nil || name != "acme" || len(grants) != 20 { // zoho-facts 1.6
		t.Fatalf("%s, %d grants, %v", name, len(grants), err)
	}
	if err := s.ForgetGrant(t.Context(), id, secret.New("r23")); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "acme", "test"); err != nil {
		t.Fatal(err)
	}
	name, grants, err = s.Holder(t.Context(), id)
	if err != nil || name != "" || len(grants) != 20-1 {
		t.Fatalf("%s, %d grants, %v", name, len(grants), err)
	}
	second := acme()
	second.Name = "acme2"
	add(t, s, second, "r30") // at once: the first one is gone
}

// broken ends the caller's context at the first write of acme's record, which it loses.
type broken struct {
	jetstream.JetStream
	end context.CancelFunc
}

func (b broken) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if msg.Subject == "zoho.connections.acme" {
		b.end()
		return nil, context.Canceled
	}
	return b.JetStream.PublishMsg(ctx, msg, o...)
}

// Whoever has taken a user's identity is left some time to store the connection: a new
// one, and one that is authorized anew. No more, whatever the clocks of workers say.
func TestIdentityIsHeldForAWhile(t *testing.T) {
	t.Parallel()
	server, k, s := started(t)
	second := acme()
	second.Name = "acme2"
	held := func() {
		t.Helper()
		_, err := s.Add(t.Context(), second, secret.New("r9"))
		if duplicate, ok := errors.AsType[connection.ErrDuplicate](err); !ok || duplicate.Existing != "acme" {
			t.Errorf("taken over, or %v", err)
		}
	}
	store := func(change func(ctx context.Context, s *connection.Store) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if err := change(ctx, open(t, broken{server.JetStream(), cancel}, k)); !errors.Is(err, connection.ErrUnclear) {
			t.Fatal(err)
		}
	}
	store(func(ctx context.Context, s *connection.Store) error {
		_, err := s.Add(ctx, acme(), secret.New("r1"))
		return err
	})
	held()
	added := add(t, s, acme(), "r1")
	if changed, err := s.MarkRevoked(t.Context(), added, "dead"); !changed || err != nil {
		t.Fatal(changed, err)
	}
	store(func(ctx context.Context, s *connection.Store) error {
		id, _ := added.Identity()
		if _, err := s.NoteGrant(ctx, id, secret.New("r2"), "acme"); err != nil { // as the consent does
			return err
		}
		_, err := s.Reauthorize(ctx, "acme", secret.New("r2"), nil)
		return err
	})
	held()
	js := server.JetStream()
	for i, at := range []time.Duration{-time.Hour, time.Hour} {
		c := acme()
		c.Name, c.UserID = fmt.Sprint("other", i), fmt.Sprint("other", i)
		holding := fmt.Sprintf(`{"connection":"nobody","held_at":%q}`, time.Now().Add(at).UTC().Format(time.RFC3339))
		if _, err := js.Publish(t.Context(), "zoho.identities.eu.production.1."+c.UserID, []byte(holding)); err != nil {
			t.Fatal(err)
		}
		add(t, s, c, "r")
	}
}
