package token

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nuid"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/follow"
	"zoho-worker/internal/register"
	"zoho-worker/internal/trace"
)

var host, _ = os.Hostname()

const (
	// margin is what a claim's lease is longer than its holder's time to
	// refresh: for storing what came of it.
	margin = 5 * time.Second
	// patience bounds a flight: waiting for the lock, for a dead worker's claim,
	// and one refresh fit into it.
	patience = time.Minute
	// look is how often a watched claim is read through the leader, in case the
	// stream's changes don't arrive.
	look = 2 * time.Second
)

// ahead refreshes in the background, once at a time.
func (s *Source) ahead(e *entry, c *connection.Connection, st *state, now time.Time) {
	if now.UnixNano() < e.patience.Load() || !e.renewing.CompareAndSwap(false, true) {
		return
	}
	if !s.begin() {
		e.renewing.Store(false)
		return
	}
	go func() {
		defer s.work.Done()
		defer e.renewing.Store(false)
		_, err := s.flight(s.ctx, e, c, st.token.Generation)
		if err == nil {
			return
		}
		wait := now.Add(look)
		if u, ok := errors.AsType[*Unavailable](err); ok && u.Until.After(wait) {
			wait = u.Until
		}
		e.patience.Store(wait.UnixNano())
		s.options.Logger.Debug("token is not renewed ahead", "connection", c.Name, "err", err)
	}()
}

// flight joins the refresh of this process that is to replace the generation,
// or begins it. The flight goes on when the caller gives up: others wait for it.
func (s *Source) flight(ctx context.Context, e *entry, c *connection.Connection, except uint64) (Token, error) {
	key := c.Name + " " + strconv.FormatUint(c.Grant, 10) + " " + strconv.FormatUint(except, 10)
	result := s.flights.DoChan(key, func() (any, error) {
		if !s.begin() {
			return Token{}, ErrClosed
		}
		defer s.work.Done()
		ctx, cancel := context.WithTimeout(trace.Carry(ctx, s.ctx), patience)
		defer cancel()
		token, err := s.fly(ctx, e, c.Name, except)
		if err != nil && s.ctx.Err() != nil {
			err = ErrClosed
		}
		return token, err
	})
	select {
	case r := <-result:
		return r.Val.(Token), r.Err
	case <-ctx.Done():
		return Token{}, fmt.Errorf("wait for token of connection %s: %w", c.Name, context.Cause(ctx))
	}
}

// fly brings a token of another generation than except: somebody else's, or
// one that it mints.
func (s *Source) fly(ctx context.Context, e *entry, name string, except uint64) (Token, error) {
	defer s.lock(ctx, e, name, except)()
	for {
		c, err := s.connection(name)
		if err != nil {
			return Token{}, err
		}
		if token, err := s.verdict(s.opened(e, e.state.Load(), c), c, except); err != nil || !token.Access.IsZero() {
			return token, s.concluded(ctx, c, err)
		}
		st, err := s.read(ctx, e, name)
		if err != nil {
			return Token{}, fmt.Errorf("refresh token of connection %s: %w", name, err)
		}
		if st.record.Grant >= c.Grant && !st.record.of(c) { // authorized anew, and this process has not heard of it
			if c, err = s.options.Connections.Fetch(ctx, name); err != nil {
				return Token{}, fmt.Errorf("refresh token of connection %s: %w", name, err)
			}
			if err := s.refusal(c); err != nil {
				return Token{}, err
			}
		}
		st = s.opened(e, st, c)
		if token, err := s.verdict(st, c, except); err != nil || !token.Access.IsZero() {
			return token, s.concluded(ctx, c, err)
		}
		r := st.record.under(c)
		if !st.record.of(c) {
			r.Mints = []time.Time{s.serverNow()} // the consent brought a token, too
		}
		if r.Claim != nil {
			if left := e.leaseLeft(r.Claim); left > 0 {
				if err := s.watch(ctx, st, left); err != nil {
					return Token{}, err
				}
				continue
			}
		}
		if until, spent := r.spent(s.serverNow()); spent {
			return Token{}, s.unavailable(Budget, until, nil)
		}
		token, done, err := s.mint(ctx, e, c, st, r)
		if done || err != nil {
			return token, err
		}
	}
}

// concluded passes on what a verdict says. Where that is that the grant is
// revoked, the connection isn't marked yet: whoever recorded it died in between.
func (s *Source) concluded(ctx context.Context, c *connection.Connection, err error) error {
	if isRevoked(err) {
		s.revoke(ctx, c)
	}
	return err
}

func isRevoked(err error) bool {
	u, ok := errors.AsType[*Unavailable](err)
	return ok && u.Reason == Revoked
}

// lock takes the Redis lock of the connection, so that the workers come one
// after another, and returns how to release it. It does without where Redis is
// away, where another holds it for longer than a refresh takes, or where there
// is no need for it any more.
func (s *Source) lock(ctx context.Context, e *entry, name string, except uint64) (release func()) {
	if s.options.Locker == nil {
		return func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, s.options.RefreshTimeout+margin)
	defer cancel()
	go func() { // gives up the wait when somebody else's refresh has come in
		for ctx.Err() == nil {
			st := e.state.Load()
			if c, err := s.connection(name); err != nil {
				cancel()
			} else if token, err := s.verdict(s.opened(e, st, c), c, except); err != nil || !token.Access.IsZero() {
				cancel()
			}
			select {
			case <-st.next:
			case <-ctx.Done():
			}
		}
	}()
	asked := time.Now()
	held, err := s.options.Locker.Acquire(ctx, "token."+name)
	s.metrics.lockWait.Observe(time.Since(asked).Seconds())
	switch {
	case err == nil:
		s.metrics.locks.WithLabelValues(lockAcquired).Inc()
		return held.Release
	case ctx.Err() != nil:
		s.metrics.locks.WithLabelValues(lockSkipped).Inc()
	default:
		s.metrics.locks.WithLabelValues(lockUnavailable).Inc()
		s.options.Logger.Debug("refresh without lock", "connection", name, "err", err)
	}
	return func() {}
}

