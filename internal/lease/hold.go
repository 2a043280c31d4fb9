package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/follow"
	"zoho-worker/internal/register"
)

// Hold is an org that this worker serves.
type Hold struct {
	book  *Book
	queue string
	owner string
	// Crashed says that the owner before did not give the org up: its session ended.
	// Own, that it was an earlier session of this same process.
	Crashed, Own bool
	// Vacant says that nobody served it: it was given up, to nobody, or is new.
	Vacant bool

	mu       sync.Mutex
	revision uint64
	record   Record
}

// Take makes this worker the org's owner. The error is ErrHeld where another is.
func (b *Book) Take(ctx context.Context, queue string) (*Hold, error) {
	id := b.ID()
	if id == "" {
		return nil, errNoSession
	}
	b.mu.Lock()
	known := b.records[queue]
	b.mu.Unlock()
	h := &Hold{book: b, queue: queue, owner: id, record: known.Record, revision: known.position.Revision}
	for try := 0; ; try++ {
		asked := try > 0
		if asked { // what was seen is behind: ask the leader
			if err := h.read(ctx); err != nil {
				return nil, err
			}
		}
		before := h.record.Owner
		h.Crashed, h.Vacant = false, before == ""
		if before != "" && before != id {
			switch lasts, ended, err := b.lasts(ctx, before); {
			case err != nil:
				return nil, err
			case lasts && !asked:
				continue // it may have been given up meanwhile
			case lasts:
				return nil, ErrHeld
			default:
				h.Crashed, h.Own = !ended, b.had(before)
			}
		}
		b.mu.Lock()
		if of, ok := b.unclear[queue]; ok && before == of.id {
			h.Crashed, h.Own = true, of.own // it did
		}
		b.mu.Unlock()
		h.record.Queue, h.record.Owner = queue, id
		if b.ID() != id {
			return nil, errNoSession
		}
		err := h.put(ctx)
		if errors.Is(err, register.ErrConflict) && try < 3 {
			continue
		}
		if errors.Is(err, register.ErrConflict) {
			return nil, ErrHeld
		}
		b.mu.Lock()
		if delete(b.unclear, queue); h.Crashed && (err != nil || b.id != id || !b.valid()) {
			b.unclear[queue] = dead{id, h.Own}
		}
		b.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if b.ID() != id {
			return nil, errNoSession // it ended meanwhile; the next one takes over
		}
		return h, nil
	}
}

// Owner is the id of the session that holds the org.
func (h *Hold) Owner() string { return h.owner }

// Lasts reports whether the org is still this worker's, as far as it knows: its
// session lasts, and the record was not seen to name another owner. Whoever
// starts something for the org asks right before.
func (h *Hold) Lasts() bool {
	b := h.book
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.valid() && b.id == h.owner && b.records[h.queue].Owner == h.owner
}

func (h *Hold) read(ctx context.Context) error {
	entry, err := h.book.queues.Get(ctx, queuePrefix+h.queue)
	if errors.Is(err, register.ErrNotFound) {
		h.record, h.revision = Record{}, 0
		return nil
	}
	if err != nil {
		return err
	}
	h.record = Record{}
	if json.Unmarshal(entry.Data, &h.record) != nil {
		h.record = Record{}
	}
	h.revision = entry.Revision
	return nil
}

// put writes the record at its revision, and notes it at once.
func (h *Hold) put(ctx context.Context) error {
	data, err := json.Marshal(h.record)
	if err != nil {
		return err
	}
	epoch := h.book.epoch() // before the write: a later one is another stream's, which may have smaller numbers
	revision, err := h.book.queues.Put(ctx, queuePrefix+h.queue, data, h.revision)
	if err != nil {
		return err
	}
	h.revision = revision
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	h.book.note(h.queue, follow.Position{Epoch: epoch, Revision: revision}, data, false)
	return nil
}

// State is what the record carries, as this worker last read or wrote it.
func (h *Hold) State() json.RawMessage {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.record.State
}

// Save writes the state that change makes of the present one; change is called
// again where somebody else wrote in between. The error is ErrLost where the
// org is no longer this worker's.
func (h *Hold) Save(ctx context.Context, change func(json.RawMessage) (json.RawMessage, error)) error {
	return h.update(ctx, h.owner, change)
}

// Release gives the org up: to the worker of the session to, or to whoever
// takes it where that is "".
func (h *Hold) Release(ctx context.Context, to string, change func(json.RawMessage) (json.RawMessage, error)) error {
	return h.update(ctx, to, change)
}

func (h *Hold) update(ctx context.Context, owner string, change func(json.RawMessage) (json.RawMessage, error)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for try := 0; ; try++ {
		if h.record.Owner != h.owner || h.book.ID() != h.owner {
			return ErrLost
		}
		before := h.record
		state, err := change(before.State)
		if err != nil {
			return err
		}
		h.record.Owner, h.record.State = owner, state
		err = h.put(ctx)
		if err == nil {
			return nil
		}
		h.record = before
		if !errors.Is(err, register.ErrConflict) || try == 5 {
			return err
		}
		if err := h.read(ctx); err != nil {
			return err
		}
	}
}

// Update changes the state of an org's record from outside, whoever serves it.
func Update(ctx context.Context, js jetstream.JetStream, queue string, change func(json.RawMessage) (json.RawMessage, error)) error {
	h := &Hold{book: &Book{queues: register.New(js, QueueStream, 5*time.Second), records: map[string]entry{}}, queue: queue}
	for try := 0; ; try++ {
		if err := h.read(ctx); err != nil {
			return err
		}
		state, err := change(h.record.State)
		if err != nil {
			return err
		}
		h.record.Queue, h.record.State = queue, state
		if err = h.put(ctx); !errors.Is(err, register.ErrConflict) || try == 5 {
			return err
		}
	}
}

// Read returns the record of an org through the leader. The error is
// register.ErrNotFound where there is none.
func Read(ctx context.Context, js jetstream.JetStream, queue string) (Record, error) {
	entry, err := register.New(js, QueueStream, 5*time.Second).Get(ctx, queuePrefix+queue)
	if err != nil {
		return Record{}, err
	}
	record := Record{}
	if err := json.Unmarshal(entry.Data, &record); err != nil {
		return Record{}, fmt.Errorf("record of %s: %w", queue, err)
	}
	record.Queue = queue
	return record, nil
}
