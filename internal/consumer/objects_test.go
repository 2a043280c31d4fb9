package consumer_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/relay"
)

// bucket is the object store of bodies, on a server of its own.
func bucket(t *testing.T) (jetstream.JetStream, jetstream.ObjectStore) {
	t.Helper()
	js := natstest.Start(t).JetStream()
	if err := (consumer.Topology{Replicas: 1, Retention: time.Hour}).Ensure(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	store, err := js.ObjectStore(t.Context(), consumer.BodyBucket)
	if err != nil {
		t.Fatal(err)
	}
	return js, store
}

// What an object says of itself its writer has written: it is no way to another's
// object, nor past the bound of a body.
func TestObjectsAreNotBelieved(t *testing.T) {
	t.Parallel()
	js, store := bucket(t)
	const most = 1 << 10
	objects, err := consumer.OpenObjects(t.Context(), js, most, most)
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, size int) *jetstream.ObjectInfo {
		t.Helper()
		info, err := store.PutBytes(t.Context(), name, []byte(strings.Repeat("x", size)))
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	// say writes an object's description as nobody's client does.
	say := func(name string, info *jetstream.ObjectInfo) {
		t.Helper()
		data, err := json.Marshal(info)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.Publish(t.Context(), "$O.ZOHO_BODIES.M."+base64.URLEncoding.EncodeToString([]byte(name)), data); err != nil {
			t.Fatal(err)
		}
	}
	put("acme/full", most)
	full := func(when string) {
		t.Helper()
		body, release, err := objects.Load(t.Context(), "acme/full")
		if err != nil || len(body) != most {
			t.Fatalf("the largest body, %s: %d bytes, %v", when, len(body), err)
		}
		release()
	}
	full("at first")
	put("acme/large", most+1)
	// In many pieces, most of which nobody reads.
	pieces := jetstream.ObjectMeta{Name: "acme/modest", Opts: &jetstream.ObjectMetaOptions{ChunkSize: most / 10}}
	modest, err := store.Put(t.Context(), pieces, strings.NewReader(strings.Repeat("x", 10*most)))
	if err != nil {
		t.Fatal(err)
	}
	modest.Size = 1
	say("acme/modest", modest)
	// What can't be loaded leaves nothing behind: no room that is taken, and nobody who listens.
	listening := js.Conn().NumSubscriptions()
	const loads = 50
	for range loads {
		_, _, _ = objects.Load(t.Context(), "acme/modest")
	}
	if n := js.Conn().NumSubscriptions() - listening; n >= loads { // the last may be about to end
		t.Errorf("%d subscriptions are left", n)
	}
	for _, name := range []string{"acme/large", "acme/modest"} {
		var refused *envelope.Error
		if body, _, err := objects.Load(t.Context(), name); !errors.As(err, &refused) || refused.Code != envelope.TooLarge {
			t.Errorf("%s: %d bytes, %v", name, len(body), err)
		}
	}
	of := put("globex/secret", 1)
	if _, err := store.AddLink(t.Context(), "acme/link", of); err != nil {
		t.Fatal(err)
	}
	say("acme/copied", of)
	itself := &jetstream.ObjectInfo{ObjectMeta: jetstream.ObjectMeta{Name: "acme/itself", Opts: &jetstream.ObjectMetaOptions{
		Link: &jetstream.ObjectLink{Bucket: consumer.BodyBucket, Name: "acme/itself"},
	}}, Bucket: consumer.BodyBucket, NUID: "x"}
	say("acme/itself", itself)
	for _, name := range []string{"acme/link", "acme/copied", "acme/itself", "acme/none"} {
		if body, _, err := objects.Load(t.Context(), name); !errors.Is(err, relay.ErrNoObject) {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
	full("at last")
}

// Bodies that are being sent take no more memory than there is for them: the next one
// waits until one of them is sent.
func TestRoomForObjects(t *testing.T) {
	t.Parallel()
	js, store := bucket(t)
	const size = 100
	for _, name := range []string{"acme/a", "acme/b", "acme/c"} {
		if _, err := store.PutBytes(t.Context(), name, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	objects, err := consumer.OpenObjects(t.Context(), js, size, 2*size)
	if err != nil {
		t.Fatal(err)
	}
	load := func(ctx context.Context, name string) (func(), error) {
		_, release, err := objects.Load(ctx, name)
		return release, err
	}
	first, err := load(t.Context(), "acme/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := load(t.Context(), "acme/b"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := load(short, "acme/c"); !errors.Is(err, relay.ErrNoRoom) {
		t.Errorf("a third body beside two for which there is room: %v", err)
	}
	first()
	if _, err := load(t.Context(), "acme/c"); err != nil {
		t.Errorf("when one of them is sent: %v", err)
	}
	// One that is larger than the room comes alone, and not never.
	alone, err := consumer.OpenObjects(t.Context(), js, size, size/2)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := alone.Load(t.Context(), "acme/a"); err != nil {
		t.Errorf("a body larger than the room: %v", err)
	}
}
