package zohotest

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Limits are what Zoho allows one org. 0: any number.
type Limits struct {
	Concurrency    int `json:"concurrency"`
	SubConcurrency int `json:"sub_concurrency"`
	Credits        int `json:"credits"`
}

// Counts is what a judge of a worker wants to know of one org. Everything counts
// from the org's beginning, unless it says otherwise.
type Counts struct {
	Org    string    `json:"org"`
	At     time.Time `json:"at"` // when this was read
	Limits Limits    `json:"limits"`

	InFlight        int `json:"in_flight"` // now, those included that are being refused
	Heavy           int `json:"heavy"`     // of them, heavy ones
	HighestInFlight int `json:"highest_in_flight"`
	HighestHeavy    int `json:"highest_heavy"`

	Calls   int     `json:"calls"` // that came with a token of the org's
	Refused Refused `json:"refused"`

	// CreditsUsed is what the calls of the last 24 hours have cost.
	CreditsUsed int `json:"credits_used"`
	// CreditsCharged is what all calls that this server saw have cost.
	CreditsCharged int `json:"credits_charged"`

	// Busy is the sum of the times that calls were in flight, without those that
	// were refused for a limit: divided by a span of time, the places used in it.
	// HeavyBusy is that of the heavy ones.
	Busy      time.Duration `json:"busy"`
	HeavyBusy time.Duration `json:"heavy_busy"`

	// Last is when the last call arrived.
	Last time.Time `json:"last,omitzero"`
}

// Refused counts the calls that an org's own limits refused with 429, by what they
// exceeded; injected ones are not counted.
type Refused struct {
	Concurrency    int `json:"concurrency"`
	SubConcurrency int `json:"sub_concurrency"`
	Credits        int `json:"credits"`
	Downloads      int `json:"downloads"` // of bulk-read results, ten a minute
}

// Sum is all of them.
func (r Refused) Sum() int { return r.Concurrency + r.SubConcurrency + r.Credits + r.Downloads }

// Counts returns the counts of one org.
func (s *Server) Counts(orgID string) Counts { return s.org(orgID).counts(s.now()) }

// AllCounts returns those of all orgs, by id.
func (s *Server) AllCounts() []Counts {
	s.mu.RLock()
	orgs := make([]*org, 0, len(s.orgs))
	for _, o := range s.orgs {
		orgs = append(orgs, o)
	}
	s.mu.RUnlock()
	now := s.now()
	list := make([]Counts, 0, len(orgs))
	for _, o := range orgs {
		list = append(list, o.counts(now))
	}
	slices.SortFunc(list, func(a, b Counts) int { return cmp.Compare(a.Org, b.Org) })
	return list
}

func (o *org) counts(now time.Time) Counts {
	o.gate.Lock()
	defer o.gate.Unlock()
	o.forget(now)
	o.elapse(now)
	c := o.count
	c.Org, c.At, c.CreditsUsed = o.ID, now, o.used
	c.Limits = Limits{o.Concurrency, o.SubConcurrency, o.Credits}
	return c
}

// SetLimits changes an org's limits without notice. Calls in flight go on; the
// credits that were used stay used.
func (s *Server) SetLimits(orgID string, l Limits) {
	o := s.org(orgID)
	o.gate.Lock()
	defer o.gate.Unlock()
	o.Concurrency, o.SubConcurrency, o.Credits = l.Concurrency, l.SubConcurrency, l.Credits
}

// SpendCredits takes credits of an org's, as somebody else's calls would have, that
// long ago: they are free again 24 hours after.
func (s *Server) SpendCredits(orgID string, credits int, ago time.Duration) {
	o := s.org(orgID)
	o.gate.Lock()
	defer o.gate.Unlock()
	o.spend(s.now().Add(-ago), credits)
	o.forget(s.now())
}

// BareMessage says nothing about the cause of a 429; DocumentedMessage, the text of
// Zoho's documentation, names them all (zoho-facts 3.5).
const (
	BareMessage       = "Too many requests"
	DocumentedMessage = "Number of API requests for the 24 hour period is exceeded or the concurrency limit of the user for the app is exceeded."
)

// SetThrottleMessage makes every 429 of an org's limits say the same, whatever its
// cause. "": each cause has its own message.
func (s *Server) SetThrottleMessage(text string) { s.throttle.Store(&text) }

// tooMany is the refusal of a call for its org's limits.
func (s *Server) tooMany(c Cause) *result {
	if text := s.throttle.Load(); text != nil && *text != "" {
		c = Cause(*text)
	}
	return tooMany(c)
}

