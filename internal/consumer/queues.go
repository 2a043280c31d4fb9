package consumer

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
)

// DefaultAckWait is how long the server waits for a sign of life before it hands
// a request to somebody else. All that are in hand give one every third of it.
const DefaultAckWait = 30 * time.Second

// inactive is after what time without pulls the server drops an org's consumer.
// It is longer than any call can take.
const inactive = 10 * time.Minute

// plan is what the consumer of a queue should be.
type plan struct {
	name     string   // the consumer's durable name
	subjects []string // sorted; empty: there should be none
	places   int      // requests of the queue in hand at one time, over all workers
	parked   bool     // waits for a person: no consumer, only deadlines are watched
	ackWait  time.Duration
}

// empty says that there should be no consumer.
func (p plan) empty() bool { return p.parked || len(p.subjects) == 0 }

func (p plan) config() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: p.name, FilterSubjects: p.subjects,
		DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		MaxAckPending: p.places,
		// Deliveries are not attempts: the deadline ends a request, never a count.
		MaxDeliver: -1, AckWait: p.ackWait, InactiveThreshold: inactive,
		// Losing it redelivers what was in hand, nothing else.
		MemoryStorage: true,
	}
}

// covers reports whether the consumer is as the plan says.
func (p plan) covers(c jetstream.ConsumerConfig) bool {
	return p.sameSubjects(c) && c.MaxAckPending == p.places
}

// sameSubjects reports whether the consumer has the plan's subjects.
func (p plan) sameSubjects(c jetstream.ConsumerConfig) bool {
	have := c.FilterSubjects
	if len(have) == 0 && c.FilterSubject != "" {
		have = []string{c.FilterSubject}
	}
	have = slices.Sorted(slices.Values(have))
	return slices.Equal(have, p.subjects)
}

// directory knows which queue a connection's requests are in. It is a view of
// the connection records: every worker that has seen the same records has the same.
type directory struct {
	ackWait time.Duration

	mu      sync.RWMutex
	members map[string]map[string]*connection.Connection // queue → name → connection
	queueOf map[string]string                            // connection name → queue, for known connections
	blocked map[string]bool                              // connections that can get no token for a while
}

func newDirectory(ackWait time.Duration) *directory {
	return &directory{
		ackWait: ackWait,
		members: map[string]map[string]*connection.Connection{}, queueOf: map[string]string{}, blocked: map[string]bool{},
	}
}

// strangerPlaces is for requests of connections that don't exist: they are
// refused at once, there is nobody's limit to keep.
const strangerPlaces = 10

// put takes a changed record in and returns the queues it touches: the one the
// connection left first, because two consumers may not overlap.
func (d *directory) put(c *connection.Connection) (touched []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.place(c)
}

func (d *directory) isBlocked(name string) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.blocked[name]
}

// block takes in whether a connection can get no token for a while, and returns
// the queues that this touches: none where it was known.
func (d *directory) block(name string, blocked bool) (touched []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blocked[name] == blocked {
		return nil
	}
	if blocked {
		d.blocked[name] = true
	} else {
		delete(d.blocked, name)
	}
	if c := d.members[d.queueOf[name]][name]; c != nil {
		return d.place(c)
	}
	return nil
}

// place puts the connection where it belongs; the lock is held.
func (d *directory) place(c *connection.Connection) (touched []string) {
	before, known := d.queueOf[c.Name]
	if !known {
		before = strangerQueue(c.Name)
	}
	if members := d.members[before]; members != nil {
		delete(members, c.Name)
		if len(members) == 0 {
			delete(d.members, before)
		}
	}
	delete(d.queueOf, c.Name)
	after := strangerQueue(c.Name)
	switch {
	case c.Status == connection.Active && !d.blocked[c.Name]:
		after = c.Queue()
	case c.Status != connection.Removed:
		after = parkedQueue(c.Name)
	}
	if c.Status != connection.Removed {
		d.queueOf[c.Name] = after
		if d.members[after] == nil {
			d.members[after] = map[string]*connection.Connection{}
		}
		d.members[after][c.Name] = c
	}
	if before == after {
		return []string{after}
	}
	return []string{before, after}
}

// queue returns the queue that holds the connection's requests.
func (d *directory) queue(name string) string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if q, ok := d.queueOf[name]; ok {
		return q
	}
	return strangerQueue(name)
}

// plan returns what the queue's consumer should be.
func (d *directory) plan(queue string) plan {
	d.mu.RLock()
	defer d.mu.RUnlock()
	p := plan{name: durable(queue), ackWait: d.ackWait}
	if name, ok := strings.CutPrefix(queue, strangerPrefix); ok {
		if _, known := d.queueOf[name]; !known {
			p.places, p.subjects = strangerPlaces, subjects(name)
		}
		return p
	}
	for name, c := range d.members[queue] {
		p.subjects = append(p.subjects, subjects(name)...)
		// Where the connections of an org disagree, the smallest limit is safe for all.
		if places := c.Places(); p.places == 0 || places < p.places {
			p.places = places
		}
	}
	p.parked = strings.HasPrefix(queue, parkedPrefix)
	slices.Sort(p.subjects)
	return p
}

const (
	strangerPrefix = "unknown/"
	parkedPrefix   = "parked/"
)

func strangerQueue(name string) string { return strangerPrefix + name }
func parkedQueue(name string) string   { return parkedPrefix + name }

// subjects are a connection's own and its lanes'.
func subjects(name string) []string {
	return []string{"zoho.requests." + name, "zoho.requests." + name + ".>"}
}

var unsafeName = regexp.MustCompile(`[^A-Za-z0-9_-]`)

// durable turns a queue into a consumer name, which may hold no dots, slashes
// or wildcards. A digest keeps different queues apart.
func durable(queue string) string {
	name := unsafeName.ReplaceAllString(queue, "-")
	if name == queue && len(name) <= 64 {
		return name
	}
	sum := sha256.Sum256([]byte(queue))
	return name[:min(len(name), 64)] + "-" + hex.EncodeToString(sum[:6])
}

// connectionOf returns the connection of a request subject, "" where it is none.
func connectionOf(subject string) string {
	rest, ok := strings.CutPrefix(subject, "zoho.requests.")
	if !ok {
		rest, ok = strings.CutPrefix(subject, "zoho.activity.")
	}
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, ".")
	return name
}
