package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/Shopify/toxiproxy/v2"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/ledger"
	tokens "zoho-worker/internal/token"
	"zoho-worker/internal/zoho/zohotest"
)

// strike is a fault on the schedule. Everything about it comes from the seed.
type strike struct {
	kind  string
	at    time.Duration
	lasts time.Duration
	pick  int // which target, of as many as there are
}

func (s strike) String() string {
	return fmt.Sprintf("%6.2f s  %-28s for %4.1f s, target %d", s.at.Seconds(), s.kind, s.lasts.Seconds(), s.pick)
}

// kind is a kind of fault. cause makes it and returns what ends it, or nil where
// it ends by itself; false where there was nothing to strike.
type kind struct {
	name          string
	least, most   time.Duration // how long it lasts
	cause         func(w *world, s strike) (end func(), ok bool)
	clusterOnly   bool
	inZohosLedger bool // how often it struck is counted in the ledger, by this name's calls
}

const ms = time.Millisecond

var kinds = []kind{
	{name: "worker SIGKILL", least: 100 * ms, most: 2000 * ms, cause: killWorker},
	{name: "worker SIGKILL again", least: 100 * ms, most: 500 * ms, cause: killWorker},
	{name: "worker SIGSTOP", least: 300 * ms, most: 2500 * ms, cause: stopWorker},
	{name: "worker SIGSTOP over lease", least: 8 * time.Second, most: 10 * time.Second, cause: stopWorker},
	{name: "worker SIGTERM", least: 50 * ms, most: 300 * ms, cause: terminateWorker},
	{name: "all workers SIGKILL", least: 100 * ms, most: 1000 * ms, cause: killAllWorkers},
	{name: "NATS node SIGKILL", least: 200 * ms, most: 3000 * ms, cause: killNode},
	{name: "NATS node SIGKILL 2", least: 200 * ms, most: 3000 * ms, cause: killNode, clusterOnly: true},
	{name: "NATS node SIGKILL 3", least: 200 * ms, most: 3000 * ms, cause: killNode, clusterOnly: true},
	{name: "NATS node SIGSTOP", least: 500 * ms, most: 4000 * ms, cause: stopNode},
	{name: "NATS two of three down", least: 1000 * ms, most: 4000 * ms, cause: killTwoNodes, clusterOnly: true},
	{name: "NATS leaders step down", cause: stepDown, clusterOnly: true},
	{name: "NATS leaders step down again", cause: stepDown, clusterOnly: true},
	{name: "Redis SIGKILL", least: 200 * ms, most: 5000 * ms, cause: killRedis},
	{name: "Redis SIGSTOP", least: 500 * ms, most: 5000 * ms, cause: stopRedis},
	{name: "Redis FLUSHALL", cause: flushRedis},
	{name: "NATS connections cut", least: 100 * ms, most: 3000 * ms, cause: cut(natsProxy)},
	{name: "NATS connections reset", least: 100 * ms, most: 500 * ms, cause: toxic(natsProxy, "reset_peer", "downstream", `"timeout":0`)},
	{name: "NATS answers lost", least: 1000 * ms, most: 8000 * ms, cause: toxic(natsProxy, "timeout", "downstream", `"timeout":0`)},
	{name: "NATS writes lost", least: 1000 * ms, most: 8000 * ms, cause: toxic(natsProxy, "timeout", "upstream", `"timeout":0`)},
	{name: "NATS slow", least: 2000 * ms, most: 5000 * ms, cause: toxic(natsProxy, "latency", "downstream", `"latency":300,"jitter":200`)},
	{name: "NATS narrow", least: 1000 * ms, most: 4000 * ms, cause: toxic(natsProxy, "bandwidth", "downstream", `"rate":10`)},
	{name: "Redis connections cut", least: 100 * ms, most: 3000 * ms, cause: cut(redisProxy)},
	{name: "Redis hung", least: 1000 * ms, most: 6000 * ms, cause: toxic(redisProxy, "timeout", "downstream", `"timeout":0`)},
	{name: "Redis slow", least: 1000 * ms, most: 5000 * ms, cause: toxic(redisProxy, "latency", "downstream", `"latency":250,"jitter":200`)},
	{name: "Zoho connections cut", least: 100 * ms, most: 2000 * ms, cause: cut(zohoProxy)},
	{name: "Zoho answers lost", least: 500 * ms, most: 3000 * ms, cause: toxic(zohoProxy, "timeout", "downstream", `"timeout":0`)},
	{name: "Zoho requests lost", least: 500 * ms, most: 3000 * ms, cause: toxic(zohoProxy, "timeout", "upstream", `"timeout":0`)},
	{name: "Zoho slow", least: 1000 * ms, most: 4000 * ms, cause: toxic(zohoProxy, "latency", "upstream", `"latency":700,"jitter":600`)},
	{name: "Zoho in slices", least: 1000 * ms, most: 3000 * ms, cause: toxic(zohoProxy, "slicer", "downstream", `"average_size":40,"size_variation":20,"delay":20000`)},
	// Without Retry-After an org whose credits are used up waits for a minute: a run would mostly wait.
	zoho("429 credits", zohotest.TooManyRequestsRetry(zohotest.CreditsExhausted, 2*time.Second)),
	zoho("429 concurrency", zohotest.TooManyRequests(zohotest.Concurrency)),
	zoho("429 sub-concurrency, legacy", zohotest.TooManyRequestsLegacy(zohotest.SubConcurrency)),
	zoho("429 Retry-After", zohotest.TooManyRequestsRetry(zohotest.Concurrency, time.Second)),
	zoho("500", zohotest.InternalError()),
	zoho("500 applied", zohotest.InternalError().Applied()),
	zoho("503", zohotest.Maintenance()),
	zoho("502 HTML", zohotest.HTMLError(502)),
	zoho("504 HTML applied", zohotest.HTMLError(504).Applied()),
	zoho("cut before read", zohotest.CutUnread(zohotest.Reset)),
	zoho("cut after read", zohotest.CutRead(zohotest.Close)),
	zoho("reset after commit", zohotest.CutApplied(zohotest.Reset)),
	zoho("slow before commit", zohotest.DelayBefore(callTimeout+time.Second)),
	zoho("slow after commit", zohotest.DelayAfter(callTimeout+time.Second)),
	zoho("slow drip", zohotest.Drip(4, 100*ms)),
	zoho("body truncated", zohotest.Truncated(10)),
	zoho("401 INVALID_TOKEN", zohotest.InvalidToken()),
	{name: "tokens ended", cause: expireTokens},
	{name: "token endpoint 500 HTML", cause: tokenFault(zohotest.TokenHTML500())},
	{name: "token endpoint slow", cause: tokenFault(zohotest.TokenSlow(3 * time.Second))},
	{name: "token endpoint throttle", least: 1000 * ms, most: 4000 * ms, cause: throttle(zohotest.TokenThrottle())},
	{name: "token endpoint throttle, 200", least: 1000 * ms, most: 4000 * ms, cause: throttle(zohotest.TokenThrottle200())},
	{name: "grant revoked, re-authorized", least: 1000 * ms, most: 4000 * ms, cause: revoke},
}

