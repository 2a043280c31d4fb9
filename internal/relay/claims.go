package relay

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/failpoint"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
)

// history answers from what is stored: the response, or a claim that says that
// another worker is at it or was.
func (j *job) history(ctx context.Context) (Result, bool) {
	stored, err := j.Responses.Lookup(ctx, j.Delivery.Connection, j.Request.ID)
	switch {
	case err != nil:
		return j.wait(WaitStorage, storagePause()), true
	case stored != nil && stored.Digest != j.Digest:
		return j.conflict(), true
	case stored != nil:
		return Result{Stored: stored.Data}, true
	case !j.once:
		return Result{}, false
	}
	if err := j.Ledger.Look(ctx, j.Delivery.Connection, j.Request.ID, j.Digest); err != nil {
		return j.standing(err), true
	}
	return Result{}, false
}

// standing is what follows from somebody else's claim, after no response was found.
func (j *job) standing(err error) Result {
	var held *ledger.HeldError
	switch {
	case errors.As(err, &held):
		j.metrics.claims.WithLabelValues(claimHeld).Inc()
		return j.wait(WaitClaim, min(held.Left, claimPause()))
	case errors.Is(err, ledger.ErrConflict):
		j.metrics.claims.WithLabelValues(claimConflict).Inc()
		return j.conflict()
	case errors.Is(err, ledger.ErrExpired):
		j.metrics.claims.WithLabelValues(claimExpired).Inc()
		j.metrics.unknown.WithLabelValues(unknownLeaseOver).Inc()
		return j.fail(envelope.OutcomeUnknown,
			"the worker that sent the request died before it could answer: look the record up before sending again, or name a unique_field")
	}
	return j.wait(WaitStorage, storagePause())
}

func (j *job) conflict() Result {
	return j.fail(envelope.IDConflict, "id: "+j.Request.ID+" belongs to an earlier request with other content: take a new id")
}

// secure makes sure that this worker holds the claim for long enough to finish a call.
func (j *job) secure(ctx context.Context) (Result, bool) {
	if j.claim != nil && j.claim.Left() >= j.CallTimeout*9/10 {
		return Result{}, true
	}
	var err error
	if j.claim != nil {
		if err = j.claim.Extend(ctx); err == nil {
			return Result{}, true
		}
		if errors.Is(err, register.ErrConflict) {
			j.claim = nil // whoever closed it answers
			return j.wait(WaitClaim, claimPause()), false
		}
		return j.wait(WaitStorage, storagePause()), false
	}
	if j.claim, err = j.Ledger.Claim(ctx, j.Delivery.Connection, j.Request.ID, j.Digest); err == nil {
		j.metrics.claims.WithLabelValues(claimMade).Inc()
		failpoint.Hit(failpoint.Claimed)
		return Result{}, true
	}
	j.claim = nil
	j.Logger.Debug("not claimed", "connection", j.Delivery.Connection, "id", j.Request.ID, "err", err)
	if result, known := j.history(ctx); known {
		return result, false
	}
	j.metrics.claims.WithLabelValues(claimFailed).Inc()
	return j.wait(WaitStorage, storagePause()), false
}

// finish sees to the claim of a request that is not repeatable. One that waits
// gives it back. One that is answered keeps it, and gets one if it has none: the
// same id published again must find something, or it would be sent against its
// stored answer.
func (j *job) finish(ctx context.Context, result Result) Result {
	switch {
	case !j.once:
	case result.Wait != nil:
		j.release()
	case result.Response == nil || j.claim != nil:
	case result.Response.Error != nil && result.Response.Error.Code == envelope.IDConflict:
		// The claim is the other request's.
	case result.Response.Error != nil && result.Response.Error.Code == envelope.OutcomeUnknown:
		// A claim stands already, or this would not be unknown.
	default:
		if err := j.Ledger.Close(ctx, j.Delivery.Connection, j.Request.ID, j.Digest); err != nil {
			return j.standing(err)
		}
	}
	return result
}

// release gives a claim back that proved to be unused. A fresh context: the
// worker may be stopping, and a claim that stays makes the outcome unknown.
func (j *job) release() {
	if j.claim == nil || j.sent {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := j.claim.Release(ctx)
	j.claim = nil
	if err != nil {
		j.Logger.Warn("claim not released: the request will be answered outcome_unknown",
			"connection", j.Delivery.Connection, "id", j.Request.ID, "claim", hex.EncodeToString(j.Digest[:4]), "err", err)
		return
	}
	j.metrics.claims.WithLabelValues(claimReleased).Inc()
}
