package consumer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"zoho-worker/internal/relay"
)

// described is an object store that knows of an object of ten bytes, and no more.
type described struct{ jetstream.ObjectStore }

func (described) GetInfo(_ context.Context, name string, _ ...jetstream.GetObjectInfoOpt) (*jetstream.ObjectInfo, error) {
	return &jetstream.ObjectInfo{ObjectMeta: jetstream.ObjectMeta{Name: name}, Size: 10}, nil
}

// A body for which there is no room comes again before a stopping worker would wait for
// it in vain.
func TestRoomIsWaitedForByTheWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := &Objects{store: described{}, most: 10, room: 10, used: semaphore.NewWeighted(10)}
		if !o.used.TryAcquire(10) {
			t.Fatal("there is no room at first")
		}
		begun := time.Now()
		if _, _, err := o.Load(t.Context(), "acme/a"); !errors.Is(err, relay.ErrNoRoom) || time.Since(begun) != roomWithin {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}
