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
		// Half of their clocks are wrong.
		stores[i] = openBy(t, server.JetStream(), k, func() time.Time { return time.Now().Add(time.Duration(i%2) * time.Hour) })
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

// paused has the first write to subject wait, once it is begun, until it is let go.
type paused struct {
	jetstream.JetStream
	subject     string
	once        *sync.Once
	begun, goOn chan struct{}
}

func pause(js jetstream.JetStream, subject string) paused {
	return paused{js, subject, &sync.Once{}, make(chan struct{}), make(chan struct{})}
}

func (p paused) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if msg.Subject == p.subject {
		p.once.Do(func() {
			close(p.begun)
			<-p.goOn
		})
	}
	return p.JetStream.PublishMsg(ctx, msg, o...)
}

// Of two that sign the same user in one gets him, wherever either stands still, for
// however long, and whatever the clocks of their workers say.
func TestOneOfTwo(t *testing.T) {
	t.Parallel()
	server, k, s := started(t)
	second := acme()
	second.Name = "acme2"
	id, _ := second.Identity()
	const identity = "zoho.identities.eu.production.1.2"
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour} {
		clock := func() time.Time { return time.Now().Add(ahead) }
		duplicate := func(err error, of string) {
			t.Helper()
			if d, ok := errors.AsType[connection.ErrDuplicate](err); !ok || d.Existing != of {
				t.Errorf("clock %s ahead: %v, want a duplicate of %s", ahead, err, of)
			}
		}
		free := func(names ...string) {
			t.Helper()
			for _, name := range names {
				if err := s.Remove(t.Context(), name, "test"); err != nil && !errors.Is(err, connection.ErrNotFound) {
					t.Error(err)
				}
			}
			if name, _, err := s.Holder(t.Context(), id); name != "" || err != nil {
				t.Errorf("still the user of %s, %v", name, err)
			}
		}
		begin := func(js paused, now func() time.Time, c connection.Connection) chan error {
			result, store := make(chan error, 1), openBy(t, js, k, now)
			go func() {
				_, err := store.Add(t.Context(), c, secret.New("r1"))
				result <- err
			}()
			select {
			case <-js.begun:
			case err := <-result:
				t.Errorf("clock %s ahead: it ended before it wrote to %s: %v", ahead, js.subject, err)
				result <- err
			}
			return result
		}

		// The first has taken the user when it stops; its record comes too late.
		js := pause(server.JetStream(), "zoho.connections.acme")
		first := begin(js, time.Now, acme())
		if _, err := openBy(t, server.JetStream(), k, clock).Add(t.Context(), second, secret.New("r2")); err != nil {
			t.Errorf("clock %s ahead: %v", ahead, err)
		}
		close(js.goOn)
		duplicate(<-first, "acme2")
		free("acme", "acme2")

		// The second stops when it has kept the first from its record, which begins again.
		js = pause(server.JetStream(), "zoho.connections.acme")
		first = begin(js, time.Now, acme())
		js2 := pause(server.JetStream(), identity)
		later := begin(js2, clock, second)
		close(js.goOn)
		if err := <-first; err != nil {
			t.Errorf("clock %s ahead: %v", ahead, err)
		}
		close(js2.goOn)
		duplicate(<-later, "acme")
		free("acme", "acme2")
	}
}

// lost loses the first write of acme's record, and ends its caller's context.
type lost struct {
	jetstream.JetStream
	end context.CancelFunc
}

func (l lost) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if msg.Subject == "zoho.connections.acme" {
		l.end()
		return nil, context.Canceled
	}
	return l.JetStream.PublishMsg(ctx, msg, o...)
}

// A worker that dies when it has taken a user's identity keeps nobody from it: not from
// a new connection, not from one that is authorized anew. Of the name it had taken, nothing shows.
func TestIdentityOfNobody(t *testing.T) {
	t.Parallel()
	server, k, s := started(t)
	second := acme()
	second.Name = "acme2"
	dies := func(change func(ctx context.Context, s *connection.Store) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if err := change(ctx, open(t, lost{server.JetStream(), cancel}, k)); !errors.Is(err, connection.ErrUnclear) {
			t.Fatal(err)
		}
	}
	dies(func(ctx context.Context, s *connection.Store) error {
		_, err := s.Add(ctx, acme(), secret.New("r1"))
		return err
	})
	add(t, s, second, "r2")
	if removed := open(t, server.JetStream(), k).Removed(); len(removed) > 0 {
		t.Errorf("removed are said to be %+v, which never were", removed)
	}
	if err := s.Remove(t.Context(), "acme2", "test"); err != nil {
		t.Fatal(err)
	}
	added := add(t, s, acme(), "r1")
	if added.Grant != 1 {
		t.Errorf("grant %d is the first one", added.Grant)
	}
	if changed, err := s.MarkRevoked(t.Context(), added, "dead"); !changed || err != nil {
		t.Fatal(changed, err)
	}
	dies(func(ctx context.Context, s *connection.Store) error {
		_, err := s.Reauthorize(ctx, "acme", secret.New("r2"), nil)
		return err
	})
	add(t, s, second, "r3")
	if c, ok := s.Get("acme"); !ok || c.Status != connection.Revoked || c.Grant != 1 {
		t.Errorf("%+v, %v", c, ok)
	}
}
