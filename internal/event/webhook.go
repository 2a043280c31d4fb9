package event

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/secret"
)

const (
	durable = "webhook"
	// postTimeout bounds one POST; the claim on the event is longer.
	postTimeout = 10 * time.Second
	ackWait     = 30 * time.Second
	// giveUp is the age at which an event is no longer sent.
	giveUp = 3 * 24 * time.Hour
)

// Posted are the events that a webhook is sent.
var Posted = []string{"revoked", "recovered", "connected", "reauthorized", "disconnected"}

// Webhook posts events to a URL.
//
// Each is a POST of the event's JSON with the headers Zoho-Event, Zoho-Event-Id
// and, where there is a Secret, Zoho-Signature: t=<unix time>,v1=<hex>, the
// HMAC-SHA256 of "<t>.<body>" with the secret. Anything but a 2xx is repeated,
// after 1 s, doubling to 15 min, for three days.
type Webhook struct {
	JS     jetstream.JetStream
	URL    string
	Secret secret.Text
	Logger *slog.Logger
	// First is the first pause. Default 1 s.
	First time.Duration
}

// Signature is the value of the header for a body sent at a time.
func Signature(key secret.Text, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(key.Reveal()))
	_, _ = mac.Write([]byte(t + "."))
	_, _ = mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}

// Start begins to post, and returns how to stop and wait for it.
func (w *Webhook) Start(ctx context.Context) (stop func(), err error) {
	if w.First == 0 {
		w.First = time.Second
	}
	messages, err := w.open(ctx)
	if err != nil {
		return nil, err
	}
	posting, cancel := context.WithCancel(context.Background())
	client := newClient()
	var work sync.WaitGroup
	work.Go(func() { w.run(posting, client, messages) })
	return func() {
		cancel()
		work.Wait()
		client.CloseIdleConnections()
	}, nil
}

// newClient returns what posts: an event goes to the URL that is configured, and nowhere else.
func newClient() *http.Client {
	return &http.Client{
		Timeout:       postTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// open makes the consumer, or finds it, and begins to read.
func (w *Webhook) open(ctx context.Context) (jetstream.MessagesContext, error) {
	consumer, err := w.JS.CreateOrUpdateConsumer(ctx, StreamName, jetstream.ConsumerConfig{
		Durable: durable, Description: "events to the webhook",
		// The first time: from now on. It is not told of last week's.
		DeliverPolicy: jetstream.DeliverNewPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: ackWait, MaxDeliver: -1, MaxAckPending: 64,
	})
	if err != nil {
		return nil, fmt.Errorf("consume events for the webhook: %w", err)
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(1), jetstream.PullExpiry(10*time.Second), jetstream.PullHeartbeat(2*time.Second))
	if err != nil {
		return nil, fmt.Errorf("consume events for the webhook: %w", err)
	}
	return messages, nil
}

// run posts until ctx ends. What ends the reading, a server that is away or a
// consumer that somebody deleted, it begins again after a second.
func (w *Webhook) run(ctx context.Context, client *http.Client, messages jetstream.MessagesContext) {
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err == nil {
			w.deliver(ctx, client, msg)
			continue
		}
		messages.Stop()
		for again := false; !again; {
			w.Logger.Debug("webhook: read again", "reason", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			bounded, cancel := context.WithTimeout(ctx, ackWait)
			messages, err = w.open(bounded)
			cancel()
			again = err == nil
		}
	}
}

func (w *Webhook) deliver(ctx context.Context, client *http.Client, msg jetstream.Msg) {
	var e Event
	meta, err := msg.Metadata()
	if err != nil || json.Unmarshal(msg.Data(), &e) != nil || !slices.Contains(Posted, e.Event) {
		_ = msg.Ack()
		return
	}
	status, err := w.post(ctx, client, e.Event, strconv.FormatUint(meta.Sequence.Stream, 10), msg.Data())
	switch {
	case err == nil:
		_ = msg.Ack()
		w.Logger.Info("webhook told", "event", e.Event, "connection", e.Connection, "status", status)
	case ctx.Err() != nil:
		_ = msg.Nak() // stopping: somebody else's
	case time.Since(meta.Timestamp) > giveUp:
		_ = msg.Term()
		w.Logger.Error("webhook not told: gave up", "event", e.Event, "connection", e.Connection, "status", status, "err", err)
	default:
		pause := w.pause(meta.NumDelivered)
		_ = msg.NakWithDelay(pause)
		w.Logger.Warn("webhook not told", "event", e.Event, "connection", e.Connection, "status", status, "err", err, "again_in_ms", pause.Milliseconds())
	}
}

// pause is 1 s, 2 s, 4 s … 15 min.
func (w *Webhook) pause(delivered uint64) time.Duration {
	pause := w.First
	for i := uint64(1); i < delivered && pause < 15*time.Minute; i++ {
		pause *= 2
	}
	return min(pause, 15*time.Minute)
}

// post sends the event once. Its error has no more of the URL than the host: the rest
// may hold a secret.
func (w *Webhook) post(ctx context.Context, client *http.Client, event, id string, body []byte) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL, bytes.NewReader(body))
	if err != nil {
		return 0, errors.New("webhook URL")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "zoho-worker")
	req.Header.Set("Zoho-Event", event)
	req.Header.Set("Zoho-Event-Id", id)
	if !w.Secret.IsZero() {
		req.Header.Set("Zoho-Signature", Signature(w.Secret, time.Now(), body))
	}
	resp, err := client.Do(req)
	if err != nil {
		if whole, ok := errors.AsType[*url.Error](err); ok {
			err = whole.Err
		}
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return resp.StatusCode, fmt.Errorf("status %d", resp.StatusCode)
	}
	return resp.StatusCode, nil
}
