package flow

import "time"

// Credits are counted in slices of the rolling 24 hours (zoho-facts 3.1).
const (
	window = 24 * time.Hour
	slice  = 15 * time.Minute
	slices = int64(window / slice)
)

// number is that of the slice that t lies in, since the epoch.
func number(t time.Time) int64 { return t.UnixNano() / int64(slice) }

// Usage is the credits used in the last 24 hours, by slice.
type Usage struct {
	// First is the number of the first slice since the epoch; Counts go on from there.
	First  int64 `json:"first"`
	Counts []int `json:"counts,omitempty"`

	total int // of Counts
}

// Bounds of what a state that was read may say: more is a mistake, and would
// overflow sooner or later.
const (
	mostCredits = 1 << 40
	mostSlices  = int(slices) + 2
	lastSlice   = 10_000_000 // in the year 2255
)

// normalised is a copy that can be true, and can be added to.
func (u Usage) normalised() Usage {
	if u.First < 0 || u.First > lastSlice || len(u.Counts) > mostSlices {
		return Usage{}
	}
	counts := make([]int, 0, len(u.Counts))
	n := Usage{First: u.First}
	for _, count := range u.Counts {
		count = min(max(0, count), mostCredits)
		counts = append(counts, count)
		n.total += count
	}
	n.Counts = counts
	return n
}

// clone is a copy that doesn't change with u.
func (u Usage) clone() Usage {
	u.Counts = append([]int(nil), u.Counts...)
	return u
}

// add counts credits used now.
func (u *Usage) add(now time.Time, n int) {
	at := number(now)
	u.slide(at, at)
	if len(u.Counts) == 0 {
		u.First = at
	}
	at = max(at, u.First) // a clock that went back
	for int64(len(u.Counts)) <= at-u.First {
		u.Counts = append(u.Counts, 0)
	}
	u.Counts[at-u.First] += n
	u.total += n
}

// slide forgets what left the window: a slice does when its last call has. It
// returns the credits of those slices that were wholly in the window of the
// slice known.
func (u *Usage) slide(at, known int64) (freed int) {
	if u.First-at > slices {
		*u = Usage{} // the clock was days ahead: nothing would ever leave
		return 0
	}
	for len(u.Counts) > 0 && u.First < at-slices {
		if u.First > known-slices {
			freed += u.Counts[0]
		}
		u.total -= u.Counts[0]
		u.Counts, u.First = u.Counts[1:], u.First+1
	}
	return freed
}

// since is what was used in the slices from the one numbered from on.
func (u *Usage) since(from int64) (n int) {
	for i := len(u.Counts) - 1; i >= 0 && u.First+int64(i) >= from; i-- {
		n += u.Counts[i]
	}
	return n
}

// freed is when n credits of those slices will have left the window that were
// wholly in that of the slice known, as far as is known.
func (u *Usage) freed(known int64, n int) (time.Time, bool) {
	for i, count := range u.Counts {
		if u.First+int64(i) <= known-slices {
			continue
		}
		if n -= count; n <= 0 {
			return time.Unix(0, (u.First+int64(i)+1)*int64(slice)).Add(window), true
		}
	}
	return time.Time{}, false
}

// slide brings what is counted up to now.
func (g *Governor) slide(now time.Time) {
	at := number(now)
	if at == g.slid {
		return
	}
	g.slid = at
	freed := g.state.Used.slide(at, number(g.state.Known))
	if !g.state.Known.IsZero() {
		g.state.Left += int64(freed)
	}
	for name, u := range g.state.Callers {
		if u.slide(at, at); u.total == 0 {
			delete(g.state.Callers, name)
		}
	}
}

// credit reports why the credits don't allow a call.
func (g *Governor) credit(now time.Time, a Ask) (Reason, time.Time) {
	if budget := g.limits.Budgets[a.Connection]; budget > 0 {
		used := g.spending[a.Connection]
		g.slide(now)
		u := g.state.Callers[a.Connection]
		if u != nil {
			used += u.total
		}
		if over := used + a.Credits - budget; over > 0 {
			var until time.Time // a call in flight that ends, or never
			if u != nil {
				until, _ = u.freed(0, over)
			}
			return BudgetSpent, until
		}
	}
	remaining, known := g.Remaining(now)
	if !known {
		return "", time.Time{}
	}
	after := remaining - int64(g.pending) - int64(a.Credits)
	// What was known is old: one call asks anew.
	asks := g.running == 0 && !now.Before(g.ask())
	if after < 0 {
		if asks {
			return "", time.Time{}
		}
		return CreditsOut, g.again(now, -after)
	}
	if a.Bulk {
		// Bulk work asks anew, too, or where there is no other it would wait for a
		// day; but it doesn't eat the reserve up.
		reserve := g.reserve(remaining)
		if after < reserve && (!asks || 2*after < reserve) {
			return Reserved, g.again(now, reserve-after)
		}
	}
	return "", time.Time{}
}

