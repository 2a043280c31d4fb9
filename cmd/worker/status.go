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

	"zoho-worker/internal/inspect"
)

func statusCommand() *cobra.Command {
	var asJSON, watch bool
	var every time.Duration
	cmd := &cobra.Command{
		Use: "status", Short: "Show streams, org queues, connections and workers on one screen", Args: cobra.NoArgs,
		Long: `Show streams, org queues, connections and workers on one screen. It needs to look
only: see the user "observer" in deploy/nats/nats-server.conf.`,
		Example: `  worker status --watch`,
	}
	config := clientConfig(cmd)
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "as JSON; with --watch a document a line")
	f.BoolVarP(&watch, "watch", "w", false, "go on, until Ctrl-C")
	f.DurationVar(&every, "every", 2*time.Second, "how often, with --watch")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		r, done, err := reader(cmd, config)
		if err != nil {
			return err
		}
		defer done()
		out := cmd.OutOrStdout()
		for {
			if err := showStatus(cmd.Context(), r, out, asJSON, watch); err != nil && (!watch || cmd.Context().Err() != nil) {
				return err
			}
			if !watch {
				return nil
			}
			select {
			case <-cmd.Context().Done():
				return nil
			case <-time.After(max(every, 200*time.Millisecond)):
			}
		}
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
			paint(out, "no look at "+r.NC.ConnectedUrlRedacted()+": "+err.Error()+"\n")
		}
		return err
	}
	if asJSON {
		encoder := json.NewEncoder(out)
		if !watch {
			encoder.SetIndent("", "  ")
		}
		return encoder.Encode(overview)
	}
	screen := render(overview)
	if err != nil {
		screen += "\n" + err.Error() + "\n"
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

func render(o *inspect.Overview) string {
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
		renderQueues(o, table)
	}
	if len(o.Workers) == 0 {
		b.WriteString("no worker answers\n")
		return b.String()
	}
	table("WORKER\tHOST\tPID\tVERSION\tUP\tIN HAND\tPLACES\tQUEUES", func(w io.Writer) {
		for _, worker := range o.Workers {
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%d\t%d\t%d\n", worker.ID, worker.Host, worker.PID, worker.Version,
				span(o.At.Sub(worker.Started)), worker.InFlight, worker.MaxInFlight, worker.Queues)
		}
	})
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

func renderQueues(o *inspect.Overview, table func(string, func(io.Writer))) {
	table("QUEUE\tWAITING\tIN HAND\tLIMIT\tPAUSED FOR\tCONNECTIONS", func(w io.Writer) {
		for i, q := range o.Queues {
			if i == mostQueues {
				fmt.Fprintf(w, "and %d more\t\t\t\t\t\n", len(o.Queues)-i)
				break
			}
			pause := "-"
			if q.Paused > 0 {
				pause = span(q.Paused)
				if q.Cause != "" {
					pause += " (" + q.Cause + ")"
				}
			}
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\t%s\n", q.Name, q.Waiting, q.InHand, q.Places, pause, some(q.Connections, 4))
		}
		for i, u := range o.Unqueued {
			if i == mostQueues {
				fmt.Fprintf(w, "and %d more connections without a queue\t\t\t\t\t\n", len(o.Unqueued)-i)
				break
			}
			fmt.Fprintf(w, "(none)\t%d\t-\t-\t-\t%s\n", u.Requests, u.Connection)
		}
	})
}

func some(names []string, n int) string {
	if len(names) <= n {
		return strings.Join(names, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:n], " "), len(names)-n)
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
