//go:build !production

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/console"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/secret"
)

func sandboxCommands() []*cobra.Command { return []*cobra.Command{devCommand(), simulatorCommand()} }

// tryIt is the line of the help about the sandbox.
const tryIt = "Try it:   worker dev      everything in one process, with a simulated Zoho\n"

const noSandbox = ""

type devFlags struct {
	natsAddr, httpAddr, zohoAddr, dataDir, logLevel string
	once                                            bool
}

func devCommand() *cobra.Command {
	var flags devFlags
	cmd := &cobra.Command{
		Use: "dev", Short: "Try it: everything in one process, with a simulated Zoho", Args: cobra.NoArgs,
		Long: `Run a nats-server, Redis, a simulated Zoho with some records, and a worker with
the connection "demo", all in this process, and send two requests through it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if !signal.Ignored(syscall.SIGHUP) { // as by nohup: its terminal may be closed
				var stop func()
				ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP)
				defer stop()
			}
			err := dev(ctx, flags, cmd.OutOrStdout())
			if err != nil && ctx.Err() != nil { // or Ctrl-C, whatever it cut off
				fmt.Fprintln(cmd.OutOrStdout(), "\nstopping")
				err = nil
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.natsAddr, "nats-addr", "127.0.0.1:4222", "address of the nats-server; port 0 takes a free one")
	f.StringVar(&flags.httpAddr, "http-addr", "127.0.0.1:8080", "address of the console, /metrics and /readyz; port 0 takes a free one; no console where it is not loopback")
	f.StringVar(&flags.zohoAddr, "zoho-addr", "127.0.0.1:8090", "address of the simulated Zoho; port 0 takes a free one")
	f.StringVar(&flags.dataDir, "data-dir", "", "where JetStream keeps its data (default a temporary directory)")
	f.StringVar(&flags.logLevel, "log-level", "warn", "debug, info, warn or error")
	f.BoolVar(&flags.once, "once", false, "exit after the two requests")
	return cmd
}

func dev(ctx context.Context, flags devFlags, out io.Writer) error {
	if err := app.CheckLevel(flags.logLevel); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	begun := time.Now()
	box, err := devbox.Start(devbox.Options{NATSAddr: flags.natsAddr, ZohoAddr: flags.zohoAddr, DataDir: flags.dataDir})
	if err != nil {
		return taken(err)
	}
	defer box.Close()
	box.Zoho.SeedDemo(devbox.OrgID)
	box.Zoho.SeedPeople(devbox.OrgID)
	keys, err := devKeys(flags.dataDir)
	if err != nil {
		return err
	}
	config := app.Defaults()
	config.NATSURL, config.RedisURL = box.NATSURL, secret.New(box.RedisURL)
	config.ZohoClientID, config.ZohoClientSecret = "1000.DEMO", secret.New("demo")
	config.ZohoAccountsURL, config.ZohoAPIURL = box.ZohoURL, box.ZohoURL
	config.EncryptionKeys, config.HTTPAddr = keys, flags.httpAddr
	config.CallTimeout, config.StopTimeout = 10*time.Second, 15*time.Second
	if console.Loopback(flags.httpAddr) {
		config.ConsoleAuth = "none"
	}
	worker, err := app.Start(ctx, config, app.Logger(os.Stderr, flags.logLevel, "text"))
	if err != nil {
		return taken(err)
	}
	defer func() {
		budget, cancel := context.WithTimeout(context.Background(), config.StopTimeout)
		defer cancel()
		worker.Stop(budget)
	}()
	if err := demoConnection(ctx, worker.Connections, box); err != nil {
		return err
	}
	fmt.Fprintf(out, "zoho-worker is up after %s, everything in this process:\n\n", time.Since(begun).Round(10*time.Millisecond))
	fmt.Fprintf(out, "  NATS         %s   JetStream in %s\n", box.NATSURL, box.DataDir)
	fmt.Fprintf(out, "  worker       http://%s   /metrics /healthz /readyz\n", worker.HTTPAddr)
	if config.ConsoleAuth != "" {
		fmt.Fprintf(out, "  console      http://%s   connect an account: the simulator asks who you are\n", worker.HTTPAddr)
	}
	fmt.Fprintf(out, "  Zoho         %s   simulated: Leads, Contacts, Accounts, Deals\n", box.ZohoURL)
	fmt.Fprintf(out, "  connection   demo\n")

	config.LogLevel = "error" // of what follows
	c, err := newClient(config, "worker dev")
	if err != nil {
		return err
	}
	defer c.close()
	id, err := demonstrate(ctx, c, out)
	if err != nil || flags.once {
		return err
	}
	next(out, flags, box, id)
	<-ctx.Done()
	fmt.Fprintln(out, "\nstopping")
	return nil
}

// taken says which flag changes an address that is in use.
func taken(err error) error {
	var t *devbox.TakenError
	var op *net.OpError
	switch {
	case errors.As(err, &t) && t.Role == devbox.RoleNATS:
		return fmt.Errorf("%w\nchoose another address with --nats-addr, or a free port with --nats-addr 127.0.0.1:0", err)
	case errors.As(err, &t):
		return fmt.Errorf("%w\nchoose another address with --zoho-addr, or a free port with --zoho-addr 127.0.0.1:0", err)
	case errors.As(err, &op) && op.Op == "listen":
		return fmt.Errorf("%w\nchoose another address with --http-addr, or a free port with --http-addr 127.0.0.1:0", err)
	}
	return err
}

// devKeys keeps the sealing key beside the data, so that a data directory can
// be used again.
func devKeys(dir string) (secret.Text, error) {
	if dir == "" {
		return secret.Generate(), nil
	}
	file := filepath.Join(dir, "encryption-keys")
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		data = []byte(secret.Generate().Reveal())
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		return secret.Text{}, err
	}
	keys := secret.New(strings.TrimSpace(string(data)))
	if _, err := secret.ParseKeyring(keys.Reveal()); err != nil {
		return secret.Text{}, fmt.Errorf("%s is damaged: %w: choose another --data-dir, or remove this one", file, err)
	}
	return keys, nil
}

// demoConnection makes the connection demo; one that an earlier run left gets
// a grant of this run's simulator.
func demoConnection(ctx context.Context, store *connection.Store, box *devbox.Box) error {
	refresh := secret.New(box.Zoho.GrantRefreshToken(devbox.UserID))
	_, err := store.Add(ctx, connection.Connection{
		Name: "demo", Nickname: "Demo", Location: "us", OrgID: devbox.OrgID, UserID: devbox.UserID, UpdatedBy: "worker dev",
	}, refresh)
	if errors.Is(err, connection.ErrExists) {
		_, err = store.Reauthorize(ctx, "demo", refresh, nil)
	}
	return err
}

// demonstrate sends one GET and one POST and shows both responses; the id is the POST's.
func demonstrate(ctx context.Context, c *client, out io.Writer) (id string, err error) {
	requests := []callFlags{
		{query: []string{"fields=Last_Name,Company,Email", "per_page=2"}},
		{body: `{"data":[{"Last_Name":"Lovelace","Company":"Analytical Engines","Email":"ada@example.com"}]}`},
	}
	for i, method := range []string{"GET", "POST"} {
		request, err := requests[i].request(method, "/v8/Leads", nil)
		if err != nil {
			return "", err
		}
		line := method + " " + strings.TrimPrefix(request.Path, "/crm")
		if request.RawQuery != "" {
			line += "?" + request.RawQuery
		}
		fmt.Fprintf(out, "\n%s  published to zoho.requests.demo\n", line)
		begun := time.Now()
		data, response, err := c.call(ctx, "demo", request, nil)
		if err != nil {
			return "", err
		}
		var indented bytes.Buffer
		if err := json.Indent(&indented, data, "  ", "  "); err != nil {
			return "", err
		}
		fmt.Fprintf(out, "  %s\n%s\n", indented.Bytes(), "  "+summary(response, time.Since(begun)))
		if response.Error != nil || response.Status >= 300 {
			return "", fmt.Errorf("the %s was not answered as it should be", method)
		}
		id = request.ID
	}
	return id, nil
}

func next(out io.Writer, flags devFlags, box *devbox.Box, id string) {
	env, server := "", ""
	if flags.natsAddr != "127.0.0.1:4222" {
		env, server = "NATS_URL="+box.NATSURL+" ", " -s "+box.NATSURL
	}
	example := envelope.Request{ID: "job-1", Method: "GET", Path: "/crm/v8/Contacts", RawQuery: "fields=Last_Name,Email"}
	fmt.Fprintf(out, `
Next, in another terminal:

  %[1]sgo run ./cmd/worker call demo GET '/v8/Leads?fields=Last_Name,Email&per_page=3'
  %[1]sgo run ./cmd/worker call demo POST /v8/Leads --body '{"data":[{"Last_Name":"Byron"}]}'

or with the nats command line:

  nats%[2]s pub --jetstream zoho.requests.demo '%[3]s'
  nats%[2]s stream get ZOHO_RESPONSES --last-for zoho.responses.demo.job-1

What became of a request, and how all is:

  %[1]sgo run ./cmd/worker why demo %[4]s
  %[1]sgo run ./cmd/worker status

Ctrl-C stops everything.
`, env, server, example.AppendJSON(nil), id)
}
