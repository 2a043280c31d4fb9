package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"zoho-worker/internal/lease"
)

// take makes this worker the org's, and serves the lane. It reports whether it
// was not about to do so already.
func (c *Consumer) take(queue string, wanted ...laneKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped || c.orgs[queue] != nil || c.leaving[queue] {
		return false
	}
	there := c.taking[queue]
	begun := there == nil
	if begun {
		there = map[laneKey]bool{}
		c.taking[queue] = there
		c.loops.Go(func() { c.taken(queue) })
	}
	for _, k := range wanted {
		there[k] = true
	}
	return begun
}

// taken takes the org and begins to serve it.
func (c *Consumer) taken(queue string) {
	ctx, cancel := context.WithTimeout(c.pulling, 10*time.Second)
	defer cancel()
	hold, err := c.leases.Take(ctx, queue)
	c.mu.Lock()
	wanted := c.taking[queue]
	delete(c.taking, queue)
	if err != nil || c.stopped {
		c.mu.Unlock()
		switch {
		case err == nil: // stopping
			_ = hold.Release(context.WithoutCancel(ctx), c.freest(), keep)
		case errors.Is(err, lease.ErrHeld):
			for k := range wanted {
				c.tell(k)
			}
		case c.pulling.Err() == nil:
			c.Logger.Warn("org not taken up for a moment", "queue", queue, "err", err)
		}
		return
	}
	o := newOrg(c, queue, hold)
	o.leftover = c.hand.leftovers(o)
	o.countForeign()
	c.orgs[queue] = o
	c.mu.Unlock()
	if hold.Crashed {
		c.Logger.Warn("the worker that served the org is gone: taken over", "queue", queue)
	} else {
		c.Logger.Debug("org taken up", "queue", queue)
	}
	if !hold.Lasts() {
		c.lostOrg(o) // the session ended meanwhile, and lost may have missed this one
		return
	}
	if !o.inherited {
		for k := range wanted {
			o.wake(k)
		}
	}
	// What else has waited of an org that was not given up for want of work; of an
	// inherited one, all that is in hand of the worker before is counted before
	// anything is started.
	found, all := map[laneKey]bool{}, true
	if !hold.Vacant || o.inherited {
		found, all = c.find(o)
	}
	for o.inherited && !all && !o.gone() {
		c.sleep(time.Second)
		found, all = c.find(o)
	}
	for k := range wanted {
		found[k] = true
	}
	o.mu.Lock()
	o.uncounted = 0 // each is in o.before now, or in its lane's count
	o.countForeign()
	for _, l := range o.lanes {
		l.admitOrdered()
	}
	o.dispatch()
	for k := range found {
		o.wake(k)
	}
}

func keep(state json.RawMessage) (json.RawMessage, error) { return state, nil }

// gone reports whether the org is no longer served.
func (o *org) gone() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed || o.pulling.Err() != nil
}

// askEach is up to how many connections of an org are asked for one by one: the
// counts of a whole stream are longer than theirs, and come with one question.
const askEach = 8

// find returns the lanes of an org that have requests, and whether it could see
// all. What it can't see now, the next look does.
func (c *Consumer) find(o *org) (found map[laneKey]bool, all bool) {
	ctx, cancel := context.WithTimeout(c.pulling, 10*time.Second)
	defer cancel()
	found = map[laneKey]bool{}
	var filters []string
	for _, name := range c.directory.names(o.name) {
		filters = append(filters, requestPrefix+name, requestPrefix+name+".>")
	}
	if len(filters) > 2*askEach {
		filters = []string{requestPrefix + ">"}
	}
	for _, filter := range filters {
		info, err := c.Stream.Info(ctx, jetstream.WithSubjectFilter(filter))
		if err != nil {
			return found, false
		}
		for subject := range info.State.Subjects {
			if k, ok := parseLane(restOf(subject)); ok && c.directory.member(o.name, k.connection) != nil {
				found[k] = true
			}
		}
	}
	all = true
	for k := range found {
		if !o.inherited || !usable(c.directory.member(o.name, k.connection)) || o.hasCounted(k) {
			continue
		}
		there, err := c.Stream.Consumer(ctx, k.durable())
		switch {
		case errors.Is(err, jetstream.ErrConsumerNotFound): // nothing of it is in hand
		case err != nil:
			all = false
		default:
			o.mu.Lock()
			if !o.counted[k] {
				o.before[k] = there.CachedInfo().NumAckPending
			}
			o.countForeign()
			o.mu.Unlock()
		}
	}
	return found, all
}

