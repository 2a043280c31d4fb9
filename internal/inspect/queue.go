package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/register"
)

// Queue is an org's queue.
type Queue struct {
	Name string `json:"name"`
	// Connections are those of the org that have work.
	Connections []string `json:"connections"`
	// Owner is the worker that serves the org; "": none says so.
	Owner string `json:"owner,omitempty"`
	// Waiting are the requests in the stream that are not under way.
	Waiting  int `json:"waiting"`
	InFlight int `json:"in_flight"`
	// Places is the org's limit of calls in flight, as Zoho was last seen to allow;
	// 0: not known.
	Places      int `json:"places"`
	Heavy       int `json:"heavy"` // of those in flight
	HeavyPlaces int `json:"heavy_places"`
	// Blocked is what holds back the requests that its worker has in hand.
	Blocked flow.Reason `json:"blocked,omitempty"`
	Lanes   []Lane      `json:"lanes,omitempty"`
	// Paused is for how long still nothing is started, for the answer Cause of
	// Zoho's, which was taken for the limit For.
	Paused      time.Duration `json:"paused_ns,omitempty"`
	PausedUntil time.Time     `json:"paused_until,omitzero"`
	Cause       string        `json:"cause,omitempty"`
	For         flow.Cause    `json:"for,omitempty"`
	// HeavyPause is a pause of heavy calls only.
	HeavyPause *flow.Pause `json:"heavy_pause,omitempty"`
	// Credits are the org's; nil where none are known to be used.
	Credits *flow.Forecast `json:"credits,omitempty"`

	lowered bool // Places is less than is configured
}

// Lane is one lane of a connection.
type Lane struct {
	Connection string `json:"connection"`
	Lane       string `json:"lane,omitempty"`
	Waiting    int    `json:"waiting"` // not under way
	InFlight   int    `json:"in_flight"`
	Held       int    `json:"held"` // of those that wait, in hand of the org's worker
}

// Waiting is how many requests of a connection wait that is in no queue that is
// known.
type Waiting struct {
	Connection string `json:"connection"`
	Requests   int    `json:"requests"`
	// State is Authorization or Stranger; "" where it could not be seen.
	State State `json:"state,omitempty"`
}

const (
	requestPrefix    = "zoho.requests."
	connectionPrefix = "zoho.connections."
)

// Bounds of one look: how many records it reads of what no worker tells of, how
// many at a time, and how long one may take.
const (
	recordsMost = 100
	recordsWays = 8
	recordTime  = 2 * time.Second
	// blindFor is for how long nobody asks again who may not read the records.
	blindFor = time.Minute
)

// ErrNoConnection says that there is no connection of that name.
var ErrNoConnection = errors.New("there is no such connection")

// stored are the requests in the stream: by connection and lane.
type stored struct {
	stream jetstream.Stream
	now    time.Time // of the server
	counts map[string]map[string]int
}

func (r *Reader) stored(ctx context.Context) (*stored, error) {
	stream, err := r.JS.Stream(ctx, consumer.RequestStream)
	if err != nil {
		return nil, err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(requestPrefix+">"))
	if err != nil {
		return nil, fmt.Errorf("look at stream %s: %w", consumer.RequestStream, err)
	}
	s := &stored{stream: stream, now: now(info), counts: map[string]map[string]int{}}
	for subject, n := range info.State.Subjects {
		name, lane := laneOf(subject)
		if s.counts[name] == nil {
			s.counts[name] = map[string]int{}
		}
		s.counts[name][lane] += int(n)
	}
	return s, nil
}

// laneOf are the connection and the lane of a request's subject.
func laneOf(subject string) (name, lane string) {
	name, lane, _ = strings.Cut(strings.TrimPrefix(subject, requestPrefix), ".")
	return name, lane
}

// sights asks the workers for the orgs that they serve, or for one of them.
func (r *Reader) sights(ctx context.Context, queue string) map[string]consumer.Sight {
	sights := map[string]consumer.Sight{}
	r.ask(ctx, "zoho.orgs", []byte(queue), func(data []byte) (enough bool) {
		var told []consumer.Sight
		_ = json.Unmarshal(data, &told) // what can't be read tells of nothing
		for _, s := range told {
			sights[s.Queue] = s
		}
		return queue != "" && len(told) > 0
	})
	return sights
}

