// Package follow keeps up with a stream of registers (one message per subject):
// it hands over the last value of every subject, says when it has them all, and
// goes on with every change for as long as it runs.
//
// It is not a source of truth: what it hands over was true a moment ago. Whoever
// decides, decides by a compare-and-set.
//
// Invariants: changes are handed over one at a time; within an epoch the
// revisions of a subject only grow; a stream that was deleted, recreated or
// restored to an earlier state begins a new epoch and is read from the start,
// and subjects that are no longer in it are handed over as gone, also where it has
// as many values again by the time it is looked at; a lost connection, a lost
// consumer and a lost leader are repaired without help.
package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/register"
)

// Position orders the values of one subject: by epoch, then by revision.
type Position struct{ Epoch, Revision uint64 }

// After reports whether p is a newer position than q.
func (p Position) After(q Position) bool {
	return p.Epoch > q.Epoch || p.Epoch == q.Epoch && p.Revision > q.Revision
}

// Change is a subject's new value.
type Change struct {
	Subject  string
	Position Position
	Data     []byte
	// Gone says that the subject has no value in the new epoch; Data is nil.
	Gone bool
	// Stored is when the value was stored, by the server's clock.
	Stored time.Time
	// Age is for how long the value has been there at least, by the server's clock.
	Age time.Duration
}

// Options of a Follower.
type Options struct {
	// Stream is the name of the stream, which must exist.
	Stream string
	// Apply gets every change, one at a time. It must not block for long.
	Apply func(Change)
	// Kept, if set, returns the subjects of which the user keeps a value. One that it
	// wrote itself may have been lost with its stream before it was handed over.
	Kept func() []string
	// Check is how often the stream is asked whether it is still the one that
	// is followed and whether anything was missed. Too long: a recreated stream
	// goes unnoticed; too short: a request to the server each time. Default 15 s.
	Check time.Duration
	// Now is this machine's clock, against which the server's is measured. Default time.Now.
	Now func() time.Time
	// Measured, if set, gets at every check what must be added to this machine's
	// clock to get the server's: exact to half a round trip.
	Measured func(offset time.Duration)
	// Logger defaults to slog.Default.
	Logger *slog.Logger
}

// Follower follows one stream until it is closed.
type Follower struct {
	js      jetstream.JetStream
	options Options
	epoch   atomic.Uint64
	stop    context.CancelFunc
	done    chan struct{}
	failure error // of the last try; read when done is closed

	// What follows belongs to whoever holds mu: the goroutine that applies.
	mu      sync.Mutex
	known   map[string]value
	reached uint64         // highest sequence applied in this epoch
	reading uint64         // counts how often the stream was begun to be read
	doubts  int            // how many readings in a row missed what was there
	settled uint64         // the epoch that was read whole last
	clock   register.Clock // the server's, or a little less
}

// value is the value of a subject that was handed over last.
type value struct {
	epoch, revision uint64
	at              time.Time // when it was stored
	reading         uint64    // the last one in which the subject had a value
	back            bool      // that one was an earlier value, or another of the same revision
}

// timeout bounds a single exchange with the server.
const timeout = 5 * time.Second

// Start returns a Follower that has handed over everything that is in the
// stream. It tries until ctx ends; the error is jetstream.ErrStreamNotFound, at
// once, where there is no stream.
func Start(ctx context.Context, js jetstream.JetStream, options Options) (*Follower, error) {
	if options.Check <= 0 {
		options.Check = 15 * time.Second
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	f := &Follower{js: js, options: options, stop: stop, done: make(chan struct{}), known: map[string]value{}}
	first := make(chan error, 1)
	go f.run(run, first)
	select {
	case err := <-first:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("follow %s: %w", options.Stream, err)
		}
		return f, nil
	case <-ctx.Done():
		f.Close()
		return nil, fmt.Errorf("follow %s: %w", options.Stream, errors.Join(context.Cause(ctx), f.failure))
	}
}

// Epoch is the current epoch. A writer that applies its own write at once
// pairs it with the revision it was given.
func (f *Follower) Epoch() uint64 { return f.epoch.Load() }

// Stream is the name of the stream that is followed.
func (f *Follower) Stream() string { return f.options.Stream }

// Close stops following and waits until nothing is handed over any more. It may
// be called more than once, but not from Apply.
func (f *Follower) Close() {
	f.stop()
	<-f.done
}

// run follows the stream again and again, and reports when it is loaded for the
// first time, or isn't there.
func (f *Follower) run(ctx context.Context, first chan<- error) {
	defer close(f.done)
	var created time.Time
	report := func(err error) {
		select {
		case first <- err:
		default:
		}
	}
	for {
		err := f.follow(ctx, &created, func() { report(nil) })
		if ctx.Err() != nil {
			return
		}
		f.failure = err
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			report(err)
		}
		f.options.Logger.Debug("follow again", "stream", f.options.Stream, "reason", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(f.options.Check, time.Second)):
		}
	}
}

// The reasons to begin again that need no word of their own.
var (
	errAgain = errors.New("consumer ended")
	errBack  = errors.New("the stream has lost what it had")
)

