package consumer

import (
	"testing"
	"time"

	"zoho-worker/internal/connection"
)

// The census asks about lanes that have requests, and no more of them than it takes to
// see that the org is full: an org of ten thousand connections must not keep it from the rest.
func TestCensusOfManyConnections(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name        string
		busy        int // connections with requests
		each        int // of each that are in hand
		asked, want int
	}{
		{"a few busy", 3, 1, 3, 3},
		{"full", 500, 2, 3, 5},
	} {
		s := &stored{subjects: map[string]uint64{}, inHand: map[string]int{}}
		c := stub(s)
		names := named(1000)
		o := c.serveOrgOf(connection.Active, names...)
		for _, name := range names[:row.busy] {
			s.subjects[requestPrefix+name], s.inHand[name] = 2, row.each
		}
		info, _ := s.Info(t.Context())
		c.takeCensus(t.Context(), info)
		if s.asked != row.asked || c.census.queues[o.name].inHand != row.want {
			t.Errorf("%s: %d lanes are asked about, %d requests are in hand, want %d and %d",
				row.name, s.asked, c.census.queues[o.name].inHand, row.asked, row.want)
		}
	}
}

// What a worker could start: what the workers say that they have no places for,
// and of each queue that nobody serves as many as it has free places; one busy org
// hides nothing of another.
func TestRunnable(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		tally
		want int
	}{
		{"places for some", tally{waiting: 100, inHand: 7, places: 10}, 3},
		{"places for all", tally{waiting: 2, inHand: 0, places: 10}, 2},
		{"full", tally{waiting: 1000, inHand: 10, places: 10}, 0},
		{"above its limit, just lowered", tally{waiting: 1000, inHand: 10, places: 5}, 0},
		{"served", tally{waiting: 100, places: 10, served: true}, 0},
		{"paused", tally{waiting: 100, places: 10, paused: true}, 0},
		{"out of credits", tally{waiting: 100, places: 10, broke: true}, 0},
		{"parked", tally{waiting: 100, places: 10, parked: true}, 0},
		{"idle", tally{places: 10}, 0},
	} {
		if got := row.unserved(); got != row.want {
			t.Errorf("%s: %d, want %d", row.name, got, row.want)
		}
	}
	now := time.Now()
	c := &census{}
	c.put("busy", tally{at: now, waiting: 1000, inHand: 10, places: 10, served: true})
	c.put("free", tally{at: now, waiting: 4, inHand: 1, places: 10})
	c.put("paused", tally{at: now, waiting: 50, places: 10, paused: true, served: true})
	c.put("broke", tally{at: now, waiting: 70, places: 10, broke: true, served: true})
	c.put("parked", tally{at: now, waiting: 60, places: 1, parked: true})
	want := totals{forPlace: 1000, forWorker: 4, forPause: 50, forCredits: 70, forPerson: 60, inHand: 11, running: 1, full: 1, paused: 1, broke: 1, parked: 1}
	if got := c.totals(now, now, 0); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	want.forPlace, want.forWorker = 700, 304
	if got := c.totals(now, now, 300); got != want {
		t.Errorf("with a worker that has no places for 300: got %+v, want %+v", got, want)
	}
}

// A queue that Zoho keeps refusing is paused for long, though it tries now and then.
func TestLongestPause(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	c := &census{}
	look := func(after time.Duration, paused bool) time.Duration {
		c.put("q", tally{at: begun.Add(after), waiting: 1, places: 1, paused: paused})
		return c.totals(begun.Add(after), begun, 0).pausedFor
	}
	for i, row := range []struct {
		paused bool
		want   int // seconds
	}{{true, 0}, {true, 5}, {false, 10}, {true, 15}, {false, 20}, {false, 0}, {true, 0}, {true, 5}} {
		if got := look(time.Duration(i)*5*time.Second, row.paused); got != time.Duration(row.want)*time.Second {
			t.Errorf("look %d: paused for %s, want %d s", i, got, row.want)
		}
	}
}
