//go:build !production

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// sandboxRefreshToken is no secret: it opens nothing but a simulator.
const sandboxRefreshToken = "1000.sandbox.sandbox"

type simulatorFlags struct {
	addr, url, tlsCert, tlsKey, refresh string
	latency                             time.Duration
}

func simulatorCommand() *cobra.Command {
	var flags simulatorFlags
	cmd := &cobra.Command{
		Use: "simulator", Short: "Run only the simulated Zoho, for workers in other processes", Args: cobra.NoArgs,
		Long: `Run the simulated Zoho alone: the accounts server and the CRM API at one address,
with one org, one user who has consented, and some records. Workers reach it by

  ZOHO_ACCOUNTS_URL and ZOHO_API_URL

A worker takes plain http from its own machine only. For another machine or
container give the simulator a certificate; SSL_CERT_FILE=ca.crt in the worker's
environment makes it trust an authority of your own.

GET /simulator/orgs tells per org, as JSON, what its limits have seen: calls in
flight now and at most, heavy ones, refused by cause, credits, places used.`,
		Example: `  worker simulator --addr 127.0.0.1:8090
  worker simulator --addr :8443 --tls-cert simulator.crt --tls-key simulator.key --url https://simulator:8443
  worker simulator connect demo     a connection that fits it, in the NATS server of NATS_URL`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return simulate(cmd.Context(), flags, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.addr, "addr", "127.0.0.1:8090", "address to listen on; port 0 takes a free one")
	f.StringVar(&flags.url, "url", "", "how workers reach it, as its token responses name it (default the address)")
	f.StringVar(&flags.tlsCert, "tls-cert", "", "serve https with this certificate, a PEM file")
	f.StringVar(&flags.tlsKey, "tls-key", "", "the certificate's key")
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
	f.StringVar(&flags.refresh, "refresh-token", sandboxRefreshToken, "refresh token of the demo user")
	f.DurationVar(&flags.latency, "latency", 0, "how long every API call takes at least")
	cmd.AddCommand(simulatorConnectCommand())
	return cmd
}

func simulate(ctx context.Context, flags simulatorFlags, out io.Writer) error {
	scheme := "http"
	if flags.tlsCert != "" {
		scheme = "https"
	}
	listener, err := net.Listen("tcp", flags.addr)
	if err != nil {
		return fmt.Errorf("%w\nchoose another address with --addr, or a free port with --addr 127.0.0.1:0", err)
	}
	if flags.url == "" {
		flags.url = scheme + "://" + listener.Addr().String()
	}
	zoho := zohotest.New(zohotest.Options{AccountsURL: flags.url, APIURL: flags.url, KeepCalls: 1000})
	defer zoho.Close()
	zoho.AddOrg(zohotest.Org{ID: devbox.OrgID, Name: "Demo Ltd", Concurrency: 10, SubConcurrency: 10})
	zoho.AddUser(zohotest.User{ID: devbox.UserID, Email: "demo@example.com", Name: "Demo User", OrgID: devbox.OrgID})
	zoho.SeedDemo(devbox.OrgID)
	zoho.GrantThisRefreshToken(devbox.UserID, flags.refresh)
	zoho.SetLatency(flags.latency)

	server := &http.Server{Handler: simulatorHandler(zoho), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	failed := make(chan error, 1)
	go func() {
		if flags.tlsCert != "" {
			failed <- server.ServeTLS(listener, flags.tlsCert, flags.tlsKey)
			return
		}
		failed <- server.Serve(listener)
	}()
	fmt.Fprintf(out, "simulated Zoho at %s: org %s, user %s, records in Leads, Contacts, Accounts, Deals\n", flags.url, devbox.OrgID, devbox.UserID)
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if server.Shutdown(stop) != nil {
		_ = server.Close()
	}
	return nil
}

// simulatorHandler adds what a health check asks, and what a judge of limits does.
func simulatorHandler(zoho *zohotest.Server) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ready") })
	mux.HandleFunc("GET /simulator/orgs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(zoho.AllCounts())
	})
	mux.Handle("/", zoho)
	return mux
}

func simulatorConnectCommand() *cobra.Command {
	config := app.Defaults()
	config.LogLevel = "error"
	var refresh string
	cmd := &cobra.Command{
		Use: "connect NAME", Short: "Add the connection of the simulator's user, if it is not there", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withNewRecords(cmd, &config, func(ctx context.Context, r *records) error {
				_, err := r.store.Add(ctx, connection.Connection{
					Name: args[0], Nickname: "Demo", Location: "us", Edition: "enterprise", Concurrency: 10,
					OrgID: devbox.OrgID, UserID: devbox.UserID, UpdatedBy: "worker simulator",
				}, secret.New(refresh))
				if errors.Is(err, connection.ErrExists) {
					fmt.Fprintln(cmd.OutOrStdout(), "connection", args[0], "is there already")
					return nil
				}
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), "added connection", args[0])
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&refresh, "refresh-token", sandboxRefreshToken, "refresh token of the demo user, as the simulator was given it")
	config.BindClient(cmd.Flags())
	hide(cmd.Flags(), "replicas", "retention", "log-format")
	return cmd
}
