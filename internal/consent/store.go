// Package consent takes a person through Zoho's consent and turns what comes
// back into a connection: the state of it between the two requests, one-time
// links, the exchange, who consented, and what to do where that user has a
// connection already.
//
// It serves no pages and prints nothing: package console and the command line
// do. It mints no access tokens for calls: package token does.
//
// Invariants: what waits for a callback is in JetStream, sealed, so any worker
// may get it; a state is good once, whichever worker gets the callback; the
// code of a callback goes only to an accounts server of Zoho's own; a fresh
// refresh token is stored, held for a decision, or revoked (a worker that dies
// between Zoho's answer and the next write leaves one behind at Zoho, unused);
// no error or page holds a code, a token, a state or a verifier.
package consent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/register"
	"zoho-worker/internal/secret"
)

// StreamName is the stream of pending consents and one-time links.
const StreamName = "ZOHO_CONSENTS"

const subjectPrefix = "zoho.consents."

// MaxShare is how long a one-time link may be good for; older records go.
const MaxShare = 7 * 24 * time.Hour

// patience is how long a person may take at Zoho.
const patience = 15 * time.Minute

// StreamConfig is the configuration of the stream.
func StreamConfig(replicas int) jetstream.StreamConfig {
	return register.Config(StreamName, "consents under way, sealed, one-time links, and the daily checks", subjectPrefix+"*.*", replicas, MaxShare)
}

// Why a state or a link is no good.
var (
	errUnknown = errors.New("unknown or expired")
	errUsed    = errors.New("used already")
)

// Kind says what a consent is for.
type Kind string

// The kinds.
const (
	Connect     Kind = "connect"
	Reauthorize Kind = "reauthorize"
)

// Pending is a consent that somebody was sent to Zoho for.
type Pending struct {
	Kind     Kind   `json:"kind"`
	Name     string `json:"name"`
	Nickname string `json:"nickname,omitempty"`
	// Location is the data centre that must come back; empty: any.
	Location    string    `json:"location,omitempty"`
	Environment string    `json:"environment"`
	Scopes      []string  `json:"scopes"`
	RedirectURI string    `json:"redirect_uri"`
	Share       string    `json:"share,omitempty"` // id of the one-time link that it came by
	Actor       string    `json:"actor,omitempty"` // who began it
	Expires     time.Time `json:"expires"`

	Verifier string `json:"verifier,omitempty"`
}

// held is a fresh grant that waits for a person to decide.
type held struct {
	Pending
	Reason   Decision `json:"reason"`
	Existing string   `json:"existing"`
	Who      Who      `json:"who"`
	Refresh  string   `json:"refresh_token"`
	Granted  []string `json:"granted,omitempty"`
}

// Share is a one-time link that lets somebody connect one account.
type Share struct {
	ID       string    `json:"id"`
	Pending  Pending   `json:"pending"`
	Starts   int       `json:"starts"` // how often somebody set out by it
	UsedAt   time.Time `json:"used_at,omitzero"`
	Expires  time.Time `json:"expires"`
	revision uint64
}

// maxStarts bounds how often a one-time link may be set out by before it is used.
const maxStarts = 20

// Where a state stands.
const (
	phasePending = "pending"
	phaseHeld    = "held"
	phaseUsed    = "used"
	phaseShare   = "share"
	phaseGone    = "withdrawn"
	phaseCheck   = "check"
)

// document is a record as it stands in the stream.
type document struct {
	Phase   string    `json:"phase"`
	Expires time.Time `json:"expires,omitzero"`
	Sealed  []byte    `json:"sealed,omitempty"`
	Day     string    `json:"day,omitempty"`
}

// store keeps the records.
type store struct {
	registers *register.Stream
	keyring   *secret.Keyring
	now       func() time.Time
	js        jetstream.JetStream
}

func newStore(js jetstream.JetStream, keyring *secret.Keyring, now func() time.Time) *store {
	return &store{registers: register.New(js, StreamName, 5*time.Second), keyring: keyring, now: now, js: js}
}

// random is a word that can't be guessed: 256 bits.
func random() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: it ends the program instead
	return base64.RawURLEncoding.EncodeToString(b)
}

// id is what a word is known by in the stream, where it can't be used.
func id(word string) string {
	sum := sha256.Sum256([]byte("zoho-worker " + word))
	return hex.EncodeToString(sum[:16])
}

func stateSubject(state string) string { return subjectPrefix + "state." + id(state) }
func shareSubject(id string) string    { return subjectPrefix + "share." + id }

func (s *store) put(ctx context.Context, subject, phase string, expires time.Time, value any, revision uint64) (uint64, error) {
	doc := document{Phase: phase, Expires: expires}
	if value != nil {
		plain, err := json.Marshal(value)
		if err != nil {
			return 0, err
		}
		doc.Sealed = s.keyring.Seal(plain, "consent", subject, phase)
	}
	data, err := json.Marshal(doc)
	if err != nil {
		return 0, err
	}
	return s.registers.Put(ctx, subject, data, revision)
}

