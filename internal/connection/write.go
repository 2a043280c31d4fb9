package connection

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"zoho-worker/internal/connection/follow"
	"zoho-worker/internal/register"
	"zoho-worker/internal/secret"
)

// Add stores a new connection, active, with its first refresh token. The error
// is ErrExists where the name is taken, an ErrDuplicate where the user has a
// connection already, also where two workers add that user under two names in the
// same instant: whoever holds the user's identity is decided by a compare-and-set.
func (s *Store) Add(ctx context.Context, c Connection, refreshToken secret.Text) (*Connection, error) {
	added := c.clone()
	if added.Environment == "" {
		added.Environment = Production
	}
	if refreshToken.IsZero() {
		return nil, fmt.Errorf("add connection %s: no refresh token", c.Name)
	}
	added.Status, added.StatusReason, added.RevokedAt = Active, "", time.Time{}
	added.Grant, added.Revision, added.sealed, added.fault = 0, 0, nil, nil
	if err := added.Validate(); err != nil {
		return nil, fmt.Errorf("add connection: %w", err)
	}
	for {
		there, err := s.fetch(ctx, c.Name)
		switch {
		case errors.Is(err, ErrNotFound):
			added.Grant, added.Revision = 0, 0
		case err != nil:
			return nil, fmt.Errorf("add connection %s: %w", c.Name, err)
		case there.Status != Removed:
			return nil, fmt.Errorf("add connection %s: %w", c.Name, ErrExists)
		default: // over the tombstone, counting grants on
			added.Grant, added.Revision = there.Grant, there.Revision
		}
		added.CreatedAt = now()
		added.SetRefreshToken(refreshToken)
		stored, err := s.put(ctx, added)
		if errors.Is(err, register.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("add connection %s: %w", c.Name, err)
		}
		return stored, nil
	}
}

// Update changes the connection by a compare-and-set: change is called with a
// copy of the record as it is, again and again until nobody else wrote in
// between. Name, Grant and CreatedAt can't be changed by it; a new refresh token
// is set by SetRefreshToken. The error is ErrNotFound, an ErrDuplicate, what
// Validate says, or the one that change returned, which ends the update.
func (s *Store) Update(ctx context.Context, name string, change func(*Connection) error) (*Connection, error) {
	c, err := s.update(ctx, name, change)
	if err != nil {
		return nil, fmt.Errorf("update connection %s: %w", name, err)
	}
	return c, nil
}

// Reauthorize gives the connection a new refresh token and makes it active;
// change (or nil) may bring the rest of the record up to date.
func (s *Store) Reauthorize(ctx context.Context, name string, refreshToken secret.Text, change func(*Connection) error) (*Connection, error) {
	if refreshToken.IsZero() {
		return nil, fmt.Errorf("reauthorize connection %s: no refresh token", name)
	}
	return s.Update(ctx, name, func(c *Connection) error {
		c.SetRefreshToken(refreshToken)
		if change == nil {
			return nil
		}
		return change(c)
	})
}

// MarkRevoked records that Zoho refused the connection's refresh token for good.
// It changes nothing, and says so, where the connection has another grant by
// now, is revoked already, or is gone: so of many workers one changes it.
func (s *Store) MarkRevoked(ctx context.Context, refused *Connection, reason string) (changed bool, err error) {
	_, err = s.update(ctx, refused.Name, func(c *Connection) error {
		if !c.sameGrant(refused) || c.Status != Active {
			return errUnchanged
		}
		c.Status, c.StatusReason, c.RevokedAt = Revoked, reason, now()
		c.UpdatedBy = "worker"
		return nil
	})
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, errUnchanged), errors.Is(err, ErrNotFound):
		return false, nil
	}
	return false, fmt.Errorf("mark connection %s revoked: %w", refused.Name, err)
}

// Remove replaces the connection by a tombstone without the secret, which keeps who
// did it. The error is ErrNotFound where there is none. A record that can't be read
// is removed too.
func (s *Store) Remove(ctx context.Context, name, by string) error {
	return s.remove(ctx, name, by, func(*Connection) error { return nil })
}

// ErrNewGrant says that the connection was authorized anew meanwhile.
var ErrNewGrant = errors.New("the connection was authorized anew meanwhile")

// RemoveRevoked is Remove for a connection whose grant was revoked. The error is
// ErrNewGrant where it has another one by now, which lives.
func (s *Store) RemoveRevoked(ctx context.Context, revoked *Connection, by string) error {
	return s.remove(ctx, revoked.Name, by, func(c *Connection) error {
		if !c.sameGrant(revoked) {
			return ErrNewGrant
		}
		return nil
	})
}

