package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/zoho/zohotest"
)

// The kinds of orgs in the load.
const (
	small   = "small"   // a few requests a second, alone and beside all others
	plain   = "plain"   // one connection, reads and a few inserts
	heavies = "heavy"   // every second request is a heavy one
	lanes   = "lanes"   // a backlog in the bulk lane, and a few interactive requests a second
	both    = "both"    // a backlog in both lanes
	shared  = "shared"  // three connections with backlogs of 80, 15 and 5 %
	ordered = "ordered" // 50 order keys
)

// smallDelay is how long Zoho takes for a call of the small org, so that what
// waiting adds shows.
const smallDelay = 100 * time.Millisecond

// cast makes the orgs: editions in turn, backlogs from 10 to the most on a
// logarithmic scale, in random order.
func cast(s settings, random *rand.Rand) []*org {
	kinds := []string{plain, heavies, shared, plain, heavies}
	if s.lanes {
		kinds = append(kinds, lanes, both)
	}
	if s.order {
		kinds = append(kinds, ordered)
	}
	sizes := random.Perm(s.orgs)
	list := make([]*org, s.orgs)
	for i := range list {
		e := editions[i%len(editions)]
		o := &org{id: fmt.Sprint(1001 + i), edition: e.name, places: e.places, credits: e.credits, kind: kinds[i%len(kinds)]}
		o.backlog = int(10 * math.Pow(float64(s.most)/10, float64(sizes[i])/float64(max(s.orgs-1, 1))))
		if i == 3 {
			o.kind, o.backlog = small, 0
		}
		list[i] = o
	}
	return list
}

// account is what the samples say of one org while it had a backlog.
type account struct {
	busy, capacity float64 // place-seconds
	seconds        float64
	answered       map[string]int // by connection and lane, while each of them had a backlog
	together       float64        // for so many seconds
}

func load(ctx context.Context, s settings, w *world, b *binaries) (report, error) {
	random := rand.New(rand.NewPCG(s.seed, 1))
	orgs := cast(s, random)
	w.zoho.SetLatencyBetween(s.delayMin, s.delayMax)
	total := 0
	for _, o := range orgs {
		n := 1
		if o.kind == shared {
			n = 3
		}
		if err := w.add(ctx, o, n); err != nil {
			return report{}, err
		}
		total += o.backlog
	}
	w.zoho.SetOrgLatency(orgs[3].id, smallDelay, smallDelay)
	nobody := w.controlled()
	answers, err := w.listen()
	if err != nil {
		return report{}, err
	}
	if err := w.startWorkers(ctx, b.worker, s.workers, s.inFlight); err != nil {
		return report{}, err
	}
	progress("%d orgs, %d workers; the small org alone", len(orgs), s.workers)
	if _, err := w.trickle(ctx, answers, orgs[3].connections[0], time.Second, 3*time.Second); err != nil { // its token
		return report{}, err
	}
	var quiet, noisy spans // the control
	var controlling sync.WaitGroup
	calm := min(30*time.Second, s.duration)
	controlling.Go(func() { quiet, _ = w.control(ctx, nobody, 300*time.Millisecond, calm) })
	alone, err := w.trickle(ctx, answers, orgs[3].connections[0], 300*time.Millisecond, calm)
	if err != nil {
		return report{}, err
	}
	controlling.Wait()
	progress("publishing %s requests", thousands(total))
	for _, o := range orgs {
		if err := w.publish(ctx, o, random); err != nil {
			return report{}, err
		}
	}
	progress("warming up for %s", s.warmUp)
	select {
	case <-time.After(s.warmUp):
	case <-ctx.Done():
		return report{}, ctx.Err()
	}
	progress("measuring for %s", s.duration)
	before, err := w.workersUsage()
	if err != nil {
		return report{}, err
	}
	first := w.calls(orgs)
	var beside spans
	laneTook := map[string]spans{}
	var mu sync.Mutex
	var asking sync.WaitGroup
	var failed error
	ask := func(o *org, pace time.Duration, keep func(spans)) {
		asking.Go(func() {
			took, err := w.trickle(ctx, answers, o.connections[0], pace, s.duration)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			}
			keep(took)
		})
	}
	asking.Go(func() { noisy, _ = w.control(ctx, nobody, 300*time.Millisecond, s.duration) })
	ask(orgs[3], 300*time.Millisecond, func(t spans) { beside = t })
	for _, o := range orgs {
		if o.kind == lanes {
			ask(o, 500*time.Millisecond, func(t spans) { laneTook[o.id] = t })
		}
	}
	accounts, err := w.watch(ctx, s.duration, orgs, answers)
	if err != nil {
		return report{}, err
	}
	after, err := w.workersUsage()
	if err != nil {
		return report{}, err
	}
	last := slices.DeleteFunc(w.zoho.AllCounts(), func(c zohotest.Counts) bool {
		return !slices.ContainsFunc(orgs, func(o *org) bool { return o.id == c.Org })
	})
	asking.Wait()
	if failed != nil {
		return report{}, failed
	}
	calls := totals(last).Calls - first
	perCall := time.Duration(0)
	if calls > 0 {
		perCall = (after.cpu - before.cpu) / time.Duration(calls)
	}
	l := loaded{s, orgs, accounts, alone, beside, quiet, noisy, laneTook, last, w.zoho.Orders(), calls, perCall, after.cpu - before.cpu, answers.problems()}
	return l.report(), nil
}

