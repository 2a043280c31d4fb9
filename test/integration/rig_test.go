// Package integration tries the whole worker on a real nats-server, Redis and
// the Zoho simulator, and asserts at the far end: what the simulator saw, and
// what the requester got.
package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/lock/redistest"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// patience bounds every wait of a test; it is never what a test measures.
const patience = 60 * time.Second

// rig is a box with what a test needs to drive it.
type rig struct {
	*devbox.Box
	t      testing.TB
	redis  *redistest.Server
	keys   secret.Text
	nc     *nats.Conn
	js     jetstream.JetStream
	store  *connection.Store
	logs   *logs
	serial atomic.Int64
}

// newRig starts a box without workers and with the streams, so that requests
// may be published before the first worker starts.
func newRig(t testing.TB, options zohotest.Options) *rig {
	t.Helper()
	redis := redistest.Start(t)
	box, err := devbox.Start(devbox.Options{RedisURL: redis.URL, DataDir: t.TempDir(), Zoho: options})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(box.Close)
	r := &rig{Box: box, t: t, redis: redis, keys: secret.Generate(), logs: &logs{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.logs.tail(80))
		}
	})
	r.moveTo(box.NATSURL)
	return r
}

// moveTo has the rig drive another server, to which it connects with options.
// The box's own is idle from here on.
func (r *rig) moveTo(url string, options ...nats.Option) {
	r.t.Helper()
	var err error
	r.NATSURL = url
	if r.nc, err = nats.Connect(url, options...); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.nc.Close)
	if r.js, err = jetstream.New(r.nc, jetstream.WithDefaultTimeout(patience)); err != nil {
		r.t.Fatal(err)
	}
	if err := (consumer.Topology{Replicas: 1, Retention: 24 * time.Hour}).Ensure(r.t.Context(), r.js); err != nil {
		r.t.Fatal(err)
	}
	keyring, err := secret.ParseKeyring(r.keys.Reveal())
	if err != nil {
		r.t.Fatal(err)
	}
	if r.store, err = connection.Open(r.t.Context(), r.js, keyring, connection.Options{Logger: r.logs.logger()}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(r.store.Close)
}

// requests is the stream of requests.
func (r *rig) requests() jetstream.Stream {
	r.t.Helper()
	stream, err := r.js.Stream(r.t.Context(), consumer.RequestStream)
	if err != nil {
		r.t.Fatal(err)
	}
	return stream
}

// config is a worker's configuration in this rig: calls have the time that a slow machine
// takes, and may be held for as long as a test needs.
func (r *rig) config() app.Config {
	c := app.Defaults()
	c.NATSURL, c.RedisURL = r.NATSURL, secret.New(r.RedisURL)
	c.ZohoClientID, c.ZohoClientSecret = "1000.TEST", secret.New("test-secret")
	c.ZohoAccountsURL, c.ZohoAPIURL = r.ZohoURL, r.ZohoURL
	c.EncryptionKeys, c.HTTPAddr = r.keys, "127.0.0.1:0"
	c.CallTimeout, c.StopTimeout = patience, patience+10*time.Second
	return c
}

// worker starts a worker in this process; the test stops it.
func (r *rig) worker(change ...func(*app.Config)) *app.Worker {
	r.t.Helper()
	c := r.config()
	for _, f := range change {
		f(&c)
	}
	w, err := app.Start(r.t.Context(), c, r.logs.logger())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { stop(w) })
	return w
}

func stop(w *app.Worker) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	w.Stop(ctx)
}

// connect adds a connection of the org, with a grant of the simulator.
func (r *rig) connect(name, org string, places int) string {
	r.t.Helper()
	user := "user-of-" + name
	r.Zoho.AddUser(zohotest.User{ID: user, Email: name + "@example.com", OrgID: org})
	refresh := r.Zoho.GrantRefreshToken(user)
	_, err := r.store.Add(r.t.Context(), connection.Connection{
		Name: name, Location: "us", OrgID: org, UserID: user, Concurrency: places,
	}, secret.New(refresh))
	if err != nil {
		r.t.Fatal(err)
	}
	return refresh
}

