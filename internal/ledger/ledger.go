// Package ledger holds the claims of requests that must not be sent twice: a
// claim is a record at zoho.claims.<connection>.<id>, created before the
// request's first byte leaves.
//
// It is not the record of what happened: that is the stored response. A claim
// without a response means that the request may have been sent.
//
// Invariants: at most one holder at a time may send; a holder whose lease is
// over by its own clock sends nothing; a claim is given up only by its
// holder, and only where it is proved that nothing was sent; a claim that could
// not be written counts as not held; whoever is told that a lease is over has
// closed the claim first, so its holder, should it wake up, can't extend it.
package ledger

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"zoho-worker/internal/register"
)

// StreamName is the stream of claims.
const StreamName = "ZOHO_CLAIMS"

// StreamConfig is the configuration of the stream of claims. A claim protects
// its request for as long as it is kept, so retention is also for how long an id
// can't be used again.
func StreamConfig(replicas int, retention time.Duration) jetstream.StreamConfig {
	return register.Config(StreamName, "claims of requests that must not be sent twice", "zoho.claims.*.*", replicas, retention)
}

// ErrConflict says that the id was claimed for a request with other content.
var ErrConflict = errors.New("the id belongs to a request with other content")

// ErrExpired says that the claim's lease is over and nobody gave it up: the
// request may have been sent, and whoever sent it is gone. Nobody sends it any
// more, unless the error is a *LostError, too, and the request is looked up.
var ErrExpired = errors.New("the claim's lease is over")

// LostError is an ErrExpired of a claim that is closed and not sealed. Who finds
// out since that nothing was carried out may Resume it, once.
type LostError struct {
	// Since is when the claim was closed, by the server's clock, or a moment
	// later: nothing of the request left for Zoho after it.
	Since    time.Time
	revision uint64
}

// Error implements error.
func (e *LostError) Error() string { return ErrExpired.Error() }

// Is makes a LostError an ErrExpired.
func (e *LostError) Is(target error) bool { return target == ErrExpired }

// HeldError says that another holder's lease is running for another Left.
type HeldError struct{ Left time.Duration }

// Error implements error.
func (e *HeldError) Error() string { return fmt.Sprintf("claimed for another %s", e.Left) }

// margin is what a lease is longer than the time a holder may use of it: for
// the exchange that wrote the claim and the clocks' drift.
const margin = 5 * time.Second

// Ledger writes claims.
type Ledger struct {
	registers *register.Stream
	clock     *register.Clock
	lease     time.Duration
}

// Open returns the ledger whose claims let their holder send for call.
// The clock tells the server's time, by which others judge a lease.
func Open(js jetstream.JetStream, clock *register.Clock, call time.Duration) *Ledger {
	return &Ledger{registers: register.New(js, StreamName, 5*time.Second), clock: clock, lease: call + margin}
}

func subjectOf(connection, id string) string { return "zoho.claims." + connection + "." + id }

type state string

const (
	claimed  state = "claimed"
	released state = "released"
	closed   state = "closed"  // it may have been sent, and its holder sends no more
	sealed   state = "sealed"  // closed, and its requester is told that nobody knows
	refused  state = "refused" // it was never sent and never will be: it has its answer
)

// record is a claim as it is stored. Times are not in it: the server's time of
// the write is the start of the lease.
type record struct {
	Nonce   string `json:"nonce"`
	Digest  string `json:"digest"`
	LeaseMS int64  `json:"lease_ms"`
	State   state  `json:"state"`
}

// Claim is a right to send one request, until its lease is over.
type Claim struct {
	ledger  *Ledger
	subject string
	record  record
	// resumed: what was sent under an earlier claim may have been carried out in part.
	resumed bool

	mu       sync.Mutex
	revision uint64
	until    time.Time // when the holder must not begin to send any more, see Left
}

// Claim claims the request for sending. The error is ErrConflict, ErrExpired or
// a *HeldError where somebody else has or had it; any other error means that
// the claim could not be written and nothing may be sent.
func (l *Ledger) Claim(ctx context.Context, connection, id string, digest [32]byte) (*Claim, error) {
	// A new claim first: nearly every request is new. Only a conflict makes it read.
	return l.claim(ctx, connection, id, digest, nil)
}

// Resume claims a request anew that was lost, for somebody who has looked up
// since that it was not carried out, or which part of it was not. The errors are
// those of Claim: of all that looked one gets the claim, the others a *HeldError.
func (l *Ledger) Resume(ctx context.Context, connection, id string, digest [32]byte, lost *LostError) (*Claim, error) {
	return l.claim(ctx, connection, id, digest, lost)
}