// controlled makes an org that no worker knows and returns a token for it.
func (w *world) controlled() (token string) {
	const id = "999"
	w.zoho.AddOrg(zohotest.Org{ID: id, Concurrency: 100})
	w.zoho.AddUser(zohotest.User{ID: id, OrgID: id})
	w.zoho.Seed(id, "Leads", map[string]any{"Last_Name": "Seed"})
	w.zoho.SetOrgLatency(id, smallDelay, smallDelay)
	return w.zoho.AccessToken(w.zoho.GrantRefreshToken(id))
}

// publish publishes an org's backlog.
func (w *world) publish(ctx context.Context, o *org, random *rand.Rand) error {
	mix := mixture(random, 0, 0.05)
	switch o.kind {
	case heavies:
		mix = mixture(random, 0.5, 0.05)
	case ordered:
		mix = func(i int) (class, string) { return light, fmt.Sprint("k", i%50) }
	case shared:
		for i, share := range []float64{0.8, 0.15, 0.05} {
			if err := w.fill(ctx, o.connections[i], interactive, int(share*float64(o.backlog)), mix); err != nil {
				return err
			}
		}
		return nil
	case lanes:
		return w.fill(ctx, o.connections[0], bulk, o.backlog, mix)
	case both:
		if err := w.fill(ctx, o.connections[0], bulk, o.backlog/2, mix); err != nil {
			return err
		}
		return w.fill(ctx, o.connections[0], interactive, o.backlog/2, mix)
	}
	return w.fill(ctx, o.connections[0], interactive, o.backlog, mix)
}

func totals(list []zohotest.Counts) (sum zohotest.Counts) {
	for _, c := range list {
		sum.Calls += c.Calls
		sum.Refused.Concurrency += c.Refused.Concurrency
		sum.Refused.SubConcurrency += c.Refused.SubConcurrency
		sum.Refused.Credits += c.Refused.Credits
		sum.HighestInFlight = max(sum.HighestInFlight, c.HighestInFlight)
		sum.HighestHeavy = max(sum.HighestHeavy, c.HighestHeavy)
	}
	return sum
}

// calls are those of the orgs so far.
func (w *world) calls(orgs []*org) (n int) {
	for _, o := range orgs {
		n += w.zoho.Counts(o.id).Calls
	}
	return n
}

// sample is what the simulator, the stream and the requester know at one moment.
type sample struct {
	counts   map[string]zohotest.Counts
	stored   map[string]uint64 // by subject
	answered map[string]int
}

func (w *world) sample(ctx context.Context, answers *replies) (s sample, err error) {
	info, err := w.stream.Info(ctx, jetstream.WithSubjectFilter("zoho.requests.>"))
	if err != nil {
		return s, fmt.Errorf("look at the stream: %w", err)
	}
	s = sample{map[string]zohotest.Counts{}, info.State.Subjects, answers.snapshot()}
	for _, c := range w.zoho.AllCounts() {
		s.counts[c.Org] = c
	}
	return s, nil
}

// stands is how many requests of an org are stored and not in flight at Zoho.
func (s sample) stands(o *org) int {
	n := 0
	for _, c := range o.connections {
		n += int(s.stored[subject(c, interactive)]) + int(s.stored[subject(c, bulk)])
	}
	return n - s.counts[o.id].InFlight
}