// schedule deals the kinds like cards, so that each strikes before one strikes
// again: one deck at least, and a further one for every 45 s.
func schedule(seed uint64, length time.Duration, cluster bool) []strike {
	random := rand.New(rand.NewPCG(seed, 0))
	decks := max(1, int(length/(45*time.Second)))
	var all []strike
	for range decks {
		for _, i := range random.Perm(len(kinds)) {
			k := kinds[i]
			if k.clusterOnly && !cluster {
				continue
			}
			s := strike{kind: k.name, lasts: k.least, pick: random.IntN(1 << 20)}
			if k.most > k.least {
				s.lasts += time.Duration(random.Int64N(int64(k.most - k.least)))
			}
			all = append(all, s)
		}
	}
	for i := range all {
		all[i].at = length * time.Duration(i) / time.Duration(len(all))
	}
	return all
}

// strikeAll carries the schedule out and returns when all faults have ended and
// what they broke is being repaired.
func (w *world) strikeAll(all []strike) (caused map[string]int) {
	caused = map[string]int{}
	byName := map[string]kind{}
	for _, k := range kinds {
		byName[k.name] = k
	}
	begun := time.Now()
	var ends sync.WaitGroup
	for _, s := range all {
		select {
		case <-time.After(time.Until(begun.Add(s.at))):
		case <-w.t.Context().Done():
			return caused
		}
		start := time.Now()
		end, ok := byName[s.kind].cause(w, s)
		if !ok {
			continue
		}
		caused[s.kind]++
		if end == nil {
			w.span(s.kind, start)
			continue
		}
		ends.Go(func() {
			time.Sleep(s.lasts)
			end()
			w.span(s.kind, start)
		})
	}
	ends.Wait()
	w.repairs.Wait()
	w.zoho.ClearFaults()
	return caused
}

