// Package lease says which worker serves which org: one worker at a time, so
// that an org's places, credits and order are kept by a single process.
//
// A worker has a session, a record that it renews; an org has a record that
// names the session of its owner. Whoever wants an org whose owner's session is
// over writes its own name there.
//
// It does not know what is served, nor what the record of an org carries.
//
// Invariants: an org changes hands only by a compare-and-set of its record; a
// session is over for others only when the server's own clock says so, read
// together with the record through the leader, so that no machine's clock
// counts; its holder takes it for over a second earlier, by its monotonic clock;
// a session that was over never comes back: the worker begins another.
package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"golang.org/x/sync/errgroup"

	"zoho-worker/internal/connection/follow"
	"zoho-worker/internal/register"
)

// The streams of the sessions and of the orgs.
const (
	WorkerStream = "ZOHO_WORKERS"
	QueueStream  = "ZOHO_QUEUES"

	workerPrefix = "zoho.workers."
	queuePrefix  = "zoho.queues."
)

// StreamConfigs are the configurations of the two streams. A session that isn't
// renewed leaves nothing behind; what an org's record says is kept for ever.
func StreamConfigs(replicas int) []jetstream.StreamConfig {
	return []jetstream.StreamConfig{
		register.Config(WorkerStream, "sessions of the workers", workerPrefix+"*", replicas, kept),
		register.Config(QueueStream, "which worker serves which org, and the state of its limits", queuePrefix+"*", replicas, 0),
	}
}

// kept is for how long the record of a session stays that is no longer renewed.
const kept = 10 * time.Minute

// A session is renewed every third of DefaultTerm; margin lies between the end
// that its holder believes in and the end that others do.
const (
	DefaultTerm = 6 * time.Second
	margin      = time.Second
)

// Session is what a worker says of itself each time it renews its session.
type Session struct {
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Orgs is how many orgs it serves; Free how many places it has left; Wanting how
	// many requests of its orgs it would start now if it had more.
	Orgs    int `json:"orgs"`
	Free    int `json:"free"`
	Wanting int `json:"wanting,omitempty"`
}

// Record is what the record of an org says.
type Record struct {
	Queue string `json:"queue"`
	// Owner is the id of the session of the worker that serves it; "": nobody does.
	Owner string `json:"owner,omitempty"`
	// State is what the owner keeps there; the package doesn't look into it.
	State json.RawMessage `json:"state,omitempty"`
}

// ErrHeld says that another worker serves the org.
var ErrHeld = errors.New("another worker serves the org")

// ErrLost says that the org is no longer this worker's.
var ErrLost = errors.New("the org is no longer this worker's")

// errNoSession says that there is no session to take an org with.
var errNoSession = errors.New("no session with JetStream now")

// Options of a Book; JS is required.
type Options struct {
	JS jetstream.JetStream
	// Term is for how long a session lasts that isn't renewed. Default DefaultTerm.
	Term time.Duration
	// About is asked for what the session says, at each renewal.
	About func() Session
	// Changed is called when an org's record changed, or with "" when the session
	// of another worker is over. It must not block.
	Changed func(queue string)
	// Lost is called when this worker's session is over without its doing: every
	// org it held is lost. It must not block.
	Lost   func()
	Logger *slog.Logger
}

// Book is this worker's view of who serves what, and its own session.
type Book struct {
	options   Options
	sessions  *register.Stream
	queues    *register.Stream
	followers []*follow.Follower
	stop      context.CancelFunc
	done      sync.WaitGroup

	mu       sync.Mutex
	id       string
	past     []string // the ids that it has had
	revision uint64
	until    time.Time // by the monotonic clock; zero: no session
	closed   bool
	others   map[string]*seen // sessions, this worker's own among them
	records  map[string]entry
}

// seen is a session as it was last seen.
type seen struct {
	Session
	position follow.Position
	at       time.Time // by the monotonic clock
	over     bool
}

// entry is a record with where it stands.
type entry struct {
	Record
	position follow.Position
}

