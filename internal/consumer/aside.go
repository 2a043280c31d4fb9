package consumer

import (
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"zoho-worker/internal/dead"
	"zoho-worker/internal/register"
)

// setAside picks the heavy requests out of a full window that the light ones
// behind them need not wait for. The lock is held.
func (l *lane) setAside() []*entry {
	if _, ok := l.lane.aside(); !ok || len(l.heavy) < l.window/2 {
		return nil
	}
	var aside, stay []*entry
	for i, e := range l.heavy {
		// The first of them stay: they are about to be started.
		if i < l.window/4 || e.key != "" || e.refused != nil {
			stay = append(stay, e)
		} else {
			e.running = true // it is not to be given back meanwhile
			aside = append(aside, e)
		}
	}
	if len(aside) == 0 {
		return nil
	}
	l.heavy = stay
	return aside
}

// moveAside moves heavy requests to a lane of their own, a few at a time: stored
// there first, then taken off here. What dies in between is there twice, and its
// id makes it one request.
func (o *org) moveAside(aside []*entry) {
	var moving errgroup.Group
	moving.SetLimit(askAtOnce)
	for _, e := range aside {
		moving.Go(func() error { return o.move(e) })
	}
	if moving.Wait() != nil {
		o.sleep(time.Second) // the stream is full, or the server away
	}
}

// sendersOwn are the headers that the server doesn't act on: what a sender asked of it
// was done when the message came.
func sendersOwn(header nats.Header) nats.Header {
	own := nats.Header{}
	for name, values := range header {
		if !strings.HasPrefix(name, "Nats-") {
			own[name] = values
		}
	}
	return own
}

// roomForID is what the header takes that the client library adds.
const roomForID = 256

// move moves one heavy request, or puts it back into its line.
func (o *org) move(e *entry) error {
	to, _ := e.lane.lane.aside()
	msg := &nats.Msg{Subject: laneKey{e.connection, to}.subject(), Data: e.data, Header: sendersOwn(e.header)}
	stored := e.stored.UTC().Format(time.RFC3339Nano)
	msg.Header.Set(dead.StoredHeader, stored)
	if register.HeaderSize(msg.Header) > register.MaxHeader-roomForID {
		msg.Header = nats.Header{dead.StoredHeader: {stored}} // its own are for its trace
	}
	ctx, cancel := context.WithTimeout(o.calling, 5*time.Second)
	defer cancel()
	_, err := o.JetStream.PublishMsg(ctx, msg, jetstream.WithMsgID(dead.MsgID("aside", e.sequence, e.data)))
	if err == nil {
		err = o.done(e)
	}
	o.mu.Lock()
	e.running = false
	if o.closed {
		defer o.finished(o.name) // it was counted as under way
	}
	switch {
	case err == nil:
		o.left(e)
		o.mu.Unlock()
		o.metrics.moved.Inc()
		o.wake(laneKey{e.connection, to})
	case e.lane.closed:
		o.left(e)
		o.mu.Unlock()
		o.giveBack(e)
	default:
		o.Logger.Debug("heavy request not moved", "subject", e.subject, "err", err)
		e.lane.line(e, false)
		o.dispatch()
	}
	return err
}