func (w *world) span(kind string, start time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spans = append(w.spans, span{kind, start, time.Now()})
}

func killWorker(w *world, s strike) (func(), bool) {
	p := w.workers[s.pick%len(w.workers)]
	release := w.hold(p)
	if !p.kill() {
		release()
		return nil, false
	}
	w.died()
	return func() {
		defer release()
		if err := p.start(); err != nil {
			w.t.Error(err)
		}
	}, true
}

func killAllWorkers(w *world, s strike) (func(), bool) {
	var ends []func()
	for i := range w.workers {
		if end, ok := killWorker(w, strike{pick: i}); ok {
			ends = append(ends, end)
		}
	}
	return func() {
		for _, end := range ends {
			end()
		}
	}, len(ends) > 0
}

func stopWorker(w *world, s strike) (func(), bool) {
	p := w.workers[s.pick%len(w.workers)]
	if s.lasts > lease.DefaultTerm {
		w.died()
	}
	return func() { p.signal(syscall.SIGCONT) }, p.signal(syscall.SIGSTOP)
}

func terminateWorker(w *world, s strike) (func(), bool) {
	p := w.workers[s.pick%len(w.workers)]
	release := w.hold(p)
	if !p.signal(syscall.SIGTERM) {
		release()
		return nil, false
	}
	return func() {
		defer release()
		<-p.ended() // its stop budget, or a SIGKILL that comes between
		if err := p.start(); err != nil {
			w.t.Error(err)
		}
	}, true
}

// disrupted notes that a NATS node goes down, with what it was to pass on.
func (w *world) disrupted() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.disrupt = append(w.disrupt, time.Now())
}

func (w *world) down(p *process) (func(), bool) {
	w.disrupted()
	if !p.kill() {
		return nil, false
	}
	return func() {
		if err := p.start(); err != nil {
			w.t.Error(err)
		}
	}, true
}

func killNode(w *world, s strike) (func(), bool) { return w.down(w.servers[s.pick%len(w.servers)]) }

func killTwoNodes(w *world, s strike) (func(), bool) {
	first, a := w.down(w.servers[s.pick%len(w.servers)])
	second, b := w.down(w.servers[(s.pick+1)%len(w.servers)])
	return func() {
		for _, end := range []func(){first, second} {
			if end != nil {
				end()
			}
		}
	}, a || b
}

func stopNode(w *world, s strike) (func(), bool) {
	w.disrupted() // the others may drop it
	p := w.servers[s.pick%len(w.servers)]
	return func() { p.signal(syscall.SIGCONT) }, p.signal(syscall.SIGSTOP)
}

// stepDown has every stream, and every consumer of the requests, choose another leader.
func stepDown(w *world, _ strike) (func(), bool) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
	defer cancel()
	asked := 0
	ask := func(subject string) {
		if w.nc.Publish("$JS.API."+subject, nil) == nil {
			asked++
		}
	}
	for _, name := range []string{
		consumer.RequestStream, consumer.ResponseStream, ledger.StreamName, connection.StreamName, tokens.StreamName,
	} {
		ask("STREAM.LEADER.STEPDOWN." + name)
	}
	if stream, err := w.js.Stream(ctx, consumer.RequestStream); err == nil {
		for name := range stream.ConsumerNames(ctx).Name() {
			ask("CONSUMER.LEADER.STEPDOWN." + consumer.RequestStream + "." + name)
		}
	}
	return nil, asked > 0
}

func killRedis(w *world, _ strike) (func(), bool) {
	return func() {
		if err := w.redis.start(); err != nil {
			w.t.Error(err)
		}
	}, w.redis.kill()
}

func stopRedis(w *world, _ strike) (func(), bool) {
	return func() { w.redis.signal(syscall.SIGCONT) }, w.redis.signal(syscall.SIGSTOP)
}

func flushRedis(w *world, _ strike) (func(), bool) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	return nil, w.redisClient.FlushAll(ctx).Err() == nil
}

