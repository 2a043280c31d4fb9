// Command flow measures flow control on real processes, a nats-server, a
// redis-server and workers as they are built for production, with the simulated
// Zoho as the judge: it enforces every org's limits and counts what it saw.
//
// It is not a test: it asserts no times. But a call over a limit, an order that
// wasn't kept, or an answer with an error that could have waited makes it exit
// with 1. Invariants: what is compared is measured in the same run; places used
// are the simulator's own integral of calls in flight, so that a worker's overhead
// between two calls counts as unused; the last line of a report says it in one
// sentence.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

type settings struct {
	worker             string
	workers, inFlight  int
	orgs               int
	duration, warmUp   time.Duration
	delayMin, delayMax time.Duration
	most               int
	seed               uint64
	lanes, order       bool
	connections        int
	active             int
	keep               bool
	logLevel           string
}

func main() {
	var s settings
	scenario := flag.String("scenario", "load", "load, idle or surprise")
	page := flag.String("write", "", "page whose section on flow control gets the report, like docs/performance.md")
	flag.StringVar(&s.worker, "worker", "", "binary of the worker; default: this tree's, as for production")
	flag.IntVar(&s.workers, "workers", 3, "worker processes")
	flag.IntVar(&s.inFlight, "max-in-flight", 512, "of each worker")
	flag.IntVar(&s.orgs, "orgs", 40, "load: orgs of mixed editions")
	flag.IntVar(&s.most, "backlog", 50_000, "load: the largest backlog of an org; the smallest is 10")
	flag.DurationVar(&s.duration, "duration", 2*time.Minute, "load: how long is measured")
	flag.DurationVar(&s.warmUp, "warm-up", 15*time.Second, "load: after the backlogs are there, before places are measured; limits are judged from the first call on")
	flag.DurationVar(&s.delayMin, "delay-min", 500*time.Millisecond, "shortest time that Zoho takes for a call")
	flag.DurationVar(&s.delayMax, "delay-max", 1500*time.Millisecond, "longest")
	flag.Uint64Var(&s.seed, "seed", 1, "of the load's mixture")
	flag.BoolVar(&s.lanes, "lanes", true, "load: some orgs use the bulk lane")
	flag.BoolVar(&s.order, "order", true, "load: some orgs use order keys")
	flag.IntVar(&s.connections, "connections", 10_000, "idle: connections, each of an org of its own")
	flag.IntVar(&s.active, "active", 200, "idle: of them, active ones")
	flag.StringVar(&s.logLevel, "log-level", "warn", "of the workers")
	flag.BoolVar(&s.keep, "keep", false, "keep logs and data")
	flag.Parse()

	scenarios := map[string]func(context.Context, settings, *world, *binaries) (report, error){"load": load, "idle": idle, "surprise": surprise}
	run := scenarios[*scenario]
	if run == nil || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	r, err := measure(ctx, s, run)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "flow:", err)
		os.Exit(2)
	}
	text := r.text + "\n" + r.sentence + "\n"
	if *page != "" {
		if err := write(*page, *scenario, text); err != nil {
			fmt.Fprintln(os.Stderr, "flow:", err)
			os.Exit(2)
		}
	}
	fmt.Print(text)
	if !r.kept {
		os.Exit(1)
	}
}

// report is what a scenario says.
type report struct {
	text     string
	sentence string
	kept     bool // every promise that isn't a matter of time
}

func measure(ctx context.Context, s settings, run func(context.Context, settings, *world, *binaries) (report, error)) (r report, err error) {
	dir, err := os.MkdirTemp("", "zoho-flow-")
	if err != nil {
		return r, err
	}
	defer func() {
		if s.keep || err != nil {
			fmt.Fprintln(os.Stderr, "logs and data are in", dir)
			return
		}
		_ = os.RemoveAll(dir)
	}()
	b, err := build(dir, s.worker)
	if err != nil {
		return r, err
	}
	w, err := newWorld(ctx, dir, s.logLevel, b)
	if err != nil {
		return r, err
	}
	defer w.close()
	progress("NATS at %s, logs and data in %s", w.natsURL, dir)
	r, err = run(ctx, s, w, b)
	if err == nil && ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	return r, err
}

// progress tells the person who waits.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05")+" "+format+"\n", args...)
}