// get reads a record of the phase. The error is errUsed or errUnknown where it
// is no good.
func (s *store) get(ctx context.Context, subject, phase string, value any) (uint64, error) {
	entry, err := s.registers.Get(ctx, subject)
	if errors.Is(err, register.ErrNotFound) {
		return 0, errUnknown
	}
	if err != nil {
		return 0, err
	}
	var doc document
	if err := json.Unmarshal(entry.Data, &doc); err != nil {
		return 0, errUnknown
	}
	switch {
	case doc.Phase == phaseUsed, doc.Phase == phaseHeld && phase == phasePending:
		return 0, errUsed
	case doc.Phase != phase || s.now().After(doc.Expires):
		return 0, errUnknown
	}
	plain, err := s.keyring.Open(doc.Sealed, "consent", subject, phase)
	if err != nil {
		return 0, fmt.Errorf("open consent: %w", err)
	}
	if err := json.Unmarshal(plain, value); err != nil {
		return 0, errUnknown
	}
	return entry.Revision, nil
}

// take uses the record up: of many who try, one gets it.
func (s *store) take(ctx context.Context, subject, phase string, value any) (uint64, error) {
	revision, err := s.get(ctx, subject, phase, value)
	if err != nil {
		return 0, err
	}
	revision, err = s.put(ctx, subject, phaseUsed, s.now(), nil, revision)
	if errors.Is(err, register.ErrConflict) {
		return 0, errUsed
	}
	return revision, err
}

// share reads a one-time link by its word or its id.
func (s *store) share(ctx context.Context, id string) (*Share, error) {
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, errUnknown
	}
	share := &Share{}
	var err error
	share.revision, err = s.get(ctx, shareSubject(id), phaseShare, share)
	if err != nil {
		return nil, err
	}
	share.ID = id
	return share, nil
}

// changeShare changes a link that is good. The error is errUsed where it was
// used meanwhile.
func (s *store) changeShare(ctx context.Context, id string, change func(*Share) error) (*Share, error) {
	for {
		share, err := s.share(ctx, id)
		if err != nil {
			return nil, err
		}
		if err := change(share); err != nil {
			return nil, err
		}
		share.revision, err = s.put(ctx, shareSubject(id), phaseShare, share.Expires, share, share.revision)
		if errors.Is(err, register.ErrConflict) {
			continue
		}
		return share, err
	}
}

// useShare claims the link for one consent; releaseShare gives it back where
// nothing came of that.
func (s *store) useShare(ctx context.Context, id string) error {
	_, err := s.changeShare(ctx, id, func(share *Share) error {
		if !share.UsedAt.IsZero() {
			return errUsed
		}
		share.UsedAt = s.now()
		return nil
	})
	return err
}

func (s *store) releaseShare(ctx context.Context, id string) error {
	_, err := s.changeShare(ctx, id, func(share *Share) error {
		share.UsedAt = time.Time{}
		return nil
	})
	if errors.Is(err, errUnknown) {
		return nil // it has expired meanwhile, or was withdrawn
	}
	return err
}

// withdraw ends a link; one in use is not given back any more. The error is errUnknown
// where there is none, or no more.
func (s *store) withdraw(ctx context.Context, id string) (*Share, error) {
	for {
		share, err := s.share(ctx, id)
		if err != nil {
			return nil, err
		}
		_, err = s.put(ctx, shareSubject(id), phaseGone, s.now(), nil, share.revision)
		if !errors.Is(err, register.ErrConflict) {
			return share, err
		}
	}
}

// shares are the links that are good and not in use.
func (s *store) shares(ctx context.Context) (good []*Share, err error) {
	subjects, err := s.subjects(ctx, shareSubject("*"))
	if err != nil {
		return nil, err
	}
	for subject := range subjects {
		share, err := s.share(ctx, strings.TrimPrefix(subject, shareSubject("")))
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil && share.UsedAt.IsZero() {
			good = append(good, share)
		}
	}
	return good, nil
}

func (s *store) subjects(ctx context.Context, filter string) (map[string]uint64, error) {
	stream, err := s.js.Stream(ctx, StreamName)
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, err
	}
	return info.State.Subjects, nil
}

// claimDay reports whether this process is the one to do a connection's daily
// check on that day (2006-01-02).
func (s *store) claimDay(ctx context.Context, name, day string) (bool, error) {
	subject := subjectPrefix + "check." + name
	revision := uint64(0)
	entry, err := s.registers.Get(ctx, subject)
	if err != nil && !errors.Is(err, register.ErrNotFound) {
		return false, err
	}
	if err == nil {
		revision = entry.Revision
		var doc document
		if json.Unmarshal(entry.Data, &doc) == nil && doc.Day >= day {
			return false, nil
		}
	}
	data, err := json.Marshal(document{Phase: phaseCheck, Day: day})
	if err != nil {
		return false, err
	}
	_, err = s.registers.Put(ctx, subject, data, revision)
	if errors.Is(err, register.ErrConflict) {
		return false, nil
	}
	return err == nil, err
}

// abandoned takes every fresh grant that nobody decided about in time.
func (s *store) abandoned(ctx context.Context, each func(held)) error {
	subjects, err := s.subjects(ctx, subjectPrefix+"state.*")
	if err != nil {
		return err
	}
	for subject := range subjects {
		entry, err := s.registers.Get(ctx, subject)
		if err != nil {
			continue
		}
		var doc document
		if json.Unmarshal(entry.Data, &doc) != nil || doc.Phase != phaseHeld || !s.now().After(doc.Expires) {
			continue
		}
		var h held
		plain, err := s.keyring.Open(doc.Sealed, "consent", subject, phaseHeld)
		if err != nil || json.Unmarshal(plain, &h) != nil {
			continue
		}
		if _, err := s.put(ctx, subject, phaseUsed, s.now(), nil, entry.Revision); err == nil {
			each(h)
		}
	}
	return nil
}
