package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// spans are durations, of which quantiles are taken.
type spans []time.Duration

func (s spans) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func ms(d time.Duration) string {
	if d >= 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

func percent(x float64) string { return fmt.Sprintf("%.1f %%", 100*x) }

// thousands writes 1234567 as 1,234,567.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// table is one in Markdown.
type table struct{ strings.Builder }

func (t *table) row(cells ...any) {
	for _, c := range cells {
		fmt.Fprintf(t, "| %v ", c)
	}
	t.WriteString("|\n")
}

func (t *table) head(cells ...any) {
	t.row(cells...)
	t.WriteString(strings.Repeat("| --- ", len(cells)) + "|\n")
}

// The section of the page that this command writes, and its parts in order.
const (
	begin = "<!-- flow:begin -->"
	end   = "<!-- flow:end -->"
)

var parts = []string{"load", "idle", "surprise"}

func mark(part string) string { return "<!-- flow:" + part + " -->" }

// write puts a part into its place on the page and leaves everything else.
func write(path, part, text string) error {
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	before, rest, ok := strings.Cut(string(data), begin)
	if !ok {
		before = strings.TrimRight(before, "\n") + "\n\n## Flow control\n\n"
	}
	section, after, ok := strings.Cut(rest, end)
	if !ok {
		after = "\n"
	}
	var b strings.Builder
	b.WriteString(before + begin + "\n")
	for _, p := range parts {
		body := ""
		if _, have, ok := strings.Cut(section, mark(p)); ok {
			body, _, _ = strings.Cut(have, "<!-- flow:")
		}
		if p == part {
			body = "\n" + text
		}
		if body = strings.TrimSpace(body); body != "" {
			b.WriteString(mark(p) + "\n\n" + body + "\n\n")
		}
	}
	b.WriteString(end + after)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
