package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/event"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

func connectionsCommand() *cobra.Command {
	config := app.Defaults()
	config.LogLevel = "error"
	cmd := &cobra.Command{Use: "connections", Short: "Manage the connections to Zoho accounts", Aliases: []string{"connection"}}
	config.BindConnections(cmd.PersistentFlags())
	hide(cmd.PersistentFlags(), "replicas", "retention", "log-format", "zoho-client-secrets", "zoho-api-url", "zoho-accounts-url", "redis-url")
	cmd.AddCommand(addCommand(&config), listCommand(&config), showCommand(&config), reauthorizeCommand(&config),
		testCommand(&config), limitCommand(&config), removeCommand(&config), resealCommand(&config))
	return cmd
}

// records is what the commands about connections work with.
type records struct {
	config  app.Config
	js      jetstream.JetStream
	keyring *secret.Keyring
	store   *connection.Store
	logger  *slog.Logger
	events  *event.Publisher
}

// errNoneYet says that nobody has made a connection on this server yet.
var errNoneYet = errors.New("this NATS server has no connections yet: see `worker connections add --help`")

// withRecords opens the connections and closes them after work. It makes nothing:
// where there is no stream of them the error is errNoneYet.
func withRecords(cmd *cobra.Command, config *app.Config, work func(context.Context, *records) error) error {
	return openRecords(cmd, config, true, there, work)
}

// withLook is withRecords for who looks, or changes a limit: without keys, refresh
// tokens stay sealed.
func withLook(cmd *cobra.Command, config *app.Config, work func(context.Context, *records) error) error {
	return openRecords(cmd, config, false, there, work)
}

// withNewRecords is withRecords for what adds to them. The streams are made where
// they are not there yet: connections may come before the first worker.
func withNewRecords(cmd *cobra.Command, config *app.Config, work func(context.Context, *records) error) error {
	return openRecords(cmd, config, true, func(ctx context.Context, js jetstream.JetStream) error {
		for _, name := range []string{connection.StreamName, consent.StreamName} {
			_, err := js.Stream(ctx, name)
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				err = consumer.Topology{Replicas: config.Replicas, Retention: config.Retention}.Ensure(ctx, js)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}, work)
}

// there looks whether there are connections.
func there(ctx context.Context, js jetstream.JetStream) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := js.Stream(ctx, connection.StreamName)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return errNoneYet
	case err != nil:
		return fmt.Errorf("look at stream %s: %w", connection.StreamName, err)
	}
	return nil
}

func openRecords(cmd *cobra.Command, config *app.Config, keys bool, prepare func(context.Context, jetstream.JetStream) error, work func(context.Context, *records) error) error {
	if err := config.Load(cmd.Flags(), os.LookupEnv); err != nil {
		return err
	}
	var keyring *secret.Keyring
	if keys || !config.EncryptionKeys.IsZero() {
		var err error
		if keyring, err = secret.ParseKeyring(config.EncryptionKeys.Reveal()); err != nil {
			return fmt.Errorf("--encryption-keys (ENCRYPTION_KEYS): the workers' keys are needed, they seal and open the refresh tokens: %w", err)
		}
	}
	c, err := newClient(*config, cmd.CommandPath())
	if err != nil {
		return err
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Minute)
	defer cancel()
	if err := prepare(ctx, c.js); err != nil {
		return explained(c.nc, err)
	}
	said := c.logger
	if !keys {
		said = slog.New(slog.DiscardHandler) // what can't be read is shown
	}
	store, err := connection.Open(ctx, c.js, keyring, connection.Options{Logger: said})
	if err != nil {
		return explained(c.nc, err)
	}
	defer store.Close()
	return explained(c.nc, work(cmd.Context(), &records{
		config: *config, js: c.js, keyring: keyring, store: store, logger: c.logger,
		events: &event.Publisher{JS: c.js, Connections: store, PublicURL: config.PublicURL, Logger: c.logger},
	}))
}

// grantFlags are the ways to get a grant.
type grantFlags struct {
	token, code, listen, scopes string
	link                        bool
}

