package connection

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"zoho-worker/internal/register"
	"zoho-worker/internal/secret"
)

const identityPrefix = "zoho.identities."

// MaxGrants is how many refresh tokens Zoho keeps per user and client; one more
// silently deletes the oldest, in use or not (zoho-facts 1.6).
const MaxGrants = 20

// settleIn is for how long whoever took an identity is left to store its
// record, before another may take it over.
const settleIn = 30 * time.Second

// Identity is a Zoho user in an org: what there may be one connection for.
type Identity struct{ Location, Environment, OrgID, UserID string }

// Identity is who consented to the connection; false where that is not known.
func (c *Connection) Identity() (Identity, bool) {
	id := Identity{Location: c.Location, Environment: c.Environment, OrgID: c.OrgID, UserID: c.UserID}
	return id, id.OrgID != "" && id.UserID != ""
}

func (id Identity) subject() string {
	return identityPrefix + id.Location + "." + id.Environment + "." + id.OrgID + "." + id.UserID
}

// MintedGrant is a refresh token that Zoho gave for a user and that nobody has
// revoked since, as far as we know. ID is a digest of it.
type MintedGrant struct {
	ID         string    `json:"id"`
	Connection string    `json:"connection,omitempty"`
	At         time.Time `json:"at"`
}

// holding is the register of an identity: which connection is its only one, and
// the refresh tokens minted for it, oldest first.
type holding struct {
	Connection string        `json:"connection,omitempty"`
	HeldAt     time.Time     `json:"held_at,omitzero"`
	Grants     []MintedGrant `json:"grants,omitempty"`
}

func (h *holding) note(grant MintedGrant) bool {
	for i := range h.Grants {
		if h.Grants[i].ID == grant.ID {
			changed := h.Grants[i].Connection != grant.Connection && grant.Connection != ""
			if changed {
				h.Grants[i].Connection = grant.Connection
			}
			return changed
		}
	}
	h.Grants = append(h.Grants, grant)
	// Zoho has dropped the oldest ones too by now.
	h.Grants = h.Grants[max(0, len(h.Grants)-MaxGrants):]
	return true
}

// grantID is a digest of a refresh token, which is random enough not to be
// found by it; "" for none.
func grantID(token secret.Text) string {
	if token.IsZero() {
		return ""
	}
	sum := sha256.Sum256([]byte("refresh token " + token.Reveal()))
	return hex.EncodeToString(sum[:8])
}

// Holder returns the active connection of the identity and the refresh tokens
// that are known to live, oldest first, through the stream's leader. A name is
// empty where there is no connection.
func (s *Store) Holder(ctx context.Context, id Identity) (string, []MintedGrant, error) {
	h, _, err := s.holding(ctx, id)
	if err != nil {
		return "", nil, err
	}
	if name, ok := s.duplicate(&Connection{
		Location: id.Location, Environment: id.Environment, OrgID: id.OrgID, UserID: id.UserID,
	}); ok {
		return name, h.Grants, nil
	}
	taken, err := s.taken(ctx, h, id)
	if err != nil || !taken {
		return "", h.Grants, err
	}
	return h.Connection, h.Grants, nil
}

// NoteGrant counts a refresh token that Zoho gave for the identity, whatever
// becomes of it, and returns all that live. One that is counted already isn't
// counted twice.
func (s *Store) NoteGrant(ctx context.Context, id Identity, token secret.Text, name string) ([]MintedGrant, error) {
	grant := MintedGrant{ID: grantID(token), Connection: name, At: now()}
	return s.hand(ctx, id, func(h *holding) (bool, error) { return h.note(grant), nil })
}

// ForgetGrant takes a refresh token out of the count: it was revoked.
func (s *Store) ForgetGrant(ctx context.Context, id Identity, token secret.Text) error {
	gone := grantID(token)
	_, err := s.hand(ctx, id, func(h *holding) (bool, error) {
		n := len(h.Grants)
		h.Grants = slices.DeleteFunc(h.Grants, func(g MintedGrant) bool { return g.ID == gone })
		return len(h.Grants) != n, nil
	})
	return err
}

// hold makes c the connection of its identity, and counts its new refresh token
// if there is one. The error is an ErrDuplicate where another one is.
func (s *Store) hold(ctx context.Context, c *Connection, minted string) error {
	id, ok := c.Identity()
	if !ok {
		return nil
	}
	_, err := s.hand(ctx, id, func(h *holding) (bool, error) {
		changed := false
		if h.Connection != c.Name {
			taken, err := s.taken(ctx, h, id)
			if err != nil {
				return false, err
			}
			if taken {
				return false, ErrDuplicate{Existing: h.Connection}
			}
			h.Connection, changed = c.Name, true
		}
		if minted != "" {
			changed = h.note(MintedGrant{ID: minted, Connection: c.Name, At: c.UpdatedAt}) || changed
			changed = changed || !h.HeldAt.Equal(c.UpdatedAt)
		}
		if changed {
			h.HeldAt = c.UpdatedAt
		}
		return changed, nil
	})
	return err
}

// taken reports whether the identity belongs to a connection: one that is
// active with it, or is about to be.
func (s *Store) taken(ctx context.Context, h *holding, id Identity) (bool, error) {
	if h.Connection == "" {
		return false, nil
	}
	c, err := s.fetch(ctx, h.Connection)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	if err == nil {
		theirs, _ := c.Identity()
		if c.Status == Active && theirs == id {
			return true, nil
		}
		if !c.UpdatedAt.Before(h.HeldAt) {
			return false, nil // it was stored since, and is something else now
		}
	}
	return now().Sub(h.HeldAt).Abs() < settleIn, nil
}

// hand changes the identity's register by a compare-and-set.
func (s *Store) hand(ctx context.Context, id Identity, change func(*holding) (bool, error)) ([]MintedGrant, error) {
	for {
		h, revision, err := s.holding(ctx, id)
		if err != nil {
			return nil, err
		}
		changed, err := change(h)
		if err != nil || !changed {
			return h.Grants, err
		}
		data, err := json.Marshal(h)
		if err != nil {
			return nil, err
		}
		_, err = s.registers.Put(ctx, id.subject(), data, revision)
		if errors.Is(err, register.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("hold identity: %w", err)
		}
		return h.Grants, nil
	}
}

func (s *Store) holding(ctx context.Context, id Identity) (*holding, uint64, error) {
	if !validLocation.MatchString(id.Location) || id.OrgID == "" || !validID.MatchString(id.OrgID) ||
		id.UserID == "" || !validID.MatchString(id.UserID) || id.Environment == "" || !validID.MatchString(id.Environment) {
		return nil, 0, fmt.Errorf("%+v is not an identity", id)
	}
	found, err := s.registers.Get(ctx, id.subject())
	if errors.Is(err, register.ErrNotFound) {
		return &holding{}, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	h := &holding{}
	if err := json.Unmarshal(found.Data, h); err != nil {
		// As good as none: the next write puts it right.
		s.options.Logger.Error("identity record is ignored", "subject", found.Subject, "err", err)
		h = &holding{}
	}
	return h, found.Revision, nil
}
