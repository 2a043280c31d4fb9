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
	"zoho-worker/internal/zoho"
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
		if j.Request.Probe != nil && errors.As(err, &j.lost) {
			return Result{}, false
		}
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
	case j.Request.Probe != nil && errors.As(err, new(*ledger.LostError)):
		return j.wait(WaitProbe, claimPause())
	case errors.Is(err, ledger.ErrExpired):
		j.metrics.claims.WithLabelValues(claimExpired).Inc()
		j.metrics.unknown.WithLabelValues(unknownLeaseOver).Inc()
		return j.fail(envelope.OutcomeUnknown,
			"the worker that sent the request died before it could answer: look the record up before sending again, or name a unique_field or a probe")
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
	j.resumed = j.lost != nil
	if !j.resumed {
		j.claim, err = j.Ledger.Claim(ctx, j.Delivery.Connection, j.Request.ID, j.Digest)
	} else {
		j.claim, err = j.Ledger.Resume(ctx, j.Delivery.Connection, j.Request.ID, j.Digest, j.lost)
	}
	j.lost = nil
	if err == nil {
		j.metrics.claims.WithLabelValues(claimMade).Inc()
		failpoint.Hit(failpoint.Claimed)
		return Result{}, true
	}
	j.claim = nil
	j.Logger.Debug("not claimed", "connection", j.Delivery.Connection, "id", j.Request.ID, "err", err)
	if result, known := j.history(ctx); known {
		return result, false
	}
	if j.lost != nil {
		return j.wait(WaitProbe, claimPause()), false
	}
	j.metrics.claims.WithLabelValues(claimFailed).Inc()
	return j.wait(WaitStorage, storagePause()), false
}

// lose closes the claim of a probed request whose answer was lost, so that it
// can be looked up. It returns false where the claim couldn't be closed: then
// the end of its lease does it.
func (j *job) lose() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	lost, err := j.claim.Lose(ctx)
	if err != nil {
		j.Logger.Warn("claim not closed: the request is looked up when its lease is over",
			"connection", j.Delivery.Connection, "id", j.Request.ID, "err", err)
		return false
	}
	j.claim, j.lost = nil, lost
	return true
}

// collect takes in what an answer says of single records, and reports whether
// some of them are to be sent again.
func (j *job) collect(a *zoho.Answer) bool {
	if j.batch == nil || a.TooLarge || a.BodyError != nil {
		return false
	}
	probed := j.Request.UniqueField
	if j.Request.Probe != nil && j.resumed {
		probed = j.Request.Probe.Field // it was sent before, and nobody else has its values
	}
	return j.batch.collect(a, probed, j.Request.RetryFailedRecords, !j.once)
}

// alone reports whether nobody but this worker knows what of the request was
// carried out: then it can't be given back.
func (j *job) alone() bool { return j.batch.begun() && j.Request.Probe == nil }

// keep sees to the claim in a pause before another attempt, and returns for how
// long the pause may last.
func (j *job) keep(ctx context.Context, d time.Duration) (time.Duration, error) {
	switch {
	case j.claim == nil || j.claim.Left() >= d:
		return d, nil
	case !j.batch.begun():
		// Nothing was sent, or judge would have ended it: a lease that runs
		// out in the pause would have another worker say that it was.
		j.release()
		return d, nil
	}
	err := j.claim.Extend(ctx)
	return min(d, j.claim.Left()/2), err
}

// finish sees to the claim of a request that is not repeatable. One that waits
// gives it back. One that is answered keeps it, and gets one if it has none: the
// same id published again must find something, or it would be sent against its
// stored answer. A request of which something is known here alone doesn't wait:
// it is answered with that.
func (j *job) finish(ctx context.Context, result Result) Result {
	if result.Wait != nil && j.alone() {
		result.Wait, result.Response = nil, j.conclude(verdict{action: deliver}).Response
	}
	switch {
	case !j.once:
	case result.Wait != nil:
		j.release()
	case result.Response == nil || j.claim != nil:
	case j.lost != nil:
		return j.seal(ctx, result)
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

// seal ends a lost request. Found, it needs nothing more: whoever else looks
// finds it, too. Else nobody may send it again once its requester was told that
// nobody knows.
func (j *job) seal(ctx context.Context, result Result) Result {
	if result.Response.Error == nil {
		return result
	}
	lost := j.lost
	j.lost = nil
	if err := j.Ledger.Seal(ctx, j.Delivery.Connection, j.Request.ID, lost); err != nil {
		return j.standing(err)
	}
	if e := result.Response.Error; e.Code != envelope.OutcomeUnknown {
		j.metrics.unknown.WithLabelValues(unknownNoAnswer).Inc()
		*e = envelope.Error{Code: envelope.OutcomeUnknown, Message: "the request was sent and no answer came; it can't be looked up: " + e.Message}
	}
	return result
}

// release gives a claim back that proved to be unused. A fresh context: the
// worker may be stopping, and a claim that stays makes the outcome unknown. One
// under which something was carried out is lost instead: whoever is next looks.
func (j *job) release() {
	if j.claim == nil || j.sent {
		return
	}
	if j.batch.begun() {
		j.lose()
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
