package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"zoho-worker/internal/app"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/inspect"
	"zoho-worker/internal/register"
)

// client is a command's connection to NATS. It publishes requests and waits for their
// responses, as any service would.
type client struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	logger *slog.Logger
}

// newClient connects for a command, under its name.
func newClient(config app.Config, command string) (*client, error) {
	if err := app.CheckLevel(config.LogLevel); err != nil {
		return nil, fmt.Errorf("--log-level (LOG_LEVEL): %w", err)
	}
	logger := app.Logger(os.Stderr, config.LogLevel, config.LogFormat)
	nc, err := app.Connect(config, "zoho-"+command, logger)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return &client{nc: nc, js: js, logger: logger}, nil
}

func (c *client) close() { c.nc.Close() }

// clientConfig are the settings of a command that reaches NATS and nothing else.
func clientConfig(flags *pflag.FlagSet) *app.Config {
	config := app.Defaults()
	config.LogLevel = "error"
	config.BindClient(flags)
	hide(flags, "encryption-keys", "replicas", "retention", "log-format")
	return &config
}

// hide leaves flags out of the help that few have a use for.
func hide(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		_ = flags.MarkHidden(name)
	}
}

// withClient connects for as long as work takes.
func withClient(cmd *cobra.Command, config *app.Config, work func(*client) error) error {
	if err := config.Load(cmd.Flags(), os.LookupEnv); err != nil {
		return err
	}
	c, err := newClient(*config, cmd.CommandPath())
	if err != nil {
		return err
	}
	defer c.close()
	return explained(c.nc, work(c))
}

// writeJSON writes a document that a person can read as well.
func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// explained is err with what to do where it says less than it could: JetStream that
// is off has nobody who answers, and what NATS refuses ends as a wait that is over.
func explained(nc *nats.Conn, err error) error {
	switch {
	case err == nil:
		return nil
	case app.JetStreamIsOff(err):
		return fmt.Errorf("%w\nJetStream is off at this NATS server, or for this account: switch it on (jetstream { store_dir: … } in its configuration; "+
			"in an account, jetstream: enabled)", err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		// Of an inbox the log has told, with what to do.
		if refused := app.Refused(nc); refused != "" && !strings.HasPrefix(refused, "subscribe to "+nats.InboxPrefix) {
			return fmt.Errorf("%w\nNATS does not let this user %s: deploy/nats/accounts.conf has what each user needs", err, refused)
		}
	}
	return err
}

// call publishes the request to a lane, <connection> or <connection>.bulk, and
// waits for the response. Progress, where it is not nil, hears what it waits for,
// once a second from the first second on.
func (c *client) call(ctx context.Context, lane string, request *envelope.Request, progress func(string)) ([]byte, *envelope.Response, error) {
	connection, _, _ := strings.Cut(lane, ".")
	request.ReplyTo = c.nc.NewInbox()
	replies, err := c.nc.SubscribeSync(request.ReplyTo)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = replies.Unsubscribe() }()
	begun := time.Now()
	sent := request.AppendJSON(nil)
	publishing, cancel := context.WithTimeout(ctx, 5*time.Second)
	// Without Nats-Msg-Id: a copy that the server drops is answered to nobody.
	stored, err := c.js.Publish(publishing, "zoho.requests."+lane, sent)
	cancel()
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		asking, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if _, err := c.js.AccountInfo(asking); app.JetStreamIsOff(err) {
			return nil, nil, fmt.Errorf("publish the request: %w", err)
		}
		return nil, nil, errors.New("this NATS server has no stream for requests: start a worker first (worker run)")
	case register.IsTooLarge(err):
		return nil, nil, fmt.Errorf("publish the request: %w: put its body into the object store ZOHO_BODIES, and name it by --body-object", err)
	case err != nil:
		return nil, nil, fmt.Errorf("publish the request: %w", err)
	}
	for gone := false; ; {
		wait, cancel := context.WithTimeout(ctx, time.Second)
		msg, err := replies.NextMsgWithContext(wait)
		cancel()
		if err != nil && ctx.Err() != nil && request.Method == "GET" {
			return nil, nil, errors.New("gave up waiting: the answer to a read goes to who waits for it alone, so call again")
		}
		if err != nil && ctx.Err() != nil {
			return nil, nil, fmt.Errorf("gave up waiting: the request stays in the stream, its response will be at %s",
				consumer.ResponseSubject(connection, request.ID))
		}
		var data []byte
		if err == nil {
			data = msg.Data
		} else {
			data = c.stored(ctx, connection, request, sent)
		}
		if data != nil {
			response, err := envelope.DecodeResponse(data)
			return data, response, err
		}
		state, answered := c.state(ctx, connection, request.ID, stored.Sequence)
		if answered && gone { // a second ago already: a reply goes out before its request leaves the stream
			return nil, nil, fmt.Errorf("no answer came, and the request waits no longer: worker why %s %s says what is known of it", connection, request.ID)
		}
		gone = answered
		if progress != nil {
			progress(fmt.Sprintf("waiting %s: %s", time.Since(begun).Round(time.Second), state))
		}
	}
}

// stored looks for the response in its stream: a reply may have been missed, or be one
// that no worker may send. What answers another request of this id is none. A caller
// with least privilege may not look, and waits for its reply.
func (c *client) stored(ctx context.Context, connection string, request *envelope.Request, sent []byte) []byte {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	stored, err := consumer.NewResponses(c.js).Lookup(ctx, connection, request.ID)
	// What a worker could not read it knows by its bytes.
	if err != nil || stored == nil || stored.Digest != request.Digest() && stored.Digest != sha256.Sum256(sent) {
		return nil
	}
	return stored.Data
}

// state says in words what a request waits for, and whether it is answered.
func (c *client) state(ctx context.Context, connection, id string, sequence uint64) (sentence string, answered bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	why, err := (&inspect.Reader{NC: c.nc, JS: c.js}).At(ctx, connection, sequence)
	if err != nil {
		// A caller with least privilege may not look; the answer comes all the same.
		return fmt.Sprintf("stored for the workers, and not answered yet; worker why %s %s, as a user who may look, says why", connection, id), false
	}
	return why.Sentence, why.State == inspect.Answered
}

// inPlace is as much of a line as can be written over: one that the terminal breaks
// stays, with each that follows below it. A terminal that doesn't know its width says 0.
func inPlace(s string, width int) string {
	if width < 2 {
		return s
	}
	return cut(s, width-1)
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
			width, _, _ := term.GetSize(int(file.Fd()))
			fmt.Fprint(w, "\r\x1b[K"+inPlace(s, width))
		}, func() {
			if shown {
				fmt.Fprint(w, "\r\x1b[K")
			}
		}
}
