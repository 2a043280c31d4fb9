package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/inspect"
	"zoho-worker/internal/secret"
)

func statusCommand() *cobra.Command {
	var asJSON, watch bool
	var every time.Duration
	cmd := &cobra.Command{
		Use: "status", Short: "Show streams, org queues, connections and workers on one screen", Args: cobra.NoArgs,
		Long: `Show streams, org queues, connections and workers on one screen. It needs to look
only: see the user "observer" in deploy/nats/accounts.conf.`,
		Example: `  worker status --watch`,
	}
	config := clientConfig(cmd.Flags())
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "as JSON; with --watch a document a line")
	f.BoolVarP(&watch, "watch", "w", false, "go on, until Ctrl-C")
	f.DurationVar(&every, "every", 2*time.Second, "how often, with --watch")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		out := cmd.OutOrStdout()
		return withReader(cmd, config, func(r *inspect.Reader) error {
			for {
				if err := showStatus(cmd.Context(), r, out, asJSON, watch); err != nil && (!watch || cmd.Context().Err() != nil) {
					return err
				}
				if !watch {
					return nil
				}
				select {
				case <-cmd.Context().Done():
					if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
						fmt.Fprintln(out) // the prompt begins a line
					}
					return nil
				case <-time.After(max(every, 200*time.Millisecond)):
				}
			}
		})
	}
	return cmd
}

// showStatus writes a screen in one piece, so that it doesn't flicker.
func showStatus(ctx context.Context, r *inspect.Reader, out io.Writer, asJSON, watch bool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	overview, err := r.Overview(ctx)
	if err != nil && overview == nil {
		if watch && !asJSON {
			paint(out, "no look at "+secret.RedactURLs(r.NC.ConnectedUrl())+": "+err.Error()+"\n")
		}
		return err
	}
	switch {
	case asJSON && watch:
		return json.NewEncoder(out).Encode(overview)
	case asJSON:
		return writeJSON(out, overview)
	}
	screen := render(overview)
	if err != nil {
		screen += "\n" + explained(r.NC, err).Error() + "\n"
	}
	if watch {
		paint(out, screen)
		return nil
	}
	_, err = io.WriteString(out, screen)
	return err
}

// paint writes over the screen before: from the top, each line cleared to its
// end, then what is left below.
func paint(out io.Writer, screen string) {
	file, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		_, _ = io.WriteString(out, screen+"\n")
		return
	}
	lines := strings.Split(strings.TrimSuffix(screen, "\n"), "\n")
	if width, height, err := term.GetSize(int(file.Fd())); err == nil {
		lines = fit(lines, width, height)
	}
	_, _ = io.WriteString(out, "\x1b[H"+strings.Join(lines, "\x1b[K\n")+"\x1b[K\n\x1b[J")
}

// fit cuts lines to a terminal, of which the last line stays free. One that
// doesn't know its size says 0.
func fit(lines []string, width, height int) []string {
	if height > 1 {
		lines = lines[:min(len(lines), height-1)]
	}
	for i, line := range lines {
		if runes := []rune(line); width > 0 && len(runes) > width {
			lines[i] = string(runes[:width])
		}
	}
	return lines
}

// mostQueues is how many queues a screen shows, those with the most work first.
const mostQueues = 20

func render(o *inspect.Overview) string { return visible(rendered(o)) }

func rendered(o *inspect.Overview) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s  NATS %s at %s\n\n", o.At.Local().Format("2006-01-02 15:04:05"), o.Version, o.NATS)
	table := func(header string, rows func(w io.Writer)) {
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, header)
		rows(w)
		_ = w.Flush()
		b.WriteByte('\n')
	}
	table("STREAM\tMESSAGES\tBYTES\tOLDEST", func(w io.Writer) {
		for _, s := range o.Streams {
			switch {
			case s.Missing:
				fmt.Fprintf(w, "%s\tis not there: start a worker\t\t\n", s.Name)
			case s.Err != "":
				fmt.Fprintf(w, "%s\t%s\t\t\n", s.Name, s.Err)
			case s.Messages == 0:
				fmt.Fprintf(w, "%s\t0\t0\t-\n", s.Name)
			default:
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", s.Name, s.Messages, size(s.Bytes), span(s.Age))
			}
		}
	})
	if len(o.Queues) == 0 && len(o.Unqueued) == 0 {
		b.WriteString("no org queue has work\n\n")
	} else {
		renderQueues(&b, o, table)
	}
	if len(o.Workers) == 0 {
		b.WriteString("no worker answers: none runs, or they use another NATS server or account\n")
		return b.String()
	}
	table("WORKER\tHOST\tPID\tVERSION\tUP\tFLIGHT\tHELD\tQUEUES", func(w io.Writer) {
		for _, worker := range o.Workers {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%d/%d\t%d\t%d\n", worker.ID, tail(worker.Host, 20), worker.PID, worker.Version,
				span(o.At.Sub(worker.Started)), worker.InFlight, worker.MaxInFlight, worker.Held, worker.Queues)
		}
	})
	unready := 0
	for _, worker := range o.Workers {
		if worker.NotReady != "" {
			fmt.Fprintf(&b, "%s is not ready: %s\n", worker.ID, worker.NotReady)
			unready++
		}
	}
	if unready > 0 {
		b.WriteByte('\n')
	}
	var counts []string
	for _, status := range slices.Sorted(maps.Keys(o.Connections)) {
		counts = append(counts, fmt.Sprint(o.Connections[status], " ", status))
	}
	if len(counts) == 0 {
		counts = []string{"none yet"}
	}
	fmt.Fprintf(&b, "connections: %s\n", strings.Join(counts, ", "))
	for _, t := range o.Troubled {
		since := ""
		if !t.Since.IsZero() {
			since = " since " + t.Since.Local().Format("2006-01-02 15:04")
		}
		fmt.Fprintf(&b, "  %s is %s%s: %s\n", t.Name, t.Status, since, t.Reason)
	}
	return b.String()
}

