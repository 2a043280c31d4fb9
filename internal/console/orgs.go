package console

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/inspect"
)

// orgRow is an org as the pages show it: what its worker says of its limits.
type orgRow struct {
	inspect.Queue
	Org   string // what people call it
	State string // ok, wait, bad: with a sign and a word
	Word  string
	Why   []string
	// Configured is the limit that the connections' records say, where the org has less now.
	Configured int
	Credits    []string
	Lanes      []laneRow
	LanesMore  int
}

// laneRow is a lane of a connection.
type laneRow struct {
	Connection, Lane string
	Waiting          int
	InFlight         int
}

// lanesShown is how many lanes of an org the list shows, those with the most work first.
const lanesShown = 6

// orgs are the orgs that have work or a worker, those with the most waiting first.
func (c *Console) orgs(w http.ResponseWriter, r *http.Request) {
	states, _ := c.board.look(r.Context())
	queues, known := c.board.orgs()
	members := c.members()
	data := struct {
		Rows  []orgRow
		Known bool
	}{Known: known}
	for _, q := range queues {
		data.Rows = append(data.Rows, c.orgRow(q, members[q.Name], states))
	}
	c.render(w, r, http.StatusOK, "orgs", page{Title: "Organisations", Nav: "orgs", Live: live(r), Data: data})
}

// orgOf is the org of a connection; nil where nothing is known of it.
func (c *Console) orgOf(ctx context.Context, conn *connection.Connection, members []*connection.Connection, states map[string]queueState) *orgRow {
	if conn.Status == connection.Unreadable {
		return nil
	}
	q := c.board.queue(ctx, conn.Name)
	if q == nil {
		return nil
	}
	row := c.orgRow(*q, members, states)
	return &row
}

// members are the connections by the queue of their org.
func (c *Console) members() map[string][]*connection.Connection {
	members := map[string][]*connection.Connection{}
	for _, conn := range c.Connections.All() {
		if conn.Status != connection.Unreadable {
			members[conn.Queue()] = append(members[conn.Queue()], conn)
		}
	}
	return members
}

// placesOf is the limit that an org's connections configure: where they disagree,
// the smallest counts. 0: there are none.
func placesOf(members []*connection.Connection) (places int) {
	for _, conn := range members {
		if p := conn.Places(); places == 0 || p < places {
			places = p
		}
	}
	return places
}

func (c *Console) orgRow(q inspect.Queue, members []*connection.Connection, states map[string]queueState) orgRow {
	now := c.Now()
	row := orgRow{Queue: q, State: "ok", Word: "Running"}
	id := ""
	var parked []string // what waits for a person
	parkedRequests := 0
	for _, conn := range members {
		row.Org, id = cmp.Or(row.Org, conn.OrgName), cmp.Or(id, conn.OrgID)
		if n := states[conn.Name].Waiting; n > 0 && (conn.Status != connection.Active || conn.Err() != nil) {
			parked = append(parked, fmt.Sprintf("%d waiting of %s, until somebody signs in again", n, conn.Name))
			parkedRequests += n
		}
	}
	row.Org = cmp.Or(row.Org, id, q.Name)
	switch places := placesOf(members); {
	case places == 0:
	case q.Places > 0 && places > q.Places:
		row.Configured = places
	default: // no worker told of it, which knows all of its connections
		row.Places, row.HeavyPlaces = places, min(q.HeavyPlaces, places)
	}
	wait := func(word, why string) {
		if row.State != "wait" {
			row.State, row.Word = "wait", word
		}
		row.Why = append(row.Why, why)
	}
	switch {
	case q.InFlight == 0 && len(parked) > 0 && q.Waiting <= parkedRequests:
		for _, why := range parked {
			wait("Waiting", why)
		}
	case q.Owner == "" && q.Waiting > 0:
		wait("Waiting", "no worker serves it yet")
	case q.Owner == "":
		row.Word = "Idle"
	case q.InFlight == 0 && q.Waiting == 0:
		row.Word = "Idle"
	}
	if q.PausedUntil.After(now) {
		wait("Paused", "for another "+span(q.PausedUntil.Sub(now))+pauseText(q.Cause, q.For))
	}
	if p := q.HeavyPause; p != nil && p.Until.After(now) {
		wait("Heavy paused", "heavy calls for another "+span(p.Until.Sub(now))+pauseText(p.Cause, p.For))
	}
	switch q.Blocked {
	case flow.CreditsOut:
		wait("Out of credits", "the credits are used up")
	case flow.Reserved:
		wait("Reserve", "bulk requests wait: what is left of the credits is kept for interactive ones")
	case flow.BudgetSpent:
		wait("Budget", "a connection has used its share of the credits")
	}
	row.Credits = creditsText(q.Credits, now)
	lanes := slices.Clone(q.Lanes)
	slices.SortStableFunc(lanes, func(a, b inspect.Lane) int { return cmp.Compare(b.Waiting+b.InFlight, a.Waiting+a.InFlight) })
	for _, l := range lanes {
		if len(row.Lanes) == lanesShown {
			row.LanesMore = len(lanes) - lanesShown
			break
		}
		row.Lanes = append(row.Lanes, laneRow{l.Connection, cmp.Or(l.Lane, "interactive"), l.Waiting, l.InFlight})
	}
	return row
}

// pauseText says for which answer an org is paused, and what it was taken for.
func pauseText(cause string, limit flow.Cause) string {
	text := ""
	if cause != "" {
		text = ": " + strings.TrimSuffix(clip(cause), ".")
	}
	if words := limit.Words(); words != "" {
		text += "; taken for the limit of " + words
	}
	return text
}

// creditsText is how an org's credits stand, a line for each thing that is known.
func creditsText(f *flow.Forecast, now time.Time) (lines []string) {
	if f == nil {
		return nil
	}
	if f.Remaining != nil {
		lines = append(lines, grouped(*f.Remaining)+" left")
	}
	lines = append(lines, fmt.Sprintf("%s used in 24 h, about %s an hour", grouped(int64(f.Used)), grouped(int64(f.PerHour))))
	if f.OutAt.After(now) {
		lines = append(lines, "out at this pace at "+f.OutAt.UTC().Format("15:04 UTC")+", in "+span(f.OutAt.Sub(now)))
	}
	return lines
}

// grouped writes 1234567 as 1,234,567.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
