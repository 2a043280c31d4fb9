package main

import (
	"fmt"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
)

func checkCommand() *cobra.Command {
	config := app.Defaults()
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check", Short: "Validate the configuration and reach every server it names", Args: cobra.NoArgs,
		Long: `Validate the configuration, reach every server that it names (NATS with JetStream,
Redis, Zoho's hosts of each data centre in use), and say everything that is wrong
at once, with how to mend it. It changes nothing.

Exit status: 0, with warnings too; 1 if there is a fault: what a worker can't do
without, or what is configured and doesn't work.`,
		Example: `  worker check --config /etc/zoho-worker.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = config.Load(cmd.Flags(), os.LookupEnv) // Check reports it, with all else
			logger := app.Logger(os.Stderr, "error", config.LogFormat)
			findings := app.Check(cmd.Context(), config, logger)
			failed := slices.ContainsFunc(findings, func(f app.Finding) bool { return f.State == app.FindingFault })
			out := cmd.OutOrStdout()
			if asJSON {
				if err := writeJSON(out, map[string]any{"ok": !failed, "findings": findings}); err != nil {
					return err
				}
			} else {
				w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "WHAT\tSTATE\tFOUND")
				for _, f := range findings {
					fmt.Fprintf(w, "%s\t%s\t%s\n", f.What, f.State, f.Detail)
					if f.Mend != "" && f.State != app.FindingOK {
						fmt.Fprintf(w, "\t\t  -> %s\n", f.Mend)
					}
				}
				if err := w.Flush(); err != nil {
					return err
				}
			}
			if failed {
				return exitError{1}
			}
			return nil
		},
	}
	config.BindWorker(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}
