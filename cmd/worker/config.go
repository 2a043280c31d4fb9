package main

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	cmd.AddCommand(configPrintCommand())
	return cmd
}

func configPrintCommand() *cobra.Command {
	config := app.Defaults()
	var asJSON bool
	cmd := &cobra.Command{
		Use: "print", Short: "Print every setting, its value and where it came from", Args: cobra.NoArgs,
		Long: `Print every setting as a worker would see it, and where its value came from: a
flag, an environment variable, a line of the configuration file, or the default.
Secrets are redacted. Faults, also of what can't be read, are told after the list,
with exit status 1.`,
		Example: `  worker config print --config /etc/zoho-worker.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = config.Load(cmd.Flags(), os.LookupEnv) // Validate reports it, after the list
			out := cmd.OutOrStdout()
			if asJSON {
				if err := writeJSON(out, config.Effective()); err != nil {
					return err
				}
			} else {
				w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "SETTING\tVALUE\tFROM")
				for _, s := range config.Effective() {
					fmt.Fprintf(w, "%s\t%s\t%s\n", s.Name, s.Value, s.Origin)
				}
				if err := w.Flush(); err != nil {
					return err
				}
			}
			if err := config.Validate(); err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "\nwhat is wrong:\n%v\n", err)
				return exitError{1}
			}
			return nil
		},
	}
	config.BindWorker(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}
