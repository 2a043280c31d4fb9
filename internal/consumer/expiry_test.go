package consumer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
)

// Deadlines are looked for where there are requests: of an org with many revoked
// connections no look is lost on those without any.
func TestDeadlinesOfManyRevokedConnections(t *testing.T) {
	t.Parallel()
	s := &stored{}
	c := stub(s)
	names := named(500)
	c.serveOrgOf(connection.Revoked, names...)
	c.waiting[names[7]] = 1
	if err := c.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.read != len(lanes) {
		t.Errorf("the stream is asked %d times for the requests of one connection with %d lanes", s.read, len(lanes))
	}
}

// failing is a stream with one request, which fails once that was read.
type failing struct {
	stored
	request []byte
	looks   int
	fail    bool
}

func (f *failing) Info(ctx context.Context, o ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	f.looks++
	return f.stored.Info(ctx, o...)
}

func (f *failing) GetMsg(context.Context, uint64, ...jetstream.GetMsgOpt) (*jetstream.RawStreamMsg, error) {
	if f.fail {
		return nil, errors.New("JetStream system temporarily unavailable")
	}
	f.fail = true
	return &jetstream.RawStreamMsg{Subject: "zoho.requests.gone", Sequence: 1, Time: time.Now(), Data: f.request}, nil
}

// A deadline that is over, and can't be seen to while the stream gives no answer, has
// nobody look without a pause.
func TestDeadlineWhileTheStreamFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &failing{stored: stored{subjects: map[string]uint64{"zoho.requests.gone": 1}}}
		f.request = []byte(`{"id":"1","method":"GET","url":"/v8/Leads","deadline":"` + time.Now().Add(5*time.Second).UTC().Format(time.RFC3339) + `"}`)
		c := stub(f)
		o := c.serveOrgOf(connection.Revoked, "gone")
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.lookOut()
		}()
		time.Sleep(65 * time.Second)
		c.stopPull()
		<-done
		if !f.fail || c.orgs[o.name] == nil {
			t.Fatal("the deadline isn't kept")
		}
		if f.looks < 10 || f.looks > 80 {
			t.Errorf("%d looks in a minute after the deadline", f.looks)
		}
	})
}
