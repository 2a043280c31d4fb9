// Package dead is the dead letters for people: it lists what nobody could be
// answered for, sends it again, or drops it.
//
// It does not bury anything: package consumer does. Invariants: a letter leaves
// the stream only after its request is stored again, or because a person said
// so; replaying a letter twice stores its request once within the stream's
// window for duplicates, and its id does the rest.
package dead

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/register"
)

// StreamName is the stream of dead letters.
const StreamName = "ZOHO_DEAD"

const subjectPrefix = "zoho.dead."

// The headers of a dead letter, besides those of the request. A header that the
// server would act on has OriginalPrefix in front.
const (
	CodeHeader     = "Zoho-Dead-Code"     // an error code of the envelope
	ReasonHeader   = "Zoho-Dead-Reason"   // what is wrong, in words
	SubjectHeader  = "Zoho-Dead-Subject"  // where the request was published
	ReceivedHeader = "Zoho-Dead-Received" // when, RFC 3339
	// LifeHeader has a value for each thing that happened to the request since then,
	// until it was set aside: RFC 3339, a space, and words.
	LifeHeader     = "Zoho-Dead-Life"
	OriginalPrefix = "Original-"
	// HistoryHeader is the same of the times before; it travels with a replayed request.
	HistoryHeader = "Zoho-History"
	// StoredHeader says of a request that was moved to a heavy lane when it was first
	// stored; nobody obeys it anywhere else.
	StoredHeader = "Zoho-Stored"
)

// Letter is a dead letter. Sequence names it.
type Letter struct {
	Sequence   uint64      `json:"sequence"`
	Connection string      `json:"connection"`
	Code       string      `json:"code"`
	Reason     string      `json:"reason"`
	Subject    string      `json:"subject"`
	Received   time.Time   `json:"received_at,omitzero"`
	Buried     time.Time   `json:"buried_at"`
	Header     nats.Header `json:"headers"`
	// Data is the request as it came, whole.
	Data []byte `json:"data"`
}

// Event is a thing that happened to a request.
type Event struct {
	At   time.Time
	What string
}

// String is the event as a line of a header.
func (e Event) String() string { return e.At.UTC().Format(time.RFC3339) + " " + e.What }

// events reads the lines of a header.
func events(lines []string) (events []Event) {
	for _, line := range lines {
		at, what, _ := strings.Cut(line, " ")
		if when, err := time.Parse(time.RFC3339, at); err == nil {
			events = append(events, Event{when, what})
		}
	}
	return events
}

// History is what happened to the letter's request, oldest first: burials and
// replays before, its publication, who had it, its calls of Zoho, and its burial.
func (l *Letter) History() []Event {
	return append(events(l.Header[HistoryHeader]), l.life()...)
}

// life is what happened to the request since it was last published.
func (l *Letter) life() (told []Event) {
	if !l.Received.IsZero() {
		told = append(told, Event{l.Received, "published to " + l.Subject})
	}
	told = append(told, events(l.Header[LifeHeader])...)
	return append(told, Event{l.Buried, "set aside as dead letter " + strconv.FormatUint(l.Sequence, 10) + ", " + l.Code})
}

// Own returns the names of the headers that the request came with, sorted, and
// their values.
func (l *Letter) Own() (names []string, header nats.Header) {
	header = nats.Header{}
	for name, values := range l.Header {
		if !strings.HasPrefix(name, "Zoho-Dead-") && name != HistoryHeader {
			header[name] = values
		}
	}
	return slices.Sorted(maps.Keys(header)), header
}

// Filter picks letters; empty fields pick all.
type Filter struct {
	Connection string
	Code       string
	// Before picks letters that were buried before that.
	Before time.Time
	// After and Until pick letters with greater numbers, and with numbers up to that.
	After, Until uint64
}

func (f Filter) picks(l *Letter) bool {
	return (f.Code == "" || f.Code == l.Code) && (f.Before.IsZero() || l.Buried.Before(f.Before))
}

// Letters is the stream of dead letters.
type Letters struct {
	js     jetstream.JetStream
	stream jetstream.Stream
}

// Open opens the dead letters. The error is jetstream.ErrStreamNotFound where
// no worker has run yet.
func Open(ctx context.Context, js jetstream.JetStream) (*Letters, error) {
	stream, err := js.Stream(ctx, StreamName)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", StreamName, err)
	}
	return &Letters{js: js, stream: stream}, nil
}

// All yields the letters that the filter picks, oldest first, as they were when
// it began. An error ends it.
func (l *Letters) All(ctx context.Context, f Filter) iter.Seq2[*Letter, error] {
	return func(yield func(*Letter, error) bool) {
		subject := subjectPrefix + ">"
		if f.Connection != "" {
			subject = subjectPrefix + f.Connection
		}
		info, err := l.stream.Info(ctx)
		if err != nil {
			yield(nil, fmt.Errorf("read dead letters: %w", err))
			return
		}
		last := info.State.LastSeq
		if f.Until > 0 {
			last = min(last, f.Until)
		}
		for next := max(info.State.FirstSeq, f.After+1); next <= last; next++ {
			msg, err := l.stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("read dead letters: %w", err))
				return
			}
			next = msg.Sequence
			if letter := read(msg); next <= last && f.picks(letter) && !yield(letter, nil) {
				return
			}
		}
	}
}