func (l *Ledger) claim(ctx context.Context, connection, id string, digest [32]byte, lost *LostError) (*Claim, error) {
	c := &Claim{ledger: l, subject: subjectOf(connection, id), resumed: lost != nil, record: record{
		Nonce: nuid.Next(), Digest: hex.EncodeToString(digest[:]), LeaseMS: l.lease.Milliseconds(), State: claimed,
	}}
	var expected uint64
	if lost != nil {
		expected = lost.revision
	}
	unclear := false
	for {
		err := c.write(ctx, expected)
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, register.ErrConflict):
		case unclear || ctx.Err() != nil:
			return nil, fmt.Errorf("claim: %w", err)
		default:
			// It may be written or not. One that is, and that nobody remembers,
			// would end as an unknown outcome: so once more, and see.
			unclear = true
			continue
		}
		there, entry, err := l.read(ctx, c.subject)
		switch {
		case errors.Is(err, register.ErrNotFound) && lost == nil: // aged out in between
			expected = 0
			continue
		case err != nil:
			return nil, fmt.Errorf("claim: %w", err)
		case there.Nonce == c.record.Nonce && there.State == claimed:
			// The unclear write was done. Another one starts the lease anew.
		case there.Digest != c.record.Digest:
			return nil, ErrConflict
		case there.State != released || lost != nil:
			// What was looked up holds for the record that was seen before alone.
			if err := l.standing(ctx, c.subject, there, entry); err != nil || lost != nil {
				return nil, cmp.Or[error](err, &HeldError{})
			}
		}
		expected = entry.Revision
	}
}

// Seal sees to it that nobody resumes a lost request: its requester is about to
// be told that its outcome is unknown. The errors are those of Claim.
func (l *Ledger) Seal(ctx context.Context, connection, id string, lost *LostError) error {
	subject := subjectOf(connection, id)
	for expected := lost.revision; ; {
		there, entry, err := l.read(ctx, subject)
		switch {
		case err != nil:
			return fmt.Errorf("seal claim: %w", err)
		case there.State == sealed:
			return nil
		case entry.Revision != expected:
			return cmp.Or[error](l.standing(ctx, subject, there, entry), &HeldError{})
		}
		there.State = sealed
		data, err := json.Marshal(there)
		if err != nil {
			return err
		}
		if _, err = l.registers.Put(ctx, subject, data, expected); err == nil {
			return nil
		}
		if !errors.Is(err, register.ErrConflict) {
			return fmt.Errorf("seal claim: %w", err)
		}
	}
}

// Look reports what stands in the ledger without claiming: nil where the
// request was never claimed, was given up or was refused, else the errors of Claim.
func (l *Ledger) Look(ctx context.Context, connection, id string, digest [32]byte) error {
	subject := subjectOf(connection, id)
	there, entry, err := l.read(ctx, subject)
	switch {
	case errors.Is(err, register.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("look up claim: %w", err)
	case there.Digest != hex.EncodeToString(digest[:]):
		return ErrConflict
	}
	if there.State == refused {
		// It was not sent. Who looks for the first time since finds the stored
		// answer, or, if its worker died in between, the reason once more.
		return nil
	}
	return l.standing(ctx, subject, there, entry)
}

// Standing returns when somebody claimed the request, by the server's clock, and for how
// long that is good; false where nobody holds it, or that can't be seen. It is for people:
// nothing may be decided by it.
func Standing(ctx context.Context, js jetstream.JetStream, connection, id string) (since time.Time, lease time.Duration, ok bool) {
	entry, err := register.New(js, StreamName, 2*time.Second).Get(ctx, subjectOf(connection, id))
	var r record
	if err != nil || json.Unmarshal(entry.Data, &r) != nil || r.State != claimed {
		return time.Time{}, 0, false
	}
	return entry.Time, time.Duration(r.LeaseMS) * time.Millisecond, true
}

// Close sees to it that nobody sends the request any more: its final answer is
// about to be stored, and it was not sent. Without this a request that was
// refused before it was claimed would be sent when it is published again,
// against its stored answer. The error is a *HeldError where another worker may
// be sending it right now, for a copy of it, and ErrExpired where one may have
// sent it and is gone: then the answer must not be that it was not sent. A claim
// of a request with other content is left alone.
func (l *Ledger) Close(ctx context.Context, connection, id string, digest [32]byte) error {
	subject := subjectOf(connection, id)
	data, err := json.Marshal(record{Nonce: nuid.Next(), Digest: hex.EncodeToString(digest[:]), State: refused})
	if err != nil {
		return err
	}
	for expected := uint64(0); ; {
		_, err := l.registers.Put(ctx, subject, data, expected)
		if err == nil {
			return nil
		}
		if !errors.Is(err, register.ErrConflict) {
			return fmt.Errorf("close claim: %w", err)
		}
		there, entry, err := l.read(ctx, subject)
		switch {
		case errors.Is(err, register.ErrNotFound):
			expected = 0
			continue
		case err != nil:
			return fmt.Errorf("close claim: %w", err)
		case there.Digest != hex.EncodeToString(digest[:]):
			return nil // another request's
		case there.State == refused:
			return nil
		}
		if err := l.standing(ctx, subject, there, entry); err != nil {
			return err
		}
		expected = entry.Revision
	}
}

// standing is what a record of this request says to somebody else: nil where it
// was released. A claim whose lease is over is closed by a compare-and-set
// before that is said: to say it from a read alone would let a holder that was
// suspended extend its lease and send after the request was answered.
func (l *Ledger) standing(ctx context.Context, subject string, there record, entry *register.Entry) error {
	for {
		switch there.State {
		case released:
			return nil
		case closed:
			return &LostError{Since: entry.Time, revision: entry.Revision}
		case sealed, refused:
			return ErrExpired
		}
		lease := time.Duration(there.LeaseMS) * time.Millisecond
		if left := lease - l.clock.Passed(entry.Time); left > 0 {
			return &HeldError{Left: left}
		}
		there.State = closed
		data, err := json.Marshal(there)
		if err != nil {
			return err
		}
		revision, err := l.registers.Put(ctx, subject, data, entry.Revision)
		if err == nil {
			return &LostError{Since: l.clock.Now(), revision: revision}
		}
		if !errors.Is(err, register.ErrConflict) {
			return fmt.Errorf("close claim: %w", err)
		}
		// Extended, released or closed in between.
		there, entry, err = l.read(ctx, subject)
		if errors.Is(err, register.ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("close claim: %w", err)
		}
	}
}

func (l *Ledger) read(ctx context.Context, subject string) (record, *register.Entry, error) {
	var r record
	entry, err := l.registers.Get(ctx, subject)
	if err != nil {
		return r, nil, err
	}
	if err := json.Unmarshal(entry.Data, &r); err != nil {
		return r, nil, fmt.Errorf("decode claim %s: %w", subject, err)
	}
	return r, entry, nil
}

// write stores the record and, if it is a claim, starts the lease: at the
// instant before the exchange, so that the holder's lease ends first.
func (c *Claim) write(ctx context.Context, expected uint64) error {
	data, err := json.Marshal(c.record)
	if err != nil {
		return err
	}
	started := time.Now()
	revision, err := c.ledger.registers.Put(ctx, c.subject, data, expected)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revision, c.until = revision, time.Time{}
	if c.record.State == claimed {
		c.until = started.Add(c.ledger.lease - margin)
	}
	return nil
}

// Left is how long the holder may still use the claim, by its own clock (register.Left).
func (c *Claim) Left() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return register.Left(c.until)
}

