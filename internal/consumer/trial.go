package consumer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/relay"
)

// trials are for requests that kill their workers: each would kill them all, one
// after the other.
//
//   - What was in hand of two workers in a row that died is suspect: tried alone,
//     one of the org's suspects at a time, and by name in the org's record.
//   - A suspect whose worker dies is accused: it is tried as the only accused one of
//     its worker.
//   - An accused one whose worker dies is convicted: it is answered, and set aside.
//
// A worker dies of one request, and has suspects of all its orgs on trial: the
// second trial tells which it was. So a worker that is killed from outside costs a
// row to stand in, and convicts nobody unless the next one is killed in the same trial.
type trials struct {
	died, deaths map[string]uint64 // by lane, up to which sequence requests were in hand: of the death before, and with the last one
	busy         bool              // a suspect is started
	on           uint64            // the one that is tried
	accused      map[uint64]bool
	convicted    uint64
}

// newTrials begins with what the org's record says; died says that its owner did.
func newTrials(st state, died bool) trials {
	t := trials{died: st.Deaths, deaths: map[string]uint64{}, accused: map[uint64]bool{}}
	maps.Copy(t.deaths, st.Deaths)
	for _, sequence := range st.Accused {
		t.accused[sequence] = true
	}
	switch {
	case !died || st.Trial == 0:
	case t.accused[st.Trial]:
		t.convicted = st.Trial
	default:
		t.accused[st.Trial] = true
	}
	return t
}

// errConvicted answers a request that killed its workers.
var errConvicted = &envelope.Error{
	Code:    envelope.Internal,
	Message: "four workers in a row died while they had this request in hand, the last two while they tried it alone: whether it was carried out is not known",
}

// mourn notes what a worker that died had in hand, or an earlier session of this one.
func (l *lane) mourn(ctx context.Context) error {
	o := l.org
	if l.mourned {
		return nil
	}
	there, err := o.JetStream.Consumer(ctx, RequestStream, l.durable())
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return l.mournForgotten(ctx)
	}
	if err != nil {
		return fmt.Errorf("look at consumer %s: %w", l.durable(), err)
	}
	handed, settled := there.CachedInfo().Delivered.Stream, there.CachedInfo().AckFloor.Stream
	if o.hold.Own {
		l.died, l.mourned = handed, true
		return nil
	}
	o.mu.Lock()
	// What is loaded is of the death before; a write that failed is written again.
	l.died, l.twice = handed, min(o.trials.died[l.rest()], handed)
	if l.twice <= settled {
		l.twice = 0 // the worker that died now outlived them all
	}
	o.trials.deaths[l.rest()] = handed
	twice := l.twice
	o.mu.Unlock()
	if twice > 0 {
		o.Logger.Warn("two workers in a row died with requests in hand: these are tried one at a time", "queue", o.name, "subject", l.subject(), "up_to", twice)
	}
	if err := o.hold.Save(ctx, o.merge); err != nil {
		return fmt.Errorf("note the worker's death: %w", err)
	}
	l.mourned = true
	return nil
}

// mournForgotten is mourn where the server has begun anew and forgotten what it had
// handed out: the first of those that are in the stream, and as many as a lane may have
// in hand at most. Nobody is suspected for that.
func (l *lane) mournForgotten(ctx context.Context) error {
	info, err := l.org.Stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("look at stream %s: %w", RequestStream, err)
	}
	l.died, l.forgot, l.mourned = info.State.LastSeq, true, true
	return nil
}

// was reports whether the request may have been in hand of a worker that died. The lane's
// own goroutine asks, of one that has just come.
func (l *lane) was(sequence uint64) bool {
	return sequence <= l.died && !(l.forgot && l.received >= windowMost)
}

// try carries out a suspect.
func (o *org) try(e *entry) *relay.Wait {
	o.mu.Lock()
	accused := o.trials.accused[e.sequence]
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.trials.busy, o.trials.on = false, 0
		o.mu.Unlock()
	}()
	if accused {
		select {
		case o.dock <- struct{}{}:
			defer func() { <-o.dock }()
		case <-o.pulling.Done():
			return &relay.Wait{Reason: relay.WaitStopping}
		}
	}
	o.noteTrial(e.sequence)
	wait := o.work(o.name, e)
	if wait != nil {
		o.noteTrial(0) // its worker lives, and it stays in hand
	}
	return wait
}

// noteTrial writes into the org's record which request is tried. If that can't be
// written, the request is tried all the same: it may not be the one.
func (o *org) noteTrial(sequence uint64) {
	ctx, cancel := context.WithTimeout(o.calling, 5*time.Second)
	defer cancel()
	o.mu.Lock()
	o.trials.on = sequence
	o.mu.Unlock()
	if err := o.hold.Save(ctx, o.merge); err != nil {
		o.Logger.Warn("the request that is tried alone is not noted", "queue", o.name, "err", err)
	}
}