// elapse adds the time since the last change to the integrals. The gate is locked.
func (o *org) elapse(now time.Time) {
	if d := now.Sub(o.changed); d > 0 && !o.changed.IsZero() {
		o.count.Busy += time.Duration(o.working) * d
		o.count.HeavyBusy += time.Duration(o.count.Heavy) * d
	}
	o.changed = now
}

// compositePlaces is how many calls in flight a composite counts for, whatever is in it
// (zoho-facts 3.3).
const compositePlaces = 5

// enter counts an identified call as in flight, and refuses it when that is one too many.
func (x *exchange) enter() {
	o := x.org
	if o == nil {
		return
	}
	now := x.s.now()
	o.gate.Lock()
	defer o.gate.Unlock()
	o.elapse(now)
	x.counted = true
	c := &o.count
	c.Calls++
	c.Last = now
	c.InFlight++
	c.HighestInFlight = max(c.HighestInFlight, c.InFlight)
	x.places = 1
	if isComposite(x.call.Path) {
		x.places = compositePlaces
	}
	o.taken += x.places
	if x.refused == nil && o.Concurrency > 0 && o.taken > o.Concurrency && (c.InFlight > 1 || x.places == 1) {
		c.Refused.Concurrency++
		x.refused = x.s.tooMany(Concurrency)
		return
	}
	x.working = true
	o.working++
}

// admit takes the price of a call whose body is there, and its place among the
// heavy ones, or refuses it for what it lacks.
func (x *exchange) admit() {
	o := x.org
	if o == nil || x.refused != nil || x.fault != nil && !x.fault.executes() {
		return
	}
	price, heavy := weigh(x.call.Method, x.call.Path, x.call.RawQuery, x.body)
	heavies := heavyWithin(x.call.Path, x.body)
	if heavy {
		heavies++
	}
	now := x.s.now()
	o.gate.Lock()
	defer o.gate.Unlock()
	o.elapse(now)
	o.forget(now)
	c := &o.count
	switch {
	case o.Credits > 0 && o.used+price > o.Credits:
		c.Refused.Credits++
		x.refused = x.s.tooMany(CreditsExhausted)
	case heavy && o.SubConcurrency > 0 && c.Heavy+heavies > o.SubConcurrency && c.Heavy > 0:
		c.Refused.SubConcurrency++
		x.refused = x.s.tooMany(SubConcurrency)
	default:
		o.spend(now, price)
		c.CreditsCharged += price
		x.heavies = heavies
		c.Heavy += heavies
		c.HighestHeavy = max(c.HighestHeavy, c.Heavy)
		return
	}
	x.working = false
	o.working--
}

// leave takes the call out of the counts.
func (o *org) leave(x *exchange) {
	if o == nil || !x.counted {
		return
	}
	o.gate.Lock()
	defer o.gate.Unlock()
	o.elapse(x.s.now())
	o.count.InFlight--
	o.taken -= x.places
	if x.working {
		o.working--
	}
	o.count.Heavy -= x.heavies
}

// spend notes credits as used. The gate is locked.
func (o *org) spend(at time.Time, price int) {
	if price == 0 {
		return
	}
	o.used += price
	// A second's credits are freed together, when the last of them would be.
	if short := at.Truncate(time.Second); !short.Equal(at) {
		at = short.Add(time.Second)
	}
	i, found := slices.BinarySearchFunc(o.spent, at, func(s second, t time.Time) int { return s.at.Compare(t) })
	if found {
		o.spent[i].n += price
		return
	}
	o.spent = slices.Insert(o.spent, i, second{at, price})
}

// forget frees the credits that were used 24 hours ago.
func (o *org) forget(now time.Time) {
	i := 0
	for ; i < len(o.spent) && now.Sub(o.spent[i].at) >= 24*time.Hour; i++ {
		o.used -= o.spent[i].n
	}
	o.spent = o.spent[i:]
}

// creditsLeft is told only once half of them is used.
func (o *org) creditsLeft(now time.Time) (left int, tell bool) {
	if o == nil {
		return 0, false
	}
	o.gate.Lock()
	defer o.gate.Unlock()
	if o.Credits == 0 {
		return 0, false
	}
	o.forget(now)
	return max(o.Credits-o.used, 0), 2*o.used >= o.Credits
}

// download counts the download of a bulk-read result, ten a minute; at the next
// one all of them fail for a minute (zoho-facts 3.4).
func (x *exchange) download() *result {
	o, now := x.org, x.s.now()
	o.gate.Lock()
	defer o.gate.Unlock()
	if now.Before(o.noDownloads) {
		o.count.Refused.Downloads++
		return x.s.tooMany(Concurrency)
	}
	o.downloads = slices.DeleteFunc(o.downloads, func(t time.Time) bool { return now.Sub(t) >= time.Minute })
	if len(o.downloads) >= 10 {
		o.noDownloads = now.Add(time.Minute)
		o.count.Refused.Downloads++
		return x.s.tooMany(Concurrency)
	}
	o.downloads = append(o.downloads, now)
	return nil
}

