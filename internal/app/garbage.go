package app

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"

	"zoho-worker/internal/consumer"
)

// The heap grows by leastRoom before it is collected, however little of it is
// alive. A worker keeps a few MiB and makes 6 KiB of garbage for each request, so
// that Go's own rule, to collect when the heap has doubled, has it collect dozens
// of times a second: measured at a seventh of its processor time. More than this
// would buy little, and is memory.
//
// A worker that serves many lanes keeps the state of each, which the collector
// would look through again after every few thousand requests (measured with 1,000
// of them: a tenth of the processor time). So it grows by laneRoom more for each,
// up to moreRoom.
const (
	leastRoom = 12 << 20
	laneRoom  = 16 << 10
	moreRoom  = 24 << 20
)

// collectLess has the garbage collector leave a small heap alone, unless the
// environment says by GOGC how it wants it. GOMEMLIMIT holds all the same.
func collectLess() {
	if os.Getenv("GOGC") != "" || !collecting.CompareAndSwap(false, true) {
		return
	}
	adjust(new(beacon))
}

var collecting atomic.Bool

// beacon is what the collector finds unused each time, and so tells of itself.
type beacon struct{ percent int }

// adjust sets the percentage for the next collection by what this one found alive.
func adjust(b *beacon) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	percent := mostPercent
	if live[0].Value.Kind() == metrics.KindUint64 {
		percent = percentFor(live[0].Value.Uint64(), consumer.OpenLanes())
	}
	// To set it stops the world for a moment: only where it makes a difference.
	if percent < b.percent*9/10 || percent > b.percent*11/10 {
		debug.SetGCPercent(percent)
		b.percent = percent
	}
	runtime.SetFinalizer(b, adjust)
}

// mostPercent makes the least heap that Go collects, 4 MiB at 100 %, one of 16.
const mostPercent = 400

// percentFor is by how much the heap may grow over what is alive.
func percentFor(live, lanes uint64) int {
	live = max(live, 1<<20)
	room := max(live, leastRoom) + min(lanes*laneRoom, moreRoom)
	return int(min(room*100/live, mostPercent))
}
