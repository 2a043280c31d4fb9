package consumer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/dead"
	"zoho-worker/internal/event"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/token"
)

// The streams and buckets that this package owns.
const (
	RequestStream  = "ZOHO_REQUESTS"
	ResponseStream = "ZOHO_RESPONSES"
	DeadStream     = dead.StreamName
	EventStream    = event.StreamName
	BodyBucket     = "ZOHO_BODIES"
)

// Topology is what the streams need to know.
type Topology struct {
	// Replicas of every stream: 1 on a single server, 3 in production, where
	// "never twice" is only as durable as the claims.
	Replicas int
	// Retention is how long responses, claims and large bodies are kept, and so
	// for how long an id is remembered. A response costs the server about 170
	// bytes of memory for as long as it is kept (measured: 1,000,000 in 196 MB).
	Retention time.Duration
}

// Ensure creates the streams and buckets, or brings those of another version up to
// date. Limits, placement and compression that somebody has set by hand stay, for how long
// they keep what is in them doesn't; reads that don't go through a stream's leader are
// switched off.
func (t Topology) Ensure(ctx context.Context, js jetstream.JetStream) error {
	// All at once: one after the other they were a quarter of the time to the first answer.
	var all errgroup.Group
	for _, config := range t.streams(js.Conn().MaxPayload()) {
		all.Go(func() error {
			return ensure(ctx, js, config.Name, config, config.AllowDirect, func(made map[string]string, there jetstream.StreamConfig) error {
				config.Metadata, config.MaxBytes, config.MaxMsgs, config.Placement = made, there.MaxBytes, there.MaxMsgs, there.Placement
				config.Compression = there.Compression
				config.MaxConsumers = max(config.MaxConsumers, there.MaxConsumers)
				if there.DiscardNewPerSubject && config.MaxMsgsPerSubject == 0 { // how much of one lane may wait
					config.MaxMsgsPerSubject, config.DiscardNewPerSubject = there.MaxMsgsPerSubject, true
				}
				_, err := js.CreateOrUpdateStream(ctx, config)
				if tooManyConsumers(err) {
					// The account has a lower limit, which holds for the stream that has none.
					config.MaxConsumers = -1
					_, err = js.CreateOrUpdateStream(ctx, config)
				}
				return err
			})
		})
	}
	all.Go(func() error {
		config := jetstream.ObjectStoreConfig{
			Bucket: BodyBucket, Description: "bodies too large for a message",
			TTL: t.Retention, Storage: jetstream.FileStorage, Replicas: t.Replicas,
		}
		return ensure(ctx, js, "OBJ_"+BodyBucket, config, true, func(made map[string]string, there jetstream.StreamConfig) error {
			config.Metadata, config.MaxBytes, config.Placement = made, there.MaxBytes, there.Placement
			config.Compression = there.Compression != jetstream.NoCompression
			_, err := js.CreateOrUpdateObjectStore(ctx, config)
			return err
		})
	})
	return all.Wait()
}

// madeMark is the stream metadata that tells which configuration a stream was
// made with. A look costs the server less than an update that changes nothing,
// and such an update would undo what was set by hand.
const madeMark = "zoho-worker.made-with"

// ensure calls apply for a stream that wasn't made with config, with the metadata
// that says that it is, and the configuration that is there, if any. Direct says
// whether it may be read from any replica.
func ensure(ctx context.Context, js jetstream.JetStream, name string, config any, direct bool, apply func(made map[string]string, there jetstream.StreamConfig) error) error {
	var there jetstream.StreamConfig
	stream, err := js.Stream(ctx, name)
	switch {
	case err == nil:
		there = stream.CachedInfo().Config
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("look at stream %s: %w", name, err)
	}
	mark := digestOf(config)
	if there.Metadata[madeMark] == mark && (direct || !there.AllowDirect) {
		return nil
	}
	if err := apply(map[string]string{madeMark: mark}, there); err != nil {
		return fmt.Errorf("create or update stream %s: %w", name, err)
	}
	return nil
}

// digestOf is a short digest of a configuration.
func digestOf(config any) string {
	data, err := json.Marshal(config)
	if err != nil {
		panic(err) // plain data
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// letterRoom is what a request leaves of the server's max_payload for the headers
// of the dead letter that it may become: a subject of 4 KiB at most, a reason, and
// a history of some lines. Without it a message that is no request would come
// again for ever, because nothing can hold it.
const letterRoom = 8 << 10

// maxConsumers is the limit to the consumers of a stream whose consumers grow with
// the users. Without one, which -1 is too, the server's default of 1,000 holds.
const maxConsumers = 20_000

// tooManyConsumers reports whether a stream was refused because it may have more consumers
// than its account, or a consumer because there are as many as may be.
func tooManyConsumers(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == 10026
}

func (t Topology) streams(maxPayload int64) []jetstream.StreamConfig {
	return append([]jetstream.StreamConfig{
		{
			Name: RequestStream, Description: "requests until they are answered", Subjects: []string{requestPrefix + ">"},
			Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
			Replicas: t.Replicas, Duplicates: 2 * time.Minute,
			MaxConsumers: maxConsumers,                                    // one per lane that has work
			MaxMsgSize:   int32(max(maxPayload-letterRoom, maxPayload/2)), //nolint:gosec // a server has no larger one
			// Only the headers: this wakes a worker for an org that had no work.
			RePublish: &jetstream.RePublish{Source: requestPrefix + ">", Destination: activityPrefix + ">", HeadersOnly: true},
		},
		{
			Name: ResponseStream, Description: "responses, one per request, create-only", Subjects: []string{"zoho.responses.*.*"},
			Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
			Replicas: t.Replicas, MaxAge: t.Retention, MaxMsgsPerSubject: 1, Duplicates: min(2*time.Minute, t.Retention),
			MaxConsumers: maxConsumers, // one per requester that follows its responses
		},
		{
			Name: DeadStream, Description: "requests nobody could be answered for", Subjects: []string{"zoho.dead.>"},
			Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardNew,
			Replicas: t.Replicas, MaxAge: 30 * 24 * time.Hour, Duplicates: 2 * time.Minute,
		},
		{
			Name: EventStream, Description: "what happened to connections and their queues", Subjects: []string{"zoho.events.*"},
			Retention: jetstream.LimitsPolicy, Storage: jetstream.FileStorage, Discard: jetstream.DiscardOld,
			Replicas: t.Replicas, MaxAge: 7 * 24 * time.Hour, Duplicates: 2 * time.Minute,
		},
		ledger.StreamConfig(t.Replicas, t.Retention),
		connection.StreamConfig(t.Replicas),
		token.StreamConfig(t.Replicas),
		consent.StreamConfig(t.Replicas),
	}, lease.StreamConfigs(t.Replicas)...)
}

// ensureConsumer creates a lane's consumer. There being one already is fine, as
// of a version that asked for another AckWait.
func ensureConsumer(ctx context.Context, js jetstream.JetStream, config jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	c, err := js.CreateConsumer(ctx, RequestStream, config)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		return js.Consumer(ctx, RequestStream, config.Durable)
	}
	return c, err
}
