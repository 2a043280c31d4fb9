package integration

import (
	"flag"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "test.parallel" })
	if !asked {
		// Two thirds of a test are waiting, for leases and timeouts as long as in production.
		_ = flag.Set("test.parallel", "6")
	}
	// A put into the object store begins this one, and may end it before it has come to the
	// channel that it waits on: then it waits for ever. Workers put nothing there.
	put := goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect")
	goleak.VerifyTestMain(m, put, goleak.Cleanup(func(status int) {
		if built.dir != "" {
			_ = os.RemoveAll(built.dir)
		}
		os.Exit(status)
	}))
}
