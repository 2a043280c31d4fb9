package consumer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/nats-io/nuid"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/register"
)

// serveCalls offers zoho.call.<connection> to callers that wait: the request
// goes to the stream like any other, with the caller's inbox as its reply_to,
// and the worker that carries it out answers the caller.
func (c *Consumer) serveCalls() error {
	service, err := micro.AddService(c.Conn, micro.Config{
		Name: "zoho", Version: c.Version,
		Description:  "Zoho CRM calls: send a request envelope to zoho.call.<connection>, get a response envelope",
		StatsHandler: c.about,
	})
	if err == nil {
		err = service.AddEndpoint("call", micro.HandlerFunc(c.accept), micro.WithEndpointSubject("zoho.call.*"))
		c.closers = append(c.closers, func() { _ = service.Stop() })
	}
	if err == nil {
		err = service.AddEndpoint("hand", guarded(c.tellHand),
			micro.WithEndpointSubject("zoho.hand.*"), micro.WithEndpointQueueGroupDisabled())
	}
	if err == nil {
		err = service.AddEndpoint("orgs", guarded(c.tellOrgs),
			micro.WithEndpointSubject("zoho.orgs"), micro.WithEndpointQueueGroupDisabled())
	}
	if err != nil {
		return fmt.Errorf("offer the service zoho: %w", err)
	}
	return nil
}

// guarded passes over what is to be answered at a subject of the server's or the
// worker's: whoever may ask could have the worker write there in its own name. Calls
// are checked more strictly.
func guarded(handle micro.HandlerFunc) micro.HandlerFunc {
	return func(ask micro.Request) {
		if reply := ask.Reply(); !strings.HasPrefix(reply, "$") && !strings.HasPrefix(reply, "zoho.") {
			handle(ask)
		}
	}
}

// callsAtOnce bounds the calls that are being stored. Each waits for a PubAck, which on
// three replicas takes some milliseconds; each holds its request, which may be as large
// as a message.
const callsAtOnce = 64

// accept has a call stored beside those that came before it: one after the other they
// would be one for each round trip. Where there are too many it waits, and those that
// come meanwhile with it.
func (c *Consumer) accept(call micro.Request) {
	if c.storing.Acquire(c.calling, 1) != nil {
		c.store(call) // nothing is stored any more: says so
		return
	}
	go func() {
		defer c.storing.Release(1)
		c.store(call)
	}()
}

// awaitCalls waits until the calls are stored that came before the service was stopped:
// their callers know of no other worker.
func (c *Consumer) awaitCalls(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if c.Conn.FlushWithContext(ctx) != nil {
		return // nothing can be stored either
	}
	// All that the server had sent is here now, and accepted when the barrier is passed.
	accepted := make(chan struct{})
	if c.Conn.Barrier(func() { close(accepted) }) != nil {
		return
	}
	select {
	case <-accepted:
		_ = c.storing.Acquire(ctx, callsAtOnce)
	case <-ctx.Done():
	}
}

// store stores a call as a request. It answers only what can't be stored, and that
// no more than any other request where the worker may not answer.
func (c *Consumer) store(call micro.Request) {
	received := time.Now()
	connection := strings.TrimPrefix(call.Subject(), "zoho.call.")
	if err := c.Decoder.CheckReplyTo(call.Reply()); err != nil {
		c.Logger.Warn("call not taken: it can't be answered", "connection", connection, "err", err)
		return
	}
	request, err := c.Decoder.Decode(call.Data(), c.Clock.Now())
	if err == nil && request.ReplyTo != "" {
		err = &envelope.Error{Code: envelope.InvalidRequest, Message: "reply_to: leave it out of a call, the answer goes to the caller"}
	}
	if err == nil {
		err = c.enqueue(connection, request.ID, call)
	}
	if err == nil {
		return
	}
	response := &envelope.Response{Connection: connection, Error: asError(err), ReceivedAt: received, FinishedAt: time.Now()}
	if request != nil {
		response.ID = request.ID
	}
	// Not by call.Respond, which is for the goroutine that the call came on.
	if err := c.Conn.Publish(call.Reply(), response.AppendJSON(nil)); err != nil {
		c.Logger.Debug("call not refused", "connection", connection, "err", err)
	}
}

func (c *Consumer) enqueue(connection, id string, call micro.Request) error {
	// A valid envelope is an object with members: the reply_to goes first.
	rest, _ := strings.CutPrefix(strings.TrimSpace(string(call.Data())), "{")
	msg := &nats.Msg{
		Subject: requestPrefix + connection,
		Data:    []byte(`{"reply_to":` + strconv.Quote(call.Reply()) + `,` + rest),
		Header:  sendersOwn(nats.Header(call.Headers())),
	}
	// Where no PubAck comes it may be stored or not, and the caller would get two
	// answers. By this id the server knows it again.
	msg.Header.Set(jetstream.MsgIDHeader, "call."+nuid.Next())
	err := c.put(msg)
	var refused *jetstream.APIError
	if unclear := err != nil && !errors.As(err, &refused) && !register.IsTooLarge(err); unclear {
		err = c.put(msg)
	}
	switch {
	case err == nil:
		return nil
	case register.IsTooLarge(err):
		return &envelope.Error{Code: envelope.TooLarge, Message: "the request is larger than a message may be: put its body into ZOHO_BODIES, see body_object"}
	case errors.As(err, &refused):
		c.Logger.Warn("call not stored", "connection", connection, "id", id, "err", err)
		return &envelope.Error{Code: envelope.Internal, Message: "the request could not be stored: " + err.Error()}
	}
	c.Logger.Warn("call not acknowledged", "connection", connection, "id", id, "err", err)
	return &envelope.Error{Code: envelope.Internal, Message: "whether the request was stored is not known, call again with the same id: " + err.Error()}
}

// put stores a request.
func (c *Consumer) put(msg *nats.Msg) error {
	ctx, cancel := context.WithTimeout(c.calling, 5*time.Second)
	defer cancel()
	_, err := c.JetStream.PublishMsg(ctx, msg)
	return err
}
