package consumer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// strangersAtOnce bounds how many connections that nobody knows are answered
// for at a time.
const strangersAtOnce = 8

// answerStranger answers the requests of a connection that nobody knows, out of
// the stream and without a consumer: anybody who may publish can name any number
// of connections, each consumer on the stream makes every ack of every org
// slower, and the server has a limit to their number. Two workers may do it at a
// time; the first stored answer stands.
func (c *Consumer) answerStranger(q *queue, p plan) error {
	select {
	case c.strangers <- struct{}{}:
		defer func() { <-c.strangers }()
	case <-c.pulling.Done():
		return nil
	}
	for _, subject := range p.subjects {
		for last := uint64(0); c.pulling.Err() == nil; {
			ctx, cancel := context.WithTimeout(c.pulling, 5*time.Second)
			msg, err := c.stream.GetMsg(ctx, last+1, jetstream.WithGetMsgSubject(subject))
			cancel()
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				break
			}
			if err != nil {
				return fmt.Errorf("read requests of %s: %w", q.name, err)
			}
			last = msg.Sequence
			if c.places.Acquire(c.pulling, 1) != nil {
				return nil
			}
			c.requests.Add(1)
			c.workOut(q, &message{
				subject: msg.Subject, header: msg.Header, data: msg.Data, sequence: msg.Sequence, stored: msg.Time,
				again: true, // it may be answered already, by another worker
				done:  func() error { return c.stream.DeleteMsg(c.calling, msg.Sequence) },
				later: func(time.Duration) error { return nil }, // the next look finds it
			})
		}
	}
	return nil
}

// workOut works on a message that has a place and is counted.
func (c *Consumer) workOut(q *queue, m *message) {
	defer c.requests.Done()
	defer c.places.Release(1)
	c.work(q, m)
}
