package token

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"zoho-worker/internal/connection"
)

// What Zoho allows (zoho-facts 1.6): ten access tokens per refresh token in ten
// minutes, after which the rest of the ten minutes is blocked. Zoho counts one when
// it is asked for it, the record when it is claimed, which is up to a refresh's time
// earlier: so the window is a little longer here.
const (
	budget = 10
	window = 10*time.Minute + 15*time.Second
)

// longest is the longest pause.
const longest = time.Hour

// Reason says why there is no token now. The list is closed.
type Reason string

// The reasons.
const (
	Revoked             Reason = "revoked"              // Zoho refused the refresh token for good, or the connection was removed
	Throttled           Reason = "throttled"            // Zoho's token endpoint said "too many requests"
	Budget              Reason = "budget"               // as many tokens were minted as Zoho allows for now
	Misconfigured       Reason = "misconfigured"        // our client id or secret is wrong, or an encryption key is missing
	AccountsUnavailable Reason = "accounts_unavailable" // the accounts server can't be reached or talks nonsense
	Claimed             Reason = "claimed"              // another worker claimed the refresh and has not finished it yet
)

// Reasons returns the closed list.
func Reasons() []Reason {
	return []Reason{Revoked, Throttled, Budget, Misconfigured, AccountsUnavailable, Claimed}
}

// ends are the events that end what is told of a failure.
var ends = map[Reason]string{Revoked: EventRecovered, Throttled: EventResumed, Misconfigured: EventResumed}

// record is what the stream holds of a connection's token. All times are the
// JetStream server's.
type record struct {
	// Grant is the connection's grant that everything else is about; GrantID tells it
	// from one that was counted before connections were lost.
	Grant      uint64    `json:"grant"`
	GrantID    string    `json:"grant_id,omitempty"`
	Generation uint64    `json:"generation"` // counts the tokens, over all grants
	Sealed     []byte    `json:"access_token_sealed,omitempty"`
	MintedAt   time.Time `json:"minted_at,omitzero"`
	ExpiresAt  time.Time `json:"expires_at,omitzero"`
	APIDomain  string    `json:"api_domain,omitempty"`
	// Nonce is that of the claim under which the record was last settled: by
	// it a worker whose write went through unnoticed recognises its own.
	Nonce string `json:"nonce,omitempty"`
	Claim *claim `json:"claim,omitempty"`
	// Mints are the times of the claims of the last ten minutes: each of them
	// may have minted a token. The first is that of the consent.
	Mints        []time.Time `json:"mints,omitempty"`
	BlockedUntil time.Time   `json:"blocked_until,omitzero"`
	Reason       Reason      `json:"reason,omitempty"`
	// Failures counts the refreshes that failed one after another for Reason.
	Failures int `json:"failures,omitempty"`
	// Owed are the events that the next token brings: those that end what was told.
	// Other failures may come in between, and another grant.
	Owed []string `json:"owed,omitempty"`
}

// claim is one worker's right to refresh. Its lease begins when it is seen:
// nobody compares the clocks of two machines.
type claim struct {
	Nonce   string `json:"nonce"`
	LeaseMS int64  `json:"lease_ms"`
	By      string `json:"by"` // the host, for people
}

func (c *claim) lease() time.Duration { return time.Duration(c.LeaseMS) * time.Millisecond }

func decodeRecord(data []byte) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, fmt.Errorf("decode token record: %w", err)
	}
	return r, nil
}

func (r record) encode() []byte {
	data, err := json.Marshal(r)
	if err != nil {
		panic(err) // numbers, strings and times of this century
	}
	return data
}

// of reports whether the record is about the connection's present grant. Versions
// before wrote no GrantID.
func (r record) of(c *connection.Connection) bool {
	return r.Grant == c.Grant && (r.GrantID == "" || c.GrantID() == "" || r.GrantID == c.GrantID())
}

// under is the record as the connection's present grant has it: of another grant
// only the counting of generations and the events that are owed remain.
func (r record) under(c *connection.Connection) record {
	if r.of(c) {
		r.GrantID = c.GrantID()
		return r
	}
	return record{Grant: c.Grant, GrantID: c.GrantID(), Generation: r.Generation, Owed: r.Owed}
}

// associated binds a sealed token to the connection, its creation (a name may
// be used again for another org), the grant and the generation.
func (r record) associated(c *connection.Connection) []string {
	return []string{
		"access-token", c.Name, strconv.FormatInt(c.CreatedAt.UnixNano(), 10),
		strconv.FormatUint(r.Grant, 10), strconv.FormatUint(r.Generation, 10),
	}
}

// blocked says whether the record forbids a refresh at now, and until when; a
// revoked grant is blocked for good, which is the zero time. One that would last for
// longer than any pause can't be true: the server's clock has gone back.
func (r record) blocked(now time.Time) (until time.Time, blocked bool) {
	if r.Reason == Revoked {
		return time.Time{}, true
	}
	left := r.BlockedUntil.Sub(now)
	return r.BlockedUntil, left > 0 && left < longest+time.Minute
}

// spent says whether the budget is used up at now, and until when.
func (r record) spent(now time.Time) (until time.Time, spent bool) {
	recent := r.recent(now)
	if len(recent) < budget {
		return time.Time{}, false
	}
	return recent[len(recent)-budget].Add(window), true
}

// recent are the mints that count at now, the oldest first. One that lies
// further in the future than a window can't be true.
func (r record) recent(now time.Time) []time.Time {
	recent := make([]time.Time, 0, len(r.Mints)+1)
	for _, t := range r.Mints {
		if now.Sub(t) < window && t.Sub(now) < window {
			recent = append(recent, t)
		}
	}
	slices.SortFunc(recent, time.Time.Compare)
	return recent
}

// claimed is the record with a claim in it and its mint counted. It counts
// when the claim is written, because nobody knows of a worker that dies later
// what it did.
func (r record) claimed(c claim, now time.Time) record {
	r.Claim = &c
	r.Mints = append(r.recent(now), now)
	return r
}

// failed is the claimed record after its refresh failed, given back.
func (r record) failed(reason Reason, now time.Time, retryAfter time.Duration) record {
	if r.Reason != reason {
		r.Failures = 0
	}
	r.Failures++
	r.Reason, r.Nonce, r.Claim = reason, r.Claim.Nonce, nil
	r.BlockedUntil = time.Time{}
	if pause := pause(reason, r.Failures, retryAfter); pause > 0 {
		r.BlockedUntil = now.Add(pause)
	}
	if end := ends[reason]; end != "" && !slices.Contains(r.Owed, end) {
		r.Owed = append(slices.Clone(r.Owed), end)
	}
	return r
}

// pause is how long nobody refreshes after the failures-th failure in a row:
//
//	throttled:            10m 20m 40m 1h 1h …  (zoho-facts 1.5: retrying while blocked keeps it closed)
//	misconfigured:        1m 1m …
//	accounts_unavailable: 1s 2s 4s 8s 16s 32s 1m 1m …
//
// or as long as the server asked for, up to the longest.
func pause(reason Reason, failures int, retryAfter time.Duration) time.Duration {
	var first, most time.Duration
	switch reason {
	case Throttled:
		first, most = 10*time.Minute, longest
	case Misconfigured:
		first, most = time.Minute, time.Minute
	case AccountsUnavailable:
		first, most = time.Second, time.Minute
	default:
		return 0
	}
	pause := first
	for i := 1; i < failures && pause < most; i++ {
		pause *= 2
	}
	return max(min(pause, most), min(retryAfter, longest))
}
