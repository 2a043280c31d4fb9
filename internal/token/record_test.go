package token

import (
	"slices"
	"testing"
	"time"

	"zoho-worker/internal/connection"
)

func TestPause(t *testing.T) {
	t.Parallel()
	for reason, want := range map[Reason][]time.Duration{
		Throttled:           {10 * time.Minute, 20 * time.Minute, 40 * time.Minute, time.Hour, time.Hour},
		Misconfigured:       {time.Minute, time.Minute},
		AccountsUnavailable: {1e9, 2e9, 4e9, 8e9, 16e9, 32e9, time.Minute, time.Minute},
		Revoked:             {0, 0},
	} {
		for i, pauses := range want {
			if got := pause(reason, i+1, 0); got != pauses {
				t.Errorf("%s, failure %d: %v, want %v", reason, i+1, got, pauses)
			}
		}
	}
	if got := pause(AccountsUnavailable, 1, 90*time.Second); got != 90*time.Second {
		t.Errorf("Retry-After is not kept: %v", got)
	}
	if got := pause(Throttled, 1, 24*time.Hour); got != time.Hour {
		t.Errorf("Retry-After is not bounded: %v", got)
	}
	if got := pause(Throttled, 1000, 0); got != time.Hour {
		t.Errorf("overflow: %v", got)
	}
}

func TestRecordFailures(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	r := record{Grant: 1, Generation: 3}.claimed(claim{Nonce: "n"}, now)
	r = r.failed(Throttled, now, 0)
	r = r.claimed(claim{Nonce: "m"}, now).failed(Throttled, now, 0)
	if r.Failures != 2 || !r.BlockedUntil.Equal(now.Add(20*time.Minute)) || r.Claim != nil || r.Nonce != "m" || len(r.Mints) != 2 {
		t.Errorf("%+v", r)
	}
	if _, blocked := r.blocked(now.Add(20 * time.Minute)); blocked {
		t.Error("blocked when the time is over")
	}
	r = r.claimed(claim{}, now).failed(AccountsUnavailable, now, 0)
	if r.Failures != 1 { // another reason counts from the start
		t.Errorf("%+v", r)
	}
	if _, blocked := (record{Reason: Revoked}).blocked(now); !blocked {
		t.Error("a revoked grant is not blocked")
	}
	// The server's clock was a day ahead, and was set right.
	for ahead, want := range map[time.Duration]bool{time.Hour: true, time.Hour + time.Second: true, 24 * time.Hour: false} {
		if _, blocked := (record{Reason: Throttled, BlockedUntil: now.Add(ahead)}).blocked(now); blocked != want {
			t.Errorf("%v ahead: blocked %v", ahead, blocked)
		}
	}
	if fresh := r.under(&connection.Connection{Grant: 2}); fresh.Grant != 2 || fresh.Generation != 3 || len(fresh.Mints) != 0 || !fresh.BlockedUntil.IsZero() {
		t.Errorf("%+v", fresh)
	}
	again, err := decodeRecord(r.encode())
	if err != nil || again.Grant != r.Grant || !slices.EqualFunc(again.Mints, r.Mints, time.Time.Equal) {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestRecordBudget(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	var r record
	for i := range budget {
		if _, spent := r.spent(now); spent {
			t.Fatalf("spent after %d", i)
		}
		r = r.claimed(claim{}, now)
		now = now.Add(time.Second)
	}
	until, spent := r.spent(now)
	if !spent || !until.Equal(r.Mints[0].Add(window)) {
		t.Errorf("%v, %v", until, spent)
	}
	// Zoho may have got the first one only at the end of its refresh's time.
	if late := r.Mints[0].Add(10*time.Second + 10*time.Minute); until.Before(late) {
		t.Errorf("spent until %v, and Zoho counts until %v", until, late)
	}
	if _, spent := r.spent(until); spent {
		t.Error("spent when the first mint is old enough")
	}
	if r = r.claimed(claim{}, now.Add(time.Hour)); len(r.Mints) != 1 {
		t.Errorf("old mints are kept: %v", r.Mints)
	}
	if r = (record{Mints: []time.Time{now.Add(time.Hour)}}).claimed(claim{}, now); len(r.Mints) != 1 {
		t.Errorf("a mint of the far future is kept: %v", r.Mints)
	}
}
