package consumer

import (
	"strings"
	"sync"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/flow"
)

// directory knows which org a connection belongs to. It is a view of the
// connection records: every worker that has seen the same records has the same.
type directory struct {
	reserve float64

	mu      sync.RWMutex
	members map[string]map[string]*connection.Connection // queue → name → connection
	queueOf map[string]string                            // connection name → queue, for known connections
}

func newDirectory(reserve float64) *directory {
	return &directory{reserve: reserve, members: map[string]map[string]*connection.Connection{}, queueOf: map[string]string{}}
}

// put takes a changed record in and returns the queues it touches.
func (d *directory) put(c *connection.Connection) (touched []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, known := d.queueOf[c.Name]
	if known {
		delete(d.members[before], c.Name)
		if len(d.members[before]) == 0 {
			delete(d.members, before)
		}
		delete(d.queueOf, c.Name)
		touched = append(touched, before)
	}
	if c.Status == connection.Removed {
		return touched
	}
	after := c.Queue()
	if d.members[after] == nil {
		d.members[after] = map[string]*connection.Connection{}
	}
	d.members[after][c.Name], d.queueOf[c.Name] = c, after
	if after != before {
		touched = append(touched, after)
	}
	return touched
}

// queue returns the org's queue that the connection's requests are in, "" where
// nobody knows the connection.
func (d *directory) queue(name string) string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.queueOf[name]
}

// member returns the connection if it belongs to the queue.
func (d *directory) member(queue, name string) *connection.Connection {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.members[queue][name]
}

// names returns the connections of the queue.
func (d *directory) names(queue string) []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	names := make([]string, 0, len(d.members[queue]))
	for name := range d.members[queue] {
		names = append(names, name)
	}
	return names
}

// limits are the org's. Where its connections disagree, the smallest counts:
// it is safe for all.
func (d *directory) limits(queue string) flow.Limits {
	d.mu.RLock()
	defer d.mu.RUnlock()
	l := flow.Limits{Reserve: d.reserve}
	for name, c := range d.members[queue] {
		if places := c.Places(); l.Places == 0 || places < l.Places {
			l.Places = places
		}
		if c.DailyCredits > 0 {
			if l.Budgets == nil {
				l.Budgets = map[string]int{}
			}
			l.Budgets[name] = c.DailyCredits
		}
	}
	l.Places = max(1, l.Places)
	return l
}

// usable reports whether requests of the connection can be carried out: those of
// one that is revoked or can't be read wait for a person.
func usable(c *connection.Connection) bool {
	return c != nil && c.Status == connection.Active && c.Err() == nil
}

// Lane is where a connection's requests wait: the name is what follows the
// connection in the subject.
type Lane string

// The lanes. What is heavy is moved to a lane of its own by the worker, where
// so much of it waits that the light requests behind it would have to wait too.
const (
	Interactive Lane = ""
	Bulk        Lane = "bulk"
	heavyLane   Lane = "heavy"
	heavyBulk   Lane = "bulk.heavy"
)

var lanes = []Lane{Interactive, Bulk, heavyLane, heavyBulk}

// bulk reports whether the lane takes what interactive ones leave.
func (l Lane) bulk() bool { return l == Bulk || l == heavyBulk }

// aside is the lane that heavy requests are moved to; false: they stay.
func (l Lane) aside() (Lane, bool) {
	switch l {
	case Interactive:
		return heavyLane, true
	case Bulk:
		return heavyBulk, true
	}
	return l, false
}

// twin is the lane beside it that heavy requests are moved to, or came from.
func (l Lane) twin() Lane {
	switch l {
	case Interactive:
		return heavyLane
	case heavyLane:
		return Interactive
	case Bulk:
		return heavyBulk
	}
	return Bulk
}

// laneKey names one lane of one connection.
type laneKey struct {
	connection string
	lane       Lane
}

const (
	requestPrefix  = "zoho.requests."
	activityPrefix = "zoho.activity."
	wakePrefix     = "zoho.wake."
)

func (k laneKey) subject() string { return requestPrefix + k.rest() }

// rest is the subject behind its prefix.
func (k laneKey) rest() string {
	if k.lane == "" {
		return k.connection
	}
	return k.connection + "." + string(k.lane)
}

// Durable is the name of the JetStream consumer of a connection's lane.
func Durable(connection string, lane Lane) string { return laneKey{connection, lane}.durable() }

// durable is the name of the lane's JetStream consumer, which may hold no dots.
func (k laneKey) durable() string { return strings.ReplaceAll(k.rest(), ".", "~") }

// parseLane reads what follows the prefix in a subject; false: there is no such lane.
func parseLane(rest string) (laneKey, bool) {
	name, lane, _ := strings.Cut(rest, ".")
	k := laneKey{name, Lane(lane)}
	for _, known := range lanes {
		if k.lane == known {
			return k, name != ""
		}
	}
	return k, false
}

// restOf is a subject without its prefix, "" where it is none of ours.
func restOf(subject string) string {
	for _, prefix := range []string{requestPrefix, activityPrefix, wakePrefix} {
		if rest, ok := strings.CutPrefix(subject, prefix); ok {
			return rest
		}
	}
	return ""
}

// connectionOf returns the connection of a request subject, "" where it is none.
func connectionOf(subject string) string {
	name, _, _ := strings.Cut(restOf(subject), ".")
	return name
}
