package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
)

// report holds what was measured: candidate, scenario, figure, one value a run.
type report struct {
	candidates []string
	repeat     int
	rows       []row
	values     map[string][]float64
}

type row struct{ scenario, figure string }

func key(candidate string, r row) string { return candidate + "/" + r.scenario + "/" + r.figure }

func (r *report) add(candidate, scenario, figure string, value float64) {
	if r.values == nil {
		r.values = map[string][]float64{}
	}
	at := row{scenario, figure}
	if !slices.Contains(r.rows, at) {
		r.rows = append(r.rows, at)
	}
	r.values[key(candidate, at)] = append(r.values[key(candidate, at)], value)
}

func (r *report) median(candidate string, at row) (float64, bool) {
	values := slices.Sorted(slices.Values(r.values[key(candidate, at)]))
	if len(values) == 0 {
		return 0, false
	}
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2, true
}

// ratio is the median, over the runs, of the candidate's figure in a run to the
// baseline's in the same run: what else the machine did meanwhile is in both.
func (r *report) ratio(candidate string, at row) (float64, bool) {
	mine, theirs := r.values[key(candidate, at)], r.values[key("baseline", at)]
	if len(mine) == 0 || len(mine) != len(theirs) {
		return 0, false
	}
	ratios := make([]float64, 0, len(mine))
	for i := range mine {
		if theirs[i] == 0 {
			return 0, false
		}
		ratios = append(ratios, mine[i]/theirs[i])
	}
	slices.Sort(ratios)
	return (ratios[(len(ratios)-1)/2] + ratios[len(ratios)/2]) / 2, true
}

// print writes the one table, and the one sentence that sums it up.
func (r *report) print(to io.Writer) {
	candidates := slices.Sorted(slices.Values(r.candidates))
	slices.SortStableFunc(candidates, func(a, b string) int {
		rank := func(name string) int { return slices.Index([]string{"worker", "baseline", bare}, name) & 0xff }
		return rank(a) - rank(b)
	})
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(to, format, args...) }
	say("| scenario | figure |")
	for _, c := range candidates {
		say(" %s |", c)
		if c != "baseline" {
			say(" to baseline |")
		}
	}
	say("\n|%s\n", strings.Repeat(" --- |", 2+2*len(candidates)-count(candidates, "baseline")))
	for _, at := range r.rows {
		say("| %s | %s |", at.scenario, at.figure)
		for _, c := range candidates {
			if v, ok := r.median(c, at); ok {
				say(" %s |", number(v))
			} else {
				say(" |")
			}
			if c == "baseline" {
				continue
			}
			if v, ok := r.ratio(c, at); ok {
				say(" %.2f× |", v)
			} else {
				say(" |")
			}
		}
		say("\n")
	}
	say("\nMedians of %d interleaved runs on %d cores that the worker shares with nats-server, Redis, the upstream and the load; only ratios travel.\n", r.repeat, runtime.NumCPU())
	at := row{"get", "/s"}
	cpu := row{"get", "µs"}
	if rate, ok := r.ratio("worker", at); ok {
		cost, _ := r.ratio("worker", cpu)
		say("The worker answers %.2f times as many GETs a second as the hand-written one, for %.2f times the processor time each.\n", rate, cost)
	}
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 1 || v <= -1:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.4f", v)
}
