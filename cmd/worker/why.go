package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
	"zoho-worker/internal/inspect"
)

// clientConfig are the settings of a command that only looks.
func clientConfig(cmd *cobra.Command) *app.Config {
	config := app.Defaults()
	config.LogLevel = "error"
	config.BindClient(cmd.Flags())
	for _, hidden := range []string{"encryption-keys", "replicas", "retention", "log-format"} {
		_ = cmd.Flags().MarkHidden(hidden)
	}
	return &config
}

// reader connects to look. Close it with done.
func reader(cmd *cobra.Command, config *app.Config) (r *inspect.Reader, done func(), err error) {
	if err := config.Load(cmd.Flags(), os.LookupEnv); err != nil {
		return nil, nil, err
	}
	c, err := newClient(*config, config.LogLevel)
	if err != nil {
		return nil, nil, err
	}
	return &inspect.Reader{NC: c.nc, JS: c.js}, c.close, nil
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
	config := clientConfig(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, done, err := reader(cmd, config)
		if err != nil {
			return err
		}
		defer done()
		ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
		defer cancel()
		why, err := r.Why(ctx, args[0], args[1])
		if err != nil {
			return err
		}
		if why.State == inspect.Unknown {
			if _, err := r.Queue(ctx, args[0]); errors.Is(err, inspect.ErrNoConnection) {
				why.Sentence = fmt.Sprintf("there is no connection %s; %s", args[0], why.Sentence)
			}
		}
		if asJSON {
			encoder := json.NewEncoder(cmd.OutOrStdout())
			encoder.SetIndent("", "  ")
			if err := encoder.Encode(why); err != nil {
				return err
			}
		} else {
			fmt.Fprintln(cmd.OutOrStdout(), why.Sentence)
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
