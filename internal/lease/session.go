package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"zoho-worker/internal/register"
)

// sessionRecord is a Session as it is stored.
type sessionRecord struct {
	Session
	Ended bool `json:"ended"`
}

// write writes the record of a session, which nobody else does: where another
// revision is found, it is of a write of this worker's that seemed to have failed.
func (b *Book) write(ctx context.Context, id string, data []byte, revision uint64) (uint64, error) {
	written, err := b.sessions.Put(ctx, workerPrefix+id, data, revision)
	if !errors.Is(err, register.ErrConflict) {
		return written, err
	}
	entry, err := b.sessions.Get(ctx, workerPrefix+id)
	if errors.Is(err, register.ErrNotFound) {
		return 0, register.ErrConflict // the stream isn't what it was
	}
	if err != nil {
		return 0, err
	}
	return b.sessions.Put(ctx, workerPrefix+id, data, entry.Revision)
}

// ID is the id of the session, "" where there is none now.
func (b *Book) ID() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.valid() {
		return ""
	}
	return b.id
}

// valid reports whether the session lasts; the lock is held.
func (b *Book) valid() bool { return b.id != "" && !b.closed && register.Left(b.until) > 0 }

// begin begins a session.
func (b *Book) begin(ctx context.Context) error {
	id := nuid.Next()
	sent := time.Now()
	revision, err := b.sessions.Put(ctx, workerPrefix+id, b.describe(), 0)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.id, b.revision, b.until = id, revision, sent.Add(b.options.Term)
	b.past = append(b.past, id)
	return nil
}

// had reports whether the session is or was this process's.
func (b *Book) had(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Contains(b.past, id)
}

func (b *Book) describe() []byte {
	data, err := json.Marshal(b.options.About())
	if err != nil {
		return []byte("{}")
	}
	return data
}

// run renews the session, begins another when it is over, and notices the end
// of others'.
func (b *Book) run(ctx context.Context) {
	tick := b.options.Term / 6
	due := time.Now().Add(2 * tick) // the session was just begun
	pause := tick
	for {
		b.mu.Lock()
		if b.id != "" {
			pause = min(pause, time.Until(b.until)) // its end is noticed at once
		}
		b.mu.Unlock()
		timer := time.NewTimer(max(pause, time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		// One that did not get through is tried again at the next tick.
		if now := time.Now(); b.ID() == "" || !now.Before(due) {
			if b.renew(ctx) {
				due = now.Add(2 * tick)
			}
		}
		var over bool
		if over, pause = b.notice(); over {
			b.options.Changed("")
		}
	}
}

// renew renews the session or begins another, and reports whether it did.
func (b *Book) renew(ctx context.Context) bool {
	b.mu.Lock()
	id, revision, until := b.id, b.revision, b.until
	valid := b.valid()
	b.mu.Unlock()
	if !valid {
		if id != "" {
			b.lost(id)
		}
		err := b.begin(ctx)
		if err != nil && ctx.Err() == nil {
			b.options.Logger.Debug("no session yet", "err", err)
		}
		return err == nil
	}
	sent := time.Now()
	bounded, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	revision, err := b.write(bounded, id, b.describe(), revision)
	if errors.Is(err, register.ErrConflict) {
		b.lost(id) // the stream isn't what it was
		return false
	}
	b.mu.Lock()
	// A session that was over meanwhile doesn't come back: others may have seen it, too.
	over := !b.closed && !b.valid()
	if err == nil && b.id == id {
		b.revision = revision
		if !over {
			b.until = sent.Add(b.options.Term)
		}
	}
	b.mu.Unlock()
	switch {
	case over:
		b.lost(id)
	case err != nil && ctx.Err() == nil:
		b.options.Logger.Debug("session not renewed", "err", err)
	}
	return err == nil && !over
}

// lost ends the session in this worker's eyes.
func (b *Book) lost(id string) {
	b.mu.Lock()
	mine := b.id == id && !b.closed
	if mine {
		b.id, b.until = "", time.Time{}
	}
	b.mu.Unlock()
	if mine {
		b.options.Logger.Warn("the session with JetStream is over: every org is given up, and taken up again when it answers")
		b.options.Lost()
	}
}

// lasts asks the leader whether a session lasts, and if it doesn't, whether its
// worker ended it: by the server's clock, which is read before the record, so
// that a renewal in between can't make the session seem old.
func (b *Book) lasts(ctx context.Context, id string) (lasts, ended bool, err error) {
	ictx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := b.options.JS.Stream(ictx, WorkerStream)
	if err != nil {
		return false, false, fmt.Errorf("ask for the server's time: %w", err)
	}
	info := stream.CachedInfo()
	young := func(since time.Time) bool {
		return info.TimeStamp.IsZero() || info.TimeStamp.Sub(since) < b.lapse()
	}
	entry, err := b.sessions.Get(ctx, workerPrefix+id)
	if errors.Is(err, register.ErrNotFound) {
		// Aged out long ago; or the stream was emptied or made anew, which its
		// worker may not have noticed yet.
		b.mu.Lock()
		s := b.others[id]
		lately := s != nil && !s.over && time.Since(s.at) < b.lapse()
		b.mu.Unlock()
		return lately || young(info.Created), false, nil
	}
	if err != nil {
		return false, false, err
	}
	var record sessionRecord
	if json.Unmarshal(entry.Data, &record) == nil && record.Ended {
		return false, true, nil
	}
	return young(entry.Time) && !b.still(id, entry.Time), false, nil
}

// still reports whether this process has seen a session not renewed for longer than it
// lasts, since the record that was stored at an instant of the server's clock. That
// clock may have gone back: then the record of a worker that is dead stays young.
func (b *Book) still(id string, stored time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.others[id]
	return s != nil && s.stored.Equal(stored) && time.Since(s.since) > b.lapse()
}

// ReadSession returns what the worker of a session last said of itself; false where
// that session is over, or seems to be at now, the server's time.
func ReadSession(ctx context.Context, js jetstream.JetStream, id string, now time.Time) (Session, bool) {
	entry, err := register.New(js, WorkerStream, 5*time.Second).Get(ctx, workerPrefix+id)
	var record sessionRecord
	if err != nil || json.Unmarshal(entry.Data, &record) != nil || record.Ended || now.Sub(entry.Time) > 2*DefaultTerm {
		return Session{}, false
	}
	return record.Session, true
}