func (g *grantFlags) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var((*filled)(&g.token), "refresh-token", "take this refresh token: @file, - for standard input, or the token itself (shells remember it)")
	f.Var((*filled)(&g.code), "code", "take this code of Zoho's self-client (API console): @file, - or the code itself")
	f.BoolVar(&g.link, "link", false, "print a one-time link of the workers' console (--public-url) for whoever owns the account, and wait for it to be used")
	f.StringVar(&g.listen, "listen", "127.0.0.1:8765", "where to wait for the browser; http://ADDRESS/oauth/callback must be a redirect address of the app at Zoho")
	f.StringVar(&g.scopes, "scopes", "", "scopes to ask for, comma separated (default records, settings, bulk, COQL, notifications, users and org)")
	cmd.MarkFlagsMutuallyExclusive("refresh-token", "code", "link")
}

// filled is a flag that is not empty where it is given: an unset variable of a script
// would have it wait for a person.
type filled string

// Set implements pflag.Value.
func (v *filled) Set(s string) error {
	if *v = filled(s); s == "" {
		return errors.New("it is empty")
	}
	return nil
}

// String implements pflag.Value.
func (v *filled) String() string { return string(*v) }

// Type implements pflag.Value.
func (v *filled) Type() string { return "string" }

func addCommand(config *app.Config) *cobra.Command {
	var c connection.Connection
	var grant grantFlags
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a connection: by signing in at Zoho, a one-time link, a self-client code or a refresh token",
		Long: `Add a connection.

Without --refresh-token or --code it prints the address of Zoho's consent page and
waits until somebody has signed in there: on this machine (--listen), or by a
one-time link of the workers' console (--link), which anybody may open.
A Zoho user has one connection; a second one is not made.
Secrets are sealed before they leave this process and never shown.`,
		Example: `  worker connections add acme --nickname "Acme sales"
  worker connections add acme --link --public-url https://zoho.example.com
  worker connections add acme --dc eu --code 1000.…
  pass zoho/acme | worker connections add acme --dc us --refresh-token - --org-id 770000001 --edition enterprise`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Name, c.UpdatedBy = args[0], actor()
			if !envelope.ValidConnection(c.Name) {
				return fmt.Errorf("connection %q: lower-case letters, digits, - and _, like acme-sales", c.Name)
			}
			if !cmd.Flags().Changed("dc") && grant.token == "" && grant.code == "" {
				c.Location = "" // wherever the account lives
			} else if err := knownPlace(c.Location); err != nil {
				return err
			}
			if !slices.Contains(connection.Environments(), c.Environment) {
				return fmt.Errorf("--environment %q: Zoho's environments are %s", c.Environment, strings.Join(connection.Environments(), ", "))
			}
			if err := knownOrg(c.OrgID, c.Edition); err != nil {
				return err
			}
			return withNewRecords(cmd, config, func(ctx context.Context, r *records) error {
				if _, there := r.store.Get(c.Name); there {
					return fmt.Errorf("there is a connection %s already: `worker connections reauthorize %s` signs it in again", c.Name, c.Name)
				}
				if err := knownHost(c.Location, c.Environment); err != nil && r.config.ZohoAPIURL == "" {
					return err
				}
				if grant.token != "" {
					refresh, err := readToken(grant.token, "--refresh-token", cmd.InOrStdin())
					if err != nil {
						return err
					}
					added, err := r.store.Add(ctx, c, refresh)
					if err != nil {
						return duplicateHint(err)
					}
					r.events.Publish(added.Name, consent.EventConnected)
					return tell(cmd, added, false)
				}
				return grant.consent(ctx, cmd, r, consent.Pending{
					Kind: consent.Connect, Name: c.Name, Nickname: c.Nickname, Location: c.Location, Environment: c.Environment,
					Scopes: splitScopes(grant.scopes), Actor: c.UpdatedBy,
				})
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Nickname, "nickname", "", "what people call it")
	f.StringVar(&c.Location, "dc", "us", "Zoho data centre of the account: us, eu, in, au, jp, cn, ca, sa, uk, …; with a sign-in, left out: wherever it lives")
	f.StringVar(&c.Environment, "environment", connection.Production, "production, sandbox or developer")
	f.StringVar(&c.OrgID, "org-id", "", "with --refresh-token: Zoho organisation id, digits only: connections of one org share its limits")
	f.StringVar(&c.UserID, "user-id", "", "with --refresh-token: Zoho user id: a user may have one connection")
	f.StringVar(&c.Edition, "edition", "", "with --refresh-token: "+strings.Join(connection.Editions(), ", ")+": how many calls may be in flight (left out: 10)")
	f.Var((*app.Decimal)(&c.Concurrency), "concurrency", "calls of the org that may be in flight (default as the edition allows)")
	grant.bind(cmd)
	return cmd
}

func knownPlace(location string) error {
	if _, ok := zoho.LookupDataCenter(location); ok {
		return nil
	}
	var known []string
	for _, dc := range zoho.DataCenters() {
		known = append(known, dc.Location)
	}
	return fmt.Errorf("--dc %q: Zoho's data centres are %s", location, strings.Join(known, ", "))
}

// knownHost refuses an environment whose calls have no host to go to: they would wait for
// one until their deadlines.
func knownHost(location, environment string) error {
	if dc, ok := zoho.LookupDataCenter(location); ok {
		if _, err := dc.Host(zoho.Environment(environment)); err != nil {
			return fmt.Errorf("--dc %s --environment %s: Zoho has published no host for it; --zoho-api-url names one", location, environment)
		}
	}
	return nil
}

// knownOrg refuses what Zoho has not: a slip of the finger would give an org limits
// that are not its own, or two connections of one org limits apart.
func knownOrg(id, edition string) error {
	if strings.Trim(id, "0123456789") != "" {
		return fmt.Errorf("--org-id %q: Zoho's organisation ids are digits, like 20078233816", id)
	}
	if editions := connection.Editions(); edition != "" && !slices.Contains(editions, strings.ToLower(edition)) {
		return fmt.Errorf("--edition %q: Zoho's editions are %s", edition, strings.Join(editions, ", "))
	}
	return nil
}

func readToken(arg, flag string, stdin io.Reader) (secret.Text, error) {
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
			return secret.Text{}, fmt.Errorf("%s: %w", flag, err)
		}
		arg = string(data)
	}
	if arg = strings.TrimSpace(arg); arg == "" {
		return secret.Text{}, errors.New(flag + ": it is empty")
	}
	return secret.New(arg), nil
}

