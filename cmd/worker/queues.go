package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/inspect"
)

func queuesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "queues", Short: "Pause and resume an org's queue", Aliases: []string{"queue"}}
	cmd.AddCommand(pauseCommand(), resumeCommand())
	return cmd
}

// queueOf finds the queue that the connection's requests are in.
func queueOf(ctx context.Context, r *inspect.Reader, name string) (inspect.Queue, error) {
	queues, err := r.Queues(ctx)
	if err != nil {
		return inspect.Queue{}, err
	}
	for _, q := range queues {
		if slices.Contains(q.Connections, name) {
			return q, nil
		}
	}
	return inspect.Queue{}, fmt.Errorf("connection %s has no queue now: its org has no work, or it is revoked", name)
}

func pauseCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "pause CONNECTION DURATION", Short: "Start no requests of the connection's org for a while", Args: cobra.ExactArgs(2),
		Long: `Keep all workers from starting requests of the org that a connection belongs to,
while it has work. Calls in flight end as they do; deadlines go on. It needs no restart.`,
		Example: `  worker queues pause acme 30m --reason "migration at Zoho"`,
	}
	config := clientConfig(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who ask what their requests wait for")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := time.ParseDuration(args[1])
		if err != nil || d <= 0 || d > 24*time.Hour {
			return fmt.Errorf("%q: a duration up to 24h, like 30m", args[1])
		}
		return withQueue(cmd, config, args[0], func(ctx context.Context, r *inspect.Reader, q inspect.Queue) error {
			until := time.Now().Add(d)
			if _, err := r.JS.PauseConsumer(ctx, consumer.RequestStream, q.Name, until); err != nil {
				return err
			}
			cause := inspect.ByHand
			if reason != "" {
				cause += ": " + reason
			}
			data, err := json.Marshal(map[string]any{"event": "paused", "connection": args[0], "queue": q.Name, "at": time.Now().UTC(), "until": until.UTC(), "cause": cause})
			if err == nil {
				_, err = r.JS.Publish(ctx, "zoho.events."+args[0], data)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "queue %s is paused until %s: %d requests wait\n", q.Name, until.Format("15:04:05"), q.Waiting)
			return err
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
	config := clientConfig(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return withQueue(cmd, config, args[0], func(ctx context.Context, r *inspect.Reader, q inspect.Queue) error {
			if q.Paused == 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "queue %s is not paused\n", q.Name)
				return nil
			}
			// Let it run out: a consumer that is resumed by hand does not look for
			// messages until the next pull (seen on nats-server 2.15.2).
			_, err := r.JS.PauseConsumer(ctx, consumer.RequestStream, q.Name, time.Now().Add(250*time.Millisecond))
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "queue %s goes on: %d requests wait\n", q.Name, q.Waiting)
			}
			return err
		})
	}
	return cmd
}

func withQueue(cmd *cobra.Command, config *app.Config, name string, work func(context.Context, *inspect.Reader, inspect.Queue) error) error {
	r, done, err := reader(cmd, config)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer cancel()
	q, err := queueOf(ctx, r, name)
	if err != nil {
		return err
	}
	return work(ctx, r, q)
}

// limitCommand belongs to `worker connections`.
func limitCommand(config *app.Config) *cobra.Command {
	return &cobra.Command{
		Use: "limit NAME CALLS", Short: "Set how many calls of the connection's org may be in flight", Args: cobra.ExactArgs(2),
		Long: `Set how many calls of the connection's org may be in flight at one instant; 0: as
its edition allows. All workers follow at once. Where connections of one org
disagree, the smallest counts.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			places, err := strconv.Atoi(args[1])
			if err != nil {
				return fmt.Errorf("%q: a number from 0 to 100", args[1])
			}
			return withStore(cmd, config, func(ctx context.Context, store *connection.Store) error {
				changed, err := store.Update(ctx, args[0], func(c *connection.Connection) error {
					c.Concurrency, c.UpdatedBy = places, "command line"
					return nil
				})
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %d calls of its org in flight at most\n", changed.Name, changed.Places())
				}
				return err
			})
		},
	}
}
