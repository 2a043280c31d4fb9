package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/inspect"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/zoho/zohotest"
)

// onServer is a rig on a server of its own, that can be set back.
func onServer(t *testing.T, options zohotest.Options) (*rig, *natstest.Server) {
	t.Helper()
	r := newRig(t, options)
	s := natstest.Start(t)
	r.moveTo(s.URL(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	return r, s
}

// anew deletes a stream and makes it anew, empty, as a worker that starts does.
func (r *rig) anew(name string) {
	r.t.Helper()
	if err := r.js.DeleteStream(r.t.Context(), name); err != nil {
		r.t.Fatal(err)
	}
	if err := (consumer.Topology{Replicas: 1, Retention: 24 * time.Hour}).Ensure(r.t.Context(), r.js); err != nil {
		r.t.Fatal(err)
	}
}

// The stream of requests begins its sequences again while requests of the same
// sequences are in hand: none is taken for another, and none is acked for another.
func TestSequencesBeginAgain(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]func(*rig, *natstest.Server){
		"the server lost its last writes": func(_ *rig, s *natstest.Server) { s.Revert() },
		"the stream was made anew":        func(r *rig, _ *natstest.Server) { r.anew(consumer.RequestStream) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, s := onServer(t, zohotest.Options{})
			r.demo(1)
			r.worker()
			wantStatus(t, r.call("demo", list("warm")), 200) // its session and the org are in what is saved
			s.Save()
			r.connectedAgain()
			hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Method: "POST"})
			const n = 4
			for i := range n {
				r.publish("demo", insert(fmt.Sprint("old-", i), fmt.Sprint("Old ", i)))
			}
			r.reached(hold)
			r.seen("all are in hand", func(s consumer.Sight) bool { return s.Running+s.Held == n })

			again(r, s)
			r.connectedAgain()
			for i := range n {
				r.publish("demo", insert(fmt.Sprint("new-", i), fmt.Sprint("New ", i)))
			}
			eventually(t, "the new ones are handed over", func() bool {
				c, err := r.js.Consumer(t.Context(), consumer.RequestStream, "demo")
				return err == nil && c.CachedInfo().NumAckPending == n
			})
			hold.Release()
			for i := range n {
				wantStatus(t, r.await("demo", fmt.Sprint("old-", i)), 201)
				wantStatus(t, r.await("demo", fmt.Sprint("new-", i)), 201)
			}
			r.drained()
			for name, times := range r.executed() {
				if times != 1 {
					t.Errorf("%s was inserted %d times", name, times)
				}
			}
		})
	}
}

// A server that begins again with all that it had, also with nothing left to do, has
// the same stream of requests.
func TestRestartIsTheSameStream(t *testing.T) {
	t.Parallel()
	r, s := onServer(t, zohotest.Options{})
	r.demo(1)
	r.worker()
	for range 3 {
		wantStatus(t, r.call("demo", list(r.id("list"))), 200)
		r.drained()
		s.Restart()
		r.connectedAgain()
	}
	wantStatus(t, r.call("demo", list("last")), 200)
	if log := r.logs.text.String(); strings.Contains(log, "stream of requests is another one") {
		t.Error("it is taken for another one")
	}
}

// in is a deadline as an envelope has it.
func in(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339Nano) }

// Requests that don't move are answered at their deadlines, also where their stream
// was made anew and has sequences again of which the deadlines are known.
func TestDeadlinesInAnotherStream(t *testing.T) {
	t.Parallel()
	r, _ := onServer(t, zohotest.Options{})
	r.demo(1)
	r.markRevoked("demo", "test")
	r.connect("busy", devbox.OrgID, 1) // an org without work is given up, and its deadlines are read anew
	r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, callsOf("user-of-busy"))
	r.publish("busy", list("busy"))
	r.reached(hold)
	defer hold.Release()
	for i := range 3 {
		d := list(fmt.Sprint("long-", i))
		d["deadline"] = in(time.Hour)
		r.publish("demo", d)
	}
	short := func(id string) {
		t.Helper()
		d := list(id)
		d["deadline"] = in(2 * time.Second)
		wantCode(t, r.call("demo", d), envelope.ReauthorizationRequired)
	}
	short("before") // the deadlines before it were read by then
	r.anew(consumer.RequestStream)
	short("after")
}

// Connections are lost and added anew, so that their grants are counted from one
// again: what was said of the grant that had the number before isn't said of this one.
func TestGrantCountedAnew(t *testing.T) {
	t.Parallel()
	r, _ := onServer(t, zohotest.Options{})
	refresh := r.demo(1)
	r.Zoho.RevokeRefreshToken(refresh)
	r.worker()
	d := list("revoked")
	d["deadline"] = in(2 * time.Second)
	wantCode(t, r.call("demo", d), envelope.ReauthorizationRequired)

	r.anew(connection.StreamName)
	eventually(t, "the connection is gone", func() bool {
		_, ok := r.store.Get("demo")
		return !ok
	})
	r.connect("demo", devbox.OrgID, 1)
	wantStatus(t, r.call("demo", list("anew")), 200)
	if c, err := r.store.Fetch(t.Context(), "demo"); err != nil || c.Grant != 1 || c.Status != connection.Active {
		t.Errorf("the connection is %+v, %v", c, err)
	}
}

