package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/zoho/zohotest"
)

// org is an org of the load.
type org struct {
	id, edition string
	kind        string
	places      int
	credits     int
	backlog     int
	connections []string
}

// editions are zoho-facts 3.1 and 3.3, for ten users.
var editions = []struct {
	name            string
	places, credits int
}{
	{"free", 5, 5_000}, {"standard", 10, 52_500}, {"professional", 15, 55_000}, {"enterprise", 20, 60_000}, {"ultimate", 25, 70_000},
}

// add brings an org up at the simulator, with so many connections.
func (w *world) add(ctx context.Context, o *org, connections int) error {
	w.zoho.AddOrg(zohotest.Org{ID: o.id, Name: o.id, Edition: o.edition, Concurrency: o.places, SubConcurrency: 10, Credits: o.credits})
	w.zoho.Seed(o.id, "Leads", map[string]any{"Last_Name": "Seed"})
	for i := range connections {
		if err := w.addConnection(ctx, fmt.Sprintf("o%s-%d", o.id, i), o); err != nil {
			return err
		}
	}
	return nil
}

// The lanes of a connection.
const (
	interactive = ""
	bulk        = "bulk"
)

// subject is where a connection's requests are published.
func subject(connection, lane string) string {
	if lane == interactive {
		return "zoho.requests." + connection
	}
	return "zoho.requests." + connection + "." + lane
}

const inbox = "_INBOX.flow."

// serial numbers requests.
type serial struct{ atomic.Int64 }

// class is the kind of call that a request asks for.
type class uint8

const (
	light  class = iota // one read
	heavy               // COQL, which counts against the sub-concurrency
	insert              // which takes a claim
)

// request is one request; key and place put it into an order.
func (w *world) request(connection, lane string, c class, key string, place int) (id string, data []byte) {
	id = fmt.Sprintf("f%d", w.serial.Add(1))
	if lane == interactive {
		lane = "interactive"
	}
	d := map[string]any{
		"id": id, "method": "GET", "url": "/v8/Leads?fields=id&per_page=1", "reply_to": inbox + connection + "." + lane + "." + id,
		"deadline": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
	}
	switch c {
	case heavy:
		d["method"], d["url"] = "POST", "/v8/coql"
		d["body"] = map[string]string{"select_query": "select id from Leads limit 1"}
	case insert:
		d["method"], d["url"] = "POST", "/v8/Leads"
		d["body"] = map[string]any{"data": []any{map[string]string{"Last_Name": id}}}
	case light:
	}
	if key != "" {
		d["order_key"] = key
		d["headers"] = map[string]string{"X-Flow-Order": fmt.Sprintf("%s/%s/%d", connection, key, place)}
	}
	data, _ = json.Marshal(d)
	return id, data
}

// fill publishes n requests to a lane, as fast as the stream takes them.
func (w *world) fill(ctx context.Context, connection, lane string, n int, mix func(i int) (class, string)) error {
	places := map[string]int{}
	for i := range n {
		c, key := mix(i)
		if key != "" {
			places[key]++
		}
		_, data := w.request(connection, lane, c, key, places[key])
		if _, err := w.js.PublishAsync(subject(connection, lane), data, jetstream.WithStallWait(time.Minute)); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	select {
	case <-w.js.PublishAsyncComplete():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mixture is a share of heavy calls and of inserts, the rest light.
func mixture(random *rand.Rand, heavies, inserts float64) func(int) (class, string) {
	return func(int) (class, string) {
		switch x := random.Float64(); {
		case x < heavies:
			return heavy, ""
		case x < heavies+inserts:
			return insert, ""
		}
		return light, ""
	}
}

// replies counts answers and times those that are waited for.
type replies struct {
	mu       sync.Mutex
	answered map[string]int // by connection and lane: "o1-0.bulk"
	errors   map[string]int // by code, or status of Zoho's that isn't 2xx
	waiting  map[string]chan time.Time
}

func (w *world) listen() (*replies, error) {
	r := &replies{answered: map[string]int{}, errors: map[string]int{}, waiting: map[string]chan time.Time{}}
	sub, err := w.nc.Subscribe(inbox+">", func(m *nats.Msg) {
		now := time.Now()
		part := strings.Split(strings.TrimPrefix(m.Subject, inbox), ".")
		if len(part) != 3 {
			return
		}
		problem := ""
		var answer struct {
			Status int `json:"status"`
			Error  *struct {
				Code string `json:"code"`
			} `json:"error"`
		}
		switch err := json.Unmarshal(m.Data, &answer); {
		case err != nil:
			problem = "unreadable answer"
		case answer.Error != nil:
			problem = answer.Error.Code
		case answer.Status > 299:
			problem = fmt.Sprint("status ", answer.Status)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.answered[part[0]+"."+part[1]]++
		if problem != "" {
			r.errors[problem]++
		}
		if c := r.waiting[part[2]]; c != nil {
			delete(r.waiting, part[2])
			c <- now
		}
	})
	if err != nil {
		return nil, err
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	return r, w.nc.Flush()
}

func (r *replies) snapshot() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := make(map[string]int, len(r.answered))
	for k, n := range r.answered {
		m[k] = n
	}
	return m
}

func (r *replies) problems() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	for code, n := range r.errors {
		fmt.Fprintf(&b, ", %d %s", n, code)
	}
	return strings.TrimPrefix(b.String(), ", ")
}

// ask publishes one interactive request and returns a channel that tells when it was answered.
func (w *world) ask(ctx context.Context, r *replies, connection string) (<-chan time.Time, error) {
	id, data := w.request(connection, interactive, light, "", 0)
	answered := make(chan time.Time, 1)
	r.mu.Lock()
	r.waiting[id] = answered
	r.mu.Unlock()
	_, err := w.js.Publish(ctx, subject(connection, interactive), data)
	return answered, err
}

// trickle asks a connection for interactive work at a pace until the time is over and returns what each request
// took; those that were not answered within a minute count as a minute.
func (w *world) trickle(ctx context.Context, r *replies, connection string, pace, span time.Duration) (took spans, err error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for end := time.Now().Add(span); time.Now().Before(end); {
		begun := time.Now()
		answered, err := w.ask(ctx, r, connection)
		if err != nil {
			return nil, err
		}
		all.Go(func() {
			d := time.Minute
			select {
			case at := <-answered:
				d = at.Sub(begun)
			case <-time.After(time.Minute):
			case <-ctx.Done():
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, d)
		})
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	all.Wait()
	return took, nil
}

// control makes the same call as a trickle's straight to the simulator, at the same
// pace: what the machine itself adds.
func (w *world) control(ctx context.Context, token string, pace, span time.Duration) (took spans, err error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for end := time.Now().Add(span); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(pace) {
		all.Go(func() {
			request, _ := http.NewRequestWithContext(ctx, http.MethodGet, w.zohoURL+"/crm/v8/Leads?fields=id&per_page=1", nil)
			request.Header.Set("Authorization", "Zoho-oauthtoken "+token)
			begun := time.Now()
			response, e := http.DefaultClient.Do(request)
			d := time.Since(begun)
			if e == nil {
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, d)
			if e != nil {
				err = e
			}
		})
	}
	all.Wait()
	return took, err
}
