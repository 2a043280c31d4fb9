package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/console"
	"zoho-worker/internal/token"
	"zoho-worker/internal/zoho"
)

// actor is who is at the command line, for the records.
func actor() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return "command line (" + u.Username + ")"
	}
	return "command line"
}

func splitScopes(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// duplicateHint says what to do about a user that is connected already.
func duplicateHint(err error) error {
	if d, ok := errors.AsType[connection.ErrDuplicate](err); ok {
		return fmt.Errorf("%w: `worker connections reauthorize %s` signs it in again", err, d.Existing)
	}
	return err
}

// zoho returns a client of Zoho's accounts servers.
func (r *records) zoho() (*zoho.Client, error) {
	if r.config.ZohoClientID == "" || r.config.ZohoClientSecret.IsZero() {
		return nil, errors.New("--zoho-client-id (ZOHO_CLIENT_ID) and --zoho-client-secret (ZOHO_CLIENT_SECRET) are needed: those of the app in Zoho's API console")
	}
	return r.config.NewZoho()
}

func (r *records) flow() (*consent.Flow, func(), error) {
	client, err := r.zoho()
	if err != nil {
		return nil, nil, err
	}
	return consent.New(consent.Options{
		JS: r.js, Keyring: r.keyring, Connections: r.store, Zoho: client, Event: r.events.Publish, Logger: r.logger,
	}), client.Close, nil
}

// consent gets a grant by a code, a one-time link or a sign-in, and stores it.
func (g *grantFlags) consent(ctx context.Context, cmd *cobra.Command, r *records, p consent.Pending) error {
	if g.link {
		return g.byLink(ctx, cmd, r, p)
	}
	flow, done, err := r.flow()
	if err != nil {
		return err
	}
	defer done()
	var outcome *consent.Outcome
	if g.code != "" {
		code, err := readToken(g.code, "--code", cmd.InOrStdin())
		if err != nil {
			return err
		}
		if outcome, err = flow.Redeem(ctx, p, code.Reveal()); err != nil {
			return explain(err)
		}
	} else if outcome, err = g.bySignIn(ctx, cmd, flow, p); err != nil {
		return explain(err)
	}
	if outcome.Connection == nil {
		return errors.New("nothing was changed: the fresh access was given back to Zoho")
	}
	if outcome.Warning != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+outcome.Warning)
	}
	return tell(cmd, outcome.Connection, outcome.Reauthorized)
}

// explain is a fault with what to do, for a terminal.
func explain(err error) error {
	if f, ok := errors.AsType[*consent.Fault](err); ok {
		return fmt.Errorf("%s (%s)\n%s\n%s", f.Title, f.Code, f.Text, f.Todo)
	}
	return err
}

func tell(cmd *cobra.Command, c *connection.Connection, again bool) error {
	verb := "added"
	if again {
		verb = "re-authorized"
	}
	who := ""
	if c.UserName != "" {
		who = ": " + c.UserName + ", " + cmp.Or(c.OrgName, c.OrgID)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s (%s, %s, %d places)%s; publish requests to zoho.requests.%s\n",
		verb, c.Name, c.Location, c.Environment, c.Places(), who, c.Name)
	return err
}

// bySignIn waits on this machine for the browser to come back from Zoho.
func (g *grantFlags) bySignIn(ctx context.Context, cmd *cobra.Command, flow *consent.Flow, p consent.Pending) (*consent.Outcome, error) {
	if !console.Loopback(g.listen) {
		return nil, fmt.Errorf("--listen %s: a loopback address, like 127.0.0.1:8765; --link is for browsers elsewhere", g.listen)
	}
	listener, err := net.Listen("tcp", g.listen)
	if err != nil {
		return nil, fmt.Errorf("wait for the browser: another address is set by --listen: %w", err)
	}
	base := "http://" + listener.Addr().String()
	p.RedirectURI = console.RedirectURI(base)
	begun, err := flow.Begin(ctx, p)
	if err != nil {
		_ = listener.Close()
		return nil, err
	}
	type result struct {
		outcome *consent.Outcome
		err     error
	}
	results := make(chan result, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+console.CallbackPath, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'")
		w.Header().Set("Referrer-Policy", "no-referrer")
		if r.Host != listener.Addr().String() {
			http.Error(w, "another address", http.StatusMisdirectedRequest)
			return
		}
		// Only whoever was shown the address of the consent page knows the state.
		outcome, err := flow.Callback(r.Context(), r.URL.Query(), begun.State)
		f, isFault := errors.AsType[*consent.Fault](err)
		if isFault && f.Code == consent.StateInvalid {
			say(w, http.StatusBadRequest, f.Title, f.Text)
			return // a stranger's: go on waiting
		}
		switch {
		case isFault:
			say(w, http.StatusBadRequest, f.Title, f.Text+" "+f.Todo)
		case err != nil:
			say(w, http.StatusBadGateway, "That did not work", "The terminal says more.")
		case outcome.Choice != nil:
			say(w, http.StatusOK, "One question is left", "Answer it in the terminal; you can close this page.")
		default:
			say(w, http.StatusOK, "Connected", "You can close this page.")
		}
		select {
		case results <- result{outcome, err}:
		default:
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }()
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
	}()
	out := cmd.ErrOrStderr()
	fmt.Fprintf(out, "Open this address, sign in to Zoho and allow access:\n\n  %s\n\n", begun.URL)
	var got result
	err = spin(ctx, out, "waiting for the sign-in at Zoho (15 minutes at most)", 15*time.Minute, func() (bool, error) {
		select {
		case got = <-results:
			return true, nil
		default:
			return false, nil
		}
	})
	switch {
	case err != nil:
		return nil, err
	case got.err != nil:
		return nil, got.err
	case got.outcome.Choice == nil:
		return got.outcome, nil
	}
	choice := got.outcome.Choice
	question := fmt.Sprintf("%s of %s has the connection %s already. Re-authorize it with this sign-in?",
		choice.Who.UserName, choice.Who.OrgName, choice.Existing)
	if choice.Reason == consent.OtherUser {
		question = fmt.Sprintf("%s signed in, another user of the same org. Use this user for %s from now on?", choice.Who.UserName, choice.Existing)
	}
	return flow.Decide(ctx, begun.State, confirm(cmd, question), "")
}

