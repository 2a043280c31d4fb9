package consumer

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/trace"
)

// digestHeader carries the digest of the request that a response answers, so
// that the same id with other content is noticed.
const digestHeader = "Zoho-Digest"

// Responses are the stored responses: one per request, create-only.
type Responses struct {
	js        jetstream.JetStream
	registers *register.Stream
}

// NewResponses returns the responses of ZOHO_RESPONSES.
func NewResponses(js jetstream.JetStream) *Responses {
	return &Responses{js: js, registers: register.New(js, ResponseStream, 5*time.Second)}
}

// ResponseSubject is where the response to a request is stored.
func ResponseSubject(connection, id string) string {
	return "zoho.responses." + connection + "." + id
}

// Lookup returns the stored response, nil where there is none.
func (r *Responses) Lookup(ctx context.Context, connection, id string) (*relay.Stored, error) {
	entry, err := r.registers.Get(ctx, ResponseSubject(connection, id))
	if errors.Is(err, register.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up response: %w", err)
	}
	stored := &relay.Stored{Data: entry.Data}
	// One without a digest answers no request that is known, and keeps its id.
	if digest, err := hex.DecodeString(entry.Header.Get(digestHeader)); err == nil && len(digest) == len(stored.Digest) {
		copy(stored.Digest[:], digest)
	}
	return stored, nil
}

// store keeps the response if it is the first; else it returns the one that stands.
// Tried hears of each try, as with insist.
func (r *Responses) store(ctx context.Context, connection string, response *envelope.Response, digest [32]byte, data []byte, tried func(error)) (*relay.Stored, error) {
	msg := &nats.Msg{Subject: ResponseSubject(connection, response.ID), Data: data, Header: nats.Header{
		digestHeader:                        {hex.EncodeToString(digest[:])},
		jetstream.ExpectedLastSubjSeqHeader: {"0"},
		"Zoho-Status":                       {strconv.Itoa(response.Status)},
	}}
	trace.Inject(ctx, msg.Header)
	var there *relay.Stored
	err := insist(ctx, tried, func(ctx context.Context) error {
		_, err := r.js.PublishMsg(ctx, msg)
		if err == nil || !register.IsConflict(err) {
			return err
		}
		// Somebody's, or our own where the PubAck was lost: the same to the requester.
		there, err = r.Lookup(ctx, connection, response.ID)
		if err == nil && there == nil {
			return errors.New("stored by nobody, refused all the same")
		}
		return err
	})
	return there, err
}

// insist tries until it works or ctx ends: a response in hand is worth waiting
// for. Pauses of 0.1 s growing to 5 s. Tried hears how each try ended.
func insist(ctx context.Context, tried func(error), try func(context.Context) error) error {
	once := func() error {
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err := try(bounded)
		tried(err)
		if errors.Is(err, nats.ErrMaxPayload) {
			return backoff.Permanent(err)
		}
		return err
	}
	err := once()
	if err == nil {
		return nil // as nearly always: no schedule is made for it
	}
	pause := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(100*time.Millisecond),
		backoff.WithMaxInterval(5*time.Second),
		backoff.WithMaxElapsedTime(0),
	)
	return backoff.Retry(func() error {
		if first := err; first != nil {
			err = nil
			return first
		}
		return once()
	}, backoff.WithContext(pause, ctx))
}