// hasCounted reports whether what the worker before has in hand of a lane was counted.
func (o *org) hasCounted(k laneKey) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, before := o.before[k]
	return before || o.counted[k]
}

// session is what this worker says of itself to the others.
func (c *Consumer) session() lease.Session {
	c.mu.Lock()
	n, stopping := len(c.orgs), c.stopped
	c.mu.Unlock()
	taken, _ := c.gate.state()
	return lease.Session{Host: host, PID: os.Getpid(), Orgs: n, Free: c.MaxInFlight - taken, Wanting: c.wanting(), Stopping: stopping}
}

// takers are the sessions of the other workers that take orgs, as of their last renewal:
// their ids, those with the most places free first.
func (c *Consumer) takers() (ids []string, sessions map[string]lease.Session) {
	sessions = c.leases.Others()
	maps.DeleteFunc(sessions, func(_ string, s lease.Session) bool { return s.Stopping })
	return byFree(sessions), sessions
}

func byFree(sessions map[string]lease.Session) []string {
	return slices.SortedFunc(maps.Keys(sessions), func(a, b string) int { return sessions[b].Free - sessions[a].Free })
}

// wanting is how many requests this worker would start now if it had more places.
func (c *Consumer) wanting() (n int) {
	for _, o := range c.all() {
		o.mu.Lock()
		n += o.wanting()
		o.mu.Unlock()
	}
	return n
}

// wanting is how many of the org's requests only a place of this worker is
// missing for. The lock is held.
func (o *org) wanting() int {
	if o.blocked != WaitWorker {
		return 0
	}
	light, heavy := 0, 0
	for _, l := range o.lanes {
		light += len(l.light)
		heavy += len(l.heavy)
	}
	// What is in the stream doesn't count: a worker has more in hand of each lane
	// than the org has places, if there is more.
	free, heavyFree := o.flow.Free()
	return min(free, light+min(heavy, heavyFree))
}

// leaseChanged hears of a changed record of an org, or that a worker is gone.
func (c *Consumer) leaseChanged(queue string) {
	if queue == "" {
		c.lookSoon()
		return
	}
	o := c.org(queue)
	record, _ := c.leases.Record(queue)
	switch mine := c.leases.Mine(queue); {
	case o != nil && mine:
		go o.told()
	case o != nil && record.Owner != o.hold.Owner():
		go c.lostOrg(o)
	case o == nil && mine && c.take(queue): // handed over
		c.lookSoon()
	case o == nil && mine:
		c.passOn(queue)
	}
}

// passOn hands an org on that came to this worker when it was stopping already: who
// gave it didn't know yet.
func (c *Consumer) passOn(queue string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped || c.leaving[queue] {
		return
	}
	c.leaving[queue] = true
	go func() {
		defer c.departed(queue)
		ctx, cancel := context.WithTimeout(c.calling, 10*time.Second)
		defer cancel()
		hold, err := c.leases.Take(ctx, queue)
		if err == nil {
			err = hold.Release(ctx, c.freest(), keep)
		}
		if err != nil && c.calling.Err() == nil && !errors.Is(err, lease.ErrHeld) && !errors.Is(err, lease.ErrLost) {
			c.Logger.Warn("org not handed on: another worker takes it over when this one's session ends", "queue", queue, "err", err)
		}
	}()
}

// lost gives every org up: the session is over.
func (c *Consumer) lost() {
	c.mu.Lock()
	orgs := slices.Collect(maps.Values(c.orgs))
	clear(c.orgs)
	c.mu.Unlock()
	for _, o := range orgs {
		go o.close()
	}
	c.lookSoon()
}

// lostOrg gives an org up that is another worker's.
func (c *Consumer) lostOrg(o *org) {
	c.mu.Lock()
	if c.orgs[o.name] == o {
		delete(c.orgs, o.name)
	}
	c.mu.Unlock()
	o.close()
}

// finished counts a call off that an earlier tenure of the org had left.
func (c *Consumer) finished(queue string) {
	o := c.org(queue)
	if o == nil {
		return
	}
	o.mu.Lock()
	o.leftover = c.hand.leftovers(o)
	o.countForeign()
	if o.leftover == 0 {
		for _, l := range o.lanes {
			l.admitOrdered()
		}
	}
	o.dispatch()
}

// departed notes that an org that was to be handed over is.
func (c *Consumer) departed(queue string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.leaving, queue)
}

