package chaos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// request is a request, and what its requester knows of it.
type request struct {
	id, tenant, org string
	method          string
	unique, probed  bool
	inbox           bool
	url, digest     string // what Zoho must see: path and body
	data            []byte
	hurried         bool // has a deadline that may pass
	published       time.Time
	again           bool // published a second time
	asked           bool // asked again after the faults, because a reply was lost with a NATS node
}

// fleeting: answered to the inbox, not stored.
func (q *request) fleeting() bool { return q.inbox && q.method == "GET" }

// Bounds of the load: as many requesters, each with a pause between its
// requests, and at most so many requests in all, because the books of all of them
// are kept in memory.
const (
	requesters  = 8
	leastPause  = 700 * time.Millisecond
	mostOrders  = 100_000
	longest     = 30 * time.Minute // the deadline of a request that is not hurried
	replyPrefix = "_INBOX.chaos."
)

// load is the requests that the stream has acknowledged, and the replies.
type load struct {
	*world
	pause    time.Duration // at most, between two requests of a requester
	mu       sync.Mutex
	requests map[string]*request
	replies  map[string][][]byte
	replied  map[string]time.Time // the first reply
	repeats  int                  // messages beyond the first of a request
}

func newLoad(w *world) *load {
	l := &load{world: w, pause: pauseFor(w.lasts), requests: map[string]*request{}, replies: map[string][][]byte{}, replied: map[string]time.Time{}}
	sub, err := w.nc.Subscribe(replyPrefix+">", func(m *nats.Msg) {
		l.mu.Lock()
		defer l.mu.Unlock()
		id := strings.TrimPrefix(m.Subject, replyPrefix)
		l.replies[id] = append(l.replies[id], m.Data)
		if l.replied[id].IsZero() {
			l.replied[id] = time.Now()
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = sub.Unsubscribe() })
	return l
}

// pauseFor is the longest pause with which the load lasts as long as the faults do:
// twice the mean of what the requests that there may be are apart.
func pauseFor(lasts time.Duration) time.Duration {
	return max(leastPause, 2*lasts*requesters/mostOrders)
}

// run publishes until stop is closed and everything begun is acknowledged.
func (l *load) run(seed uint64, stop <-chan struct{}) {
	var all sync.WaitGroup
	for i := range requesters {
		all.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i+1)))
			for n := range mostOrders / requesters {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(random.Int64N(int64(l.pause)))):
				}
				q := l.make(random, fmt.Sprintf("%d-%d", i, n))
				if !l.publish(q) {
					return
				}
				if random.IntN(100) < 15 {
					later := time.Duration(random.Int64N(int64(4 * time.Second)))
					all.Go(func() {
						time.Sleep(later)
						l.publish(q)
					})
				}
			}
		})
	}
	all.Wait()
}

type doc map[string]any

// make makes a request of any kind.
func (l *load) make(random *rand.Rand, serial string) *request {
	c := tenants[random.IntN(len(tenants))]
	q := &request{tenant: c.name, org: c.org, inbox: random.IntN(2) == 0, url: "/v8/Leads"}
	var body []byte
	query := doc{}
	d := doc{"query": query}
	record := func(fields doc) {
		fields["Company"] = q.id
		body, _ = json.Marshal(doc{"data": []doc{fields}})
	}
	switch n := random.IntN(10); {
	case n < 3:
		q.method, q.id = "POST", c.name+"-post-"+serial
		record(doc{"Last_Name": "Record " + q.id})
	case n < 4:
		// The field that is looked at is not unique: nothing but the lookup is between
		// a lost answer and a second record.
		q.method, q.id, q.probed = "POST", c.name+"-probed-"+serial, true
		record(doc{"Last_Name": "Record " + q.id})
		d["probe"] = doc{"field": "Company"}
	case n < 6:
		q.method, q.id, q.unique = "POST", c.name+"-unique-"+serial, true
		record(doc{"Last_Name": "Record " + q.id, "External_Id": q.id})
		d["unique_field"] = "External_Id"
	case n < 8:
		q.method, q.id = "PUT", c.name+"-put-"+serial
		q.url += "/" + l.seeds[c.org][random.IntN(len(l.seeds[c.org]))]
		record(doc{})
	default:
		q.method, q.id = "GET", c.name+"-get-"+serial
		query["fields"], query["per_page"] = "Last_Name", 3
	}
	query[idParameter] = q.id
	d["id"], d["method"], d["url"] = q.id, q.method, q.url
	deadline := longest
	if random.IntN(100) < 3 {
		q.hurried, deadline = true, 2*time.Second
	}
	d["deadline"] = time.Now().Add(deadline).UTC().Format(time.RFC3339)
	if body != nil {
		d["body"] = json.RawMessage(body)
		sum := sha256.Sum256(body)
		q.digest = hex.EncodeToString(sum[:])
	}
	if q.inbox {
		d["reply_to"] = replyPrefix + q.id
	}
	q.data, _ = json.Marshal(d)
	return q
}

// publish publishes until the stream has acknowledged, as a careful requester
// does, without the server's own deduplication: so a lost acknowledgement is a
// second message too.
func (l *load) publish(q *request) bool {
	for {
		ctx, cancel := context.WithTimeout(l.t.Context(), 3*time.Second)
		_, err := l.js.Publish(ctx, "zoho.requests."+q.tenant, q.data)
		cancel()
		if err == nil {
			break
		}
		if l.t.Context().Err() != nil {
			return false
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.requests[q.id] != nil {
		l.repeats++
		q.again = true
		return true
	}
	q.published = time.Now()
	l.requests[q.id] = q
	return true
}
