// Command worker runs zoho-worker, and what people need around it: a sandbox,
// calls and connections from the command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
)

// exitError ends the process with a status of its own; what it has to say is said.
type exitError struct{ status int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	err := hinted(root().ExecuteContext(ctx))
	stop()
	var exit exitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.status)
	case err != nil:
		fmt.Fprintln(os.Stderr, "worker: "+err.Error())
		os.Exit(2)
	}
}

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Call the Zoho CRM API by publishing a message",
		Long: `zoho-worker carries out Zoho CRM calls that services publish as messages to NATS
JetStream: with a valid token, within Zoho's limits, and never an insert twice.

` + tryIt + `Use it:   worker run      a worker against your NATS, Redis and Zoho`,
		SilenceUsage: true, SilenceErrors: true, Version: app.Version,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	cmd.SetVersionTemplate("zoho-worker {{.Version}}\n")
	cmd.SetUsageFunc(usage)
	cmd.SetFlagErrorFunc(wrongFlag)
	add := func(what string, commands ...*cobra.Command) {
		if len(commands) > 0 {
			cmd.AddGroup(&cobra.Group{ID: what, Title: what})
		}
		for _, c := range commands {
			c.GroupID = what
		}
		cmd.AddCommand(commands...)
	}
	add(forTrying, sandboxCommands()...)
	add(forRunning, runCommand(), checkCommand(), configCommand(), healthzCommand(), versionCommand())
	add(forCalling, callCommand(), whyCommand())
	add(forCaring, statusCommand(), connectionsCommand(), queuesCommand(), deadCommand())
	strict(cmd)
	return cmd
}

// parent reports whether a command is there for its sub-commands alone: strict says so.
func parent(c *cobra.Command) bool { return c.DisableFlagsInUseLine }

// strict has the commands below cmd refuse what they don't take: a command that is
// there for its sub-commands any other word, which cobra answers with help and
// status 0, and one with arguments another number of them, with its usage.
func strict(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		strict(c)
		_, arguments, _ := strings.Cut(c.Use, " ")
		switch check := c.Args; {
		case c.HasSubCommands() && !c.Runnable():
			c.DisableFlagsInUseLine, c.SuggestionsMinimumDistance = true, 2
			c.RunE = func(c *cobra.Command, args []string) error {
				if len(args) == 0 {
					return c.Help()
				}
				return unknown(c, args[0])
			}
		case arguments != "" && check != nil:
			c.Args = func(c *cobra.Command, args []string) error {
				if check(c, args) != nil {
					return fmt.Errorf("usage: %s %s\n%[1]s --help says more", c.CommandPath(), arguments)
				}
				return nil
			}
		}
	}
}

// unknown is what cobra says at the root, and where all commands are.
func unknown(c *cobra.Command, word string) error {
	text := fmt.Sprintf("unknown command %q for %q", word, c.CommandPath())
	if near := c.SuggestionsFor(word); len(near) > 0 {
		text += "\n\nDid you mean this?\n\t" + strings.Join(near, "\n\t") + "\n"
	}
	return fmt.Errorf("%s\n%s --help lists the commands", text, c.CommandPath())
}

// hinted is what cobra says of a word at the root that is no command, with where to
// look; of the sandbox's, where this build has none, with where it is.
func hinted(err error) error {
	if err == nil || !strings.HasPrefix(err.Error(), "unknown command ") || !strings.Contains(err.Error(), ` for "worker"`) {
		return err
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	if sandbox := strings.Contains(text, `"dev"`) || strings.Contains(text, `"simulator"`); noSandbox != "" && sandbox {
		return fmt.Errorf("%s: %s", text, noSandbox)
	}
	return fmt.Errorf("%w\nworker --help lists the commands", err)
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "zoho-worker", app.Version) },
	}
}

func runCommand() *cobra.Command {
	config := app.Defaults()
	cmd := &cobra.Command{
		Use: "run", Short: "Run a worker until SIGTERM", Args: cobra.NoArgs,
		Long: `Run a worker against the servers that flags, environment or configuration file
name. It creates or updates the streams and buckets it needs. When the file changes,
and at SIGHUP, it is read again, for the log level.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = config.Load(cmd.Flags(), os.LookupEnv) // Validate reports it, with all else
			if err := config.Validate(); err != nil {
				return fmt.Errorf("the configuration has faults:\n%w", err)
			}
			level := new(slog.LevelVar)
			level.Set(app.Level(config.LogLevel))
			logger := app.LoggerAt(os.Stderr, level, config.LogFormat)
			defer app.Flush(logger)
			app.FollowChanges(cmd.Context(), config, level, logger)
			return app.Run(cmd.Context(), config, logger)
		},
	}
	config.BindWorker(cmd.Flags())
	return cmd
}
