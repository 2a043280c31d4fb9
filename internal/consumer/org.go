package consumer

import (
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"zoho-worker/internal/flow"
	"zoho-worker/internal/lease"
)

// org is an org that this worker serves: its lanes, and what may be started.
// All that is in flight for the org is in this process, so its limits are kept
// here and nowhere else.
type org struct {
	*Consumer
	name string
	hold *lease.Hold
	// inherited says that the owner before gave the org up with calls under way.
	inherited bool

	// Under gate.mu.
	inLine, turn bool

	mu      sync.Mutex
	flow    *flow.Governor
	lanes   map[laneKey]*lane
	started map[laneKey]bool // lanes that were served since the org was taken
	chains  map[string]*chain
	trials  trials
	before  map[laneKey]int // requests in hand of the worker before, of lanes not served yet
	// counted are the lanes whose requests in hand of the worker before were counted;
	// uncounted is how many calls it had under way, until all are.
	counted   map[laneKey]bool
	uncounted int
	// blocked is why nothing more was started when it was last tried.
	blocked  flow.Reason
	waitsTo  time.Time // until when it waits for credits, as was last told
	starts   uint64
	inRow    int // interactive requests started in a row while bulk ones waited
	timer    *time.Timer
	closed   bool
	quiet    time.Time // since when it has no lane; zero: it has
	saving   bool
	unsaved  bool // what was to be saved is not in what was written last, or that failed
	saved    time.Time
	resumed  time.Time
	pulls    sync.WaitGroup // lanes being served; grows only until the org is closed
	leftover int            // calls of an earlier tenure that still run in this process
}

func newOrg(c *Consumer, name string, hold *lease.Hold) *org {
	st, err := readState(hold.State())
	if err != nil {
		c.Logger.Warn("the record of the org can't be read: its limits begin anew", "queue", name, "err", err)
	}
	o := &org{
		Consumer: c, name: name, hold: hold, inherited: st.Running > 0 && !hold.Crashed,
		flow: flow.New(c.directory.limits(name), st.State), resumed: st.Resumed,
		lanes: map[laneKey]*lane{}, started: map[laneKey]bool{}, chains: map[string]*chain{},
		before: map[laneKey]int{}, counted: map[laneKey]bool{},
		quiet: time.Now(), saved: time.Now(), trials: newTrials(st, hold.Crashed && !hold.Own),
	}
	if o.inherited {
		o.uncounted = st.Running
	}
	return o
}

// wake serves a lane that has requests.
func (o *org) wake(k laneKey) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.lanes[k]; l != nil {
		l.wanted = true
		return
	}
	if o.closed {
		return
	}
	if !usable(o.directory.member(o.name, k.connection)) {
		delete(o.before, k) // nobody would ever count it off
		o.countForeign()
		o.admitOrdered(k.connection)
		return
	}
	l := &lane{laneKey: k, org: o, window: o.window(), share: &turns{}, news: make(chan struct{}, 1)}
	if twin := o.lanes[laneKey{k.connection, k.lane.twin()}]; twin != nil {
		l.share = twin.share
	}
	o.lanes[k] = l
	o.quiet = time.Time{}
	fresh := !o.started[k]
	o.started[k] = true
	o.pulls.Add(1)
	o.loops.Go(func() {
		defer o.pulls.Done()
		l.serve(fresh)
	})
}

// window is how many requests of a lane are taken in hand: enough that a place
// that falls free needs no round trip, and to look past requests that can't be
// started yet.
func (o *org) window() int { return min(max(2*o.directory.limits(o.name).Places, 16), 3*windowMost/4) }

// close takes nothing more up and gives back what is not begun; what is under
// way ends as it does.
func (o *org) close() {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	o.closed = true
	if o.timer != nil {
		o.timer.Stop()
	}
	back := o.shut(slices.Collect(maps.Values(o.lanes)))
	o.mu.Unlock()
	for _, e := range back {
		o.giveBack(e)
	}
	o.finished(o.name) // this worker may have it again, and have counted those
	o.pulls.Wait()     // what was on its way is given back, too
}

// refresh brings the org up to date with the records of its connections.
func (o *org) refresh() {
	limits, window := o.directory.limits(o.name), o.window()
	o.mu.Lock()
	o.flow.Configure(limits)
	var useless []*lane
	for k, l := range o.lanes {
		if !usable(o.directory.member(o.name, k.connection)) {
			useless = append(useless, l)
			delete(o.lanes, k)
			continue
		}
		l.resize(window)
	}
	back := o.shut(useless)
	if len(o.lanes) == 0 && o.quiet.IsZero() {
		o.quiet = time.Now()
	}
	o.dispatch()
	for _, e := range back {
		o.giveBack(e)
	}
}

// Sight is what the owner of an org says of it.
type Sight struct {
	Queue   string `json:"queue"`
	Owner   string `json:"owner"` // host and process
	Places  int    `json:"places"`
	Running int    `json:"running"`
	Heavy   int    `json:"heavy"`
	// Held are in hand and not begun; Blocked is why, if the org is held back.
	Held    int         `json:"held"`
	Blocked flow.Reason `json:"blocked,omitempty"`
	Lanes   []LaneSight `json:"lanes,omitempty"`
	State   flow.State  `json:"state"`
}

// LaneSight is one lane.
type LaneSight struct {
	Connection string `json:"connection"`
	Lane       Lane   `json:"lane,omitempty"`
	Running    int    `json:"running"`
	Held       int    `json:"held"`
}

func (o *org) sight() Sight {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := Sight{Queue: o.name, Owner: host + "/" + strconv.Itoa(os.Getpid()), Places: o.flow.Limit(), Blocked: o.blocked, State: o.flow.State()}
	s.Running, s.Heavy = o.flow.Running()
	for k, l := range o.lanes {
		s.Held += l.inHand - l.running
		s.Lanes = append(s.Lanes, LaneSight{k.connection, k.lane, l.running, l.inHand - l.running})
	}
	slices.SortFunc(s.Lanes, func(a, b LaneSight) int {
		return strings.Compare(a.Connection+"."+string(a.Lane), b.Connection+"."+string(b.Lane))
	})
	return s
}
