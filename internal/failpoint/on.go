//go:build failpoint

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync"
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

// FAILPOINT=point or point:N kills the process with SIGKILL at the N-th time
// (default the first) that the point is passed.
func init() {
	spec := os.Getenv("FAILPOINT")
	if spec == "" {
		return
	}
	name, count, _ := strings.Cut(spec, ":")
	left, err := strconv.Atoi(count)
	if err != nil {
		left = 1
	}
	Set(Point(name), func() {
		mu.Lock()
		left--
		now := left == 0
		mu.Unlock()
		if now {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
}