func (s *Store) remove(ctx context.Context, name, by string, may func(*Connection) error) error {
	for {
		c, err := s.Fetch(ctx, name)
		if err == nil {
			err = may(c)
		}
		if err != nil {
			return fmt.Errorf("remove connection %s: %w", name, err)
		}
		tombstone := c.clone()
		if c.Status == Unreadable {
			tombstone.Location, tombstone.Environment, tombstone.CreatedAt = "us", Production, now()
		}
		tombstone.Status, tombstone.StatusReason = Removed, ""
		tombstone.UpdatedBy = by
		tombstone.sealed, tombstone.renewed, tombstone.fault = nil, secret.Text{}, nil
		_, err = s.put(ctx, tombstone)
		if errors.Is(err, register.ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove connection %s: %w", name, err)
		}
		return nil
	}
}

// Reseal seals every refresh token with the keyring's first key that isn't yet,
// and returns how many it did: after that the other keys can go. The error
// joins those of the connections that could not be opened or written.
func (s *Store) Reseal(ctx context.Context) (int, error) {
	var faults []error
	count := 0
	for _, c := range s.All() {
		resealed, err := s.reseal(ctx, c.Name)
		if err != nil {
			faults = append(faults, fmt.Errorf("reseal connection %s: %w", c.Name, err))
		}
		if resealed {
			count++
		}
	}
	return count, errors.Join(faults...)
}

func (s *Store) reseal(ctx context.Context, name string) (bool, error) {
	_, err := s.update(ctx, name, func(c *Connection) error {
		if s.keyring.SealedByFirst(c.sealed) {
			return errUnchanged
		}
		token, err := c.RefreshToken(s.keyring)
		if err != nil {
			return err
		}
		c.sealed = s.keyring.Seal([]byte(token.Reveal()), c.associated()...)
		return nil
	})
	if errors.Is(err, errUnchanged) || errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// errUnchanged ends an update that has nothing to do.
var errUnchanged = errors.New("nothing to change")

func (s *Store) update(ctx context.Context, name string, change func(*Connection) error) (*Connection, error) {
	for {
		c, err := s.Fetch(ctx, name)
		if err != nil {
			return nil, err
		}
		if c.Status == Unreadable {
			return nil, c.fault
		}
		next := c.clone()
		if err := change(next); err != nil {
			return nil, err
		}
		next.Name, next.Grant, next.CreatedAt, next.Revision = c.Name, c.Grant, c.CreatedAt, c.Revision
		stored, err := s.put(ctx, next)
		if errors.Is(err, register.ErrConflict) {
			continue
		}
		return stored, err
	}
}

// ErrUnclear says that a write may be stored or not: the server didn't say.
var ErrUnclear = errors.New("whether it is stored is not known")

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// put stores c in the place of its Revision and takes it in. The error is
// register.ErrConflict, ErrUnclear, or one that came before anything was written.
func (s *Store) put(ctx context.Context, c *Connection) (*Connection, error) {
	c = c.clone()
	c.UpdatedAt = now()
	minted := grantID(c.renewed)
	data, err := c.encode(s.keyring)
	if err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Status == Active {
		if existing, ok := s.duplicate(c); ok {
			return nil, ErrDuplicate{Existing: existing}
		}
		if err := s.hold(ctx, c, minted); err != nil {
			return nil, err
		}
	}
	epoch := s.epoch()
	revision, err := s.registers.Put(ctx, subjectPrefix+c.Name, data, c.Revision)
	for pause := 100 * time.Millisecond; err != nil && !errors.Is(err, register.ErrConflict); pause *= 2 {
		// It is stored or not, and nobody said: whoever has a new refresh token has to
		// know, or would revoke the one in use, or lose it.
		if pause > 2*time.Second || !sleep(ctx, pause) {
			return nil, fmt.Errorf("%w: %w", ErrUnclear, err)
		}
		if revision, err = s.registers.Put(ctx, subjectPrefix+c.Name, data, c.Revision); !errors.Is(err, register.ErrConflict) {
			continue
		}
		if there, lookErr := s.registers.Get(ctx, subjectPrefix+c.Name); lookErr == nil && bytes.Equal(there.Data, data) {
			revision, err = there.Revision, nil
		} else if lookErr != nil {
			err = lookErr
		}
	}
	if err != nil {
		return nil, err
	}
	// What is in the stream is what counts, so it is read back from the document.
	stored := decode(c.Name, revision, data, s.keyring)
	s.apply(follow.Position{Epoch: epoch, Revision: revision}, stored)
	return stored, nil
}

func (s *Store) duplicate(c *Connection) (string, bool) {
	if c.OrgID == "" || c.UserID == "" {
		return "", false
	}
	all := s.All()
	i := slices.IndexFunc(all, func(other *Connection) bool {
		return other.Name != c.Name && other.Status == Active && other.Location == c.Location &&
			other.Environment == c.Environment && other.OrgID == c.OrgID && other.UserID == c.UserID
	})
	if i < 0 {
		return "", false
	}
	return all[i].Name, true
}

// now is the time as records carry it: UTC, to the millisecond.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
