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
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
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
	OriginalPrefix = "Original-"
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

// Filter picks letters; empty fields pick all.
type Filter struct {
	Connection string
	Code       string
	// OlderThan picks letters that were buried longer ago.
	OlderThan time.Duration
}

func (f Filter) picks(l *Letter, now time.Time) bool {
	return (f.Code == "" || f.Code == l.Code) && (f.OlderThan == 0 || now.Sub(l.Buried) > f.OlderThan)
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
		now := time.Now()
		for next := info.State.FirstSeq; next <= info.State.LastSeq; next++ {
			msg, err := l.stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				return
			}
			if err != nil {
				yield(nil, fmt.Errorf("read dead letters: %w", err))
				return
			}
			next = msg.Sequence
			if letter := read(msg); next <= info.State.LastSeq && f.picks(letter, now) && !yield(letter, nil) {
				return
			}
		}
	}
}

// Get returns one letter. The error is jetstream.ErrMsgNotFound where there is none.
func (l *Letters) Get(ctx context.Context, sequence uint64) (*Letter, error) {
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

// Replay publishes the letter's request again, as it came, and drops the letter.
func (l *Letters) Replay(ctx context.Context, letter *Letter) error {
	if !strings.HasPrefix(letter.Subject, "zoho.requests.") {
		return fmt.Errorf("replay dead letter %d: it does not say where its request was published", letter.Sequence)
	}
	msg := &nats.Msg{Subject: letter.Subject, Data: letter.Data, Header: nats.Header{}}
	for name, values := range letter.Header {
		if !strings.HasPrefix(name, "Zoho-Dead-") && !strings.HasPrefix(name, OriginalPrefix) && !strings.HasPrefix(name, "Nats-") {
			msg.Header[name] = values
		}
	}
	id := "replay." + strconv.FormatUint(letter.Sequence, 10)
	if _, err := l.js.PublishMsg(ctx, msg, jetstream.WithMsgID(id)); err != nil {
		return fmt.Errorf("replay dead letter %d: %w", letter.Sequence, err)
	}
	return l.Drop(ctx, letter)
}

// Drop removes the letter.
func (l *Letters) Drop(ctx context.Context, letter *Letter) error {
	err := l.stream.DeleteMsg(ctx, letter.Sequence)
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("drop dead letter %d: %w", letter.Sequence, err)
	}
	return nil
}
