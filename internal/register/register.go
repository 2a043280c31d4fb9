// Package register offers compare-and-set on a JetStream subject: a register is
// a subject of a stream that keeps one message per subject, and its revision is
// the sequence of that message.
//
// It is not a lock and knows nothing of what it holds.
//
// Invariants: every decision is made by the result of a write, never by a read;
// reads go through the stream's leader (the streams set AllowDirect: false,
// because a direct read right after an acknowledged write was measured to miss
// it in 17 to 45 % of cases on three replicas); a write that the server refused
// although it had stored it (seen about once in 10,000 around leader changes) is
// recognised by its nonce and counts as done.
package register

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// ErrConflict says that the register's revision is not the one expected.
var ErrConflict = errors.New("register has another revision")

// ErrNotFound says that nothing was ever written to the register, or that it aged out.
var ErrNotFound = errors.New("register is empty")

// NonceHeader carries the writer's nonce with every value.
const NonceHeader = "Zoho-Nonce"

// Entry is a register's value. Time is the server's, of the write.
type Entry struct {
	Subject  string
	Revision uint64
	Time     time.Time
	Header   nats.Header
	Data     []byte
}

// Stream is a JetStream stream whose subjects are registers.
type Stream struct {
	js   jetstream.JetStream
	name string
	// timeout bounds a single exchange with the server.
	timeout time.Duration
	// handle is looked up once, at the first read.
	handle atomic.Pointer[jetstream.Stream]
}

// New returns the registers of the named stream, each exchange bounded by timeout.
func New(js jetstream.JetStream, name string, timeout time.Duration) *Stream {
	return &Stream{js: js, name: name, timeout: timeout}
}

// Config is the stream configuration all registers share: one message per
// subject, on disk, read through the leader only. maxAge 0 keeps values for ever.
func Config(name, description, subjects string, replicas int, maxAge time.Duration) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: name, Description: description, Subjects: []string{subjects},
		Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
		MaxMsgsPerSubject: 1, MaxAge: maxAge, Replicas: replicas,
		AllowDirect: false, DenyDelete: false, Duplicates: min(2*time.Minute, orForever(maxAge)),
	}
}

func orForever(d time.Duration) time.Duration {
	if d == 0 {
		return time.Duration(1<<63 - 1)
	}
	return d
}

// Get reads the register through the stream's leader. The error is ErrNotFound
// where it is empty.
func (s *Stream) Get(ctx context.Context, subject string) (*Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	stream, err := s.stream(ctx)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", subject, err)
	}
	msg, err := stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", subject, err)
	}
	return &Entry{Subject: subject, Revision: msg.Sequence, Time: msg.Time, Header: msg.Header, Data: msg.Data}, nil
}

func (s *Stream) stream(ctx context.Context) (jetstream.Stream, error) {
	if handle := s.handle.Load(); handle != nil {
		return *handle, nil
	}
	handle, err := s.js.Stream(ctx, s.name)
	if err != nil {
		return nil, err
	}
	s.handle.Store(&handle)
	return handle, nil
}

// Put writes data if the register's revision is still expected (0: the register
// must be empty), and returns the new revision. The error is ErrConflict where
// it is not; any other error leaves it open whether the write happened.
func (s *Stream) Put(ctx context.Context, subject string, data []byte, expected uint64) (uint64, error) {
	nonce := nuid.Next()
	msg := &nats.Msg{Subject: subject, Data: data, Header: nats.Header{
		NonceHeader:                         {nonce},
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(expected, 10)},
	}}
	pctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ack, err := s.js.PublishMsg(pctx, msg, jetstream.WithExpectStream(s.name))
	if err == nil {
		return ack.Sequence, nil
	}
	if !IsConflict(err) {
		return 0, fmt.Errorf("write %s: %w", subject, err)
	}
	entry, err := s.Get(ctx, subject)
	if errors.Is(err, ErrNotFound) {
		return 0, ErrConflict
	}
	if err != nil {
		return 0, err
	}
	if entry.Header.Get(NonceHeader) != nonce {
		return 0, ErrConflict
	}
	return entry.Revision, nil
}

// MaxHeader is how many bytes of headers, see HeaderSize, JetStream stores with a message.
const MaxHeader = 1<<16 - 1

// HeaderSize is how many bytes the headers take on the wire.
func HeaderSize(header nats.Header) int { return (&nats.Msg{Header: header}).Size() }

// IsTooLarge reports whether a message was not stored because it is larger than
// a message may be, or than its stream takes (error 10054), or has more than
// MaxHeader of headers (10097).
func IsTooLarge(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, nats.ErrMaxPayload) || errors.As(err, &api) && (api.ErrorCode == 10054 || api.ErrorCode == 10097)
}

// IsConflict reports whether the server refused a publish because the
// subject's last sequence is not the expected one: error 10071, or 10164 while
// another such write is being replicated.
func IsConflict(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == 10071 || api.ErrorCode == 10164)
}