func say(w http.ResponseWriter, status int, title, text string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"color-scheme\" content=\"light dark\"><title>zoho-worker</title><h1>%s</h1><p>%s</p>",
		html.EscapeString(title), html.EscapeString(text))
}

// confirm asks on a terminal; elsewhere the answer is no.
func confirm(cmd *cobra.Command, question string) bool {
	in, ok := cmd.InOrStdin().(*os.File)
	if ok && !term.IsTerminal(int(in.Fd())) {
		fmt.Fprintln(cmd.ErrOrStderr(), question+" No: there is no terminal to ask.")
		return false
	}
	fmt.Fprint(cmd.ErrOrStderr(), question+" [y/N] ")
	line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	return strings.HasPrefix(strings.ToLower(strings.TrimSpace(line)), "y")
}

// byLink prints a one-time link of the workers' console and waits for it to be used.
func (g *grantFlags) byLink(ctx context.Context, cmd *cobra.Command, r *records, p consent.Pending) error {
	if r.config.PublicURL == "" {
		return errors.New("--public-url (PUBLIC_URL): needed for a link: where the workers' console is")
	}
	before := uint64(0)
	if c, ok := r.store.Get(p.Name); ok {
		before = c.Grant
	}
	p.RedirectURI = console.RedirectURI(r.config.PublicURL)
	// The link is carried out by a worker; nothing is asked of Zoho from here.
	flow := consent.New(consent.Options{JS: r.js, Keyring: r.keyring, Connections: r.store, Logger: r.logger})
	const life = 24 * time.Hour
	word, _, err := flow.CreateShare(ctx, p, life)
	if err != nil {
		return err
	}
	out := cmd.ErrOrStderr()
	fmt.Fprintf(out, "Whoever opens this link connects one account, once, within a day:\n\n  %s\n\nIt stays good when you stop waiting here.\n", console.LinkURL(r.config.PublicURL, word))
	var connected *connection.Connection
	err = spin(ctx, out, "waiting for the link to be used", life, func() (bool, error) {
		c, ok := r.store.Get(p.Name) // the store follows the stream
		if !ok || c.Status != connection.Active || c.Grant <= before {
			return false, nil
		}
		connected = c
		return true, nil
	})
	if err != nil {
		return err
	}
	return tell(cmd, connected, p.Kind == consent.Reauthorize)
}

