package consumer

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
)

// A request is in hand once, with its latest delivery; one that took its sequence in
// another life of the stream is another.
func TestInHandOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHand(time.Hour)
	stored := time.Now()
	of := func(sequence uint64, at time.Time) *entry {
		delivery, _ := w.delivery()
		return &entry{sequence: sequence, entered: at, stored: at, size: 100, delivery: delivery}
	}
	first, again, other := of(1, stored), of(1, stored), of(1, stored.Add(time.Second))
	if !h.take(first) || h.take(again) || !h.take(other) {
		t.Error("not taken in hand once each")
	}
	if h.delivery(first) != again.delivery {
		t.Error("the latest delivery isn't the one that is settled")
	}
	if h.len() != 2 || h.bytes.Load() != 200 {
		t.Errorf("%d requests, %d bytes", h.len(), h.bytes.Load())
	}
	for range 20 { // a map has no order
		if h.get(1) != other {
			t.Fatal("the last stored one of that sequence is another")
		}
	}
	if h.leave(again); !h.has(first.origin()) || h.bytes.Load() != 200 {
		t.Error("one that isn't in hand takes another out of it")
	}
	if h.leave(first); h.has(first.origin()) || h.len() != 1 || h.bytes.Load() != 100 {
		t.Errorf("%d requests, %d bytes", h.len(), h.bytes.Load())
	}
}

// What is in hand is told apart by its org, by the tenure of it, and by when it was stored.
func TestInHandOf(t *testing.T) {
	t.Parallel()
	h := newHand(time.Hour)
	now := time.Now()
	for i, o := range []*org{{name: "a"}, {name: "a"}, {name: "b"}} {
		h.take(&entry{sequence: uint64(i + 1), stored: now.Add(time.Duration(i) * time.Second), lane: &lane{org: o}})
	}
	a := h.get(2).lane.org
	if n := h.leftovers(a); n != 1 {
		t.Errorf("%d requests of earlier tenures", n)
	}
	if of := h.of(a); len(of) != 1 || of[0].sequence != 2 {
		t.Errorf("%v are the org's", sequences(of))
	}
	old := h.storedBefore(now.Add(time.Second))
	if first := h.get(1).lane.org; len(old) != 1 || len(old[first]) != 1 {
		t.Errorf("%v were stored before", old)
	}
}

// Each lane may ask for a part of what is left of what a worker may have in hand, or for
// the rest of its share where that is more, and for little where it has little.
//
// Not parallel: the lanes that are counted, and the memory limit, are the process's.
func TestRoomInHand(t *testing.T) {
	before := openLanes.Swap(4)
	defer openLanes.Store(before)
	h := newHand(time.Hour)
	h.most = 400 << 20
	for name, c := range map[string]struct{ all, has, want int64 }{
		"nothing yet":                     {0, 0, firstAsk},
		"some":                            {20, 20, 40<<20 + firstAsk},
		"its share, and others have less": {100, 100, 75 << 20},
		"more than its share":             {360, 200, 10 << 20},
		"less than its share":             {380, 60, 40 << 20},
		"nothing is left":                 {400, 60, 40 << 20},
		"nothing is left of its share":    {400, 100, 0},
		"others hold too much":            {799, 0, firstAsk},
		"others hold twice as much":       {800, 0, 0},
	} {
		h.bytes.Store(c.all << 20)
		if got := h.room(c.has << 20); got != c.want {
			t.Errorf("%s: room for %d, want %d", name, got, c.want)
		}
	}
	limit := debug.SetMemoryLimit(400 << 20)
	defer debug.SetMemoryLimit(limit)
	if most := newHand(time.Hour).most; most != 100<<20 {
		t.Errorf("%d bytes of 400 MiB of memory", most)
	}
}

// What is in hand shows a sign of life, as long as the worker does.
func TestKeptAlive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := newHand(time.Millisecond)
	delivery, acks := w.delivery()
	h.take(&entry{sequence: 1, delivery: delivery})
	ctx, stop := context.WithCancel(t.Context())
	var also atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.keepAlive(ctx, func() { also.Add(1) })
	}()
	w.wantAck(acks, "+WPI")
	w.wantAck(acks, "+WPI")
	stop()
	<-done
	if also.Load() < 2 {
		t.Errorf("%d ticks", also.Load())
	}
}