// streams are the ones whose shares of an org's places are compared: its
// connections, or its lanes.
func (o *org) streams() map[string]string {
	m := map[string]string{}
	switch o.kind {
	case shared:
		for _, c := range o.connections {
			m[c+".interactive"] = subject(c, interactive)
		}
	case both:
		m[o.connections[0]+".interactive"], m[o.connections[0]+".bulk"] = subject(o.connections[0], interactive), subject(o.connections[0], bulk)
	}
	return m
}

// watch samples every second and adds up what lies between two samples at both of
// which an org had more than twice its places waiting.
func (w *world) watch(ctx context.Context, span time.Duration, orgs []*org, answers *replies) (map[string]*account, error) {
	accounts := map[string]*account{}
	for _, o := range orgs {
		accounts[o.id] = &account{answered: map[string]int{}}
	}
	old, err := w.sample(ctx, answers)
	if err != nil {
		return nil, err
	}
	for stop := time.Now().Add(span); time.Now().Before(stop); {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		now, err := w.sample(ctx, answers)
		if err != nil {
			return nil, err
		}
		for _, o := range orgs {
			a, from, to := accounts[o.id], old.counts[o.id], now.counts[o.id]
			dt := to.At.Sub(from.At).Seconds()
			if old.stands(o) > 2*o.places && now.stands(o) > 2*o.places {
				a.busy += (to.Busy - from.Busy).Seconds()
				a.capacity += float64(o.places) * dt
				a.seconds += dt
			}
			all := true
			for _, subject := range o.streams() {
				all = all && int(old.stored[subject]) > 3*o.places && int(now.stored[subject]) > 3*o.places
			}
			if all {
				a.together += dt
				for name := range o.streams() {
					a.answered[name] += now.answered[name] - old.answered[name]
				}
			}
		}
		old = now
	}
	return accounts, nil
}

// loaded is all that the report is made of.
type loaded struct {
	s        settings
	orgs     []*org
	accounts map[string]*account
	alone    spans
	beside   spans
	quiet    spans
	noisy    spans
	lanes    map[string]spans
	counts   []zohotest.Counts
	orders   map[string]zohotest.Order
	calls    int
	perCall  time.Duration
	cpu      time.Duration
	problems string
}

// enough is for how many seconds an org must have had a backlog to count.
const enough = 10