// Queues are the org queues that a worker serves or that have requests, those
// with the most waiting first, and the connections with requests whose queue is
// not known. The error is jetstream.ErrStreamNotFound where no worker ever ran.
func (r *Reader) Queues(ctx context.Context) ([]Queue, []Waiting, error) {
	var sights map[string]consumer.Sight
	var asking sync.WaitGroup
	asking.Go(func() { sights = r.sights(ctx, "") })
	there, err := r.stored(ctx)
	asking.Wait()
	if err != nil {
		return nil, nil, err
	}
	known := map[string]*Queue{}
	for name, sight := range sights {
		q := &Queue{Name: name}
		q.see(sight, there)
		known[name] = q
	}
	unqueued := r.rest(ctx, there, known)
	queues := make([]Queue, 0, len(known))
	for _, q := range known {
		q.finish()
		queues = append(queues, *q)
	}
	slices.SortFunc(queues, func(a, b Queue) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.InFlight, a.InFlight), strings.Compare(a.Name, b.Name))
	})
	slices.SortFunc(unqueued, func(a, b Waiting) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), strings.Compare(a.Connection, b.Connection))
	})
	return queues, unqueued, nil
}

// Queue is the queue that the connection's requests are in. The errors are
// ErrNoConnection and those of a server that doesn't answer.
func (r *Reader) Queue(ctx context.Context, name string) (*Queue, error) {
	record, err := r.connection(ctx, nil, name)
	if err != nil {
		return nil, err
	}
	there, err := r.stored(ctx)
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, err
	}
	if there == nil {
		there = &stored{now: time.Now()}
	}
	return r.queue(ctx, record, there)
}