// ErrLeaseOver says that the holder's own lease ended before it began to send.
var ErrLeaseOver = errors.New("lease of the claim is over: nothing was sent")

// Permit is asked at the last moment before the first byte leaves; its error
// is ErrLeaseOver where a suspended process comes back too late to send.
func (c *Claim) Permit() error {
	if c.Left() <= 0 {
		return ErrLeaseOver
	}
	return nil
}

// Extend starts the lease anew for another attempt of the same holder. The
// error is register.ErrConflict where the claim is no longer the holder's; after
// any other the claim may still be, and may be released.
func (c *Claim) Extend(ctx context.Context) error {
	if c.record.State != claimed {
		return fmt.Errorf("extend claim: %w", register.ErrConflict)
	}
	if err := c.rewrite(ctx); err != nil {
		return fmt.Errorf("extend claim: %w", err)
	}
	return nil
}

// Release gives the claim up: the holder has proof that it sent nothing. One
// that was resumed is lost again, since what was sent before it stays in doubt.
func (c *Claim) Release(ctx context.Context) error {
	if c.resumed {
		_, err := c.Lose(ctx)
		return err
	}
	c.record.State = released
	if err := c.rewrite(ctx); err != nil {
		return fmt.Errorf("release claim: %w", err)
	}
	return nil
}

// Lose closes the claim at once: the request may have been carried out, and the
// holder sends no more of it, so that nobody has to wait for the lease's end.
func (c *Claim) Lose(ctx context.Context) (*LostError, error) {
	c.record.State = closed
	if err := c.rewrite(ctx); err != nil {
		return nil, fmt.Errorf("close claim: %w", err)
	}
	return &LostError{Since: c.ledger.clock.Now(), revision: c.revision}, nil
}

// rewrite stores the holder's record anew. A write of its own whose
// acknowledgement was lost it recognises by the nonce.
func (c *Claim) rewrite(ctx context.Context) error {
	for unclear := false; ; {
		err := c.write(ctx, c.revision)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, register.ErrConflict):
		case unclear || ctx.Err() != nil:
			return err
		default:
			unclear = true
			continue
		}
		there, entry, err := c.ledger.read(ctx, c.subject)
		switch {
		case errors.Is(err, register.ErrNotFound):
			return register.ErrConflict
		case err != nil:
			return err
		case there.Nonce != c.record.Nonce:
			return register.ErrConflict
		case there.State == c.record.State && there.State != claimed:
			c.revision = entry.Revision
			return nil
		case there.State != claimed:
			return register.ErrConflict
		}
		c.revision = entry.Revision
	}
}
