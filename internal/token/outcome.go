package token

import (
	"context"
	"errors"
	"slices"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/trace"
	"zoho-worker/internal/zoho"
)

// refresh asks Zoho, if there is still time to.
func (s *Source) refresh(ctx context.Context, c *connection.Connection, refreshToken secret.Text) (*zoho.Grant, error) {
	if ctx.Err() != nil {
		return nil, errLate
	}
	ctx, span := trace.BeginCall(ctx, "refresh")
	defer span.End()
	span.String("zoho.datacenter", c.Location)
	grant, err := s.options.Refresher.Refresh(ctx, c.Location, refreshToken)
	if err != nil {
		span.Fail("no token")
	}
	if err == nil && (grant == nil || grant.AccessToken.IsZero() || grant.ExpiresIn <= 0) {
		return nil, &zoho.Error{Kind: zoho.BadAnswer}
	}
	return grant, err
}

// minted is the claimed record r after its refresh brought a token. Its life
// counts from before it was asked for.
func (s *Source) minted(ctx context.Context, c *connection.Connection, r record, grant *zoho.Grant, used secret.Text, began time.Time) record {
	next := record{
		Grant: r.Grant, GrantID: r.GrantID, Generation: r.Generation + 1, Mints: r.Mints, APIDomain: grant.APIDomain,
		MintedAt: began, ExpiresAt: began.Add(grant.ExpiresIn),
	}
	if next.APIDomain == "" {
		next.APIDomain = r.APIDomain
	}
	// Zoho does not rotate refresh tokens, but keeps the right to (zoho-facts 1.4).
	if rotated := grant.RefreshToken; !rotated.IsZero() && rotated != used {
		updated, err := s.options.Connections.Reauthorize(ctx, c.Name, rotated, func(there *connection.Connection) error {
			if there.Grant != c.Grant {
				return errors.New("authorized anew meanwhile")
			}
			return nil
		})
		if err != nil {
			s.options.Logger.Error("rotated refresh token is not stored", "connection", c.Name, "err", err)
		} else {
			next.Grant, next.GrantID = updated.Grant, updated.GrantID()
		}
	}
	next.Sealed = s.options.Keyring.Seal([]byte(grant.AccessToken.Reveal()), next.associated(c)...)
	s.metrics.refreshes.WithLabelValues(resultMinted).Inc()
	return next
}

// fresh is the token of the settled record: from memory, where it stands by now.
func (s *Source) fresh(e *entry, c *connection.Connection, r record) Token {
	if st := e.state.Load(); st.record.Nonce == r.Nonce && !st.token.Access.IsZero() {
		return st.token
	}
	st := &state{record: r}
	s.open(st, c)
	return st.token
}

// judge is the claimed record r after its refresh failed, and the error to tell.
func (s *Source) judge(ctx context.Context, c *connection.Connection, r record, cause error) (record, error) {
	kind, retryAfter := zoho.Unavailable, time.Duration(0)
	if fault, ok := errors.AsType[*zoho.Error](cause); ok {
		kind, retryAfter = fault.Kind, fault.RetryAfter
	}
	reason := AccountsUnavailable
	switch kind {
	case zoho.DeadGrant:
		reason = Revoked
		s.revoke(ctx, c)
	case zoho.Throttled:
		reason = Throttled
	case zoho.Misconfigured:
		reason = Misconfigured
	}
	next := r.failed(reason, s.serverNow(), retryAfter)
	if unsent(cause) && len(next.Mints) > 0 {
		// Zoho counts only what reaches it. Otherwise an accounts server that
		// was away for some minutes would use up the budget.
		next.Mints = next.Mints[:len(next.Mints)-1]
	}
	s.metrics.refreshes.WithLabelValues(string(reason)).Inc()
	log := s.options.Logger.Warn
	if reason == Misconfigured {
		log = s.options.Logger.Error
	}
	attrs := []any{"connection", c.Name, "reason", reason, "failures", next.Failures, "err", cause}
	if !next.BlockedUntil.IsZero() {
		attrs = append(attrs, "until", next.BlockedUntil)
	}
	log("token is not refreshed", attrs...)
	return next, s.unavailable(reason, next.BlockedUntil, cause)
}

// errLate is an end of the time to refresh before it was begun.
var errLate = errors.New("writing the claim took all the time that there is for a refresh")

// unsent reports whether it is proved that no byte reached Zoho.
func unsent(err error) bool {
	fault, ok := errors.AsType[*zoho.Error](err)
	return ok && fault.Unsent || errors.Is(err, errLate)
}

// revoke marks the connection revoked, if this grant is still the one it has.
func (s *Source) revoke(ctx context.Context, c *connection.Connection) {
	changed, err := s.options.Connections.MarkRevoked(ctx, c, "Zoho no longer accepts the refresh token (invalid_code)")
	if err != nil {
		// The record says so too: whoever asks next marks it.
		s.options.Logger.Error("connection is not marked revoked", "connection", c.Name, "err", err)
		return
	}
	if changed {
		s.options.Logger.Error("connection is revoked: authorize it again", "connection", c.Name)
		s.options.Events(c.Name, EventRevoked)
	}
}

// told tells of the change from one record to the next, if it is one that somebody
// wants to know of. That a connection is revoked is told by who marks it.
func (s *Source) told(c *connection.Connection, before, after record) {
	for _, event := range before.Owed {
		if !slices.Contains(after.Owed, event) {
			s.options.Events(c.Name, event)
		}
	}
	if slices.Contains(after.Owed, EventResumed) && !slices.Contains(before.Owed, EventResumed) {
		s.options.Events(c.Name, EventPaused)
	}
}
