package ledger

import (
	"context"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// server is a stream of registers in memory, with the faults of a real one. Its
// time is the process's, so that synctest rules it, and what its clock is ahead of that.
type server struct {
	jetstream.JetStream // what is not needed is nil

	seq  uint64
	last map[string]*jetstream.RawStreamMsg
	// fault is asked about every write.
	fault func() fault
	late  []*nats.Msg
	ahead time.Duration
}

type fault int

const (
	none     fault = iota
	lost           // nothing happens, the exchange times out
	unacked        // it happens, and the acknowledgement is lost
	disowned       // it happens, and the server says that it didn't (10164)
	delayed        // it times out, and reaches the server later
	faults         // how many there are
)

// now is what its clock says.
func (s *server) now() time.Time { return time.Now().Add(s.ahead).Round(0) }

func newServer() *server {
	return &server{last: map[string]*jetstream.RawStreamMsg{}, fault: func() fault { return none }}
}

// exchange is how long an exchange with the server takes, timeout one that
// brings nothing.
const (
	exchange = time.Millisecond
	timeout  = 5 * time.Second
)

// PublishMsg writes if the subject's last sequence is the expected one.
func (s *server) PublishMsg(_ context.Context, msg *nats.Msg, _ ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	time.Sleep(exchange)
	f := s.fault()
	switch f {
	case lost:
		time.Sleep(timeout)
		return nil, context.DeadlineExceeded
	case delayed:
		s.late = append(s.late, msg)
		time.Sleep(timeout)
		return nil, context.DeadlineExceeded
	}
	if !s.write(msg) {
		return nil, &jetstream.APIError{ErrorCode: 10071}
	}
	ack := &jetstream.PubAck{Stream: StreamName, Sequence: s.seq}
	switch f {
	case unacked:
		time.Sleep(timeout)
		return nil, context.DeadlineExceeded
	case disowned:
		return nil, &jetstream.APIError{ErrorCode: 10164}
	}
	return ack, nil
}

func (s *server) write(msg *nats.Msg) bool {
	var there uint64
	if last := s.last[msg.Subject]; last != nil {
		there = last.Sequence
	}
	if msg.Header.Get(jetstream.ExpectedLastSubjSeqHeader) != strconv.FormatUint(there, 10) {
		return false
	}
	s.seq++
	s.last[msg.Subject] = &jetstream.RawStreamMsg{Subject: msg.Subject, Sequence: s.seq, Header: msg.Header, Data: msg.Data, Time: s.now()}
	return true
}

// arrive lets the delayed writes happen.
func (s *server) arrive() {
	for _, msg := range s.late {
		s.write(msg)
	}
	s.late = nil
}

// Stream returns the stream of claims.
func (s *server) Stream(context.Context, string) (jetstream.Stream, error) { return reader{s: s}, nil }

type reader struct {
	jetstream.Stream
	s *server
}

// GetLastMsgForSubject reads.
func (r reader) GetLastMsgForSubject(_ context.Context, subject string) (*jetstream.RawStreamMsg, error) {
	time.Sleep(exchange)
	if msg := r.s.last[subject]; msg != nil {
		return msg, nil
	}
	return nil, jetstream.ErrMsgNotFound
}
