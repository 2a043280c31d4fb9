package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/term"

	"zoho-worker/internal/app"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
)

// client publishes requests and waits for their responses, as any service would.
type client struct {
	nc *nats.Conn
	js jetstream.JetStream
}

func newClient(config app.Config, logLevel string) (*client, error) {
	nc, err := app.Connect(config, "zoho-worker call", app.Logger(os.Stderr, logLevel, config.LogFormat))
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return &client{nc: nc, js: js}, nil
}

func (c *client) close() { c.nc.Close() }

// call publishes the request and waits for the response. Progress, where it is
// not nil, hears what it waits for, once a second from the first second on.
func (c *client) call(ctx context.Context, connection string, request *envelope.Request, progress func(string)) ([]byte, *envelope.Response, error) {
	request.ReplyTo = c.nc.NewInbox()
	replies, err := c.nc.SubscribeSync(request.ReplyTo)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = replies.Unsubscribe() }()
	begun := time.Now()
	stored, err := c.js.Publish(ctx, "zoho.requests."+connection, request.AppendJSON(nil), jetstream.WithMsgID(connection+"."+request.ID))
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return nil, nil, errors.New("this NATS server has no stream for requests: start a worker first (worker run, or worker dev)")
	case err != nil:
		return nil, nil, fmt.Errorf("publish the request: %w", err)
	}
	for {
		wait, cancel := context.WithTimeout(ctx, time.Second)
		msg, err := replies.NextMsgWithContext(wait)
		cancel()
		if err != nil && ctx.Err() != nil {
			return nil, nil, fmt.Errorf("gave up waiting: the request stays in the stream, its response will be at %s",
				consumer.ResponseSubject(connection, request.ID))
		}
		var data []byte
		if err == nil {
			data = msg.Data
		} else if data, err = c.stored(ctx, connection, request.ID); err != nil {
			return nil, nil, err
		}
		if data != nil {
			response, err := envelope.DecodeResponse(data)
			return data, response, err
		}
		if progress != nil {
			progress(fmt.Sprintf("waiting %s: %s", time.Since(begun).Round(time.Second), c.state(ctx, connection, stored.Sequence)))
		}
	}
}

// stored looks for the response in its stream: a reply may have been missed.
func (c *client) stored(ctx context.Context, connection, id string) ([]byte, error) {
	stored, err := consumer.NewResponses(c.js).Lookup(ctx, connection, id)
	if err != nil || stored == nil {
		return nil, err
	}
	return stored.Data, nil
}

// state says in words what a request waits for.
func (c *client) state(ctx context.Context, connection string, sequence uint64) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	stream, err := c.js.Stream(ctx, consumer.RequestStream)
	if err != nil {
		return "NATS does not answer"
	}
	if _, err := stream.GetMsg(ctx, sequence); errors.Is(err, jetstream.ErrMsgNotFound) {
		return "answered, the response is on its way"
	}
	subject := "zoho.requests." + connection
	queues := stream.ListConsumers(ctx)
	for q := range queues.Info() {
		if !strings.Contains(strings.Join(append(q.Config.FilterSubjects, q.Config.FilterSubject), " ")+" ", subject+" ") {
			continue
		}
		if q.Delivered.Stream >= sequence && !q.Paused {
			return fmt.Sprintf("in hand of a worker, in queue %s (%d in hand, %d behind)", q.Name, q.NumAckPending, q.NumPending)
		}
		text := fmt.Sprintf("in queue %s: %d waiting, %d in hand of workers", q.Name, q.NumPending, q.NumAckPending)
		if q.Paused {
			text += fmt.Sprintf(", paused for another %s", q.PauseRemaining.Round(time.Second))
		}
		return text
	}
	return "no worker has taken the queue up: is one running?"
}

// progressLine shows progress on a terminal, in place; elsewhere a line every ten seconds.
func progressLine(w io.Writer) (show func(string), done func()) {
	file, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		n := 0
		return func(s string) {
			if n%10 == 0 {
				fmt.Fprintln(w, s)
			}
			n++
		}, func() {}
	}
	shown := false
	return func(s string) {
			shown = true
			fmt.Fprint(w, "\r\x1b[K"+s)
		}, func() {
			if shown {
				fmt.Fprint(w, "\r\x1b[K")
			}
		}
}
