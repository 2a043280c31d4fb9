package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"zoho-worker/internal/app"
	"zoho-worker/internal/dead"
	"zoho-worker/internal/envelope"
)

// deadFlags pick the letters of a command: by number, or by filter.
type deadFlags struct {
	filter    dead.Filter
	olderThan time.Duration
	all       bool
	dryRun    bool
	rate      float64
	asJSON    bool
}

// picks is the filter of the flags.
func (f *deadFlags) picks() dead.Filter {
	filter := f.filter
	if f.olderThan > 0 {
		filter.Before = time.Now().Add(-f.olderThan)
	}
	return filter
}

// filtered reports whether a filter is set.
func (f *deadFlags) filtered() bool {
	return f.filter.Connection != "" || f.filter.Code != "" || f.olderThan > 0
}

func deadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dead", Short: "List, replay or drop the dead letters",
		Long: `Dead letters are requests that nobody could be answered for: no id could be read,
or their id belongs to another request and they name no reply_to; and requests
that a worker itself failed on, which were answered internal. They are kept whole
for 30 days, with what happened to them.`,
	}
	config := clientConfig(cmd.PersistentFlags())
	cmd.AddCommand(deadList(config), deadShow(config), deadReplay(config), deadDrop(config))
	return cmd
}

func withLetters(cmd *cobra.Command, config *app.Config, work func(context.Context, *dead.Letters) error) error {
	return withClient(cmd, config, func(c *client) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
		defer cancel()
		letters, err := dead.Open(ctx, c.js)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return errors.New("this NATS server has no dead letters yet: no worker has run against it")
		}
		if err != nil {
			return err
		}
		return work(cmd.Context(), letters)
	})
}

func (f *deadFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.filter.Connection, "connection", "", "only of this connection")
	cmd.Flags().StringVar(&f.filter.Code, "code", "", "only with this error code, like invalid_request")
	cmd.Flags().DurationVar(&f.olderThan, "older-than", 0, "only those buried longer ago, like 24h")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if strings.ContainsAny(f.filter.Connection, "*> ") {
			return fmt.Errorf("--connection %q: the name of one connection", f.filter.Connection)
		}
		if f.filter.Code != "" && !slices.Contains(envelope.Codes(), envelope.Code(f.filter.Code)) {
			return fmt.Errorf("--code %q: no such error code: it is one of %v", f.filter.Code, envelope.Codes())
		}
		if f.rate < 0 || math.IsNaN(f.rate) {
			return fmt.Errorf("--rate %v: 0 (as fast as it goes) or more", f.rate)
		}
		return nil
	}
}

func deadList(config *app.Config) *cobra.Command {
	var f deadFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List the dead letters, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withLetters(cmd, config, func(ctx context.Context, letters *dead.Letters) error {
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				count := 0
				for letter, err := range letters.All(ctx, f.picks()) {
					if err != nil {
						return err
					}
					if f.asJSON {
						if err := json.NewEncoder(cmd.OutOrStdout()).Encode(letter); err != nil {
							return err
						}
						continue
					}
					if count++; count == 1 {
						fmt.Fprintln(w, "NUMBER\tBURIED\tCONNECTION\tCODE\tREASON")
					}
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", letter.Sequence, letter.Buried.Local().Format(time.DateTime),
						visible(letter.Connection), visible(letter.Code), visible(cut(letter.Reason, 90)))
				}
				switch {
				case count > 0 || f.asJSON:
				case f.filtered():
					fmt.Fprintln(cmd.ErrOrStderr(), "no dead letters that the filters pick")
				default:
					fmt.Fprintln(cmd.ErrOrStderr(), "no dead letters")
				}
				return w.Flush()
			})
		},
	}
	f.bind(cmd)
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "one JSON document a line, with headers and the request (base64)")
	return cmd
}

