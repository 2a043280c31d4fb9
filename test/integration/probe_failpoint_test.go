//go:build failpoint

package integration

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"zoho-worker/internal/app"
	"zoho-worker/internal/failpoint"
	"zoho-worker/internal/zoho/zohotest"
)

// A worker is suspended with a probed insert in hand, and wakes up after another
// one has taken it over, looked, and sent it. It doesn't send it, too.
//
// Not parallel: the hooks are the process's.
func TestSuspendedWithProbe(t *testing.T) {
	for _, point := range []failpoint.Point{failpoint.Claimed, failpoint.Answered} {
		t.Run(string(point), func(t *testing.T) {
			r := newRig(t, zohotest.Options{})
			r.demo(1)
			reached, resume := make(chan struct{}), make(chan struct{})
			var passed atomic.Bool
			failpoint.Set(point, func() {
				if passed.CompareAndSwap(false, true) {
					close(reached)
					<-resume
				}
			})
			defer failpoint.Set(point, nil)
			wire := r.wire()
			suspended := r.worker(short, func(c *app.Config) { c.NATSURL = "nats://" + wire.Addr().String() })
			r.publish("demo", probed("slept", doc{"field": "External_Ref"}, lead("slept-1"), lead("slept-2")))
			select {
			case <-reached:
			case <-time.After(patience):
				close(resume)
				t.Fatal("the point is never reached")
			}
			wire.cut()
			r.clients(1)
			r.worker(short)
			response := r.await("demo", "slept")
			close(resume)
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			suspended.Stop(ctx)
			r.drained()
			r.wantWhole(response, "slept-1", "slept-2")
			if n := r.Zoho.Count(about("slept")); n != 1 {
				t.Errorf("sent %d times", n)
			}
		})
	}
}
