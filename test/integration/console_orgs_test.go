package integration

import (
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/devbox"
	"zoho-worker/internal/zoho/zohotest"
)

// says waits until a page is there and says all of that: the worker hears of a
// connection a moment after it was made.
func (p *person) says(page string, texts ...string) {
	p.t.Helper()
	eventually(p.t, page+" says "+strings.Join(texts, ", "), func() bool {
		a := p.get(page)
		if a.status == 404 {
			return false
		}
		got := text(a.want(p.t, 200).body)
		for _, want := range texts {
			if !strings.Contains(got, want) {
				return false
			}
		}
		return true
	})
}

// The pages show of an org what its worker knows: places, lanes, pauses and for
// which answer, credits; and nothing of it where it has no work.
func TestConsoleShowsFlowControl(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.get("/orgs").want(t, 200, "No organisation has work now")
	p.connect("Acme", ada)
	const lead = "/crm/v8/Leads"
	hold := c.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Path: lead})
	list := func(id string) doc {
		return doc{"id": id, "method": "GET", "url": "/v8/Leads?fields=Last_Name"}
	}
	for _, id := range []string{"one", "two", "three"} {
		c.publish("acme", list(id))
	}
	c.publish("acme.bulk", list("four"))
	for range 4 {
		<-hold.Reached()
	}
	p.says("/orgs", "Analytical Engines", "org-us-production-"+devbox.OrgID, "Running", "4 of 15", "heavy 0 of 10",
		"acme interactive 0 waiting, 3 in flight", "acme bulk 0 waiting, 1 in flight")
	p.says("/connections/acme", "Organisation’s limits", "4 of 15", "acme bulk")
	hold.Release()
	c.awaitAll("acme", 4)
	p.says("/orgs", "Idle", "0 of 15")

	// Zoho tells what is left once half of the credits are used.
	c.Zoho.SetLimits(devbox.OrgID, zohotest.Limits{Concurrency: 10, SubConcurrency: 10, Credits: 1_000_000})
	c.Zoho.SpendCredits(devbox.OrgID, 900_000, time.Hour)
	wantStatus(t, c.call("acme", list("five")), 200)
	p.says("/orgs", "99,99", " left", "used in 24 h")

	// A 429 pauses the org, and the page says for which answer.
	c.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.Concurrency, 10*time.Minute))
	c.publish("acme", list("six"))
	p.says("/orgs", "Paused", "for another 9 min", "taken for the limit of calls in flight", "1 waiting")
	p.says("/connections/acme", "Paused", "taken for the limit of calls in flight")
}

// An org of two connections has one limit, the smaller of theirs, and one name.
func TestConsoleOrgOfTwo(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.connect("Acme", ada)
	c.connect("small", devbox.OrgID, 3)
	p.says("/connections/acme", "0 of 3 in flight", "Calls in flight 0 of 3 heavy 0 of 3")
	p.says("/connections/small", "User user-of-small Organisation "+devbox.OrgID+" Data centre", "Calls in flight 0 of 3")
	hold := c.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Path: "/crm/v8/Leads"})
	c.publish("acme", doc{"id": "one", "method": "GET", "url": "/v8/Leads?fields=Last_Name"})
	<-hold.Reached()
	p.says("/", "1 of 3 in flight")
	p.says("/orgs", "Analytical Engines", "1 of 3 heavy")
	hold.Release()
}

// Where all that an org has waits for a person, its pages say so; and a connection
// that was never given a token was never used.
func TestConsoleOrgWaitsForPerson(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	c.Zoho.RevokeRefreshToken(c.connect("acme", devbox.OrgID, 5))
	c.publish("acme", doc{"id": "one", "method": "GET", "url": "/v8/Leads?fields=Last_Name"})
	const why = "Waiting 1 waiting of acme, until somebody signs in again"
	p.says("/connections/acme", "Revoked", "State "+why, "Last used never")
	p.says("/orgs", devbox.OrgID, why)
}
