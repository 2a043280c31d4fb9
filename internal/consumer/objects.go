package consumer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/relay"
)

// Objects are the bodies too large for a message.
type Objects struct {
	store jetstream.ObjectStore
	most  int64 // bytes of one
	room  int64 // bytes of all that are in memory
	used  *semaphore.Weighted
}

// roomWithin is for how long a body waits for room at a time. It is shorter than a
// stopping worker waits for what is under way.
const roomWithin = 20 * time.Second

// OpenObjects opens the bucket; bodies above most bytes are refused. All that are in
// memory have room bytes; one that is larger comes alone.
func OpenObjects(ctx context.Context, js jetstream.JetStream, most, room int64) (*Objects, error) {
	store, err := js.ObjectStore(ctx, BodyBucket)
	if err != nil {
		return nil, err
	}
	return &Objects{store: store, most: most, room: room, used: semaphore.NewWeighted(room)}, nil
}

// Load reads a body, as soon as there is room for it; release gives the room back, and is
// nil where there is an error. The errors are relay.ErrNoObject and *envelope.Error with
// TooLarge.
//
// What an object says of itself its writer has written. A link would lead to another
// connection's object, or round and round, and the size may be anything.
func (o *Objects) Load(ctx context.Context, name string) (body []byte, release func(), err error) {
	tooLarge := &envelope.Error{Code: envelope.TooLarge, Message: "body_object: the object is larger than a call may be, or than it says"}
	info, err := o.store.GetInfo(ctx, name)
	switch {
	case errors.Is(err, jetstream.ErrObjectNotFound):
		return nil, nil, relay.ErrNoObject
	case err != nil:
		return nil, nil, err
	case info.Opts != nil && info.Opts.Link != nil:
		return nil, nil, relay.ErrNoObject
	case info.Size > uint64(o.most):
		return nil, nil, tooLarge
	}
	size := int64(info.Size)
	weight := min(size, o.room)
	waiting, cancel := context.WithTimeout(ctx, roomWithin)
	defer cancel()
	if o.used.Acquire(waiting, weight) != nil {
		return nil, nil, fmt.Errorf("body of %d bytes: %w", size, relay.ErrNoRoom)
	}
	defer func() {
		if err != nil {
			o.used.Release(weight)
		}
	}()
	object, err := o.store.Get(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, nil, relay.ErrNoObject
	}
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = object.Close() }()
	got, err := object.Info()
	if err != nil {
		return nil, nil, err
	}
	if got.Name != name { // it is described as another's, or became a link meanwhile, and Get followed it
		return nil, nil, relay.ErrNoObject
	}
	var read bytes.Buffer
	read.Grow(int(size) + bytes.MinRead) // or each growth would leave a copy behind
	if _, err := read.ReadFrom(io.LimitReader(object, size+1)); err != nil {
		return nil, nil, err
	}
	if int64(read.Len()) > size {
		return nil, nil, tooLarge
	}
	return read.Bytes(), func() { o.used.Release(weight) }, nil
}
