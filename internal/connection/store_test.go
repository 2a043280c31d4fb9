package connection_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/secret"
)

func keyring(t testing.TB, text string) *secret.Keyring {
	t.Helper()
	k, err := secret.ParseKeyring(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func open(t *testing.T, js jetstream.JetStream, k *secret.Keyring) *connection.Store {
	t.Helper()
	return openBy(t, js, k, time.Now)
}

func openBy(t *testing.T, js jetstream.JetStream, k *secret.Keyring, now func() time.Time) *connection.Store {
	t.Helper()
	s, err := connection.Open(t.Context(), js, k, connection.Options{
		Logger: slog.New(slog.DiscardHandler), Check: 100 * time.Millisecond, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func started(t *testing.T) (*natstest.Server, *secret.Keyring, *connection.Store) {
	t.Helper()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js, connection.StreamConfig(1))
	k := keyring(t, secret.Generate().Reveal())
	return server, k, open(t, js, k)
}

func acme() connection.Connection {
	return connection.Connection{Name: "acme", Location: "eu", Environment: "production", OrgID: "1", UserID: "2", UpdatedBy: "test"}
}

func add(t *testing.T, s *connection.Store, c connection.Connection, token string) *connection.Connection {
	t.Helper()
	added, err := s.Add(t.Context(), c, secret.New(token))
	if err != nil {
		t.Fatal(err)
	}
	return added
}

func refreshToken(t *testing.T, c *connection.Connection, k *secret.Keyring) string {
	t.Helper()
	token, err := c.RefreshToken(k)
	if err != nil {
		t.Fatal(err)
	}
	return token.Reveal()
}

// await waits for the store to have the connection as want says. Changes come
// by subscription; one that was before it is looked at first.
func await(t *testing.T, s *connection.Store, name string, want func(c *connection.Connection, ok bool) bool) *connection.Connection {
	t.Helper()
	changed := make(chan struct{}, 1)
	defer s.Subscribe(func(*connection.Connection) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})()
	timeout := time.After(20 * time.Second)
	for {
		c, ok := s.Get(name)
		if want(c, ok) {
			return c
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("still %+v, %v", c, ok)
		}
	}
}

func TestLifeOfAConnection(t *testing.T) {
	t.Parallel()
	server, k, s := started(t)
	other := open(t, server.JetStream(), k)

	c := add(t, s, acme(), "r1")
	if c.Grant != 1 || c.Status != connection.Active || c.Revision == 0 || c.CreatedAt.IsZero() || refreshToken(t, c, k) != "r1" {
		t.Fatalf("%+v", c)
	}
	if got, ok := s.Get("acme"); !ok || got.Revision != c.Revision {
		t.Error("the writer does not read its own write")
	}
	await(t, other, "acme", func(c *connection.Connection, ok bool) bool { return ok && c.Grant == 1 })
	if _, err := other.Add(t.Context(), acme(), secret.New("x")); !errors.Is(err, connection.ErrExists) {
		t.Errorf("second add: %v", err)
	}

	if changed, err := other.MarkRevoked(t.Context(), c, "dead"); !changed || err != nil {
		t.Errorf("revoke: %v, %v", changed, err)
	}
	if changed, err := s.MarkRevoked(t.Context(), c, "dead"); changed || err != nil {
		t.Errorf("revoke twice: %v, %v", changed, err)
	}
	await(t, s, "acme", func(c *connection.Connection, _ bool) bool {
		return c.Status == connection.Revoked && !c.RevokedAt.IsZero() && c.StatusReason == "dead"
	})

	first := c
	c, err := s.Reauthorize(t.Context(), "acme", secret.New("r2"), func(c *connection.Connection) error {
		c.Nickname, c.Name, c.Grant = "Acme Ltd", "evil", 77
		return nil
	})
	if err != nil || c.Grant != 2 || c.Status != connection.Active || !c.RevokedAt.IsZero() || c.Name != "acme" || refreshToken(t, c, k) != "r2" {
		t.Fatalf("%+v, %v", c, err)
	}
	if changed, err := s.MarkRevoked(t.Context(), first, "late verdict on the old grant"); changed || err != nil {
		t.Errorf("revoke an old grant: %v, %v", changed, err)
	}

	if err := s.Remove(t.Context(), "acme", "test"); err != nil {
		t.Fatal(err)
	}
	await(t, other, "acme", func(_ *connection.Connection, ok bool) bool { return !ok })
	if _, err := s.Fetch(t.Context(), "acme"); !errors.Is(err, connection.ErrNotFound) || len(s.All()) != 0 {
		t.Errorf("after remove: %v, %v", err, s.All())
	}
	if err := s.Remove(t.Context(), "acme", "test"); !errors.Is(err, connection.ErrNotFound) {
		t.Errorf("remove twice: %v", err)
	}
	if c := add(t, s, acme(), "r3"); c.Grant != 3 {
		t.Errorf("grants begin anew after a removal: %d", c.Grant)
	}
}

func TestNoSecretLeaves(t *testing.T) {
	t.Parallel()
	server, _, s := started(t)
	c := add(t, s, acme(), "hunter2-refresh")
	shown, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	js := server.JetStream()
	stream, err := js.Stream(t.Context(), connection.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetLastMsgForSubject(t.Context(), "zoho.connections.acme")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{string(shown), string(msg.Data), fmt.Sprintf("%+v %#v", c, *c)} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("shows the token: %s", s)
		}
	}
	if strings.Contains(string(shown), "sealed") {
		t.Errorf("shows the sealed token: %s", shown)
	}
	if err := s.Remove(t.Context(), "acme", "test"); err != nil {
		t.Fatal(err)
	}
	if msg, _ = stream.GetLastMsgForSubject(t.Context(), "zoho.connections.acme"); strings.Contains(string(msg.Data), "sealed") {
		t.Errorf("the tombstone has a secret: %s", msg.Data)
	}
}

func TestConcurrentUpdatesAreAllKept(t *testing.T) {
	t.Parallel()
	server, k, s := started(t)
	added := add(t, s, acme(), "r1")
	stores := []*connection.Store{s, open(t, server.JetStream(), k)}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			_, err := stores[i%2].Update(t.Context(), "acme", func(c *connection.Connection) error {
				c.Concurrency++
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	var revoked atomic.Int32
	for i := range 10 {
		wg.Go(func() {
			changed, err := stores[i%2].MarkRevoked(t.Context(), added, "dead")
			if err != nil {
				t.Error(err)
			}
			if changed {
				revoked.Add(1)
			}
		})
	}
	wg.Wait()
	c, err := s.Fetch(t.Context(), "acme")
	if err != nil || c.Concurrency != 20 || revoked.Load() != 1 || c.Status != connection.Revoked {
		t.Errorf("%+v, %v, revoked %d times", c, err, revoked.Load())
	}
}

func TestDuplicate(t *testing.T) {
	t.Parallel()
	_, _, s := started(t)
	first := add(t, s, acme(), "r1")
	second := acme()
	second.Name = "acme2"
	_, err := s.Add(t.Context(), second, secret.New("r2"))
	if duplicate, ok := errors.AsType[connection.ErrDuplicate](err); !ok || duplicate.Existing != "acme" {
		t.Errorf("got %v", err)
	}
	for _, differs := range []func(c *connection.Connection){
		func(c *connection.Connection) { c.Name, c.Location = "a", "us" },
		func(c *connection.Connection) { c.Name, c.Environment = "b", "sandbox" },
		func(c *connection.Connection) { c.Name, c.OrgID = "c", "9" },
		func(c *connection.Connection) { c.Name, c.UserID = "d", "9" },
		func(c *connection.Connection) { c.Name, c.UserID = "e", "" },
		func(c *connection.Connection) { c.Name, c.UserID = "f", "" },
	} {
		c := acme()
		differs(&c)
		add(t, s, c, "r")
	}
	if changed, err := s.MarkRevoked(t.Context(), first, "dead"); !changed || err != nil {
		t.Fatal(changed, err)
	}
	add(t, s, second, "r2") // the other one is not active
	_, err = s.Reauthorize(t.Context(), "acme", secret.New("r3"), nil)
	if duplicate, ok := errors.AsType[connection.ErrDuplicate](err); !ok || duplicate.Existing != "acme2" {
		t.Errorf("got %v", err)
	}
}

func TestValidateSaysEverything(t *testing.T) {
	t.Parallel()
	_, _, s := started(t)
	_, err := s.Add(t.Context(), connection.Connection{
		Name: "Acme!", Nickname: "a\nb", Location: "https://evil", Environment: "prod", OrgID: "1/2", UserID: "1 2",
		Edition: strings.Repeat("e", 65), Concurrency: -1, Scopes: []string{"ZohoCRM.modules.ALL", "a b"},
	}, secret.New("r"))
	for _, field := range []string{"name:", "nickname:", "location:", "environment:", "org_id:", "user_id:", "edition:", "concurrency:", "scopes:"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not in %v", field, err)
		}
	}
	if _, err := s.Add(t.Context(), acme(), secret.Text{}); err == nil {
		t.Error("added without a refresh token")
	}
	if _, err := s.Fetch(t.Context(), "a.b>"); !errors.Is(err, connection.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestBrokenRecords has the rows of B41: each disables its own connection only.
func TestBrokenRecords(t *testing.T) {
	t.Parallel()
	server, k, s := started(t)
	a, b := acme(), acme()
	b.Name, b.UserID = "globex", "3"
	add(t, s, a, "ra")
	add(t, s, b, "rb")
	js := server.JetStream()
	stream, err := js.Stream(t.Context(), connection.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	raw := func(name string) map[string]any {
		msg, err := stream.GetLastMsgForSubject(t.Context(), "zoho.connections."+name)
		if err != nil {
			t.Fatal(err)
		}
		var doc map[string]any
		if err := json.Unmarshal(msg.Data, &doc); err != nil {
			t.Fatal(err)
		}
		return doc
	}
	put := func(name string, data []byte) {
		if _, err := js.Publish(t.Context(), "zoho.connections."+name, data); err != nil {
			t.Fatal(err)
		}
	}
	put("junk", []byte(`{"name":`))
	swapped := raw("acme")
	swapped["refresh_token_sealed"] = raw("globex")["refresh_token_sealed"]
	data, _ := json.Marshal(swapped)
	put("acme", data)
	swapped["name"] = "other"
	data, _ = json.Marshal(swapped)
	put("misnamed", data)

	broken := func(c *connection.Connection, ok bool) bool { return ok && c.Err() != nil }
	if c := await(t, s, "acme", broken); !errors.Is(c.Err(), secret.ErrTampered) || c.Status != connection.Active {
		t.Errorf("%+v: %v", c, c.Err())
	}
	if c := await(t, s, "junk", broken); c.Status != connection.Unreadable || !strings.Contains(c.Err().Error(), "junk") {
		t.Errorf("%+v: %v", c, c.Err())
	}
	await(t, s, "misnamed", broken)
	if c, _ := s.Get("globex"); c.Err() != nil || refreshToken(t, c, k) != "rb" {
		t.Error(c.Err())
	}
	if _, err := s.Update(t.Context(), "junk", func(*connection.Connection) error { return nil }); err == nil {
		t.Error("updated what can't be read")
	}
	if err := s.Remove(t.Context(), "junk", "test"); err != nil {
		t.Error(err)
	}
	if c, err := s.Reauthorize(t.Context(), "acme", secret.New("ra2"), nil); err != nil || c.Err() != nil || refreshToken(t, c, k) != "ra2" {
		t.Errorf("a new authorization does not repair: %v", err)
	}
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js, connection.StreamConfig(1))
	old := strings.Replace(secret.Generate().Reveal(), "dev:", "old:", 1)
	fresh := strings.Replace(secret.Generate().Reveal(), "dev:", "new:", 1)
	add(t, open(t, js, keyring(t, old)), acme(), "r1")

	missing := open(t, js, keyring(t, fresh))
	c, ok := missing.Get("acme")
	if unknown, is := errors.AsType[secret.ErrUnknownKey](c.Err()); !ok || !is || unknown.ID != "old" {
		t.Errorf("got %v", c.Err())
	}
	both := open(t, js, keyring(t, fresh+","+old))
	if n, err := both.Reseal(t.Context()); n != 1 || err != nil {
		t.Errorf("resealed %d, %v", n, err)
	}
	if n, err := both.Reseal(t.Context()); n != 0 || err != nil {
		t.Errorf("resealed %d again, %v", n, err)
	}
	c = await(t, missing, "acme", func(c *connection.Connection, _ bool) bool { return c.Err() == nil })
	if refreshToken(t, c, keyring(t, fresh)) != "r1" || c.Grant != 1 {
		t.Errorf("%+v", c)
	}
}

func TestSubscribeInOrder(t *testing.T) {
	t.Parallel()
	server, k, s := started(t)
	other := open(t, server.JetStream(), k)
	seen := make(chan *connection.Connection, 100)
	cancel := other.Subscribe(func(c *connection.Connection) {
		if got, ok := other.Get(c.Name); ok && got.Revision < c.Revision {
			t.Error("told before it is applied")
		}
		if _, err := other.Fetch(context.Background(), c.Name); err != nil && !errors.Is(err, connection.ErrNotFound) {
			t.Error(err) // a subscriber may use the store
		}
		seen <- c
	})
	add(t, s, acme(), "r1")
	for i := range 3 {
		if _, err := s.Update(t.Context(), "acme", func(c *connection.Connection) error { c.Concurrency = i + 1; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), "acme", "test"); err != nil {
		t.Fatal(err)
	}
	var last uint64
	for {
		c := <-seen
		if c.Revision <= last {
			t.Errorf("revision %d after %d", c.Revision, last)
		}
		last = c.Revision
		if c.Status == connection.Removed {
			if c.Queue() != "org-eu-production-1" {
				t.Errorf("the tombstone has queue %s", c.Queue())
			}
			break
		}
	}
	cancel()
	cancel()
}

func TestSurvives(t *testing.T) {
	t.Parallel()
	server, k, s := started(t)
	add(t, s, acme(), "r1")
	writer := server.JetStream()

	server.Restart() // the ordered consumer is gone with it
	w := open(t, writer, k)
	second := acme()
	second.Name, second.UserID = "globex", "3"
	add(t, w, second, "r2")
	await(t, s, "globex", func(_ *connection.Connection, ok bool) bool { return ok })

	if err := writer.DeleteStream(t.Context(), connection.StreamName); err != nil {
		t.Fatal(err)
	}
	server.Create(writer, connection.StreamConfig(1))
	third := open(t, server.JetStream(), k)
	add(t, third, second, "r3")
	c := await(t, s, "globex", func(c *connection.Connection, ok bool) bool { return ok && refreshToken(t, c, k) == "r3" })
	if c.Revision != 2 { // after its identity
		t.Errorf("revision %d", c.Revision)
	}
	await(t, s, "acme", func(_ *connection.Connection, ok bool) bool { return !ok })
}

// Where connections were lost and are added anew, grants are counted from the start: what
// was found of one neither marks nor removes another of its number.
func TestRevokedOfAnotherCount(t *testing.T) {
	t.Parallel()
	server, _, s := started(t)
	lost := add(t, s, acme(), "r1")
	js := server.JetStream()
	if err := js.DeleteStream(t.Context(), connection.StreamName); err != nil {
		t.Fatal(err)
	}
	server.Create(js, connection.StreamConfig(1))
	if again := add(t, s, acme(), "r2"); again.Grant != lost.Grant {
		t.Fatalf("grant %d", again.Grant)
	}
	if changed, err := s.MarkRevoked(t.Context(), lost, "dead"); changed || err != nil {
		t.Errorf("marked: %v, %v", changed, err)
	}
	if err := s.RemoveRevoked(t.Context(), lost, "test"); !errors.Is(err, connection.ErrNewGrant) {
		t.Errorf("got %v", err)
	}
}

func TestOpenWithoutStream(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	_, err := connection.Open(t.Context(), server.JetStream(), keyring(t, secret.Generate().Reveal()), connection.Options{})
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestPlacesAndQueue(t *testing.T) {
	t.Parallel()
	for edition, want := range map[string]int{
		"": 10, "Free": 5, "STANDARD": 10, "Professional": 15, "enterprise": 20, "Zoho One": 20, "Ultimate": 25, "CRM Plus": 25, "Trial": 10, "none": 10, "one": 20,
	} {
		if got := (&connection.Connection{Edition: edition}).Places(); got != want {
			t.Errorf("%q: %d, want %d", edition, got, want)
		}
	}
	if got := (&connection.Connection{Edition: "free", Concurrency: 7}).Places(); got != 7 {
		t.Errorf("got %d", got)
	}
	if got := (&connection.Connection{Name: "acme", Location: "us"}).Queue(); got != "connection-acme" {
		t.Errorf("got %s", got)
	}
}
