package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
	"zoho-worker/internal/inspect"
)

// withReader connects, to look.
func withReader(cmd *cobra.Command, config *app.Config, look func(*inspect.Reader) error) error {
	return withClient(cmd, config, func(c *client) error { return look(&inspect.Reader{NC: c.nc, JS: c.js}) })
}

func whyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "why CONNECTION ID", Short: "Say what a request waits for", Args: cobra.ExactArgs(2),
		Long: `Say in one sentence what a request waits for: its place in its lane and what of the
org's limit is used, a pause and Zoho's answer that it is for, the limit of heavy
calls, credits, the request before it with its order key, an access token or a
re-authorization, or a call that is going on; or how and when it was answered.

Exit status: 0 if it is answered, 1 if it waits, 2 if it is not known.`,
		Example: `  worker why acme job-4711`,
	}
	config := clientConfig(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var why *inspect.Why
		err := withReader(cmd, config, func(r *inspect.Reader) (err error) {
			ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
			defer cancel()
			if why, err = r.Why(ctx, args[0], args[1]); err != nil || why.State != inspect.Unknown {
				return err
			}
			if _, err := r.Queue(ctx, args[0]); errors.Is(err, inspect.ErrNoConnection) {
				why.Sentence = fmt.Sprintf("there is no connection %s; %s", args[0], why.Sentence)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if asJSON {
			if err := writeJSON(cmd.OutOrStdout(), why); err != nil {
				return err
			}
		} else {
			fmt.Fprintln(cmd.OutOrStdout(), visible(why.Sentence))
		}
		switch {
		case why.State == inspect.Answered:
			return nil
		case why.Sequence == 0: // no request was found
			return exitError{2}
		}
		return exitError{1}
	}
	return cmd
}
