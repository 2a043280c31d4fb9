package consumer

import (
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// removal takes settled requests off a stream that has many consumers. An ack has
// the server look at every consumer, for whether it wants the message too
// (measured: 0.5 µs of its processor time for each of them). For a message that is
// gone there is no such look. So the message is deleted first, and acked when the
// server says that it is gone, or says nothing for too long.
type removal struct {
	conn  *nats.Conn
	inbox string // what the server answers to, before the sequence
	sub   *nats.Subscription

	mu sync.Mutex
	// asked are the deliveries whose messages are being deleted, by sequence; late
	// those that were when the last tick came.
	asked, late map[uint64]jetstream.Msg
}

const (
	// ackedMost is up to how many consumers of the stream an ack costs less than a
	// deletion and its answer.
	ackedMost = 128
	// askedMost bounds the deletions under way: what is beyond is acked as it is.
	askedMost = 512

	deletion = "$JS.API.STREAM.MSG.DELETE." + RequestStream
)

func newRemoval(conn *nats.Conn) (*removal, error) {
	r := &removal{conn: conn, inbox: conn.NewInbox() + ".", asked: map[uint64]jetstream.Msg{}}
	var err error
	r.sub, err = conn.Subscribe(r.inbox+"*", func(m *nats.Msg) {
		// Deleted, or it can't be: an ack is right in either case. One that is lost
		// costs a place of the consumer's until AckWait.
		if sequence, err := strconv.ParseUint(m.Subject[len(r.inbox):], 10, 64); err == nil {
			if delivery := r.take(sequence); delivery != nil {
				_ = delivery.Ack()
			}
		}
	})
	return r, err
}

// settle takes a request off the stream.
func (r *removal) settle(sequence uint64, delivery jetstream.Msg) error {
	r.mu.Lock()
	full := len(r.asked) >= askedMost
	if !full {
		r.asked[sequence] = delivery
	}
	r.mu.Unlock()
	if full {
		return delivery.Ack()
	}
	var room [64]byte
	ask := append(room[:0], `{"seq":`...)
	ask = strconv.AppendUint(ask, sequence, 10)
	ask = append(ask, `,"no_erase":true}`...)
	if err := r.conn.PublishRequest(deletion, r.inbox+strconv.FormatUint(sequence, 10), ask); err != nil {
		r.take(sequence)
		return err // the connection's: an ack would fare no better
	}
	return nil
}

func (r *removal) take(sequence uint64) jetstream.Msg {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, of := range []map[uint64]jetstream.Msg{r.asked, r.late} {
		if delivery := of[sequence]; delivery != nil {
			delete(of, sequence)
			return delivery
		}
	}
	return nil
}

// tick acks what has waited since before the last tick: the answer is lost, as
// with the connection.
func (r *removal) tick() {
	r.mu.Lock()
	late := r.late
	r.asked, r.late = map[uint64]jetstream.Msg{}, r.asked
	r.mu.Unlock()
	for _, delivery := range late {
		_ = delivery.Ack()
	}
}

// close acks what is left.
func (r *removal) close() {
	_ = r.sub.Unsubscribe()
	r.tick()
	r.tick()
}
