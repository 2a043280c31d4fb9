package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consumer"
)

// What a start waits for, and what ends it.
func TestPassing(t *testing.T) {
	t.Parallel()
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for _, c := range []struct {
		err    error
		passes bool
	}{
		{nats.ErrNoServers, true},
		{fmt.Errorf("connect: %w", refused), true},
		{&net.DNSError{Err: "no such host", Name: "nats", IsNotFound: true}, true},
		{io.EOF, true},
		{nats.ErrTimeout, true},
		{context.DeadlineExceeded, true},
		{&jetstream.APIError{Code: 503, ErrorCode: 10008}, true}, // no meta leader
		{&jetstream.APIError{Code: 400, ErrorCode: 10005}, true}, // too few nodes for the replicas
		{&jetstream.APIError{Code: 503, ErrorCode: 10047}, true}, // no room
		{jetstream.ErrJetStreamNotEnabled, true},                 // for a while
		{nats.ErrAuthorization, false},
		{nats.ErrAuthExpired, false},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, false},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, false},
		{&jetstream.APIError{Code: 400, ErrorCode: 10074}, false}, // replicas without a cluster
		{&jetstream.APIError{Code: 500, ErrorCode: 10052}, false}, // the stream can't be changed
		{errors.New("nats: invalid URL"), false},
	} {
		if got := passing(c.err); got != c.passes {
			t.Errorf("%v passes: %v", c.err, got)
		}
	}
}

// What a start no longer waits for says what a person may have to mend.
func TestAwaitJetStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		w := &Worker{health: quietHealth()}
		err := w.await(t.Context(), slog.New(slog.DiscardHandler), "JetStream", func(context.Context) error { return nats.ErrNoResponders })
		if !errors.Is(err, nats.ErrNoResponders) || !strings.Contains(err.Error(), "is JetStream switched on") {
			t.Errorf("a server without JetStream: %v", err)
		}
		if took := time.Since(begun); took < silence || took > silence+2*mostPause {
			t.Errorf("it was waited for %s", took)
		}
	})
}

func quietHealth() *health { return newHealth(slog.New(slog.DiscardHandler)) }

func violationOf(what, subject string) error {
	return fmt.Errorf("%w: Permissions Violation for %s to %q", nats.ErrPermissionViolation, what, subject)
}

// A violation counts where the worker needs the subject. One about a reply_to
// doesn't: a requester must not be able to turn a worker's readiness off.
func TestViolations(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want []string
	}{
		{violationOf("Publish", "zoho.claims.acme.4711"), []string{"may not publish to zoho.claims.>"}},
		{violationOf("Publish", "$JS.API.STREAM.INFO.ZOHO_REQUESTS"), []string{"may not publish to $JS.API.STREAM.INFO.>"}},
		{violationOf("Publish", "$JS.ACK.ZOHO_REQUESTS.q.1.2.3.4.5"), []string{"may not publish to $JS.ACK.>"}},
		{violationOf("Subscription", "zoho.activity.>"), []string{"may not subscribe to zoho.activity.>"}},
		{violationOf("Publish", "_INBOX.somebody.x"), nil},
		{violationOf("Publish", "replies.acme"), nil},
		{nats.ErrSlowConsumer, nil},
		{errors.New(`Permissions Violation for Publish to "zoho.claims.x"`), nil}, // not the server's word
	} {
		h := quietHealth()
		h.onError(c.err)
		if got := h.reasons(); !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
		if denied := h.denied(); (denied != "") != (len(c.want) > 0) {
			t.Errorf("%v: denied %q", c.err, denied)
		}
	}
}