func renderQueues(b io.Writer, o *inspect.Overview, table func(string, func(io.Writer))) {
	var notes []string
	table("QUEUE\tWAITING\tBULK\tFLIGHT\tHEAVY\tCREDITS\tWORKER\tCONNECTIONS", func(w io.Writer) {
		for i, q := range o.Queues {
			if i == mostQueues {
				fmt.Fprintf(w, "and %d more\t\t\t\t\t\t\t\n", len(o.Queues)-i)
				break
			}
			bulk := 0
			for _, l := range q.Lanes {
				if strings.HasPrefix(l.Lane, string(consumer.Bulk)) {
					bulk += l.Waiting
				}
			}
			credits, owner := "-", "nobody"
			switch c := q.Credits; {
			case c == nil:
			case c.Remaining != nil:
				credits = fmt.Sprint(*c.Remaining, " left")
			default:
				credits = fmt.Sprint(c.Used, " used")
			}
			if q.Owner != "" {
				owner = tail(q.Owner, 14)
			}
			fmt.Fprintf(w, "%s\t%d\t%d\t%d/%d\t%d/%d\t%s\t%s\t%s\n", tail(q.Name, 29), q.Waiting, bulk,
				q.InFlight, q.Places, q.Heavy, q.HeavyPlaces, credits, owner, some(q.Connections, 12))
			notes = append(notes, notesOf(q, o.At)...)
		}
		for i, u := range o.Unqueued {
			if i == mostQueues {
				fmt.Fprintf(w, "and %d more without a queue\t\t\t\t\t\t\t\n", len(o.Unqueued)-i)
				break
			}
			why := "not known"
			switch u.State {
			case inspect.Authorization:
				why = "revoked"
			case inspect.Stranger:
				why = "unknown"
			}
			fmt.Fprintf(w, "(none: %s)\t%d\t-\t-\t-\t-\t-\t%s\n", why, u.Requests, u.Connection)
		}
	})
	for _, note := range notes {
		fmt.Fprintln(b, note)
	}
	if len(notes) > 0 {
		fmt.Fprintln(b)
	}
}

// notesOf are the lines about a queue that have no place in the table.
func notesOf(q inspect.Queue, now time.Time) (notes []string) {
	pause := func(what string, d time.Duration, until time.Time, cause string, limit flow.Cause) {
		said := fmt.Sprintf("%s: %s for another %s, until %s", q.Name, what, span(d), until.Local().Format("15:04:05"))
		if cause != "" {
			said += " (" + cause + ")"
		}
		if limit != "" {
			said += ", limit " + string(limit)
		}
		notes = append(notes, said)
	}
	if q.Paused > 0 {
		pause("paused", q.Paused, q.PausedUntil, q.Cause, q.For)
	}
	if p := q.HeavyPause; p != nil {
		pause("heavy calls paused", p.Until.Sub(now), p.Until, p.Cause, p.For)
	}
	switch q.Blocked {
	case consumer.WaitWorker:
		notes = append(notes, q.Name+": its worker has as many requests under way as it may (--max-in-flight)")
	case flow.CreditsOut:
		notes = append(notes, q.Name+": its credits are used up")
	case flow.Reserved:
		notes = append(notes, q.Name+": bulk requests wait: what is left of the credits is kept for interactive ones")
	case flow.BudgetSpent:
		notes = append(notes, q.Name+": a connection has used its share of the credits")
	}
	if c := q.Credits; c != nil && !c.OutAt.IsZero() {
		notes = append(notes, fmt.Sprintf("%s: at this pace, %d credits an hour, it is out of credits at %s", q.Name, c.PerHour, c.OutAt.Local().Format("15:04")))
	}
	return notes
}

// tail is the end of a name, where names differ.
func tail(s string, most int) string {
	if runes := []rune(s); len(runes) > most {
		return "…" + string(runes[len(runes)-most+1:])
	}
	return s
}

// some are as many of the names as fit, at least one.
func some(names []string, most int) string {
	said := ""
	for i, name := range names {
		if i > 0 && len([]rune(said+" "+name)) > most {
			return fmt.Sprintf("%s +%d", said, len(names)-i)
		}
		if i > 0 {
			said += " "
		}
		said += name
	}
	return said
}

// size is a number of bytes for people.
func size(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if i == 0 {
		return fmt.Sprint(n, " B")
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// span is a duration for people.
func span(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", max(d, 0).Seconds())
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