// A worker whose stream is gone says so, whichever it is, and goes on when it is there again.
func TestStreamGone(t *testing.T) {
	t.Parallel()
	r, _ := onServer(t, zohotest.Options{})
	r.demo(1)
	w := r.worker()
	for _, name := range []string{consumer.RequestStream, ledger.StreamName} {
		if err := r.js.DeleteStream(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		notReady(t, w.HTTPAddr, "stream "+name+" is gone")
		r.worker()
		isReady(t, w.HTTPAddr)
		wantStatus(t, r.call("demo", list(r.id("list"))), 200)
	}
}

// Every stream is lost and made anew under a worker that runs: it goes on without
// being started again.
func TestStreamsMadeAnew(t *testing.T) {
	t.Parallel()
	r, _ := onServer(t, zohotest.Options{})
	r.demo(2)
	w := r.worker()
	for i, name := range inspect.Streams() {
		r.anew(name)
		if name == connection.StreamName {
			eventually(t, "the connection is gone", func() bool {
				_, ok := r.store.Get("demo")
				return !ok
			})
			r.connect("demo", devbox.OrgID, 2)
		}
		d := insert(fmt.Sprint("insert-", i), name)
		response := r.call("demo", d)
		for name == connection.StreamName && response.Error != nil && response.Error.Code == envelope.UnknownConnection {
			d["id"] = r.id("again") // the worker hadn't heard of it yet
			response = r.call("demo", d)
		}
		wantStatus(t, response, 201)
		wantStatus(t, r.call("demo", list(fmt.Sprint("list-", i))), 200)
		isReady(t, w.HTTPAddr)
		if t.Failed() {
			t.Fatalf("after %s", name)
		}
	}
}

// backUp does what `nats backup stream` does, and returns what `nats backup restore
// stream` does with it.
func (r *rig) backUp(name string) (restore func()) {
	r.t.Helper()
	chunks, err := r.nc.SubscribeSync(r.nc.NewInbox())
	if err != nil {
		r.t.Fatal(err)
	}
	var made struct {
		Config json.RawMessage `json:"config"`
		State  json.RawMessage `json:"state"`
	}
	r.ask("$JS.API.STREAM.SNAPSHOT."+name, doc{"deliver_subject": chunks.Subject, "no_consumers": true}, &made)
	var kept [][]byte
	for {
		msg, err := chunks.NextMsg(patience)
		if err != nil {
			r.t.Fatal(err)
		}
		if len(msg.Data) == 0 {
			break
		}
		kept = append(kept, msg.Data)
		_ = msg.Respond(nil)
	}
	return func() {
		r.t.Helper()
		var to struct {
			Subject string `json:"deliver_subject"`
		}
		r.ask("$JS.API.STREAM.RESTORE."+name, doc{"config": made.Config, "state": made.State}, &to)
		for _, chunk := range append(kept, nil) {
			if _, err := r.nc.Request(to.Subject, chunk, patience); err != nil {
				r.t.Fatal(err)
			}
		}
	}
}

// ask asks JetStream's API.
func (r *rig) ask(subject string, question, answer any) {
	r.t.Helper()
	data, err := json.Marshal(question)
	if err != nil {
		r.t.Fatal(err)
	}
	msg, err := r.nc.Request(subject, data, patience)
	if err != nil {
		r.t.Fatal(err)
	}
	var failed struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := errors.Join(json.Unmarshal(msg.Data, &failed), json.Unmarshal(msg.Data, answer)); err != nil || failed.Error != nil {
		r.t.Fatalf("%s: %v, %v", subject, err, failed.Error)
	}
}

// The connections are restored from a backup while a worker runs, and as many changes
// as were lost are made right after: the worker has all of them.
func TestConnectionsRestored(t *testing.T) {
	t.Parallel()
	r, _ := onServer(t, zohotest.Options{})
	r.demo(1)
	r.connect("leaves", devbox.OrgID, 1)
	w := r.worker()
	wantStatus(t, r.call("leaves", list("before")), 200)
	restore := r.backUp(connection.StreamName)
	lost := func(c *connection.Connection) error { c.Nickname = "lost"; return nil }
	if _, err := r.store.Update(t.Context(), "demo", lost); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the worker knows the change that is lost later", func() bool {
		c, ok := w.Connections.Get("demo")
		return ok && c.Nickname == "lost"
	})

	if err := r.js.DeleteStream(t.Context(), connection.StreamName); err != nil {
		t.Fatal(err)
	}
	notReady(t, w.HTTPAddr, "stream "+connection.StreamName+" is gone")
	restore()
	if err := r.store.Remove(t.Context(), "leaves", ""); err != nil {
		t.Fatal(err)
	}
	isReady(t, w.HTTPAddr)
	eventually(t, "the worker has what was restored", func() bool {
		c, ok := w.Connections.Get("demo")
		return ok && c.Nickname == ""
	})
	wantCode(t, r.call("leaves", list("after")), envelope.UnknownConnection)
	wantStatus(t, r.call("demo", list("after")), 200)
}