func (l *loaded) report() report {
	var t table
	fmt.Fprintf(&t, "%d workers, %d orgs, backlogs from 10 to %s, each call takes Zoho %d to %d ms; measured for %s after %s. "+
		"Made by `make bench-flow`.\n\n", l.s.workers, len(l.orgs), thousands(l.s.most), l.s.delayMin.Milliseconds(), l.s.delayMax.Milliseconds(), l.s.duration, l.s.warmUp)
	t.head("orgs", "number", "places", "calls", "most in flight of limit", "most heavy of 10", "429: places, heavy, credits", "places used with a backlog: least, median")
	counts := map[string]zohotest.Counts{}
	for _, c := range l.counts {
		counts[c.Org] = c
	}
	usage := func(list []*org) (shares []float64) {
		for _, o := range list {
			if a := l.accounts[o.id]; a.seconds >= enough {
				shares = append(shares, a.busy/a.capacity)
			}
		}
		return shares
	}
	for _, kind := range []string{plain, heavies, shared, lanes, both, ordered, small} {
		var list []*org
		var sum zohotest.Counts
		least, most, closest := math.MaxInt, 0, ""
		over := math.Inf(-1)
		for _, o := range l.orgs {
			if o.kind != kind {
				continue
			}
			list = append(list, o)
			c := counts[o.id]
			sum = totals([]zohotest.Counts{sum, c})
			least, most = min(least, o.places), max(most, o.places)
			if x := float64(c.HighestInFlight) / float64(o.places); x > over {
				over, closest = x, fmt.Sprintf("%d of %d", c.HighestInFlight, o.places)
			}
		}
		if len(list) == 0 {
			continue
		}
		t.row(kind, len(list), fmt.Sprintf("%d to %d", least, most), thousands(sum.Calls), closest, sum.HighestHeavy,
			fmt.Sprintf("%d, %d, %d", sum.Refused.Concurrency, sum.Refused.SubConcurrency, sum.Refused.Credits), shareText(usage(list)))
	}
	t.WriteString("\n")
	t.head("who", "alone", "beside the others")
	for _, q := range []float64{0.5, 0.95, 0.99} {
		t.row(fmt.Sprintf("small org, p%.0f of %d and %d requests", 100*q, len(l.alone), len(l.beside)), ms(l.alone.quantile(q)), ms(l.beside.quantile(q)))
	}
	for _, q := range []float64{0.5, 0.95, 0.99} {
		t.row(fmt.Sprintf("the same call straight to Zoho, without a worker, p%.0f", 100*q), ms(l.quiet.quantile(q)), ms(l.noisy.quantile(q)))
	}
	var interactiveTook spans
	for _, took := range l.lanes {
		interactiveTook = append(interactiveTook, took...)
	}
	if len(interactiveTook) > 0 {
		t.row(fmt.Sprintf("interactive request of an org with a bulk backlog, p50, p99 of %d", len(interactiveTook)), "",
			ms(interactiveTook.quantile(0.5))+", "+ms(interactiveTook.quantile(0.99)))
	}
	t.WriteString("\n")
	t.head("sharing one org's places", "orgs", "least share of an equal part", "answered")
	for _, kind := range []string{shared, both} {
		l.sharing(&t, kind)
	}
	disorder, overlaps, sequences := 0, 0, len(l.orders)
	for _, o := range l.orders {
		disorder += o.Disorder
		overlaps += o.Overlaps
	}
	if sequences > 0 {
		fmt.Fprintf(&t, "\n%s order keys: %d calls out of order, %d beside another of their key.\n", thousands(sequences), disorder, overlaps)
	}
	sum := totals(l.counts)
	seconds := l.s.duration.Seconds()
	fmt.Fprintf(&t, "\n%.0f calls a second, %.0f %% of one core for all workers, %d µs a call.", float64(l.calls)/seconds, 100*l.cpu.Seconds()/seconds, l.perCall.Microseconds())
	if l.problems != "" {
		fmt.Fprintf(&t, " Answers with errors: %s.", l.problems)
	}
	t.WriteString("\n")

	refused := sum.Refused.Sum()
	r := report{text: t.String(), kept: refused == 0 && disorder == 0 && overlaps == 0 && l.problems == ""}
	verdict := "no call over any limit and no 429"
	if refused > 0 {
		verdict = fmt.Sprintf("**%s calls over a limit**", thousands(refused))
	}
	r.sentence = fmt.Sprintf("%d workers carried %s calls of %d orgs with %s; places used with a backlog %s (least, median); the small org took p50 %.2f× and p99 %.2f× of what it has alone (the same call without a worker: %.2f× and %.2f×).",
		l.s.workers, thousands(sum.Calls), len(l.orgs), verdict, shareText(usage(l.orgs)), ratio(l.beside, l.alone, 0.5), ratio(l.beside, l.alone, 0.99), ratio(l.noisy, l.quiet, 0.5), ratio(l.noisy, l.quiet, 0.99))
	return r
}

func ratio(a, b spans, q float64) float64 {
	return float64(a.quantile(q)) / max(float64(b.quantile(q)), 1)
}

func shareText(shares []float64) string {
	if len(shares) == 0 {
		return "–"
	}
	least, median := quantiles(shares)
	return percent(least) + ", " + percent(median)
}

func quantiles(x []float64) (least, median float64) {
	var s spans
	for _, v := range x {
		s = append(s, time.Duration(v*1e9))
	}
	return s.quantile(0).Seconds(), s.quantile(0.5).Seconds()
}

// sharing compares what the connections or lanes of an org got while each had a backlog.
func (l *loaded) sharing(t *table, kind string) {
	least, n := math.Inf(1), 0
	var example []string
	for _, o := range l.orgs {
		a := l.accounts[o.id]
		if o.kind != kind || a.together < enough {
			continue
		}
		n++
		sum, low := 0, math.MaxInt
		var parts []string
		for name := range o.streams() {
			got := a.answered[name]
			sum, low = sum+got, min(low, got)
			_, rest, _ := strings.Cut(name, "-")
			parts = append(parts, fmt.Sprintf("%s %s", rest, thousands(got)))
		}
		if x := float64(low) * float64(len(o.streams())) / max(float64(sum), 1); x < least {
			least, example = x, parts
		}
	}
	name := map[string]string{shared: "connections with 80, 15 and 5 % of the backlog", both: "lanes, interactive and bulk"}[kind]
	if n == 0 {
		return
	}
	t.row(name, n, percent(least), strings.Join(example, ", "))
}