// giveUp hands an org to the worker of session to, or to whoever takes it.
func (c *Consumer) giveUp(ctx context.Context, o *org, to string) {
	c.mu.Lock()
	if c.orgs[o.name] == o {
		delete(c.orgs, o.name)
	}
	// A request may come before it is released. Were it taken up again, what is released
	// would be in use, and the calls begun meanwhile be told to nobody.
	c.leaving[o.name] = true
	c.mu.Unlock()
	defer c.lookSoon() // for that request
	defer func() {
		if c.pulling.Err() == nil {
			c.departed(o.name)
		}
	}()
	o.close()
	// What is given back is there before the org is.
	if err := c.Conn.FlushWithContext(ctx); err != nil {
		return // its session ends: somebody takes the org over
	}
	switch err := o.hold.Release(ctx, to, o.merge); {
	case err == nil:
		c.departed(o.name)
	case c.calling.Err() == nil && !errors.Is(err, lease.ErrLost):
		c.Logger.Warn("org not handed over: another worker takes it over when this one's session ends", "queue", o.name, "err", err)
	}
}

// freest is the session of the other worker that has the most places free, "" for none.
func (c *Consumer) freest() string {
	ids, _ := c.takers()
	if len(ids) == 0 {
		return ""
	}
	return ids[0]
}

// handOver gives the orgs to the workers that have the most places free, in turn.
func (c *Consumer) handOver(ctx context.Context, orgs []*org) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	others, _ := c.takers()
	c.giveUpAll(ctx, orgs, others)
}

// giveUpAll hands orgs to the workers of the sessions to in turn, or to whoever takes
// them where there are none. What it has no time for stays as it is.
func (c *Consumer) giveUpAll(ctx context.Context, orgs []*org, to []string) {
	var giving errgroup.Group
	giving.SetLimit(askAtOnce)
	for i, o := range orgs {
		next := ""
		if len(to) > 0 {
			next = to[i%len(to)]
		}
		giving.Go(func() error {
			if ctx.Err() == nil {
				c.giveUp(ctx, o, next)
			}
			return nil
		})
	}
	_ = giving.Wait()
}

// quietFor is after what time without a request an org is given up, so that
// whoever hears of the next one takes it.
const quietFor = 30 * time.Second

// handEvery is the least time between two orgs that are handed over to share the work.
const handEvery = 2 * time.Second

// tidy gives up orgs that have nothing to do, and hands some over where this
// worker has more of them than others do, or is full and another isn't.
func (c *Consumer) tidy(ctx context.Context) {
	var quiet, settled []*org
	busy := 0
	for _, o := range c.all() {
		o.mu.Lock()
		switch {
		case len(o.lanes) > 0:
			busy++
			// One that has come just now would go from hand to hand: what workers say
			// of themselves is as old as their last renewal.
			if o.foreign() == 0 {
				settled = append(settled, o)
			}
		case !o.quiet.IsZero() && time.Since(o.quiet) > quietFor && !c.hasRequests(o):
			quiet = append(quiet, o)
		}
		due := time.Since(o.saved) > saveEvery && (o.unsaved || o.flow.Changed())
		o.mu.Unlock()
		if due {
			defer o.save()
		}
	}
	c.giveUpAll(ctx, quiet, nil)
	if time.Since(c.handed) < handEvery {
		return
	}
	_, inLine := c.gate.state()
	ids, sessions := c.takers()
	if to := lighter(ids, sessions, busy, c.MaxInFlight, inLine > 0); to != "" && busy > 1 && len(settled) > 0 {
		c.handed = time.Now()
		o := settled[rand.N(len(settled))]
		c.Logger.Info("org handed to a worker with less to do", "queue", o.name)
		c.giveUp(ctx, o, to)
	}
}

// hasRequests reports whether the stream had requests of the org at the last look: those
// of a revoked connection have no lane, and their deadlines are kept here.
func (c *Consumer) hasRequests(o *org) bool {
	return slices.ContainsFunc(c.directory.names(o.name), func(name string) bool { return c.waiting[name] > 0 })
}

// lighter is which of these sessions, with those that have the most places free first,
// should have one of the busy orgs of a worker with so many places, "" for none: one that
// has clearly fewer orgs, or any if this worker is full, with more than a quarter of its
// places free, so that the org doesn't fill that one and come back.
func lighter(ids []string, sessions map[string]lease.Session, busy, places int, full bool) string {
	for _, id := range ids {
		s := sessions[id]
		if (full || s.Orgs+1 < busy-busy/8) && s.Free > places/4 {
			return id
		}
	}
	return ""
}
