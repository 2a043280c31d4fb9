// Command bench measures the worker as a process, as it is built for production,
// against a real nats-server, a real redis-server and an upstream that is as fast
// as the machine lets it be, all of them processes; and the same for a worker of
// 80 lines written by hand (bench/baseline), for the least that a worker can be
// (bench/bare), and for the peers that are on the PATH (bench/peers).
// docs/performance.md says what the figures mean.
//
// It is not a test: it asserts no times. Invariants: candidates take turns within
// one run, each with servers of its own; every answer is checked; processor time
// is the kernel's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bare is the candidate that knows only GETs without TLS.
const bare = "bare"

type settings struct {
	repeat     int
	scale      float64
	scenarios  string
	candidates string
	keep       string
	worker     string
}

func main() {
	var s settings
	upstream := flag.String("upstream", "", "be the upstream, with this directory for its certificate (the harness starts itself so)")
	flag.IntVar(&s.repeat, "repeat", 3, "how often everything is measured; medians are reported")
	flag.Float64Var(&s.scale, "scale", 1, "share of the messages that is sent")
	flag.StringVar(&s.scenarios, "scenarios", "get,get-tls,post,flight,flight-200ms,steady", "what to measure, of "+strings.Join(names(), ","))
	flag.StringVar(&s.candidates, "candidates", "", "who is measured; default: worker, baseline, bare and the peers on the PATH")
	flag.StringVar(&s.worker, "workers", "", "binaries of other workers, to be measured beside this one")
	flag.StringVar(&s.keep, "keep", "", "directory for logs; default: one that is removed")
	flag.Parse()
	if *upstream != "" {
		if err := upstreamMain(*upstream); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	report, err := run(ctx, s)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	report.print(os.Stdout)
}

// root is the repository.
var root = sync.OnceValue(func() string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "."
	}
	return strings.TrimSpace(string(out))
})

// run measures everything.
func run(ctx context.Context, s settings) (*report, error) {
	dir := s.keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "bench-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	}
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	p, err := build(bin, root())
	if err != nil {
		return nil, err
	}
	candidates := []string{"worker", "baseline", bare}
	for _, binary := range strings.Split(s.worker, ",") {
		if binary != "" {
			name := "worker:" + filepath.Base(binary)
			p.others[name] = binary
			candidates = append(candidates, name)
		}
	}
	for _, peer := range []string{"redpanda-connect", "bento"} {
		if p.peers[peer] != "" {
			candidates = append(candidates, peer)
		}
	}
	if s.candidates != "" {
		candidates = strings.Split(s.candidates, ",")
	}
	site, err := openSite(dir, p)
	if err != nil {
		return nil, err
	}
	defer site.process.stop()
	r := &report{candidates: candidates, repeat: s.repeat}
	for i := range s.repeat {
		for _, name := range strings.Split(s.scenarios, ",") {
			at := slices.IndexFunc(scenarios, func(sc scenario) bool { return sc.name == name })
			if at < 0 {
				return nil, fmt.Errorf("there is no scenario %q, but %s", name, strings.Join(names(), ", "))
			}
			for _, candidate := range candidates {
				sc := scenarios[at]
				if p.peers[candidate] != "" && !sc.peers || candidate == bare && (sc.secure || sc.method != "GET") {
					continue
				}
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				c := &cell{site: site, programs: p, settings: s, candidate: candidate, scenario: sc, report: r}
				if err := c.measure(ctx); err != nil {
					return nil, fmt.Errorf("%s of %s: %w", sc.name, candidate, err)
				}
			}
			slices.Reverse(candidates) // nobody is always the first
		}
		fmt.Fprintf(os.Stderr, "run %d of %d done\n", i+1, s.repeat)
	}
	return r, nil
}

// scenario is a pinned load.
type scenario struct {
	name        string
	method      string
	secure      bool
	peers       bool // measured for the peers, too
	connections int
	places      int // of each connection's org
	flight      int // what the candidate may have in flight
	delay       time.Duration
	window      int // requests unanswered at a time
	rate        int // requests a second, if not as many as can be
	active      int // connections that are; 0: all
	messages    int
	run         func(*cell, context.Context, *load, *process) error
}

