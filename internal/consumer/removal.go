package consumer

import (
	"strconv"
	"sync/atomic"

	"github.com/nats-io/nats.go"
)

// removal takes settled requests off the stream. An ack has the server look at
// every consumer of the stream, for whether it wants the message too (measured:
// 0.5 µs of its processor time for each of them); a deletion has it look at the
// consumer that has the message, and ends the delivery as an ack does. So where
// there are many consumers, the message is deleted.
//
// A deletion that is lost is a lost ack: the request comes again after AckWait.
type removal struct {
	conn  *nats.Conn
	inbox string // before the number of the deletion
	sub   *nats.Subscription

	asked atomic.Uint64 // deletions
	done  atomic.Uint64 // as far as the server has told
}

const (
	// ackedMost is up to how many consumers of the stream an ack costs the server
	// less than a deletion (measured with 100, 200, 250 and 1,000 of them).
	ackedMost = 256
	// deletionsMost bounds the deletions under way: the server drops all that wait
	// for their turn if there are too many (10,000), whoever asked.
	deletionsMost = 512
	// toldEvery is how many deletions share one answer. The server carries out none
	// that doesn't say where to answer to, but nobody has to listen there.
	toldEvery = 64

	deletion = "$JS.API.STREAM.MSG.DELETE." + RequestStream
)

func newRemoval(conn *nats.Conn) (*removal, error) {
	r := &removal{conn: conn, inbox: conn.NewInbox()}
	var err error
	r.sub, err = conn.Subscribe(r.inbox+".*", func(m *nats.Msg) {
		if n, err := strconv.ParseUint(m.Subject[len(r.inbox)+1:], 10, 64); err == nil {
			r.done.Store(n)
		}
	})
	return r, err
}

// remove takes a request off the stream.
func (r *removal) remove(sequence uint64, delivery *nats.Msg) error {
	if r.asked.Load()-r.done.Load() >= deletionsMost {
		return delivery.Ack()
	}
	n := r.asked.Add(1)
	answer := r.inbox
	if n%toldEvery == 0 {
		answer += "." + strconv.FormatUint(n, 10)
	}
	var room [64]byte
	ask := append(room[:0], `{"seq":`...)
	ask = strconv.AppendUint(ask, sequence, 10)
	ask = append(ask, `,"no_erase":true}`...)
	return r.conn.PublishRequest(deletion, answer, ask)
}

// tick lets one more batch be deleted where so many are under way that all is
// acked: their answers may be lost, as with a connection, and the batch's tells. Or
// the server deletes nothing for this worker, and what is in the batch comes again.
func (r *removal) tick() {
	if asked := r.asked.Load(); asked-r.done.Load() >= deletionsMost {
		r.done.Store(asked - deletionsMost + toldEvery)
	}
}

// close ends the listening.
func (r *removal) close() { _ = r.sub.Unsubscribe() }
