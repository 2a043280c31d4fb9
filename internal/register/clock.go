package register

import (
	"sync/atomic"
	"time"
)

// Clock tells the JetStream server's time, as last observed. Leases of records
// are judged against the time at which the server stored them, so a machine
// whose own clock is wrong neither breaks a running lease nor waits for one
// that is over. The zero Clock tells the machine's time.
type Clock struct{ offset atomic.Int64 }

// Observe takes in that the server said it was server between the local
// instants asked and heard.
func (c *Clock) Observe(server, asked, heard time.Time) {
	middle := asked.Add(heard.Sub(asked) / 2)
	c.offset.Store(int64(server.Sub(middle)))
}

// Now is the server's time.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }
