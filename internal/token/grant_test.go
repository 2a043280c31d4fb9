package token

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// TestAuthorizedAnewMeanwhile: the verdict on the old grant comes when there is
// a new one.
func TestAuthorizedAnewMeanwhile(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	b.accounts.set(refuses(zoho.DeadGrant))
	open := b.accounts.shut()
	defer open()
	answers := askAll([]*worker{w}, 1)
	<-b.accounts.entered
	if _, err := w.connections.Reauthorize(t.Context(), "acme", secret.New("refresh-2"), nil); err != nil {
		t.Fatal(err)
	}
	open()
	if u := reasonOf(t, (<-answers).err); u.Reason != Revoked {
		t.Errorf("%v", u)
	}
	if c := w.acme(); c.Status != connection.Active || len(b.told()) != 0 {
		t.Errorf("connection is %s, events %v", c.Status, b.told())
	}
	b.accounts.set(nil)
	w.must()
}

// TestAuthorizedAnewUnheard: a worker that has not heard of the new grant finds
// its token in the record, and doesn't put one of the old grant in its place.
func TestAuthorizedAnewUnheard(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	store, err := connection.Open(t.Context(), b.nats.JetStream(), b.keys, connection.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	store.Close() // it hears of nothing any more
	deaf := b.worker(func(o *Options) { o.Connections = store })
	if _, err := w.connections.Reauthorize(t.Context(), "acme", secret.New("refresh-2"), nil); err != nil {
		t.Fatal(err)
	}
	token := w.must()
	deaf.until(func(st *state) bool { return st.record.Grant == 2 })
	old, ok := store.Get("acme")
	if !ok || old.Grant != 1 {
		t.Fatalf("%+v", old)
	}
	got, err := deaf.Token(t.Context(), old)
	if err != nil || got.Access != token.Access || b.accounts.count() != 1 {
		t.Errorf("generation %d, %v, %d refreshes", got.Generation, err, b.accounts.count())
	}
}

// TestNameUsedAgain: a connection that was removed and added for another org
// never gets the old one's token.
func TestNameUsedAgain(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	w.must()
	if err := w.connections.Remove(t.Context(), "acme", "test"); err != nil {
		t.Fatal(err)
	}
	_, err := w.Token(t.Context(), &connection.Connection{Name: "acme"})
	if u := reasonOf(t, err); u.Reason != Revoked {
		t.Errorf("%v", u)
	}
	b.connect(w)
	if token := w.must(); token.Access.Reveal() != "access-2" {
		t.Errorf("%+v", token.Access.Reveal())
	}
}

func TestRotatedRefreshTokenIsKept(t *testing.T) {
	t.Parallel()
	b, w := one(t)
	b.accounts.set(func(int) (*zoho.Grant, error) {
		return &zoho.Grant{AccessToken: secret.New("a"), RefreshToken: secret.New("refresh-2"), ExpiresIn: time.Hour}, nil
	})
	w.must()
	w.must()
	c := w.acme()
	token, err := c.RefreshToken(b.keys)
	if err != nil || token.Reveal() != "refresh-2" || c.Grant != 2 || b.accounts.count() != 1 {
		t.Errorf("%v, %v, grant %d, %d refreshes", token.Reveal(), err, c.Grant, b.accounts.count())
	}
}

// away fails the first writes of a subject, as a leader that is being elected.
type away struct {
	jetstream.JetStream
	left atomic.Int64
}

func (a *away) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if msg.Subject == "zoho.connections.acme" && a.left.Add(-1) >= 0 {
		return nil, errors.New("no response from stream")
	}
	return a.JetStream.PublishMsg(ctx, msg, o...)
}

// A refresh token that Zoho replaced is kept, also where the first write of it
// fails: the old one may be dead.
func TestRotatedRefreshTokenOutlivesALostWrite(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	js := &away{JetStream: b.nats.JetStream()}
	store, err := connection.Open(t.Context(), js, b.keys, connection.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	w := b.worker(func(o *Options) { o.Connections = store })
	w.connections = store
	b.connect(w)
	b.accounts.set(func(call int) (*zoho.Grant, error) {
		return &zoho.Grant{AccessToken: secret.New("access"), RefreshToken: secret.New("refresh-2"), ExpiresIn: time.Hour}, nil
	})
	js.left.Store(1)
	w.must()
	c, err := store.Fetch(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.RefreshToken(b.keys)
	if err != nil || got.Reveal() != "refresh-2" {
		t.Errorf("Zoho gave refresh-2, %q is stored (%v)", got.Reveal(), err)
	}
}