// Writes: one that fails is nothing yet, two in a row are trouble until one succeeds.
func TestWritesThatFail(t *testing.T) {
	t.Parallel()
	conflict := &jetstream.APIError{ErrorCode: 10071}
	noRoom := &jetstream.APIError{ErrorCode: 10047}
	for name, c := range map[string]struct {
		writes  []error
		trouble bool
	}{
		"one":                    {[]error{nats.ErrTimeout}, false},
		"two":                    {[]error{nats.ErrTimeout, nats.ErrTimeout}, true},
		"two with one between":   {[]error{nats.ErrTimeout, nil, nats.ErrTimeout}, false},
		"a conflict between":     {[]error{nats.ErrTimeout, conflict, nats.ErrTimeout}, false},
		"two and one that works": {[]error{nats.ErrTimeout, nats.ErrTimeout, nil}, false},
		"conflicts":              {[]error{conflict, conflict, conflict}, false},
		"no room":                {[]error{noRoom}, true},
		"no room, and room":      {[]error{noRoom, nil}, false},
		"too large":              {[]error{&jetstream.APIError{ErrorCode: 10054}, nats.ErrMaxPayload, nats.ErrMaxPayload}, false},
		"given up":               {[]error{context.Canceled, context.Canceled, context.Canceled}, false},
		"no connection":          {[]error{nats.ErrConnectionReconnecting, nats.ErrDisconnected, nats.ErrReconnectBufExceeded}, false},
	} {
		h := quietHealth()
		for _, err := range c.writes {
			h.stored("claims", err)
		}
		if got := len(h.reasons()) > 0; got != c.trouble {
			t.Errorf("%s: not ready for %q", name, h.reasons())
		}
	}
	h := quietHealth()
	h.stored("claims", noRoom)
	h.stored("tokens", noRoom)
	h.stored("tokens", nil)
	if got := h.reasons(); !slices.Equal(got, []string{"can't store zoho.claims.>"}) {
		t.Errorf("reasons %q", got)
	}
	h.connected()
	if got := h.reasons(); len(got) > 0 {
		t.Errorf("on a new connection: %q", got)
	}
}

// A caller that has too many requests waiting, where that is bounded by hand, keeps no
// worker from the others' work; a stream that is full does.
func TestLaneThatIsFull(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js,
		jetstream.StreamConfig{Name: "LANES", Subjects: []string{"lanes.*"}, Discard: jetstream.DiscardNew, MaxMsgsPerSubject: 1, DiscardNewPerSubject: true},
		jetstream.StreamConfig{Name: "ROOM", Subjects: []string{"room.*"}, Discard: jetstream.DiscardNew, MaxMsgs: 1})
	for subject, trouble := range map[string]bool{"lanes.a": false, "room.a": true} {
		h := newHealth(slog.New(slog.DiscardHandler))
		for i := range 4 {
			_, err := js.Publish(t.Context(), subject, []byte("x"))
			if (err == nil) != (i == 0) {
				t.Fatalf("%s, %d: %v", subject, i, err)
			}
			h.stored("requests", err)
		}
		if why := h.reasons(); (len(why) > 0) != trouble {
			t.Errorf("%s: not ready for %q", subject, why)
		}
	}
}

// A worker that has not begun, or has begun to stop, is not ready, whatever else is well.
func TestNotReadyBeforeAndAfter(t *testing.T) {
	t.Parallel()
	w := &Worker{health: newHealth(slog.New(slog.DiscardHandler))}
	if why := w.notReady(); why != "starting or stopping" {
		t.Errorf("a worker that serves nothing is not ready because of %q", why)
	}
}

// One look that a stream leaves unanswered may be a change of leaders; two are trouble, until it answers.
func TestOneLookThatIsMissed(t *testing.T) {
	t.Parallel()
	js := natstest.Start(t).JetStream()
	if err := (consumer.Topology{Replicas: 1, Retention: 24 * time.Hour}).Ensure(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	h := newHealth(slog.New(slog.DiscardHandler))
	for i, look := range []struct {
		err  error
		want []string
	}{
		{nats.ErrTimeout, nil},
		{nil, nil},
		{nats.ErrTimeout, nil},
		{nats.ErrTimeout, []string{"stream ZOHO_CLAIMS doesn't answer"}},
		{nil, nil},
	} {
		h.try(t.Context(), js, "ZOHO_CLAIMS", func(context.Context) error { return look.err })
		if got := h.reasons(); !slices.Equal(got, look.want) {
			t.Errorf("look %d: not ready because of %q, want %q", i, got, look.want)
		}
	}
}