func cut(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

func deadShow(config *app.Config) *cobra.Command {
	return &cobra.Command{
		Use: "show NUMBER", Short: "Show a dead letter whole", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			numbers, err := sequences(args)
			if err != nil {
				return err
			}
			return withLetters(cmd, config, func(ctx context.Context, letters *dead.Letters) error {
				letter, err := letters.Get(ctx, numbers[0])
				if err != nil {
					return missing(err, numbers[0])
				}
				out := &strings.Builder{}
				fmt.Fprintf(out, "%s: %s\n", letter.Code, letter.Reason)
				for _, e := range letter.History() {
					fmt.Fprintf(out, "%s  %s\n", e.At.Format(time.RFC3339), e.What)
				}
				names, header := letter.Own()
				for _, name := range names {
					fmt.Fprintf(out, "%s: %s\n", name, strings.Join(header[name], ", "))
				}
				if utf8.Valid(letter.Data) {
					fmt.Fprintf(out, "\n%s\n", letter.Data)
				} else {
					fmt.Fprintf(out, "\n%d bytes, not text: %q\n", len(letter.Data), letter.Data)
				}
				return writeText(cmd.OutOrStdout(), out.String())
			})
		},
	}
}

// writeText writes text with a caller's words in it: as it is, but for a terminal visible.
func writeText(w io.Writer, text string) error {
	if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		text = visible(text)
	}
	_, err := io.WriteString(w, text)
	return err
}

// visible has no character by which a caller's words could have a terminal do
// something: nor has a name, because whoever may publish can name any connection.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return utf8.RuneError
		}
		return r
	}, s)
}

func missing(err error, number uint64) error {
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("there is no dead letter %d: see `worker dead list`", number)
	}
	return err
}

func sequences(args []string) ([]uint64, error) {
	numbers := make([]uint64, len(args))
	for i, arg := range args {
		n, err := strconv.ParseUint(arg, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is no number of a dead letter: see `worker dead list`", arg)
		}
		numbers[i] = n
	}
	return numbers, nil
}

func deadReplay(config *app.Config) *cobra.Command {
	var f deadFlags
	cmd := &cobra.Command{
		Use: "replay [NUMBER…]", Short: "Publish the requests of dead letters again",
		Long: `Publish the requests of dead letters again, as they came, and drop the letters.
Name them by number, or pick them with --all and the filters.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.each(cmd, config, args, "replayed", (*dead.Letters).Replay)
		},
	}
	f.bind(cmd)
	f.bindBulk(cmd)
	cmd.Flags().Float64Var(&f.rate, "rate", 0, "at most so many a second; 0: as fast as it goes")
	return cmd
}

func deadDrop(config *app.Config) *cobra.Command {
	var f deadFlags
	cmd := &cobra.Command{
		Use: "drop [NUMBER…]", Short: "Drop dead letters for good",
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.each(cmd, config, args, "dropped", (*dead.Letters).Drop)
		},
	}
	f.bind(cmd)
	f.bindBulk(cmd)
	return cmd
}

func (f *deadFlags) bindBulk(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.all, "all", false, "all that the filters pick")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only say which")
}

// each does something to the letters that are named or picked, with progress.
func (f *deadFlags) each(cmd *cobra.Command, config *app.Config, args []string, done string,
	do dead.Action,
) error {
	numbers, err := sequences(args)
	if err != nil {
		return err
	}
	if f.all == (len(numbers) > 0) {
		return errors.New("name the letters by number, or give --all with filters")
	}
	return withLetters(cmd, config, func(ctx context.Context, letters *dead.Letters) error {
		var picked []*dead.Letter
		for _, number := range numbers {
			letter, err := letters.Get(ctx, number)
			if err != nil {
				return missing(err, number)
			}
			picked = append(picked, letter)
		}
		if f.all {
			if picked, _, err = letters.Pick(ctx, f.picks(), 0); err != nil {
				return err
			}
		}
		if f.dryRun {
			for _, letter := range picked {
				fmt.Fprintf(cmd.OutOrStdout(), "%d  %s  %s  %s\n", letter.Sequence, visible(letter.Connection), visible(letter.Code), visible(cut(letter.Reason, 90)))
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%d would be %s\n", len(picked), done)
			return nil
		}
		show, clear := progressLine(cmd.ErrOrStderr())
		shown := time.Now()
		n, err := letters.Each(ctx, picked, f.rate, do, func(n int) {
			if time.Since(shown) > 200*time.Millisecond {
				shown = time.Now()
				const width = 30
				full := width * n / len(picked)
				show(fmt.Sprintf("[%s%s] %d of %d %s", strings.Repeat("#", full), strings.Repeat(".", width-full), n, len(picked), done))
			}
		})
		if err != nil {
			clear()
			return fmt.Errorf("%d of %d %s: %w", n, len(picked), done, err)
		}
		clear()
		fmt.Fprintf(cmd.OutOrStdout(), "%d %s\n", len(picked), done)
		return nil
	})
}