// New returns a book that knows nothing yet.
func New(o Options) *Book {
	if o.Term == 0 {
		o.Term = DefaultTerm
	}
	if o.About == nil {
		o.About = func() Session { return Session{} }
	}
	if o.Changed == nil {
		o.Changed = func(string) {}
	}
	if o.Lost == nil {
		o.Lost = func() {}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Book{
		options:  o,
		sessions: register.New(o.JS, WorkerStream, o.Term/3),
		queues:   register.New(o.JS, QueueStream, 5*time.Second),
		others:   map[string]*seen{}, records: map[string]entry{},
	}
}

// Start follows the records and begins a session, now or as soon as it can. The
// streams must exist.
func (b *Book) Start(ctx context.Context) error {
	o := b.options
	var following errgroup.Group
	watch := func(stream string, apply func(follow.Change)) {
		following.Go(func() error {
			f, err := follow.Start(ctx, o.JS, follow.Options{Stream: stream, Apply: apply, Logger: o.Logger})
			if err == nil {
				b.mu.Lock()
				b.followers = append(b.followers, f)
				b.mu.Unlock()
			}
			return err
		})
	}
	watch(WorkerStream, b.sawSession)
	watch(QueueStream, b.sawRecord)
	if err := following.Wait(); err != nil {
		return err // Close ends what was begun
	}
	if err := b.begin(ctx); err != nil {
		// A server that stores nothing now, as with a full disk, may do so later.
		o.Logger.Warn("no session with JetStream yet: no org is served until there is one", "err", err)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = stop
	b.done.Go(func() { b.run(run) })
	return nil
}

// Close ends the session. What is held should be released before.
func (b *Book) Close(ctx context.Context) {
	b.mu.Lock()
	b.closed = true // no session is valid from here on
	b.mu.Unlock()
	if b.stop != nil {
		b.stop()
		b.done.Wait()
	}
	b.mu.Lock()
	id, revision := b.id, b.revision
	b.id, b.until = "", time.Time{}
	b.mu.Unlock()
	if id != "" {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		// Others needn't wait for its end.
		_, _ = b.write(ctx, id, []byte(`{"ended":true}`), revision)
	}
	for _, f := range b.followers {
		f.Close()
	}
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
func (b *Book) valid() bool { return b.id != "" && !b.closed && time.Now().Before(b.until) }

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
	for {
		b.mu.Lock()
		pause := tick
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
		if b.notice() {
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

// notice reports whether the session of another worker seems to be over since
// it was last asked.
func (b *Book) notice() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	over := false
	for id, s := range b.others {
		age := time.Since(s.at)
		if !s.over && age > b.options.Term+margin {
			s.over, over = true, true
		}
		if age > kept {
			delete(b.others, id)
		}
	}
	return over
}

// sessionRecord is a Session as it is stored.
type sessionRecord struct {
	Session
	Ended bool `json:"ended"`
}

func (b *Book) sawSession(c follow.Change) {
	id := c.Subject[len(workerPrefix):]
	var record sessionRecord
	ended := c.Gone || json.Unmarshal(c.Data, &record) != nil || record.Ended
	b.mu.Lock()
	s := b.others[id]
	if s == nil {
		s = &seen{}
		b.others[id] = s
	}
	fresh := ended && !s.over
	s.Session, s.position, s.at, s.over = record.Session, c.Position, time.Now(), ended
	b.mu.Unlock()
	if fresh {
		b.options.Changed("")
	}
}

func (b *Book) sawRecord(c follow.Change) {
	queue := c.Subject[len(queuePrefix):]
	b.mu.Lock()
	changed := b.note(queue, c.Position, c.Data, c.Gone)
	b.mu.Unlock()
	if changed {
		b.options.Changed(queue)
	}
}

// note takes a record in, unless a newer one is known; the lock is held.
func (b *Book) note(queue string, at follow.Position, data []byte, gone bool) bool {
	if known, ok := b.records[queue]; ok && !at.After(known.position) {
		return false
	}
	var record Record
	if gone {
		delete(b.records, queue)
		return true
	}
	// What can't be read is taken for a record that says nothing: the next owner writes it anew.
	if json.Unmarshal(data, &record) != nil {
		record = Record{}
	}
	record.Queue = queue
	b.records[queue] = entry{record, at}
	return true
}

// epoch of the queues' follower; the lock may be held.
func (b *Book) epoch() uint64 {
	for _, f := range b.followers {
		if f.Stream() == QueueStream {
			return f.Epoch()
		}
	}
	return 0
}

// Record returns what is known of the org: a moment old.
func (b *Book) Record(queue string) (Record, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known, ok := b.records[queue]
	return known.Record, ok
}

// Owner returns the id of another worker's session that serves the org and seems
// to last, else "".
func (b *Book) Owner(queue string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	owner := b.records[queue].Owner
	if owner == "" || owner == b.id {
		return ""
	}
	// One that was never seen, or long ago, is over, or so young that Take says so.
	if s := b.others[owner]; s == nil || s.over {
		return ""
	}
	return owner
}

// Mine reports whether the org's record, as last seen, names this worker's session.
func (b *Book) Mine(queue string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.valid() && b.records[queue].Owner == b.id
}

// Others returns the sessions of other workers that seem to last, by id. An
// earlier one of this worker's seems to for a while, and is none.
func (b *Book) Others() map[string]Session {
	b.mu.Lock()
	defer b.mu.Unlock()
	others := map[string]Session{}
	for id, s := range b.others {
		if !s.over && !slices.Contains(b.past, id) {
			others[id] = s.Session
		}
	}
	return others
}

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
		if err != nil {
			return nil, err
		}
		if b.ID() != id {
			return nil, errNoSession // it ended meanwhile; the next one takes over
		}
		return h, nil
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
		return info.TimeStamp.IsZero() || info.TimeStamp.Sub(since) < b.options.Term+margin
	}
	entry, err := b.sessions.Get(ctx, workerPrefix+id)
	if errors.Is(err, register.ErrNotFound) {
		// Aged out long ago; or the stream was emptied or made anew, which its
		// worker may not have noticed yet.
		b.mu.Lock()
		s := b.others[id]
		lately := s != nil && !s.over && time.Since(s.at) < b.options.Term+margin
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
	return young(entry.Time), false, nil
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
	revision, err := h.book.queues.Put(ctx, queuePrefix+h.queue, data, h.revision)
	if err != nil {
		return err
	}
	h.revision = revision
	h.book.mu.Lock()
	defer h.book.mu.Unlock()
	h.book.note(h.queue, follow.Position{Epoch: h.book.epoch(), Revision: revision}, data, false)
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