// read reads the record through the stream's leader.
func (s *Source) read(ctx context.Context, e *entry, name string) (*state, error) {
	epoch := s.epoch()
	found, err := s.registers.Get(ctx, subjectPrefix+name)
	if errors.Is(err, register.ErrNotFound) {
		return &state{position: follow.Position{Epoch: epoch}, next: make(chan struct{})}, nil
	}
	if err != nil {
		return nil, err
	}
	r, err := decodeRecord(found.Data)
	if err != nil {
		s.options.Logger.Error("token record is ignored", "connection", name, "err", err)
	}
	return s.apply(e, name, follow.Position{Epoch: epoch, Revision: found.Revision}, r), nil
}

func (s *Source) epoch() uint64 { return s.follower.Epoch() }

// watch waits until the claimed record changes, or it is time to look at it again.
func (s *Source) watch(ctx context.Context, st *state, left time.Duration) error {
	timer := time.NewTimer(min(left, look))
	defer timer.Stop()
	select {
	case <-st.next:
	case <-timer.C:
	case <-ctx.Done():
		return &Unavailable{Until: s.options.Now().Add(left), Reason: Claimed}
	}
	return nil
}

// mint claims the refresh, refreshes, and settles the record. It reports done
// where there is a token or it is known why there is none; otherwise the record
// has to be looked at again, because somebody else changed it.
func (s *Source) mint(ctx context.Context, e *entry, c *connection.Connection, st *state, r record) (Token, bool, error) {
	refreshToken, err := c.RefreshToken(s.options.Keyring)
	if err != nil {
		return Token{}, true, &Unavailable{Until: s.options.Now().Add(time.Minute), Reason: Misconfigured, Err: err}
	}
	// The holder's time begins before the claim can be seen by anybody, so it
	// ends before theirs, also when this process is suspended in between.
	begun, beganAt := time.Now(), s.serverNow()
	lease := s.options.RefreshTimeout + margin
	own := claim{Nonce: nuid.Next(), LeaseMS: lease.Milliseconds(), By: host}
	// A claim once begun is seen through, also when the source is being closed.
	settling, cancel := context.WithDeadline(context.WithoutCancel(ctx), begun.Add(lease))
	defer cancel()
	r = r.claimed(own, beganAt)
	revision, err := s.write(settling, e, c.Name, r, st.position.Revision, func(there record) bool {
		return there.Claim != nil && there.Claim.Nonce == own.Nonce
	})
	if errors.Is(err, register.ErrConflict) {
		return Token{}, false, nil
	}
	if err != nil {
		return Token{}, true, fmt.Errorf("claim refresh of connection %s: %w", c.Name, err)
	}

	refreshing, cancelRefresh := context.WithDeadline(settling, begun.Add(s.options.RefreshTimeout))
	defer cancelRefresh()
	grant, err := s.refresh(refreshing, c, refreshToken)
	var settled record
	var refused error
	if err != nil {
		settled, refused = s.judge(settling, c, r, err)
	} else {
		settled = s.minted(settling, c, r, grant, refreshToken, beganAt)
	}
	settled.Nonce = own.Nonce
	_, err = s.write(settling, e, c.Name, settled, revision, func(there record) bool {
		return there.Claim == nil && there.Nonce == own.Nonce
	})
	switch {
	case errors.Is(err, register.ErrConflict):
		// The lease had run out for somebody, or the connection was authorized
		// anew. What they store counts.
		s.metrics.refreshes.WithLabelValues(resultLost).Inc()
		return Token{}, false, nil
	case refused != nil: // what the endpoint said holds, whether it could be shared or not
		s.told(c, st.record, settled)
		return Token{}, true, refused
	case err != nil:
		return Token{}, true, fmt.Errorf("store token of connection %s: %w", c.Name, err)
	}
	s.told(c, st.record, settled)
	return s.fresh(e, c, settled), true, nil
}

// write stores the record in the place of the expected revision and takes it
// in, trying again for as long as the server does not say either way. Own
// recognises the record, in case it was stored and nobody said so.
func (s *Source) write(ctx context.Context, e *entry, name string, r record, expected uint64, own func(record) bool) (uint64, error) {
	data := r.encode()
	for {
		epoch := s.epoch()
		revision, err := s.registers.Put(ctx, subjectPrefix+name, data, expected)
		if errors.Is(err, register.ErrConflict) {
			st, readErr := s.read(ctx, e, name)
			switch {
			case readErr != nil:
				err = readErr
			case own(st.record):
				return st.position.Revision, nil
			default:
				return 0, register.ErrConflict
			}
		}
		if err == nil {
			s.apply(e, name, follow.Position{Epoch: epoch, Revision: revision}, r)
			return revision, nil
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}
