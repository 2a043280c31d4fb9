//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

var (
	mu    sync.Mutex
	hooks = map[Point]func(){}
)

// Hit runs the point's hook, if one is set.
func Hit(p Point) {
	mu.Lock()
	hook := hooks[p]
	mu.Unlock()
	if hook != nil {
		hook()
	}
}

// Set installs a hook at the point; nil takes it away.
func Set(p Point, hook func()) {
	mu.Lock()
	defer mu.Unlock()
	hooks[p] = hook
}

// FAILPOINT=point, point:N or point:N:STOP kills the process with SIGKILL at the
// N-th time (default the first) that the point is passed, or stops it with
// SIGSTOP, until somebody sends SIGCONT. A FAILPOINT that can't be read ends the
// process: a test that kills nothing proves nothing.
func init() {
	spec := os.Getenv("FAILPOINT")
	if spec == "" {
		return
	}
	p, count, strike, err := parse(spec)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	var passed atomic.Int64
	Set(p, func() {
		if passed.Add(1) == int64(count) {
			strike()
		}
	})
}

func parse(spec string) (p Point, count int, strike func(), err error) {
	parts := strings.Split(spec, ":")
	p, count, strike = Point(parts[0]), 1, kill
	if !slices.Contains(Points(), p) {
		return p, 0, nil, fmt.Errorf("FAILPOINT=%s: there is no point %q", spec, p)
	}
	if len(parts) > 1 {
		if count, err = strconv.Atoi(parts[1]); err != nil || count < 1 {
			return p, 0, nil, fmt.Errorf("FAILPOINT=%s: %q is no count", spec, parts[1])
		}
	}
	if len(parts) > 2 {
		if strike = stop; len(parts) > 3 || parts[2] != "STOP" {
			return p, 0, nil, fmt.Errorf("FAILPOINT=%s: want point:N:STOP", spec)
		}
	}
	return p, count, strike, nil
}

func kill() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // other threads may run on for a moment: not past this point
}

func stop() {
	awake := make(chan os.Signal, 1)
	signal.Notify(awake, syscall.SIGCONT)
	defer signal.Stop(awake)
	_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	<-awake // not past this point before the process is awake again
}