var scenarios = []scenario{
	{name: "get", method: "GET", peers: true, connections: 1, places: 64, flight: 64, window: 1000, messages: 30_000, run: (*cell).throughput},
	{name: "get-tls", method: "GET", secure: true, connections: 1, places: 64, flight: 64, window: 1000, messages: 30_000, run: (*cell).throughput},
	{name: "post", method: "POST", connections: 1, places: 64, flight: 64, window: 1000, messages: 15_000, run: (*cell).throughput},
	{name: "flight", method: "GET", peers: true, connections: 40, places: 25, flight: 1000, delay: 100 * time.Millisecond, window: 2000, messages: 60_000, run: (*cell).throughput},
	// Half of the rate, for a machine on which processors and not the worker end the one above.
	{name: "flight-200ms", method: "GET", connections: 40, places: 25, flight: 1000, delay: 200 * time.Millisecond, window: 2000, messages: 60_000, run: (*cell).throughput},
	{name: "flight-300ms", method: "GET", connections: 40, places: 25, flight: 1000, delay: 300 * time.Millisecond, window: 2000, messages: 30_000, run: (*cell).throughput},
	{name: "flight-tls", method: "GET", secure: true, connections: 40, places: 25, flight: 1000, delay: 100 * time.Millisecond, window: 2000, messages: 30_000, run: (*cell).throughput},
	{name: "steady", method: "GET", peers: true, connections: 1, places: 64, flight: 64, messages: 1000, run: (*cell).steady},
	{name: "turns-10", method: "GET", connections: 10, places: 64, flight: 64, window: 64, messages: 20_000, run: (*cell).turns},
	{name: "turns-100", method: "GET", connections: 100, places: 64, flight: 64, window: 64, messages: 20_000, run: (*cell).turns},
	{name: "turns-1000", method: "GET", connections: 1000, places: 64, flight: 64, window: 64, messages: 20_000, run: (*cell).turns},
	// Ten of a thousand: what the others cost by being there.
	{name: "turns-10-of-1000", method: "GET", connections: 1000, active: 10, places: 64, flight: 64, window: 64, messages: 20_000, run: (*cell).turns},
	{name: "paced-10", method: "GET", connections: 10, places: 64, flight: 64, window: 64, rate: 2000, messages: 20_000, run: (*cell).turns},
	{name: "paced-100", method: "GET", connections: 100, places: 64, flight: 64, window: 64, rate: 2000, messages: 20_000, run: (*cell).turns},
	{name: "paced-1000", method: "GET", connections: 1000, places: 64, flight: 64, window: 64, rate: 2000, messages: 20_000, run: (*cell).turns},
	{name: "backlog-1e3", method: "GET", connections: 1, places: 64, flight: 64, messages: 1000, run: (*cell).backlog},
	{name: "backlog-1e5", method: "GET", connections: 1, places: 64, flight: 64, messages: 100_000, run: (*cell).backlog},
	{name: "backlog-1e6", method: "GET", connections: 1, places: 64, flight: 64, messages: 1_000_000, run: (*cell).backlog},
}

func names() []string {
	var all []string
	for _, sc := range scenarios {
		all = append(all, sc.name)
	}
	return all
}

// cell is one measurement of one candidate in one scenario.
type cell struct {
	*site
	programs  *programs
	settings  settings
	candidate string
	scenario  scenario
	report    *report
}

func (c *cell) add(figure string, value float64) {
	c.report.add(c.candidate, c.scenario.name, figure, value)
}

func (c *cell) measure(ctx context.Context) error {
	w, err := c.open(ctx, c.programs, c.scenario.connections, c.scenario.places)
	if err != nil {
		return err
	}
	defer w.close()
	l, err := w.load(c.scenario.method, c.scenario.delay)
	if err != nil {
		return err
	}
	// The first request is there before the process: start to first answer.
	if err := l.backlog(1, w.connectionIDs[0]); err != nil {
		return err
	}
	begun := time.Now()
	p, err := w.start(c.candidate, c.scenario.secure, c.scenario.flight)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := l.wait(1); err != nil {
		return fmt.Errorf("%w\n%s", err, p.tail())
	}
	c.add("start ms", float64(time.Since(begun).Microseconds())/1000-float64(c.scenario.delay.Milliseconds()))
	if err := c.scenario.run(c, ctx, l, p); err != nil {
		return fmt.Errorf("%w\n%s", err, p.tail())
	}
	if slices.ContainsFunc(profiles, func(kind string) bool { return os.Getenv("BENCH_"+kind) != "" }) {
		_ = p.cmd.Process.Signal(syscall.SIGUSR2)
		time.Sleep(time.Second)
	}
	return nil
}

func (c *cell) scaled(n int) int { return max(1, int(float64(n)*c.settings.scale)) }