// spin waits until done says so, with something that moves on a terminal.
func spin(ctx context.Context, w io.Writer, text string, most time.Duration, done func() (bool, error)) error {
	file, ok := w.(*os.File)
	terminal := ok && term.IsTerminal(int(file.Fd()))
	if !terminal {
		fmt.Fprintln(w, text)
	}
	ticker := time.NewTicker(120 * time.Millisecond)
	defer ticker.Stop()
	begun := time.Now()
	for i := 0; ; i++ {
		ok, err := done()
		if terminal && (ok || err != nil) {
			fmt.Fprint(w, "\r\x1b[K")
		}
		if ok || err != nil {
			return err
		}
		if time.Since(begun) > most {
			return errors.New("gave up " + text)
		}
		if terminal {
			fmt.Fprintf(w, "\r\x1b[K%c %s %s", []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")[i%10], text, time.Since(begun).Round(time.Second))
		}
		select {
		case <-ctx.Done():
			if terminal {
				fmt.Fprint(w, "\r\x1b[K")
			}
			return errors.New("stopped " + text)
		case <-ticker.C:
		}
	}
}

func reauthorizeCommand(config *app.Config) *cobra.Command {
	var grant grantFlags
	cmd := &cobra.Command{
		Use: "reauthorize NAME", Short: "Sign a connection in again; its name and its callers stay", Args: cobra.ExactArgs(1),
		Long: `Give a connection a fresh grant, in one of the ways of "worker connections add".
Requests that wait for it go on by themselves.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return withNewRecords(cmd, config, func(ctx context.Context, r *records) error {
				c, err := existing(r, args[0])
				if err != nil {
					return err
				}
				if grant.token != "" {
					refresh, err := readToken(grant.token, "--refresh-token", cmd.InOrStdin())
					if err != nil {
						return err
					}
					updated, err := r.store.Reauthorize(ctx, c.Name, refresh, func(c *connection.Connection) error {
						c.UpdatedBy = actor()
						return nil
					})
					if err != nil {
						return duplicateHint(err)
					}
					r.events.Publish(c.Name, consent.EventReauthorized)
					return tell(cmd, updated, true)
				}
				scopes := splitScopes(grant.scopes)
				if len(scopes) == 0 {
					scopes = c.Scopes
				}
				return grant.consent(ctx, cmd, r, consent.Pending{
					Kind: consent.Reauthorize, Name: c.Name, Nickname: c.Nickname, Location: c.Location,
					Environment: c.Environment, Scopes: scopes, Actor: actor(),
				})
			})
		},
	}
	grant.bind(cmd)
	return cmd
}

func existing(r *records, name string) (*connection.Connection, error) {
	c, ok := r.store.Get(name)
	if !ok {
		return nil, noConnection(name)
	}
	return c, nil
}

func noConnection(name string) error {
	return fmt.Errorf("there is no connection %s: see `worker connections list`", name)
}

func showCommand(config *app.Config) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "show NAME", Short: "Show a connection", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withLook(cmd, config, func(ctx context.Context, r *records) error {
				c, err := existing(r, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(cmd.OutOrStdout(), c)
				}
				grants := ""
				if identity, ok := c.Identity(); ok {
					if _, living, err := r.store.Holder(ctx, identity); err == nil {
						grants = fmt.Sprintf("%d of %d refresh tokens of this user live", len(living), connection.MaxGrants)
						if warning := consent.GrantWarning(living); warning != "" {
							grants += "\n\t" + warning
						}
					}
				}
				status := string(c.Status)
				if c.StatusReason != "" {
					status += ": " + c.StatusReason
				}
				if c.Err() != nil {
					status = c.Err().Error()
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				for _, line := range [][2]string{
					{"name", c.Name},
					{"nickname", c.Nickname},
					{"status", status},
					{"user", strings.TrimSpace(c.UserName + " " + c.UserID)},
					{"organisation", strings.TrimSpace(c.OrgName + " " + c.OrgID)},
					{"data centre", consent.PlaceName(c.Location) + " (" + c.Location + ")"},
					{"environment", c.Environment},
					{"edition", cmp.Or(c.Edition, "not known")},
					{"limits", limitsOf(c, r.store.All())},
					{"grants", fmt.Sprintf("%d so far", c.Grant)},
					{"", grants},
					{"connected", c.CreatedAt.Format(time.RFC3339)},
					{"changed", c.UpdatedAt.Format(time.RFC3339) + " by " + cmp.Or(c.UpdatedBy, "somebody")},
					{"scopes", strings.Join(c.Scopes, " ")},
					{"subject", "zoho.requests." + c.Name},
				} {
					if line[1] != "" {
						fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
					}
				}
				return w.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func testCommand(config *app.Config) *cobra.Command {
	return &cobra.Command{
		Use: "test NAME", Short: "Make one cheap call with a connection and show the answer", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withRecords(cmd, config, func(ctx context.Context, r *records) error {
				c, err := existing(r, args[0])
				if err != nil {
					return err
				}
				client, err := r.zoho()
				if err != nil {
					return err
				}
				defer client.Close()
				tokens, err := token.Open(ctx, token.Options{
					JS: r.js, Connections: r.store, Keyring: r.keyring, Refresher: client, Events: r.events.Publish, Logger: r.logger,
				})
				if err != nil {
					return err
				}
				defer tokens.Close()
				result := console.Test(ctx, tokens, client, c)
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s (%s)\n", result.Title, result.Detail, result.Took)
				if result.Body != "" {
					fmt.Fprintln(cmd.OutOrStdout(), result.Body)
				}
				if !result.Good {
					return exitError{1}
				}
				return nil
			})
		},
	}
}

func resealCommand(config *app.Config) *cobra.Command {
	return &cobra.Command{
		Use: "reseal", Short: "Seal every refresh token with the first encryption key", Args: cobra.NoArgs,
		Long: `Seal every refresh token with the first of --encryption-keys. After that the other
keys can go from the workers' configuration: access tokens sealed with them are
minted anew within the hour, sign-ins under way begin again.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withRecords(cmd, config, func(ctx context.Context, r *records) error {
				n, err := r.store.Reseal(ctx)
				fmt.Fprintf(cmd.OutOrStdout(), "sealed %d of %d connections anew with key %s\n", n, len(r.store.All()), r.keyring.First())
				return err
			})
		},
	}
}
