package natstest

import (
	"time"
	"unsafe"
)

// Dated is t, which has a monotonic reading, with another time of day: what a machine
// would have read whose clock was set by -d since, or that has slept for -d.
func Dated(t time.Time, d time.Duration) time.Time {
	const nanoseconds = 30 // the bits below those of the seconds
	*(*uint64)(unsafe.Pointer(&t)) += uint64(int64(d/time.Second)) << nanoseconds
	return t
}