// timed runs work and notes what it cost per message.
func (c *cell) timed(p, server *process, messages int, work func() error) error {
	before, err := c.counts()
	if err != nil {
		return err
	}
	spent, err := p.cpu()
	if err != nil {
		return err
	}
	served, err := server.cpu()
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := work(); err != nil {
		return err
	}
	took := time.Since(begun)
	serving, err := server.cpu()
	if err != nil {
		return err
	}
	after, err := p.cpu()
	if err != nil {
		return err
	}
	seen, err := c.counts()
	if err != nil {
		return err
	}
	if got := seen.Requests - before.Requests; got != int64(messages) {
		return fmt.Errorf("the upstream saw %d requests, not %d", got, messages)
	}
	c.add("/s", float64(messages)/took.Seconds())
	if delay := c.scenario.delay; delay > 0 {
		c.add("of the ideal", float64(messages)/took.Seconds()*delay.Seconds()/float64(c.scenario.flight))
	}
	c.add("µs", float64((after-spent).Microseconds())/float64(messages))
	c.add("nats-server µs", float64((serving-served).Microseconds())/float64(messages))
	c.add("new connections per request", float64(seen.Connections-before.Connections)/float64(messages))
	return nil
}

// throughput keeps the candidate as busy as it can be.
func (c *cell) throughput(_ context.Context, l *load, p *process) error {
	n := c.scaled(c.scenario.messages)
	idle, _, err := p.memory()
	if err != nil {
		return err
	}
	// Warm is who has had as many requests in flight as will ever be.
	l.delay = 100 * time.Millisecond
	if err := l.wave(min(n, 4*c.scenario.flight), 2*c.scenario.flight, l.w.connectionIDs...); err != nil {
		return err
	}
	l.delay = c.scenario.delay
	if err := l.wave(max(n/10, 1), c.scenario.window, l.w.connectionIDs...); err != nil {
		return err
	}
	if err := c.timed(p, l.w.nats, n, func() error { return l.wave(n, c.scenario.window, l.w.connectionIDs...) }); err != nil {
		return err
	}
	_, peak, err := p.memory()
	c.add("peak MiB", float64(peak)/(1<<20))
	if c.scenario.flight >= 1000 {
		c.add("KiB per request in flight", float64(peak-idle)/1024/float64(c.scenario.flight))
	}
	return err
}

// steady measures what the candidate adds to a direct call.
func (c *cell) steady(_ context.Context, l *load, p *process) error {
	if err := l.wave(c.scaled(500), 16, l.w.connectionIDs...); err != nil {
		return err
	}
	seconds := time.Duration(float64(c.scaled(c.scenario.messages)) / 200 * float64(time.Second))
	queued, direct, err := l.steady(200, seconds, c.plain, l.w.connectionIDs[0])
	if err != nil {
		return err
	}
	for _, q := range []struct {
		name  string
		share float64
	}{{"p50", .5}, {"p99", .99}, {"p99.9", .999}} {
		c.add("added "+q.name+" µs", float64((quantile(queued, q.share) - quantile(direct, q.share)).Microseconds()))
	}
	_, peak, err := p.memory()
	c.add("peak MiB", float64(peak)/(1<<20))
	return err
}

// turns has one connection active after the other, for a burst each; what is in
// flight and the size of a burst are the same for any number of connections.
func (c *cell) turns(_ context.Context, l *load, p *process) error {
	connections := l.w.connectionIDs
	bursts := func(n, size int) error {
		return l.bursts(n, size, c.scenario.window, c.scenario.rate, connections...)
	}
	if err := bursts(len(connections), 1); err != nil { // every connection has its token
		return err
	}
	if c.scenario.active > 0 {
		connections = connections[:c.scenario.active]
	}
	n := c.scaled(c.scenario.messages)
	// Once without a clock, so that what the first request of a connection leaves to be
	// done isn't in the measure.
	if err := bursts(min(n, 20*len(connections)), 20); err != nil {
		return err
	}
	return c.timed(p, l.w.nats, n, func() error { return bursts(n, 20) })
}

// backlog has the candidate, stopped meanwhile, work off what has piled up.
func (c *cell) backlog(_ context.Context, l *load, p *process) error {
	n := c.scaled(c.scenario.messages)
	if err := l.wave(min(n, 1000), 64, l.w.connectionIDs...); err != nil {
		return err
	}
	if err := p.pause(); err != nil {
		return err
	}
	before := l.count.Load()
	if err := l.backlog(n, l.w.connectionIDs...); err != nil {
		return errors.Join(err, p.cmd.Process.Signal(syscall.SIGCONT))
	}
	return c.timed(p, l.w.nats, n, func() error {
		if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			return err
		}
		return l.wait(before + int64(n))
	})
}