// queue is the queue of a connection, as its worker tells of it, else as its
// record does.
func (r *Reader) queue(ctx context.Context, record *connection.Connection, there *stored) (*Queue, error) {
	q := &Queue{Name: record.Queue(), Places: record.Places()}
	sight, served := r.sights(ctx, q.Name)[q.Name]
	if served {
		q.see(sight, there)
	} else {
		if c := r.smallest(ctx)[q.Name]; c != nil {
			q.Places = c.Places()
		}
		if err := r.recorded(ctx, q, there.now); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(q.Connections, record.Name) {
		q.add(record.Name, there)
	}
	q.finish()
	return q, nil
}

// see takes in what the worker says that serves the org.
func (q *Queue) see(s consumer.Sight, there *stored) {
	q.Owner, q.InFlight, q.Places, q.Heavy, q.Blocked = s.Owner, s.Running, s.Places, s.Heavy, s.Blocked
	q.lowered = s.State.Limit > 0 && s.State.Limit <= s.Places
	q.state(s.State, there.now)
	for _, lane := range s.Lanes {
		if !slices.Contains(q.Connections, lane.Connection) {
			q.add(lane.Connection, there)
		}
		l := q.lane(lane.Connection, string(lane.Lane))
		l.InFlight, l.Held = lane.Running, lane.Held
		// What is settled is counted a moment longer by the one or the other.
		l.Waiting = max(l.Waiting-lane.Running, lane.Held)
	}
}

// state takes in what is kept of the org's limits.
func (q *Queue) state(s flow.State, now time.Time) {
	q.HeavyPlaces = min(flow.HeavyPlaces, q.Places)
	if s.HeavyLimit > 0 {
		q.HeavyPlaces = min(q.HeavyPlaces, s.HeavyLimit)
	}
	for _, p := range []*flow.Pause{s.Pause, s.Hand} {
		if p != nil && p.Until.After(now) && p.Until.After(q.PausedUntil) {
			q.Paused, q.PausedUntil, q.Cause, q.For = p.Until.Sub(now), p.Until, p.Cause, p.For
		}
	}
	if p := s.HeavyPause; p != nil && p.Until.After(now) {
		q.HeavyPause = p
	}
	if f := s.Forecast(now); f.Used > 0 || f.Remaining != nil {
		q.Credits = &f
	}
}

// add counts the requests of a connection of the org.
func (q *Queue) add(name string, there *stored) {
	q.Connections = append(q.Connections, name)
	for lane, n := range there.counts[name] {
		q.Lanes = append(q.Lanes, Lane{Connection: name, Lane: lane, Waiting: n})
	}
}

// lane is one of the queue's lanes.
func (q *Queue) lane(name, lane string) *Lane {
	for i := range q.Lanes {
		if q.Lanes[i].Connection == name && q.Lanes[i].Lane == lane {
			return &q.Lanes[i]
		}
	}
	q.Lanes = append(q.Lanes, Lane{Connection: name, Lane: lane})
	return &q.Lanes[len(q.Lanes)-1]
}

func (q *Queue) finish() {
	slices.Sort(q.Connections)
	slices.SortFunc(q.Lanes, func(a, b Lane) int {
		return cmp.Or(strings.Compare(a.Connection, b.Connection), strings.Compare(a.Lane, b.Lane))
	})
	for _, l := range q.Lanes {
		q.Waiting += l.Waiting
	}
}

// rest finds the queues of the connections with requests that no worker told of,
// as far as their records can be read; what is left is returned.
func (r *Reader) rest(ctx context.Context, there *stored, known map[string]*Queue) (unqueued []Waiting) {
	told := map[string]bool{}
	for _, q := range known {
		for _, name := range q.Connections {
			told[name] = true
		}
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(there.counts)) {
		if !told[name] {
			names = append(names, name)
		}
	}
	records := r.connections(ctx, names)
	var fresh []*Queue
	for _, name := range names {
		w := Waiting{Connection: name}
		for _, n := range there.counts[name] {
			w.Requests += n
		}
		switch record, read := records[name]; {
		case !read:
			unqueued = append(unqueued, w)
		case record == nil:
			w.State = Stranger
			unqueued = append(unqueued, w)
		case record.Status != connection.Active:
			w.State = Authorization
			unqueued = append(unqueued, w)
		default:
			q := known[record.Queue()]
			if q == nil {
				q = &Queue{Name: record.Queue(), Places: record.Places()}
				known[q.Name] = q
				fresh = append(fresh, q)
			}
			if q.Owner == "" {
				q.Places = min(q.Places, record.Places())
			}
			q.add(name, there)
		}
	}
	if len(fresh) > 0 {
		smallest := r.smallest(ctx)
		for _, q := range fresh {
			if c := smallest[q.Name]; c != nil {
				q.Places = c.Places()
			}
		}
	}
	each(fresh, func(q *Queue) { _ = r.recorded(ctx, q, there.now) }) // what can't be read says nothing
	return unqueued
}

// each works on the items, a few at a time.
func each[T any](items []T, work func(T)) {
	var working errgroup.Group
	working.SetLimit(recordsWays)
	for _, item := range items {
		working.Go(func() error {
			work(item)
			return nil
		})
	}
	_ = working.Wait()
}

// connections reads the records of connections, the first recordsMost; nil for
// one that is not there. Who may not read them gets none: an observer.
func (r *Reader) connections(ctx context.Context, names []string) map[string]*connection.Connection {
	records := map[string]*connection.Connection{}
	registers := register.New(r.JS, connection.StreamName, recordTime)
	var mu sync.Mutex
	read := func(name string) error {
		record, err := r.connection(ctx, registers, name)
		if err == nil || errors.Is(err, ErrNoConnection) {
			mu.Lock()
			records[name] = record
			mu.Unlock()
			return nil
		}
		return err
	}
	if len(names) == 0 || time.Now().UnixNano() < r.blindUntil.Load() {
		return records
	}
	if read(names[0]) != nil {
		r.blindUntil.Store(time.Now().Add(blindFor).UnixNano())
		return records
	}
	each(names[1:min(len(names), recordsMost)], func(name string) { _ = read(name) })
	return records
}

// smallest has of each org the connection that limits it, for orgs that no worker
// tells of; nil where there are more connections than one look reads, or they can't be read.
func (r *Reader) smallest(ctx context.Context) map[string]*connection.Connection {
	stream, err := r.JS.Stream(ctx, connection.StreamName)
	if err != nil {
		return nil
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(connectionPrefix+">"))
	if err != nil || len(info.State.Subjects) > recordsMost {
		return nil
	}
	var names []string
	for subject := range info.State.Subjects {
		names = append(names, strings.TrimPrefix(subject, connectionPrefix))
	}
	var all []*connection.Connection
	for _, record := range r.connections(ctx, names) {
		if record != nil {
			all = append(all, record)
		}
	}
	return connection.Smallest(all)
}

// connection reads the record of a connection. The error is ErrNoConnection
// where there is none, or none any more.
func (r *Reader) connection(ctx context.Context, records *register.Stream, name string) (*connection.Connection, error) {
	if !envelope.ValidConnection(name) { // with a wildcard it would be another's
		return nil, fmt.Errorf("%w: %s", ErrNoConnection, name)
	}
	if records == nil {
		records = register.New(r.JS, connection.StreamName, recordTime)
	}
	entry, err := records.Get(ctx, connectionPrefix+name)
	if errors.Is(err, register.ErrNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrNoConnection, name)
	}
	if err != nil {
		return nil, err
	}
	record := &connection.Connection{}
	if readable := json.Unmarshal(entry.Data, record) == nil && record.Name == name; !readable {
		return &connection.Connection{Name: name, Status: connection.Unreadable}, nil
	}
	if record.Status == connection.Removed {
		return nil, fmt.Errorf("%w: %s", ErrNoConnection, name)
	}
	return record, nil
}

// recorded takes in what the org's record says: of the worker that serves it,
// which did not tell of it itself, and of its limits.
func (r *Reader) recorded(ctx context.Context, q *Queue, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 2*recordTime)
	defer cancel()
	record, err := lease.Read(ctx, r.JS, q.Name)
	if errors.Is(err, register.ErrNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		q.state(flow.State{}, now)
		return nil
	}
	if err != nil {
		return err
	}
	state := consumer.DecodeState(record.State)
	if state.Limit > 0 && state.Limit < q.Places {
		q.Places, q.lowered = state.Limit, true
	}
	q.state(state, now)
	if record.Owner != "" {
		session, _ := lease.ReadSession(ctx, r.JS, record.Owner, now)
		q.Owner = session.Host
	}
	return nil
}
