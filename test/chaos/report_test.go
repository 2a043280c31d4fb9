package chaos

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// report is the one table of all worlds, a column for each, and its sum in a
// sentence. It is printed when all have run, and written to CHAOS_REPORT: go
// test shows the output of a package that passed only when it is asked to.
type report struct {
	mu      sync.Mutex
	columns []column
}

type column struct {
	world string
	seed  uint64
	*books
}

var results report

func (r *report) add(c column) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.columns = append(r.columns, c)
}

// faults is how often each kind struck: Zoho's as its ledger has them.
func (b *books) faults() map[string]int {
	n := map[string]int{}
	for _, c := range b.zoho.Calls() {
		n[c.Fault]++
	}
	for _, k := range kinds {
		if !k.inZohosLedger {
			n[k.name] = b.caused[k.name]
		}
	}
	return n
}

func (r *report) String() string {
	var text strings.Builder
	out := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	row := func(group, name string, cell func(column) any) {
		_, _ = fmt.Fprintf(out, "%s\t%s", group, name)
		for _, c := range r.columns {
			_, _ = fmt.Fprintf(out, "\t%v", cell(c))
		}
		_, _ = fmt.Fprintln(out)
	}
	row("", "", func(c column) any { return c.world })
	row("", "CHAOS_SEED", func(c column) any { return c.seed })
	total := map[string]int{}
	faults := map[string]map[string]int{}
	for _, c := range r.columns {
		faults[c.world] = c.faults()
	}
	for _, k := range kinds {
		row("fault", k.name, func(c column) any {
			n := faults[c.world][k.name]
			total["faults"] += n
			return n
		})
	}
	methods := map[string]map[string]int{}
	for _, c := range r.columns {
		for _, q := range c.requests {
			name := q.method
			if q.unique {
				name += " with unique_field"
			}
			if q.probed {
				name += " with a probe"
			}
			if methods[name] == nil {
				methods[name] = map[string]int{}
			}
			methods[name][c.world]++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(methods)) {
		row("requests", name, func(c column) any { return methods[name][c.world] })
	}
	sum := func(group, name string, of func(column) int) {
		row(group, name, func(c column) any {
			n := of(c)
			total[name] += n
			return n
		})
	}
	sum("requests", "acknowledged", func(c column) int { return len(c.requests) })
	sum("requests", "published again", func(c column) int { return c.repeats })
	sum("requests", "asked again, reply lost with NATS", func(c column) int { return c.asked })
	sum("books", "answered", func(c column) int { return c.answered })
	sum("books", "confirmed by unique_field or probe", func(c column) int { return c.confirmed })
	sum("books", "deadline passed", func(c column) int { return c.late })
	sum("books", "401 twice, delivered", func(c column) int { return c.refused })
	sum("books", "under way in four workers that died", func(c column) int { return c.convicted })
	sum("books", "unknown", func(c column) int { return c.unknown })
	sum("books", "lost", func(c column) int { return len(c.lost) })
	sum("books", "doubled", func(c column) int { return len(c.doubled) })
	sum("books", "otherwise wrong", func(c column) int { return len(c.wrong) })
	sum("tokens", "minted", func(c column) int { return c.mints })
	sum("tokens", "reasons to mint one", func(c column) int { return c.expiries })
	sum("workers", "ended by themselves", func(c column) int { return len(c.ownEnds) })
	for _, percent := range []int{50, 90, 99} {
		row("waited", fmt.Sprintf("%dth percentile, faults included", percent), func(c column) any {
			return c.waited(percent).Round(time.Millisecond)
		})
	}
	row("drained", "after the last fault", func(c column) any { return fmt.Sprintf("%.1f s", c.drained.Seconds()) })
	_ = out.Flush()
	_, _ = fmt.Fprintf(&text, "%d faults, %d requests acknowledged, %d answered: %d lost, %d doubled, %d unknown, %d otherwise wrong.\n",
		total["faults"], total["acknowledged"], total["answered"], total["lost"], total["doubled"], total["unknown"], total["otherwise wrong"])
	for _, c := range r.columns {
		for _, how := range c.ownEnds {
			_, _ = fmt.Fprintf(&text, "%s: %s\n", c.world, how)
		}
	}
	return text.String()
}

// waited is a percentile of the time from a request's acknowledgement to its
// first reply, of those with an inbox.
func (b *books) waited(percent int) time.Duration {
	var all []time.Duration
	for id, at := range b.replied {
		if q := b.requests[id]; q != nil && !q.asked {
			all = append(all, max(0, at.Sub(q.published)))
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[min(len(all)-1, len(all)*percent/100)]
}

func (r *report) write() error {
	if len(r.columns) == 0 {
		return nil
	}
	text := r.String()
	if file := os.Getenv("CHAOS_REPORT"); file != "" {
		return os.WriteFile(file, []byte(text), 0o600)
	}
	fmt.Print(text)
	return nil
}
