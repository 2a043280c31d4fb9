package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/event"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/inspect"
	"zoho-worker/internal/lease"
)

func queuesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "queues", Short: "Pause and resume an org's queue", Aliases: []string{"queue"}}
	cmd.AddCommand(pauseCommand(), resumeCommand())
	return cmd
}

func pauseCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "pause CONNECTION DURATION", Short: "Start no requests of the connection's org for a while", Args: cobra.ExactArgs(2),
		Long: `Keep all workers from starting requests of the org that a connection belongs to,
with work or without. Calls in flight end as they do; deadlines go on. It needs no
restart, and survives one.`,
		Example: `  worker queues pause acme 30m --reason "migration at Zoho"`,
	}
	config := clientConfig(cmd.Flags())
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who ask what their requests wait for")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := time.ParseDuration(args[1])
		if err != nil || d <= 0 || d > 24*time.Hour {
			return fmt.Errorf("%q: a duration up to 24h, like 30m", args[1])
		}
		return withQueue(cmd, config, args[0], func(ctx context.Context, r *inspect.Reader, q *inspect.Queue) error {
			cause := inspect.ByHand
			if reason != "" {
				cause += ": " + reason
			}
			now := r.Now(ctx)
			until := now.Add(d)
			if err := setPause(ctx, r, q, &flow.Pause{Until: until.UTC(), Cause: cause}, now); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "queue %s is paused until %s: %s\n", q.Name, until.Local().Format(time.DateTime), waiting(q.Waiting))
			return event.Send(ctx, r.JS, event.Event{
				Event: "paused", Connection: args[0], At: now.UTC(), Queue: q.Name, Until: until.UTC(), Cause: cause,
			})
		})
	}
	return cmd
}

func resumeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "resume CONNECTION", Short: "End the pause of the connection's org", Args: cobra.ExactArgs(1),
		Long: `End the pause of the org that a connection belongs to, also one that is there
because Zoho refused calls: it will be paused again if Zoho still does.`,
	}
	config := clientConfig(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return withQueue(cmd, config, args[0], func(ctx context.Context, r *inspect.Reader, q *inspect.Queue) error {
			if q.Paused == 0 && q.HeavyPause == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "queue %s is not paused\n", q.Name)
				return nil
			}
			now := r.Now(ctx)
			if err := setPause(ctx, r, q, nil, now); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "queue %s goes on: %s\n", q.Name, waiting(q.Waiting))
			return event.Send(ctx, r.JS, event.Event{Event: "resumed", Connection: args[0], At: now.UTC(), Queue: q.Name, Cause: inspect.ByHand})
		})
	}
	return cmd
}

// waiting is a number of requests, in words.
func waiting(n int) string {
	switch n {
	case 0:
		return "no request waits"
	case 1:
		return "1 request waits"
	}
	return fmt.Sprint(n, " requests wait")
}

// setPause changes the org's record: the worker that serves it follows at once,
// and who serves it next finds it there.
func setPause(ctx context.Context, r *inspect.Reader, q *inspect.Queue, p *flow.Pause, now time.Time) error {
	err := lease.Update(ctx, r.JS, q.Name, consumer.SetPause(p, now))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return errors.New("there are no queues on this server: no worker ever ran against it")
	}
	return err
}

func withQueue(cmd *cobra.Command, config *app.Config, name string, work func(context.Context, *inspect.Reader, *inspect.Queue) error) error {
	return withReader(cmd, config, func(r *inspect.Reader) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
		defer cancel()
		q, err := r.Queue(ctx, name)
		if errors.Is(err, inspect.ErrNoConnection) {
			return noConnection(name)
		}
		if err != nil {
			return err
		}
		return work(ctx, r, q)
	})
}

// limitCommand belongs to `worker connections`.
func limitCommand(config *app.Config) *cobra.Command {
	var credits int
	var ordered bool
	cmd := &cobra.Command{
		Use: "limit NAME [CALLS]", Short: "Set what a connection may use of its org, and whether its requests keep their order", Args: cobra.RangeArgs(1, 2),
		Long: `Set what a connection may use of its org. What is not named stays as it is, and the
worker that serves the org follows at once.

CALLS is how many calls of the connection's org may be in flight at one instant, 0
as its edition allows. Where connections of one org disagree, the smallest counts.
--credits-per-day are the API credits of the org that requests of this connection
may use in any 24 hours: when they are used up, its requests wait, those of the
org's other connections don't.
--ordered has the connection's requests carried out one after the other, in the
order in which they were stored; those that name an order_key, within it.`,
		Example: `  worker connections limit acme 5
  worker connections limit reports --credits-per-day 20000
  worker connections limit ledger --ordered`,
		RunE: func(cmd *cobra.Command, args []string) error {
			flags := cmd.Flags()
			if len(args) == 1 && !flags.Changed("credits-per-day") && !flags.Changed("ordered") {
				return errors.New("what is the limit to be? Give CALLS, --credits-per-day or --ordered")
			}
			if credits < 0 {
				return fmt.Errorf("--credits-per-day %d: 0 (any) or more", credits)
			}
			places := 0
			if len(args) == 2 {
				var err error
				if places, err = strconv.Atoi(args[1]); err != nil {
					return fmt.Errorf("%q: a number from 0 to 100", args[1])
				}
			}
			return withLook(cmd, config, func(ctx context.Context, r *records) error { // the token stays sealed
				changed, err := r.store.Update(ctx, args[0], func(c *connection.Connection) error {
					if len(args) == 2 {
						c.Concurrency = places
					}
					if flags.Changed("credits-per-day") {
						c.DailyCredits = credits
					}
					if flags.Changed("ordered") {
						c.Ordered = ordered
					}
					c.UpdatedBy = actor()
					return nil
				})
				if errors.Is(err, connection.ErrNotFound) {
					return noConnection(args[0])
				}
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", changed.Name, limitsOf(changed, r.store.All()))
				}
				return err
			})
		},
	}
	cmd.Flags().Var((*app.Decimal)(&credits), "credits-per-day", "API credits of the org that the connection may use in 24 hours; 0: any")
	cmd.Flags().BoolVar(&ordered, "ordered", false, "carry out the connection's requests one after the other; --ordered=false: no longer")
	return cmd
}

// limitsOf says what a connection may use, beside all others.
func limitsOf(c *connection.Connection, all []*connection.Connection) string {
	said := fmt.Sprintf("%d calls of its org in flight at most", c.Places())
	if s := connection.Smallest(all)[c.Queue()]; s != nil && s.Places() < c.Places() {
		said = fmt.Sprintf("%d calls of its org in flight at most, the limit of %s: the smallest of the org's counts (its own is %d)", s.Places(), s.Name, c.Places())
	}
	if c.DailyCredits > 0 {
		said += fmt.Sprintf(", %d credits in 24 hours", c.DailyCredits)
	}
	if c.Ordered {
		said += ", one request after the other"
	}
	return said
}