func natsProxy(w *world, s strike) *toxiproxy.Proxy  { return w.natsProxies[s.pick%len(w.natsProxies)] }
func redisProxy(w *world, _ strike) *toxiproxy.Proxy { return w.redisProxy }
func zohoProxy(w *world, _ strike) *toxiproxy.Proxy  { return w.apiProxy }

type target func(*world, strike) *toxiproxy.Proxy

// cut ends all connections through the proxy and refuses new ones.
func cut(t target) func(*world, strike) (func(), bool) {
	return func(w *world, s strike) (func(), bool) {
		p := t(w, s)
		p.Stop()
		return func() {
			err := p.Start()
			for range 100 {
				if err == nil || errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
					return
				}
				time.Sleep(100 * time.Millisecond)
				err = p.Start()
			}
			w.t.Errorf("the proxy %s doesn't open again: %v", p.Name, err)
		}, true
	}
}

func toxic(t target, kind, stream, attributes string) func(*world, strike) (func(), bool) {
	return func(w *world, s strike) (func(), bool) {
		p := t(w, s)
		name := fmt.Sprintf("%s-%s-%d", kind, stream, s.pick)
		_, err := p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
			`{"name":%q,"type":%q,"stream":%q,"toxicity":1,"attributes":{%s}}`, name, kind, stream, attributes)))
		return func() { _ = p.Toxics.RemoveToxic(context.Background(), name) }, err == nil
	}
}

// zoho is a fault that strikes up to four calls, whichever come next.
func zoho(name string, f zohotest.Fault) kind {
	f.Name = name
	return kind{name: name, inZohosLedger: true, cause: func(w *world, s strike) (func(), bool) {
		w.zoho.Inject(f.Repeat(1 + s.pick%4))
		return nil, true
	}}
}

// mostExpiries is how often the tokens of one grant are ended before it gets a
// new one: workers may mint ten in ten minutes, and a claim whose worker died
// counts as one.
const mostExpiries = 2

// expire ends the access tokens of a connection, once nothing else is done to it.
func (w *world) expire(name string) bool {
	w.mu.Lock()
	token := w.refresh[name]
	grant := w.zoho.GrantID(token)
	ok := !w.busy[name]
	renew := ok && w.expired[grant] >= mostExpiries
	switch {
	case renew:
		w.busy[name] = true
	case ok:
		w.expired[grant]++
	}
	w.mu.Unlock()
	switch {
	case renew: // a new grant: new tokens all the same
		w.repairs.Go(func() { w.reauthorize(name) })
	case ok:
		w.zoho.ExpireAccessTokens(token)
	}
	return ok
}

func expireTokens(w *world, s strike) (func(), bool) {
	n := 0
	for _, c := range tenants {
		if w.expire(c.name) {
			n++
		}
	}
	return nil, n > 0
}

func tokenFault(f zohotest.Fault) func(*world, strike) (func(), bool) {
	return func(w *world, s strike) (func(), bool) {
		w.zoho.Inject(f)
		return nil, w.expire(tenants[s.pick%len(tenants)].name)
	}
}

// throttle has the token endpoint refuse one connection until its person
// authorizes it anew, which spares the test the ten minutes of Zoho's block.
func throttle(f zohotest.Fault) func(*world, strike) (func(), bool) {
	return func(w *world, s strike) (func(), bool) {
		return w.trouble(s, func(name, token string) {
			grant := w.zoho.GrantID(token)
			w.zoho.Inject(f.Repeat(20).If(func(c zohotest.Call) bool { return c.Grant == grant }))
			w.zoho.ExpireAccessTokens(token)
		})
	}
}

func revoke(w *world, s strike) (func(), bool) {
	return w.trouble(s, func(_, token string) { w.zoho.RevokeRefreshToken(token) })
}

// trouble does something to a connection that only re-authorization ends.
func (w *world) trouble(s strike, what func(name, token string)) (func(), bool) {
	name := tenants[s.pick%len(tenants)].name
	w.mu.Lock()
	token, busy := w.refresh[name], w.busy[name]
	w.busy[name] = true
	w.mu.Unlock()
	if busy {
		return nil, false
	}
	what(name, token)
	return func() { w.repairs.Go(func() { w.reauthorize(name) }) }, true
}
