package consumer

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/envelope"
)

// strangersAtOnce bounds how many subjects that nobody serves are answered for
// at a time.
const strangersAtOnce = 8

// nobody is what requests to a wildcard are answered for: no connection has that name.
const nobody = "_"

// answerFor answers the requests of a subject that nobody serves: its connection
// isn't known, or there is no such lane.
func (c *Consumer) answerFor(rest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.answering[rest] {
		return
	}
	c.answering[rest] = true
	c.loops.Go(func() {
		defer func() {
			c.mu.Lock()
			delete(c.answering, rest)
			c.mu.Unlock()
		}()
		c.answerStranger(rest)
	})
}

// answerStranger answers requests out of the stream and without a consumer:
// anybody who may publish can name any number of connections, each consumer on
// the stream makes every ack of every org slower, and the server has a limit to
// their number. Two workers may do it at a time; the first stored answer stands.
func (c *Consumer) answerStranger(rest string) {
	select {
	case c.strangers <- struct{}{}:
		defer func() { <-c.strangers }()
	case <-c.pulling.Done():
		return
	}
	key, known := parseLane(rest)
	refused := "names no lane: publish to " + requestPrefix + key.connection + ", or to " + requestPrefix + key.connection + ".bulk"
	if strings.ContainsAny(rest, "*>") {
		// The server stores what is published to a wildcard as if it were a name; whoever
		// asks for it, or for the response to it, gets what belongs to others.
		key.connection, known = nobody, false
		refused = "has a wildcard: publish to " + requestPrefix + "<connection>"
	}
	for last := uint64(0); c.pulling.Err() == nil; {
		era := c.era(nil)
		ctx, cancel := context.WithTimeout(c.pulling, 5*time.Second)
		msg, err := c.Stream.GetMsg(ctx, last+1, jetstream.WithGetMsgSubject(requestPrefix+rest))
		cancel()
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return
		case err != nil:
			if c.pulling.Err() == nil {
				c.Logger.Warn("requests that nobody serves not read for a moment", "subject", requestPrefix+rest, "err", err)
			}
			return
		}
		last = msg.Sequence
		if msg.Subject != requestPrefix+rest {
			continue // of another, that the wildcard stands for
		}
		e := &entry{
			subject: msg.Subject, connection: key.connection, header: msg.Header, data: msg.Data, sequence: msg.Sequence,
			entered: msg.Time, stored: StoredAt(msg.Subject, msg.Header, msg.Time), era: era,
			again: true, // it may be answered already, by another worker
		}
		if c.hand.has(e.origin()) {
			continue // a call of it is under way since before its connection was removed: that ends it
		}
		e.sendings.Elsewhere = c.Connections.WasRemoved(key.connection)
		c.decode(e)
		if !known && e.refused == nil {
			e.refused = &envelope.Error{
				Code:    envelope.InvalidRequest,
				Message: "subject: " + msg.Subject + " " + refused,
			}
		}
		if c.directory.queue(key.connection) != "" && known {
			return // there is such a connection now
		}
		c.requests.Add(1)
		func() {
			defer c.requests.Done()
			c.work("unknown/"+rest, e) // what has to wait is found by the next look
		}()
	}
}