// ask is when what is known of the credits is so old that a call may ask anew:
// after they were used up, when the pause is over. Where the call that asked was
// refused for another reason, that is when the pause for that one is over.
func (g *Governor) ask() time.Time {
	if p := g.state.Pause; p != nil {
		if d := p.Until.Sub(g.state.Known); d > 0 && d <= retryLongest {
			return p.Until
		}
	}
	return g.state.Known.Add(creditLongest)
}

// again is when it is worth looking at the credits again: when n more are known
// to be free, when one call may ask anew, or when nothing is known any more.
func (g *Governor) again(now time.Time, n int64) time.Time {
	at := g.state.Known.Add(window + time.Second)
	if ask := g.ask(); ask.After(now) && ask.Before(at) {
		at = ask
	}
	if free, ok := g.state.Used.freed(number(g.state.Known), int(n)); ok && free.After(now) && free.Before(at) {
		at = free
	}
	return at
}

// reserve is how many credits are kept for interactive work: a part of what the
// org has in all, as far as that can be told from what is left and what we used.
func (g *Governor) reserve(remaining int64) int64 {
	return int64(g.limits.Reserve * float64(remaining+int64(g.state.Used.total)))
}

// Spent counts what an attempt cost. Remaining is what Zoho's header said is
// left, -1 where it said nothing; began is when the attempt began.
func (g *Governor) Spent(now, began time.Time, connection string, credits int, remaining int64) {
	g.slide(now)
	g.state.Used.add(now, credits)
	if g.limits.Budgets[connection] > 0 {
		if g.state.Callers == nil {
			g.state.Callers = map[string]*Usage{}
		}
		u := g.state.Callers[connection]
		if u == nil {
			u = &Usage{}
			g.state.Callers[connection] = u
		}
		u.add(now, credits)
	}
	g.changed = true
	// A header counts its own call. One that says more than is known is of a call that
	// was charged before, and is in what is known.
	if _, known := g.Remaining(now); known && remaining < 0 {
		left := g.state.Left - int64(credits)
		// A call that by what is known couldn't be paid for, and no word of credits.
		g.doubtful = left < 0 && began.After(g.state.Known)
		g.state.Left = max(0, left)
	}
	g.learn(now, began, remaining)
}

// learn takes in what a header said.
func (g *Governor) learn(now, began time.Time, remaining int64) {
	if remaining < 0 {
		return
	}
	// Answers come in any order: an older call's header is behind.
	if _, known := g.Remaining(now); !known || began.After(g.state.Known) || remaining < g.state.Left {
		g.remember(now, remaining)
	}
}

func (g *Governor) remember(now time.Time, remaining int64) {
	g.slide(now)
	g.state.Known, g.state.Left, g.doubtful = now, min(remaining, mostCredits), false
}

// forget has nothing known of the credits left, as long as Zoho says nothing.
func (g *Governor) forget() { g.state.Known, g.state.Left, g.doubtful = time.Time{}, 0, false }

// Remaining is how many credits the org has left, and whether that is known:
// Zoho says so only once half of them are used (zoho-facts 3.6).
func (g *Governor) Remaining(now time.Time) (int64, bool) {
	if g.state.Known.IsZero() {
		return 0, false
	}
	if age := now.Sub(g.state.Known); age > window || age < -creditLongest {
		return 0, false // too old, or by a clock that was wrong
	}
	g.slide(now)
	return g.state.Left, true
}

// Forecast is what the last hour's pace leads to.
type Forecast struct {
	Used      int    `json:"used"`                // in the last 24 hours, by this client
	Remaining *int64 `json:"remaining,omitempty"` // as Zoho last said, carried on
	PerHour   int    `json:"per_hour"`
	// OutAt is when the credits are used up at this pace; zero: not within a day,
	// or not known.
	OutAt time.Time `json:"out_at,omitzero"`
}

