package event

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/secret"
)

// delivered is an event as JetStream hands it over, and what became of it.
type delivered struct {
	jetstream.Msg
	data   string
	at     time.Time
	times  uint64
	became string
	pause  time.Duration
}

func (d *delivered) Data() []byte { return []byte(d.data) }
func (d *delivered) Metadata() (*jetstream.MsgMetadata, error) {
	return &jetstream.MsgMetadata{Timestamp: d.at, NumDelivered: d.times, Sequence: jetstream.SequencePair{Stream: 7}}, nil
}
func (d *delivered) Ack() error  { d.became = "acked"; return nil }
func (d *delivered) Nak() error  { d.became = "given back"; return nil }
func (d *delivered) Term() error { d.became = "given up"; return nil }
func (d *delivered) NakWithDelay(pause time.Duration) error {
	d.became, d.pause = "put off", pause
	return nil
}

// What the receiver answers decides, and when the event is from.
func TestDeliver(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	t.Cleanup(elsewhere.Close) // after the tests within
	now, long := time.Now(), time.Now().Add(-giveUp-time.Hour)
	const connected = `{"event":"connected","connection":"acme"}`
	for name, test := range map[string]struct {
		data     string
		at       time.Time
		times    uint64
		status   int
		stopping bool
		posts    int
		became   string
		pause    time.Duration
	}{
		"taken":                 {connected, now, 1, http.StatusNoContent, false, 1, "acked", 0},
		"refused":               {connected, now, 1, http.StatusBadRequest, false, 1, "put off", time.Second},
		"refused again":         {connected, now, 4, http.StatusServiceUnavailable, false, 1, "put off", 8 * time.Second},
		"refused for days":      {connected, now, 1000, http.StatusServiceUnavailable, false, 1, "put off", 15 * time.Minute},
		"refused for too long":  {connected, long, 1000, http.StatusServiceUnavailable, false, 1, "given up", 0},
		"taken after long":      {connected, long, 1000, http.StatusOK, false, 1, "acked", 0},
		"sent elsewhere":        {connected, now, 1, http.StatusTemporaryRedirect, false, 1, "put off", time.Second},
		"the worker stops":      {connected, now, 1, http.StatusOK, true, 0, "given back", 0},
		"no event for webhooks": {`{"event":"paused","connection":"acme"}`, now, 1, http.StatusOK, false, 0, "acked", 0},
		"no event":              {`{`, now, 1, http.StatusOK, false, 0, "acked", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := secret.New("key")
			posts := 0
			receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				posts++
				body, _ := io.ReadAll(r.Body)
				signature := r.Header.Get("Zoho-Signature")
				var at int64
				_, _ = fmt.Sscanf(signature, "t=%d,", &at)
				if string(body) != test.data || r.Header.Get("Zoho-Event") != "connected" || r.Header.Get("Zoho-Event-Id") != "7" || signature != Signature(key, time.Unix(at, 0), body) {
					t.Errorf("posted %v %s", r.Header, body)
				}
				w.Header().Set("Location", elsewhere.URL)
				w.WriteHeader(test.status)
			}))
			defer receiver.Close()
			hook := &Webhook{URL: receiver.URL, Secret: key, Logger: slog.New(slog.DiscardHandler), First: time.Second}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if test.stopping {
				cancel()
			}
			msg := &delivered{data: test.data, at: test.at, times: test.times}
			hook.deliver(ctx, newClient(), msg)
			if posts != test.posts || msg.became != test.became || msg.pause != test.pause {
				t.Errorf("posted %d times, %s, again in %s", posts, msg.became, msg.pause)
			}
		})
	}
}