// Get returns one letter. The error is jetstream.ErrMsgNotFound where there is none.
func (l *Letters) Get(ctx context.Context, sequence uint64) (*Letter, error) {
	if sequence == 0 { // which the server takes for a malformed question
		return nil, fmt.Errorf("dead letter 0: %w", jetstream.ErrMsgNotFound)
	}
	msg, err := l.stream.GetMsg(ctx, sequence)
	if err != nil {
		return nil, fmt.Errorf("dead letter %d: %w", sequence, err)
	}
	return read(msg), nil
}

func read(msg *jetstream.RawStreamMsg) *Letter {
	letter := &Letter{
		Sequence: msg.Sequence, Connection: strings.TrimPrefix(msg.Subject, subjectPrefix), Buried: msg.Time,
		Code: msg.Header.Get(CodeHeader), Reason: msg.Header.Get(ReasonHeader), Subject: msg.Header.Get(SubjectHeader),
		Header: msg.Header, Data: msg.Data,
	}
	letter.Received, _ = time.Parse(time.RFC3339Nano, msg.Header.Get(ReceivedHeader))
	return letter
}

// Pick returns the first letters that the filter picks, no more than most (0: all),
// and whether there are others. They come without Header and Data, which can be 1 MiB
// and more of each: Get has them.
func (l *Letters) Pick(ctx context.Context, f Filter, most int) (picked []*Letter, more bool, err error) {
	for letter, err := range l.All(ctx, f) {
		switch {
		case err != nil:
			return picked, false, err
		case most > 0 && len(picked) == most:
			return picked, true, nil
		}
		letter.Header, letter.Data = nil, nil
		picked = append(picked, letter)
	}
	return picked, false, nil
}

// Action is what a person does to a letter: Letters.Replay or Letters.Drop.
type Action func(l *Letters, ctx context.Context, letter *Letter) error

// Each does something to letters, one after another, at most rate a second (0: as
// fast as it goes), and tells after each how many are done. An error ends it.
func (l *Letters) Each(ctx context.Context, picked []*Letter, rate float64, do Action, tell func(done int)) (done int, err error) {
	for i, letter := range picked {
		if rate > 0 && i > 0 {
			select {
			case <-time.After(time.Duration(float64(time.Second) / rate)):
			case <-ctx.Done():
			}
		}
		if err := ctx.Err(); err != nil {
			return i, err
		}
		if err := do(l, ctx, letter); err != nil {
			return i, err
		}
		tell(i + 1)
	}
	return len(picked), nil
}

// Replay publishes the letter's request again, as it came, and drops the letter.
// What happened to it so far goes with it, and its time begins anew. Of a letter that
// is not there any more nothing is published: somebody replayed or dropped it.
func (l *Letters) Replay(ctx context.Context, letter *Letter) error {
	letter, err := l.Get(ctx, letter.Sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	if !strings.HasPrefix(letter.Subject, "zoho.requests.") {
		return fmt.Errorf("replay dead letter %d: it does not say where its request was published", letter.Sequence)
	}
	msg := &nats.Msg{Subject: letter.Subject, Data: letter.Data, Header: nats.Header{}}
	for name, values := range letter.Header {
		if !strings.HasPrefix(name, "Zoho-Dead-") && !strings.HasPrefix(name, OriginalPrefix) && !strings.HasPrefix(name, "Nats-") {
			msg.Header[name] = values
		}
	}
	history := slices.Clone(letter.Header[HistoryHeader])
	for _, e := range append(letter.life(), Event{time.Now(), "replayed"}) {
		history = append(history, e.String())
	}
	msg.Header.Del(StoredHeader)
	msg.Header[HistoryHeader] = history[max(0, len(history)-maxHistory):]
	msg.Header.Set(jetstream.MsgIDHeader, MsgID("replay", letter.Sequence, letter.Data))
	_, err = l.js.PublishMsg(ctx, msg)
	if register.IsTooLarge(err) {
		// The request is as large as the stream takes: it matters more than its past,
		// and its own id makes it one request.
		msg.Header.Del(HistoryHeader)
		msg.Header.Del(jetstream.MsgIDHeader)
		_, err = l.js.PublishMsg(ctx, msg)
	}
	if err != nil {
		return fmt.Errorf("replay dead letter %d: %w", letter.Sequence, err)
	}
	return l.Drop(ctx, letter)
}

// MsgID is the Nats-Msg-Id by which a message that is published again is one. Callers
// may use any id, and one that was used is taken for stored: without a digest of the
// message they could guess this one, and have it lost.
func MsgID(what string, sequence uint64, data []byte) string {
	sum := sha256.Sum256(data)
	return what + "." + strconv.FormatUint(sequence, 10) + "." + hex.EncodeToString(sum[:16])
}

// maxHistory bounds what a request carries of its past, in lines: ten replays of
// one that was never sent to Zoho.
const maxHistory = 40

// Drop removes the letter; one that is not there any more is no error.
func (l *Letters) Drop(ctx context.Context, letter *Letter) error {
	err := l.stream.DeleteMsg(ctx, letter.Sequence)
	if err == nil {
		return nil
	}
	// The server has several errors for a message that isn't there to be deleted.
	if _, gone := l.Get(ctx, letter.Sequence); errors.Is(gone, jetstream.ErrMsgNotFound) {
		return nil
	}
	return fmt.Errorf("drop dead letter %d: %w", letter.Sequence, err)
}
