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
// together with the record through the leader, or when the record that the leader has
// is the one that they saw long enough ago, so that no machine's clock counts; its
// holder takes it for over a second earlier, by its own (register.Left);
// a session that was over never comes back: the worker begins another.
package lease

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
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

// DefaultTerm is for how long a session lasts for its holder, who renews it every third
// of that. For others it lasts a sixth longer.
const DefaultTerm = 6 * time.Second

// Session is what a worker says of itself each time it renews its session.
type Session struct {
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Orgs is how many orgs it serves; Free how many places it has left; Wanting how
	// many requests of its orgs it would start now if it had more.
	Orgs    int `json:"orgs"`
	Free    int `json:"free"`
	Wanting int `json:"wanting,omitempty"`
	// Stopping says that it takes no orgs any more, while its last calls end.
	Stopping bool `json:"stopping,omitempty"`
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
	until    time.Time // see register.Left; zero: no session
	closed   bool
	others   map[string]*seen // sessions, this worker's own among them
	records  map[string]entry
	// unclear are orgs whose owner before had died when this worker tried to take
	// them over and wasn't told whether it did.
	unclear map[string]dead
}

// dead is what was known of an owner that died.
type dead struct {
	id  string // of the session that tried
	own bool
}

// seen is a session as it was last seen.
type seen struct {
	Session
	stored time.Time // when it was renewed last, by the server's clock
	at     time.Time // the same by the monotonic clock, as far as is known
	since  time.Time // when this process saw that, by the monotonic clock
	over   bool
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
		others:   map[string]*seen{}, records: map[string]entry{}, unclear: map[string]dead{},
	}
}

// Start follows the records and begins a session, now or as soon as it can. The
// streams must exist.
func (b *Book) Start(ctx context.Context) error {
	o := b.options
	var following errgroup.Group
	watch := func(stream string, apply func(follow.Change), kept func() []string) {
		following.Go(func() error {
			f, err := follow.Start(ctx, o.JS, follow.Options{Stream: stream, Apply: apply, Kept: kept, Logger: o.Logger})
			if err == nil {
				b.mu.Lock()
				b.followers = append(b.followers, f)
				b.mu.Unlock()
			}
			return err
		})
	}
	watch(WorkerStream, b.sawSession, nil) // its own isn't kept
	watch(QueueStream, b.sawRecord, b.kept)
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

// lapse is after what time without a renewal a session is over for others.
func (b *Book) lapse() time.Duration { return b.options.Term + b.options.Term/6 }

// notice reports whether the session of another worker seems to be over since
// it was last asked, and when the next of them will be, by Term/6 at most.
func (b *Book) notice() (over bool, next time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next = b.options.Term / 6
	for id, s := range b.others {
		age := time.Since(s.at)
		switch left := b.lapse() - age; {
		case s.over:
		case left < 0:
			s.over, over = true, true
		default:
			// A little later than it seems: Take asks the server's clock.
			next = min(next, left+b.options.Term/60)
		}
		if age > kept {
			delete(b.others, id)
		}
	}
	return over, next
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
	over := ended || c.Age > b.lapse() // of a worker that died before this one began
	fresh := over && !s.over
	s.Session, s.stored, s.since, s.over = record.Session, c.Stored, time.Now(), over
	s.at = s.since.Add(-c.Age)
	b.mu.Unlock()
	if fresh {
		b.options.Changed("")
	}
}

// kept are the subjects of the records in memory.
func (b *Book) kept() (subjects []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for queue := range b.records {
		subjects = append(subjects, queuePrefix+queue)
	}
	return subjects
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