// weigh says what a call costs and whether it is a heavy one, by zoho-facts 3.2 and
// 3.3 alone: not by the worker's own table, which it judges. A call with a good token
// costs something whatever its answer; no source says that mistakes are free.
func weigh(method, path, rawQuery string, body []byte) (credits int, heavy bool) {
	rest := strings.TrimPrefix(path, "/crm/")
	rest, bulk := strings.CutPrefix(rest, "bulk/")
	_, rest, _ = strings.Cut(rest, "/") // the version
	part := strings.Split(rest, "/")
	has := func(i int, name string) bool { return i < len(part) && part[i] == name }
	post := method == http.MethodPost
	switch {
	case bulk:
		switch {
		case post && rest == "read":
			return 50, false
		case post && rest == "write":
			return 500, false
		}
		return 1, false
	case has(0, "coql"):
		return coqlPrice(body), true
	case has(0, "__composite_requests"):
		var top struct {
			Rollback bool `json:"rollback_on_fail"`
		}
		if json.Unmarshal(body, &top) == nil && top.Rollback {
			return 2, true
		}
		return 1, true
	case post && rest == "settings/modules":
		return 500, false
	case !moduleName.MatchString(part[0]) || slices.Contains(notModules, part[0]):
		return 1, false
	}
	switch n := len(part); {
	case n > 1 && part[n-2] == "actions":
		return action(method, part[n-1], n == 4, rawQuery, body)
	case n == 1 && method == http.MethodGet:
		if !strings.Contains(rawQuery, "cvid") && !strings.Contains(rawQuery, "sort_by") {
			return 1, false
		}
		query, _ := url.ParseQuery(rawQuery)
		if query.Get("cvid") != "" {
			return 3, true
		}
		return 1, query.Get("sort_by") != ""
	case n == 2 && method == http.MethodGet && part[1] == "deleted":
		return 2, false
	case n <= 2 && (post || method == http.MethodPut || method == http.MethodPatch):
		records := max(lengthOf(body, "data"), 1)
		return (records + 9) / 10, records > 10
	}
	return 1, false
}

// heavyWithin is how many heavy calls there are within a composite (zoho-facts 3.3).
func heavyWithin(path string, body []byte) (n int) {
	var c composite
	if !isComposite(path) || json.Unmarshal(body, &c) != nil {
		return 0
	}
	for _, r := range c.Requests {
		if path, query, err := r.target(); err == nil {
			if _, heavy := weigh(r.Method, path, query, r.Body); heavy {
				n++
			}
		}
	}
	return n
}

func isComposite(path string) bool { return strings.HasSuffix(path, "/__composite_requests") }

var notModules = []string{"settings", "users", "org", "files", "functions", "upload"}

// action is the price of /{module}/actions/{name}, or of one record's.
func action(method, name string, one bool, rawQuery string, body []byte) (credits int, heavy bool) {
	switch {
	case name == "count" && !one && (method == http.MethodGet || method == http.MethodPost):
		return 50, false
	case method == http.MethodGet:
		return 1, false
	}
	each := func(n int) int {
		ids := lengthOf(body, "ids")
		if query, err := url.ParseQuery(rawQuery); err == nil && query.Get("ids") != "" {
			ids = max(ids, strings.Count(query.Get("ids"), ",")+1)
		}
		return (max(ids, 1) + n - 1) / n
	}
	switch name {
	case "convert":
		return 5, true
	case "mass_convert":
		return 200, false
	case "send_mail":
		return 20, true
	case "download_mail_merge":
		return 5, false
	case "merge":
		return 50, false
	case "add_tags", "remove_tags":
		if one {
			return 1, false
		}
		return each(50), false
	case "mass_delete":
		return each(100), false
	}
	return 1, false
}

// lengthOf is the number of elements of an array in a JSON object; 0 where there is none.
func lengthOf(body []byte, member string) int {
	var top map[string]json.RawMessage
	var rows []json.RawMessage
	if json.Unmarshal(body, &top) != nil || json.Unmarshal(top[member], &rows) != nil {
		return 0
	}
	return len(rows)
}

// coqlPrice is by the rows that the query may return.
func coqlPrice(body []byte) int {
	var top struct {
		Query string `json:"select_query"`
	}
	rows := defaultRows
	if json.Unmarshal(body, &top) == nil {
		if q, _ := parseCOQL(top.Query); q != nil {
			rows = q.max
		}
	}
	switch {
	case rows <= 200:
		return 1
	case rows <= 1000:
		return 2
	}
	return 3
}