// follow reads the stream from the start and stays with it until it must begin
// again.
func (f *Follower) follow(ctx context.Context, created *time.Time, loaded func()) error {
	info, err := f.info(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	// One that has lost its last writes was made when it was. A reading may miss
	// something because the server that is read from is behind.
	if !info.Created.Equal(*created) || info.State.LastSeq < f.reached || f.doubts > 1 {
		*created = info.Created
		f.epoch.Add(1)
		f.reached, f.doubts = 0, 0
	}
	f.reading++
	f.mu.Unlock()
	// What the stream is after that may be seen by reading all of it alone.
	connected := f.js.Conn().StatusChanged(nats.CONNECTED)
	defer f.js.Conn().RemoveStatusListener(connected)
	disturbed := make(chan error, 1)

	sctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	consumer, err := f.js.OrderedConsumer(sctx, f.options.Stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverLastPerSubjectPolicy, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return fmt.Errorf("create consumer: %w", err)
	}
	target := info.State.LastSeq
	complete := make(chan struct{})
	finish := sync.OnceFunc(func() { close(complete) })
	if info.State.Msgs == 0 {
		finish()
	}
	consuming, err := consumer.Consume(func(msg jetstream.Msg) {
		meta, err := msg.Metadata()
		if err != nil {
			return // not a message of a stream
		}
		f.apply(msg, meta)
		if meta.NumPending == 0 || meta.Sequence.Stream >= target {
			finish()
		}
	}, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		f.options.Logger.Debug("follow", "stream", f.options.Stream, "err", err)
		select {
		case disturbed <- err:
		default:
		}
	}))
	if err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	closed := consuming.Closed()
	defer func() {
		consuming.Stop()
		<-closed
	}()

	tick := time.NewTicker(f.options.Check)
	defer tick.Stop()
	behind := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-closed:
			return errAgain
		case <-complete:
			if !f.settle(target) {
				return errBack
			}
			loaded()
			complete = nil
		case <-connected:
			return errors.New("the connection was lost")
		case err := <-disturbed:
			return err
		case <-tick.C:
			reached := f.seen() // before the look, or what comes meanwhile seems to be more than there is
			info, err := f.info(ctx)
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				return err
			}
			if err != nil {
				continue // the server is away: the consumer comes back with it
			}
			if !info.Created.Equal(*created) || info.State.LastSeq < reached {
				return errors.New("the stream is another one")
			}
			if info.State.Msgs == 0 { // what there was ended before it could be read
				finish()
			}
			// Twice behind at the same place: the consumer is stuck.
			if info.State.Msgs > 0 && reached < info.State.LastSeq && behind == reached+1 {
				return errors.New("the consumer is stuck")
			}
			behind = 0
			if reached < info.State.LastSeq {
				behind = reached + 1
			}
		}
	}
}

func (f *Follower) info(ctx context.Context) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	asked := f.options.Now()
	stream, err := f.js.Stream(ctx, f.options.Stream)
	if err != nil {
		return nil, fmt.Errorf("look at stream: %w", err)
	}
	heard := f.options.Now()
	info := stream.CachedInfo()
	f.clock.Observe(info.TimeStamp, time.Now())
	f.age(info.Config.MaxAge)
	if f.options.Measured != nil && !info.TimeStamp.IsZero() {
		f.options.Measured(info.TimeStamp.Sub(asked.Add(heard.Sub(asked) / 2)))
	}
	return info, nil
}

// age forgets what has aged out of the stream: who reads that anew and doesn't find it
// has missed nothing.
func (f *Follower) age(most time.Duration) {
	if most == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock.Now()
	maps.DeleteFunc(f.known, func(_ string, v value) bool { return now.Sub(v.at) > most })
}

func (f *Follower) apply(msg jetstream.Msg, meta *jetstream.MsgMetadata) {
	f.mu.Lock()
	defer f.mu.Unlock()
	epoch, revision := f.epoch.Load(), meta.Sequence.Stream
	f.reached = max(f.reached, revision)
	if v, ok := f.known[msg.Subject()]; ok && v.epoch == epoch && v.revision >= revision {
		v.reading, v.back = f.reading, v.revision > revision || !v.at.Equal(meta.Timestamp)
		f.known[msg.Subject()] = v
		return
	}
	f.known[msg.Subject()] = value{epoch: epoch, revision: revision, at: meta.Timestamp, reading: f.reading}
	f.options.Apply(Change{
		Subject: msg.Subject(), Position: Position{Epoch: epoch, Revision: revision}, Data: msg.Data(),
		Stored: meta.Timestamp, Age: max(0, f.clock.Now().Sub(meta.Timestamp)),
	})
}

// settle ends a reading, which went up to target (the message there may have been
// deleted): what an earlier epoch had and this one has not is gone. It reports
// whether the reading had all that this epoch had before.
func (f *Follower) settle(target uint64) (all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reached = max(f.reached, target)
	epoch := f.epoch.Load()
	all = true
	for subject, v := range f.known {
		if v.epoch != epoch {
			delete(f.known, subject)
			f.options.Apply(Change{Subject: subject, Position: Position{Epoch: epoch}, Gone: true})
		} else if v.reading != f.reading || v.back {
			all = false
		}
	}
	if f.options.Kept != nil && f.settled != epoch {
		for _, subject := range f.options.Kept() {
			if _, there := f.known[subject]; !there {
				f.options.Apply(Change{Subject: subject, Position: Position{Epoch: epoch}, Gone: true})
			}
		}
	}
	f.settled = epoch
	f.doubts++
	if all {
		f.doubts = 0
	}
	return all
}

func (f *Follower) seen() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reached
}
