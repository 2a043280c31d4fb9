package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

func connectionsCommand() *cobra.Command {
	config := app.Defaults()
	config.LogLevel = "error"
	cmd := &cobra.Command{Use: "connections", Short: "Manage the connections to Zoho accounts", Aliases: []string{"connection"}}
	config.BindClient(cmd.PersistentFlags())
	for _, hidden := range []string{"replicas", "retention", "log-format"} {
		_ = cmd.PersistentFlags().MarkHidden(hidden)
	}
	cmd.AddCommand(addCommand(&config), listCommand(&config), removeCommand(&config))
	return cmd
}

// withStore opens the connections and closes them after work. The streams are
// made where they are not there yet: connections may come before the first worker.
func withStore(cmd *cobra.Command, config *app.Config, work func(context.Context, *connection.Store) error) error {
	if err := config.Load(cmd.Flags(), os.LookupEnv); err != nil {
		return err
	}
	keyring, err := secret.ParseKeyring(config.EncryptionKeys.Reveal())
	if err != nil {
		return fmt.Errorf("--encryption-keys (ENCRYPTION_KEYS): the workers' keys are needed to seal a refresh token: %w", err)
	}
	logger := app.Logger(os.Stderr, config.LogLevel, config.LogFormat)
	nc, err := app.Connect(*config, "zoho-worker connections", logger)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
	defer cancel()
	if _, err := js.Stream(ctx, connection.StreamName); errors.Is(err, jetstream.ErrStreamNotFound) {
		err = consumer.Topology{Replicas: config.Replicas, Retention: config.Retention}.Ensure(ctx, js)
		if err != nil {
			return err
		}
	}
	store, err := connection.Open(ctx, js, keyring, connection.Options{Logger: logger})
	if err != nil {
		return err
	}
	defer store.Close()
	return work(ctx, store)
}

func addCommand(config *app.Config) *cobra.Command {
	var c connection.Connection
	var token string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a connection with a refresh token",
		Long: `Add a connection with a refresh token that Zoho gave to this client id.
It is sealed before it leaves this process and never shown.`,
		Example: `  worker connections add acme --nickname "Acme sales" --dc eu --refresh-token @token.txt
  pass zoho/acme | worker connections add acme --dc us --refresh-token - --org-id 770000001 --edition enterprise`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Name, c.UpdatedBy = args[0], "command line"
			if _, ok := zoho.LookupDataCenter(c.Location); !ok {
				var known []string
				for _, dc := range zoho.DataCenters() {
					known = append(known, dc.Location)
				}
				return fmt.Errorf("--dc %q: Zoho's data centres are %s", c.Location, strings.Join(known, ", "))
			}
			refresh, err := readToken(token, cmd.InOrStdin())
			if err != nil {
				return err
			}
			return withStore(cmd, config, func(ctx context.Context, store *connection.Store) error {
				added, err := store.Add(ctx, c, refresh)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "added %s (%s, %s, %d places); publish requests to zoho.requests.%s\n",
					added.Name, added.Location, added.Environment, added.Places(), added.Name)
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Nickname, "nickname", "", "what people call it")
	f.StringVar(&c.Location, "dc", "us", "Zoho data centre of the account: us, eu, in, au, jp, cn, ca, sa, uk, …")
	f.StringVar(&c.Environment, "environment", connection.Production, "production, sandbox or developer")
	f.StringVar(&token, "refresh-token", "", "the refresh token: @file, - for standard input, or the token itself (shells remember it)")
	f.StringVar(&c.OrgID, "org-id", "", "Zoho organisation id: connections of one org share its limits")
	f.StringVar(&c.UserID, "user-id", "", "Zoho user id: a user may have one connection")
	f.StringVar(&c.Edition, "edition", "", "free, standard, professional, enterprise or ultimate: how many calls may be in flight")
	f.IntVar(&c.Concurrency, "concurrency", 0, "calls of the org that may be in flight (default as the edition allows)")
	_ = cmd.MarkFlagRequired("refresh-token")
	return cmd
}

func readToken(arg string, stdin io.Reader) (secret.Text, error) {
	switch {
	case arg == "-":
		line, err := bufio.NewReader(io.LimitReader(stdin, 4096)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return secret.Text{}, err
		}
		arg = line
	case strings.HasPrefix(arg, "@"):
		data, err := os.ReadFile(arg[1:])
		if err != nil {
			return secret.Text{}, err
		}
		arg = string(data)
	}
	if arg = strings.TrimSpace(arg); arg == "" {
		return secret.Text{}, errors.New("--refresh-token: it is empty")
	}
	return secret.New(arg), nil
}

func listCommand(config *app.Config) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the connections", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withStore(cmd, config, func(_ context.Context, store *connection.Store) error {
				all := store.All()
				if asJSON {
					encoder := json.NewEncoder(cmd.OutOrStdout())
					encoder.SetIndent("", "  ")
					return encoder.Encode(all)
				}
				if len(all) == 0 {
					fmt.Fprintln(cmd.ErrOrStderr(), "no connections yet: see `worker connections add --help`")
					return nil
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "NAME\tNICKNAME\tDC\tENVIRONMENT\tORG\tUSER\tPLACES\tSTATUS")
				for _, c := range all {
					status := string(c.Status)
					if c.Err() != nil {
						status = c.Err().Error()
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n",
						c.Name, c.Nickname, c.Location, c.Environment, c.OrgID, c.UserID, c.Places(), status)
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func removeCommand(config *app.Config) *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Remove a connection", Args: cobra.ExactArgs(1),
		Long: "Remove a connection. Its refresh token is forgotten, not revoked at Zoho;\nrequests for it are answered unknown_connection from now on.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, config, func(ctx context.Context, store *connection.Store) error {
				err := store.Remove(ctx, args[0])
				if errors.Is(err, connection.ErrNotFound) {
					return fmt.Errorf("there is no connection %s: see `worker connections list`", args[0])
				}
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), "removed", args[0])
				}
				return err
			})
		},
	}
}
