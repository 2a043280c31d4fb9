package consumer

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"zoho-worker/internal/dead"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
)

// Of a window that is half full of heavy requests the last make way: the first are about to
// be started, those in order have to stay in it, and a lane for heavy ones has no other.
func TestWhichMakeWay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lane       Lane
		heavy      int
		aside, all []uint64
	}{
		"few":                {Interactive, 7, nil, []uint64{1, 2, 3, 4, 5, 6, 7}},
		"half":               {Interactive, 8, []uint64{5, 8}, []uint64{1, 2, 3, 4, 6, 7}},
		"of bulk work":       {Bulk, 8, []uint64{5, 8}, []uint64{1, 2, 3, 4, 6, 7}},
		"of heavy ones":      {heavyLane, 8, nil, []uint64{1, 2, 3, 4, 5, 6, 7, 8}},
		"of heavy bulk work": {heavyBulk, 8, nil, []uint64{1, 2, 3, 4, 5, 6, 7, 8}},
	} {
		o, first := orgOf(flow.Limits{Places: 5}, flow.State{}, laneKey{})
		delete(o.lanes, first.laneKey)
		l := o.addLane(laneKey{"demo", c.lane})
		for i := range c.heavy {
			e := waiting(l, uint64(i+1), flow.Ask{Heavy: true}, time.Now().Add(time.Hour))
			switch e.sequence {
			case 6:
				e.key = "demo k"
			case 7:
				e.refused = &envelope.Error{}
			}
			o.hand.take(e)
			l.line(e, false)
		}
		aside := l.setAside()
		if got := sequences(aside); !slices.Equal(got, c.aside) || !slices.Equal(sequences(l.heavy), c.all) {
			t.Errorf("%s: %v make way, %v stay", name, got, sequences(l.heavy))
		}
		if back := o.shut([]*lane{l}); !slices.Equal(sequences(back), c.all) {
			t.Errorf("%s: %v are given back while others are moved", name, sequences(back))
		}
	}
}

// A heavy request is in its new lane before it leaves the old one, says when it was stored
// first, and is served there. One that can't be moved stays, and one whose lane is closed
// meanwhile is given back.
func TestMovedAside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	js := &faulty{JetStream: w.js}
	served := make(chan *relay.Delivery, 10)
	c := w.with(func(d *relay.Delivery) relay.Result {
		served <- d
		return answeredOf(d)
	}, js, w.js.Conn(), slog.DiscardHandler)
	o, l := w.tenure(c, "demo")
	stored := time.Now().Add(-time.Minute).UTC()
	heavy := func(id string, sequence uint64, header nats.Header) (*entry, *nats.Subscription) {
		delivery, acks := w.delivery()
		e := &entry{
			sequence: sequence, connection: "demo", lane: l, header: header, stored: stored, delivery: delivery, running: true,
			data: []byte(`{"id":"` + id + `","method":"GET","url":"/v8/Leads"}`), request: &envelope.Request{ID: id, Deadline: stored.Add(time.Hour)}, ask: flow.Ask{Heavy: true},
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		l.inHand++
		o.hand.take(e)
		return e, acks
	}
	last := func() *nats.Msg {
		t.Helper()
		msg, err := c.stream.GetLastMsgForSubject(t.Context(), "zoho.requests.demo.heavy")
		if err != nil {
			t.Fatal(err)
		}
		return &nats.Msg{Header: msg.Header, Data: msg.Data}
	}

	o.flow.SetHand(&flow.Pause{Until: time.Now().Add(time.Hour)}) // so that it can be looked at
	first, acks := heavy("first", 1001, nats.Header{"Nats-Expected-Stream": {"ANOTHER"}, "Traceparent": {"x"}})
	o.moveAside([]*entry{first})
	w.wantAck(acks, "+ACK")
	if h := last().Header; h.Get(dead.StoredHeader) != stored.Format(time.RFC3339Nano) || h.Get("Traceparent") != "x" || h.Get("Nats-Expected-Stream") != "" {
		t.Errorf("its headers: %v", h)
	}
	if o.hand.has(first.origin()) || first.running {
		t.Error("it is in hand of its old lane")
	}
	eventually(t, "it is in hand of its new lane", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		there := o.lanes[laneKey{"demo", heavyLane}]
		return there != nil && there.inHand == 1
	})
	long, acks := heavy("long", 1002, nats.Header{"Traceparent": {strings.Repeat("x", register.MaxHeader-100)}})
	o.moveAside([]*entry{long})
	w.wantAck(acks, "+ACK")
	if h := last().Header; h.Get(dead.StoredHeader) == "" || h.Get("Traceparent") != "" {
		t.Errorf("the headers of one with too many: %d", register.HeaderSize(h))
	}
	o.mu.Lock()
	o.flow.SetHand(nil)
	o.dispatch()
	for range 2 {
		if d := <-served; !d.ReceivedAt.Equal(stored) {
			t.Errorf("it was received at %s, says its new lane, not %s", d.ReceivedAt, stored)
		}
	}
	eventually(t, "both are settled", o.idle)

	js.fail("zoho.requests.", errors.New("no response from stream"), false)
	o.mu.Lock()
	o.flow.SetHand(&flow.Pause{Until: time.Now().Add(time.Hour)})
	o.mu.Unlock()
	stays, _ := heavy("stays", 1003, nil)
	if err := o.move(stays); err == nil || stays.running || !slices.Equal(sequences(l.heavy), []uint64{1003}) {
		t.Errorf("%v; running %v, the line is %v", err, stays.running, sequences(l.heavy))
	}
	back, acks := heavy("back", 1004, nil)
	o.close()
	next, _ := w.tenure(c, "demo")
	next.mu.Lock()
	next.leftover = c.hand.leftovers(next)
	next.mu.Unlock()
	if err := o.move(back); err == nil || next.leftover != 0 || c.hand.len() != 0 {
		t.Errorf("%v; %d are counted for the next tenure, %d in hand", err, next.leftover, c.hand.len())
	}
	w.wantAck(acks, "-NAK")
	// One that was moved when the org was closed is counted off, too.
	js.fail("", nil, false)
	moved, acks := heavy("moved", 1005, nil)
	next.mu.Lock()
	next.leftover = c.hand.leftovers(next)
	next.mu.Unlock()
	if err := o.move(moved); err != nil || next.leftover != 0 || o.hand.has(moved.origin()) {
		t.Errorf("%v; %d are counted for the next tenure", err, next.leftover)
	}
	w.wantAck(acks, "+ACK")
}

// Where none can be moved, the next try is not at once.
func TestMovedInVain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, l := orgOf(flow.Limits{Places: 5}, flow.State{}, laneKey{"demo", Interactive})
		stopped(t, o)
		js := &faulty{}
		js.fail("zoho.requests.", errors.New("no response from stream"), false)
		o.JetStream, o.calling, o.pulling, o.closed = js, t.Context(), t.Context(), true
		begun := time.Now()
		o.moveAside([]*entry{waiting(l, 1, flow.Ask{Heavy: true}, begun), waiting(l, 2, flow.Ask{Heavy: true}, begun)})
		if len(l.heavy) != 2 || time.Since(begun) < time.Second {
			t.Errorf("%d are back in line after %s", len(l.heavy), time.Since(begun))
		}
	})
}
