package connection

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/follow"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/register"
	"zoho-worker/internal/secret"
)

// ErrNotFound says that there is no such connection, or that it was removed.
var ErrNotFound = errors.New("no such connection")

// ErrExists says that a connection of that name is there already.
var ErrExists = errors.New("the connection exists already")

// ErrDuplicate says that the same Zoho user of the same org has an active
// connection under another name.
type ErrDuplicate struct{ Existing string }

// Error implements error.
func (e ErrDuplicate) Error() string {
	return fmt.Sprintf("connection %s is of the same user and org", e.Existing)
}

// Options of a Store; the zero value is good.
type Options struct {
	// Check is how often the stream is looked at for being another one. Default 15 s.
	Check time.Duration
	// Now defaults to time.Now.
	Now func() time.Time
	// Logger defaults to slog.Default.
	Logger *slog.Logger
}

// Store holds all connections in memory, as the stream has them, and writes
// changes to the stream. It is safe for concurrent use.
type Store struct {
	registers *register.Stream
	keyring   *secret.Keyring
	options   Options
	follower  *follow.Follower
	names     sync.Map // name to *entry

	mu      sync.Mutex // orders what is applied; guards what follows
	queue   []*Connection
	wake    chan struct{}
	watches map[int]func(*Connection)
	next    int

	closing chan struct{}
	close   func()
	done    chan struct{}
}

// entry is what the store holds of a name: never changed once it is in the map.
type entry struct {
	position   follow.Position
	connection *Connection
}

// Open returns a Store that knows every connection there is. The stream must
// exist; see StreamConfig. Without a keyring refresh tokens are neither sealed nor opened: all else can be
// looked at and changed.
func Open(ctx context.Context, js jetstream.JetStream, keyring *secret.Keyring, options Options) (*Store, error) {
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	s := &Store{
		registers: register.New(js, StreamName, 5*time.Second), keyring: keyring, options: options,
		wake: make(chan struct{}, 1), watches: map[int]func(*Connection){},
		closing: make(chan struct{}), done: make(chan struct{}),
	}
	s.close = sync.OnceFunc(func() { close(s.closing) })
	go s.notify()
	follower, err := follow.Start(ctx, js, follow.Options{
		Stream: StreamName, Apply: s.change, Kept: s.kept, Check: options.Check, Now: options.Now, Logger: options.Logger,
	})
	if err != nil {
		s.Close()
		return nil, err
	}
	s.follower = follower
	return s, nil
}

// Close stops following the stream and waits until no subscriber is called any
// more. What is in memory stays readable. It may be called more than once, but
// not by a subscriber.
func (s *Store) Close() {
	if s.follower != nil {
		s.follower.Close()
	}
	s.close()
	<-s.done
}

// Get returns the connection from memory. A removed one is not there; one whose
// record is of no use is, and its Err says why.
func (s *Store) Get(name string) (*Connection, bool) {
	v, ok := s.names.Load(name)
	if !ok || v.(*entry).connection.Status == Removed {
		return nil, false
	}
	return v.(*entry).connection, true
}

// All returns the connections in memory, ordered by name, without the removed ones.
func (s *Store) All() []*Connection {
	var all []*Connection
	s.names.Range(func(_, v any) bool {
		if c := v.(*entry).connection; c.Status != Removed {
			all = append(all, c)
		}
		return true
	})
	slices.SortFunc(all, func(a, b *Connection) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// WasRemoved reports whether there was a connection of that name, and is none.
func (s *Store) WasRemoved(name string) bool {
	v, ok := s.names.Load(name)
	return ok && v.(*entry).connection.Status == Removed
}

// Removed returns the tombstones in memory, the last removed first: when and by
// whom is in UpdatedAt and UpdatedBy. One of what was never there has no CreatedAt.
func (s *Store) Removed() []*Connection {
	var all []*Connection
	s.names.Range(func(_, v any) bool {
		if c := v.(*entry).connection; c.Status == Removed && !c.CreatedAt.IsZero() {
			all = append(all, c)
		}
		return true
	})
	slices.SortFunc(all, func(a, b *Connection) int { return b.UpdatedAt.Compare(a.UpdatedAt) })
	return all
}

// Fetch reads the connection through the stream's leader, for who must not act
// on something old. The error is ErrNotFound where it is not there.
func (s *Store) Fetch(ctx context.Context, name string) (*Connection, error) {
	c, err := s.fetch(ctx, name)
	if err != nil {
		return nil, err
	}
	if c.Status == Removed {
		return nil, ErrNotFound
	}
	return c, nil
}

// fetch is Fetch, with tombstones.
func (s *Store) fetch(ctx context.Context, name string) (*Connection, error) {
	c, _, err := s.load(ctx, name)
	return c, err
}

// load is fetch, with the record as it is stored.
func (s *Store) load(ctx context.Context, name string) (*Connection, []byte, error) {
	if !envelope.ValidConnection(name) {
		return nil, nil, ErrNotFound
	}
	epoch := s.epoch()
	found, err := s.registers.Get(ctx, subjectPrefix+name)
	if errors.Is(err, register.ErrNotFound) {
		return nil, nil, ErrNotFound
	}
	if err != nil {
		return nil, nil, err
	}
	c := decode(name, found.Revision, found.Data, s.keyring)
	s.apply(follow.Position{Epoch: epoch, Revision: c.Revision}, c)
	return c, found.Data, nil
}

func (s *Store) epoch() uint64 {
	if s.follower == nil {
		return 0
	}
	return s.follower.Epoch()
}

// kept are the subjects of the records in memory.
func (s *Store) kept() (subjects []string) {
	s.names.Range(func(name, _ any) bool {
		subjects = append(subjects, subjectPrefix+name.(string))
		return true
	})
	return subjects
}

// change takes in what the stream says.
func (s *Store) change(change follow.Change) {
	name, ok := strings.CutPrefix(change.Subject, subjectPrefix)
	if !ok {
		return // an identity: those are only read through the leader
	}
	if change.Gone {
		s.apply(change.Position, &Connection{Name: name, Status: Removed})
		return
	}
	c := decode(name, change.Position.Revision, change.Data, s.keyring)
	if s.apply(change.Position, c) && c.fault != nil {
		s.options.Logger.Error("connection is disabled", "connection", name, "err", c.fault)
	}
}

// apply takes in a record, unless a newer one is known, and has the subscribers told.
func (s *Store) apply(position follow.Position, c *Connection) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.names.Load(c.Name); ok && !position.After(v.(*entry).position) {
		return false
	}
	s.names.Store(c.Name, &entry{position: position, connection: c})
	if len(s.watches) > 0 {
		s.queue = append(s.queue, c)
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// Subscribe has watch called with every change, after the store has taken it
// in: in order, one at a time, from one goroutine. A removed connection comes
// with the Status Removed. What was there before is not told: subscribe first,
// then read All. A call that is about to begin when cancel is called still does;
// after Close none does.
func (s *Store) Subscribe(watch func(*Connection)) (cancel func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.next
	s.next++
	s.watches[id] = watch
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watches, id)
	}
}

func (s *Store) notify() {
	defer close(s.done)
	for {
		select {
		case <-s.closing:
			return
		case <-s.wake:
		}
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, c := range queue {
			for _, watch := range s.watchers() {
				watch(c)
			}
		}
	}
}

func (s *Store) watchers() []func(*Connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.watches))
}