// Forecast says how the credits stand.
func (g *Governor) Forecast(now time.Time) Forecast { return g.state.Forecast(now) }

// Forecast says how the credits stand.
func (s *State) Forecast(now time.Time) Forecast {
	g := New(Limits{}, *s)
	remaining, known := g.Remaining(now)
	g.slide(now)
	used := &g.state.Used
	f := Forecast{Used: used.total}
	// The last hour's slices, of which the present one isn't over.
	from := number(now.Add(-time.Hour)) + 1
	if covered := now.Sub(time.Unix(0, from*int64(slice))); covered > 0 {
		f.PerHour = int(float64(used.since(from)) * float64(time.Hour) / float64(covered))
	}
	if known {
		f.Remaining = &remaining
		if f.PerHour > 0 {
			if hours := float64(remaining) / float64(f.PerHour); hours < window.Hours() {
				f.OutAt = now.Add(time.Duration(hours * float64(time.Hour)))
			}
		}
	}
	return f
}

// State is what outlives the worker that serves the org: it is kept in the
// org's record.
type State struct {
	// Limit is what Zoho was seen to allow, where that is less than configured.
	Limit      int    `json:"limit,omitempty"`
	HeavyLimit int    `json:"heavy_limit,omitempty"`
	Pause      *Pause `json:"pause,omitempty"`
	HeavyPause *Pause `json:"heavy_pause,omitempty"`
	// Hand is a pause that a person made.
	Hand *Pause `json:"hand,omitempty"`
	// Used are the credits of the last 24 hours; Callers those of connections with a budget.
	Used    Usage             `json:"used"`
	Callers map[string]*Usage `json:"callers,omitempty"`
	// Left are the credits left at the instant Known, less what was used since.
	Left  int64     `json:"left,omitempty"`
	Known time.Time `json:"known,omitzero"`
}

// normalised is a copy of a state that was read which is usable, whatever it says.
func (s State) normalised() State {
	s = s.clone()
	s.Limit, s.HeavyLimit, s.Left = max(0, s.Limit), max(0, s.HeavyLimit), min(max(0, s.Left), mostCredits)
	s.Used = s.Used.normalised()
	for name, u := range s.Callers {
		if *u = u.normalised(); u.total == 0 {
			delete(s.Callers, name)
		}
	}
	return s
}

// clone is a copy that doesn't change with s.
func (s State) clone() State {
	s.Used = s.Used.clone()
	callers := s.Callers
	s.Callers = nil
	for name, u := range callers {
		if u == nil {
			continue
		}
		if s.Callers == nil {
			s.Callers = make(map[string]*Usage, len(callers))
		}
		c := u.clone()
		s.Callers[name] = &c
	}
	return s // pauses are replaced, never changed
}

// State returns the state to be saved: a copy.
func (g *Governor) State() State { return g.state.clone() }

// Leaving returns the state to be saved by who gives the org up with calls in
// flight: the next owner hears nothing of what they cost, so what they may use
// is taken for used.
func (g *Governor) Leaving(now time.Time) State {
	s := g.State()
	if g.pending == 0 {
		return s
	}
	s.Used.add(now, g.pending)
	for name, n := range g.spending {
		if g.limits.Budgets[name] == 0 {
			continue
		}
		if s.Callers == nil {
			s.Callers = map[string]*Usage{}
		}
		if s.Callers[name] == nil {
			s.Callers[name] = &Usage{}
		}
		s.Callers[name].add(now, n)
	}
	s.Left = max(0, s.Left-int64(g.pending))
	return s
}

// Changed reports whether the state changed since the last call of Changed.
func (g *Governor) Changed() bool {
	changed := g.changed
	g.changed = false
	return changed
}

// SetHand takes in a pause that a person made, nil for none.
func (g *Governor) SetHand(p *Pause) { g.state.Hand = p }

// Resume ends every pause: a person said so, who may have bought credits.
func (g *Governor) Resume() {
	g.state.Hand, g.state.Pause, g.state.HeavyPause = nil, nil, nil
	if g.state.Left == 0 {
		g.forget()
	}
	g.strikes, g.heavyStrikes, g.creditStrikes, g.unanswered = 0, 0, 0, 0
	g.ramp, g.changed = 0, true
}