func listCommand(config *app.Config) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the connections", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := []*connection.Connection{}
			err := withLook(cmd, config, func(_ context.Context, r *records) error {
				all = append(all, r.store.All()...)
				return nil
			})
			if err != nil && !errors.Is(err, errNoneYet) {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			if len(all) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no connections yet: see `worker connections add --help`")
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tNICKNAME\tDC\tENVIRONMENT\tORG\tUSER\tPLACES\tSTATUS")
			smallest := connection.Smallest(all)
			for _, c := range all {
				status := string(c.Status)
				if c.Err() != nil {
					status = c.Err().Error()
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n",
					c.Name, c.Nickname, c.Location, c.Environment, cmp.Or(c.OrgName, c.OrgID), cmp.Or(c.UserName, c.UserID), smallest[c.Queue()].Places(), status)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func removeCommand(config *app.Config) *cobra.Command {
	var keep, force bool
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Remove a connection and revoke its access at Zoho", Args: cobra.ExactArgs(1),
		Aliases: []string{"disconnect"},
		Long: `Remove a connection. Its access is revoked at Zoho, for which --zoho-client-id and
--zoho-client-secret are needed; without them, or with --keep-grant, it is only forgotten.
Requests for it are answered unknown_connection from now on. Who and when is kept.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return withRecords(cmd, config, func(ctx context.Context, r *records) error {
				name, told := args[0], "removed "+args[0]
				var err error
				var revoked bool
				if keep || r.config.ZohoClientID == "" || r.config.ZohoClientSecret.IsZero() {
					if err = r.store.Remove(ctx, name, actor()); err == nil {
						r.events.Publish(name, consent.EventDisconnected)
					}
				} else {
					var flow *consent.Flow
					var done func()
					if flow, done, err = r.flow(); err != nil {
						return err
					}
					defer done()
					revoked, err = flow.Disconnect(ctx, name, actor(), force)
				}
				if revoked {
					told += " and revoked its access at Zoho"
				} else {
					told += "; its access was not revoked at Zoho"
				}
				if errors.Is(err, connection.ErrNotFound) {
					return noConnection(name)
				}
				if revoke, ok := errors.AsType[*consent.RevokeError](err); ok {
					return fmt.Errorf("nothing was removed: %w\n--force removes it all the same", revoke)
				}
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), told)
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep-grant", false, "do not revoke the access at Zoho: something else uses the refresh token")
	cmd.Flags().BoolVar(&force, "force", false, "remove it even if Zoho can't be asked")
	return cmd
}