// markRevoked has a connection's record say that Zoho refused its refresh token for good.
func (r *rig) markRevoked(name, reason string) {
	r.t.Helper()
	c, err := r.store.Fetch(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.store.MarkRevoked(r.t.Context(), c, reason); err != nil {
		r.t.Fatal(err)
	}
}

// demo adds an org with room for places calls and the connection demo to it.
func (r *rig) demo(places int) string {
	r.t.Helper()
	r.Zoho.AddOrg(zohotest.Org{ID: devbox.OrgID, Name: "Demo", Concurrency: places})
	r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Seed"})
	return r.connect("demo", devbox.OrgID, places)
}

// doc is an envelope as a service would write it.
type doc map[string]any

func (r *rig) id(prefix string) string { return fmt.Sprintf("%s-%d", prefix, r.serial.Add(1)) }

// publish stores a request, without the server's own deduplication.
func (r *rig) publish(name string, d doc) {
	r.t.Helper()
	data, err := json.Marshal(d)
	if err != nil {
		r.t.Fatal(err)
	}
	r.publishRaw(name, data)
}

func (r *rig) publishRaw(name string, data []byte) {
	r.t.Helper()
	if _, err := r.js.Publish(r.t.Context(), "zoho.requests."+name, data); err != nil {
		r.t.Fatal(err)
	}
}

func insert(id, lastName string) doc {
	return doc{"id": id, "method": "POST", "url": "/v8/Leads", "body": doc{"data": []doc{{"Last_Name": lastName}}}}
}

func list(id string) doc {
	return doc{"id": id, "method": "GET", "url": "/v8/Leads", "query": doc{"fields": "Last_Name"}}
}

// await returns the stored response.
func (r *rig) await(name, id string) *envelope.Response {
	r.t.Helper()
	watch := r.follow(consumer.ResponseSubject(name, id))
	var msg jetstream.Msg
	var err error
	// In a cluster the consumer may be on a node of which this one hasn't heard yet.
	eventually(r.t, "the responses' consumer is heard of", func() bool {
		msg, err = watch.Next(jetstream.FetchMaxWait(patience))
		return !errors.Is(err, nats.ErrNoResponders)
	})
	if err != nil {
		r.t.Fatalf("no response to %s of %s: %v", id, name, err)
	}
	response, err := envelope.DecodeResponse(msg.Data())
	if err != nil {
		r.t.Fatalf("response to %s: %v in %s", id, err, msg.Data())
	}
	return response
}

// follow reads the stored responses of a subject, from the first. A server that
// was just restarted may let a request of the JetStream API go unanswered.
func (r *rig) follow(subject string) (watch jetstream.Consumer) {
	r.t.Helper()
	var err error
	defer func() {
		if err != nil {
			r.t.Logf("the responses at %s can't be read: %v", subject, err)
		}
	}()
	eventually(r.t, "the responses can be read", func() bool {
		ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
		defer cancel()
		watch, err = r.js.OrderedConsumer(ctx, consumer.ResponseStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{subject}})
		return err == nil
	})
	return watch
}

// awaitAll waits until n responses are stored for the connection.
func (r *rig) awaitAll(name string, n int) map[string]*envelope.Response {
	r.t.Helper()
	return r.awaitEach(name, n, func(*envelope.Response) {})
}

// awaitEach is awaitAll, and hands over each response in the order in which they
// were stored. The name * is all connections.
func (r *rig) awaitEach(name string, n int, each func(*envelope.Response)) map[string]*envelope.Response {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 3*patience)
	defer cancel()
	messages, err := r.follow("zoho.responses." + name + ".*").Messages()
	if err != nil {
		r.t.Fatal(err)
	}
	defer messages.Stop()
	got := map[string]*envelope.Response{}
	for len(got) < n {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			r.t.Fatalf("%d of %d responses of %s: %v", len(got), n, name, err)
		}
		response, err := envelope.DecodeResponse(msg.Data())
		if err != nil {
			r.t.Fatalf("response %s: %v", msg.Subject(), err)
		}
		if got[response.ID] != nil {
			r.t.Fatalf("two responses to %s", response.ID)
		}
		got[response.ID] = response
		each(response)
	}
	return got
}

// call publishes with an inbox as reply_to and returns what comes there.
func (r *rig) call(name string, d doc) *envelope.Response {
	r.t.Helper()
	return r.replies(name, d, 1)[0]
}

func (r *rig) replies(name string, d doc, n int) []*envelope.Response {
	r.t.Helper()
	inbox := r.nc.NewInbox()
	sub, err := r.nc.SubscribeSync(inbox)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	d["reply_to"] = inbox
	r.publish(name, d)
	var got []*envelope.Response
	for range n {
		msg, err := sub.NextMsg(patience)
		if err != nil {
			r.t.Fatalf("no reply to %v: %v", d["id"], err)
		}
		response, err := envelope.DecodeResponse(msg.Data)
		if err != nil {
			r.t.Fatal(err)
		}
		got = append(got, response)
	}
	return got
}

// drained waits until every request is off the stream.
func (r *rig) drained() {
	r.t.Helper()
	eventually(r.t, "the requests are off the stream", func() bool {
		stream, err := r.js.Stream(r.t.Context(), consumer.RequestStream)
		return err == nil && stream.CachedInfo().State.Msgs == 0
	})
}

// connectedAgain waits until the test is connected to the server that was restarted:
// only an answer shows that it is, for a while it doesn't know that the one before ended.
func (r *rig) connectedAgain() {
	r.t.Helper()
	eventually(r.t, "the test is connected again", func() bool {
		_, err := r.nc.RTT()
		return err == nil
	})
}

// stopping stops a worker meanwhile, and is closed when it has.
func stopping(w *app.Worker) <-chan struct{} {
	stopped := make(chan struct{})
	go func() {
		stop(w)
		close(stopped)
	}()
	return stopped
}

// eventually waits for something that has no signal of its own.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in %s: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// executed returns how often each Last_Name was inserted, as the simulator saw it.
func (r *rig) executed() map[string]int {
	count := map[string]int{}
	for _, record := range r.Zoho.Records(devbox.OrgID, "Leads") {
		count[fmt.Sprint(record["Last_Name"])]++
	}
	return count
}

// logs collects what the workers log; a failing test shows it.
type logs struct{ text safeBuilder }

// tail is the last lines.
func (l *logs) tail(n int) string {
	lines := strings.Split(l.text.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&l.text, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func wantCode(t testing.TB, response *envelope.Response, code envelope.Code, contains ...string) {
	t.Helper()
	if response.Error == nil || response.Error.Code != code {
		t.Fatalf("response is %s, want code %s", response.AppendJSON(nil), code)
	}
	for _, s := range contains {
		if !strings.Contains(response.Error.Message, s) {
			t.Fatalf("message %q does not say %q", response.Error.Message, s)
		}
	}
}

func wantStatus(t testing.TB, response *envelope.Response, status int) {
	t.Helper()
	if response.Status != status || response.Error != nil {
		t.Fatalf("response is %s, want status %d and no error", response.AppendJSON(nil), status)
	}
}
