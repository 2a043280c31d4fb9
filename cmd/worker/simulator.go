//go:build !production

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
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
	addr, url, tlsDir, refresh string
	tlsNames                   []string
	latency                    time.Duration
}

func simulatorCommand() *cobra.Command {
	var flags simulatorFlags
	cmd := &cobra.Command{
		Use: "simulator", Short: "Run only the simulated Zoho, for workers in other processes", Args: cobra.NoArgs,
		Long: `Run the simulated Zoho alone: the accounts server and the CRM API at one address,
with one org, one user who has consented, and some records. Workers reach it by

  ZOHO_ACCOUNTS_URL and ZOHO_API_URL

A worker takes plain http from its own machine only. For another machine or
container give --tls-dir: the simulator makes a certificate there, and the
worker trusts it by SSL_CERT_FILE=DIR/ca.pem.`,
		Example: `  worker simulator --addr 127.0.0.1:8090
  worker simulator --addr :8443 --tls-dir /tls --tls-names simulator --url https://simulator:8443
  worker simulator connect demo     a connection that fits it, in the NATS server of NATS_URL`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return simulate(cmd.Context(), flags, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.addr, "addr", "127.0.0.1:8090", "address to listen on; port 0 takes a free one")
	f.StringVar(&flags.url, "url", "", "how workers reach it, as its token responses name it (default the address)")
	f.StringVar(&flags.tlsDir, "tls-dir", "", "serve https, with a certificate made and kept in this directory")
	f.StringSliceVar(&flags.tlsNames, "tls-names", nil, "names the certificate is for, beside localhost")
	f.StringVar(&flags.refresh, "refresh-token", sandboxRefreshToken, "refresh token of the demo user")
	f.DurationVar(&flags.latency, "latency", 0, "how long every API call takes at least")
	cmd.AddCommand(simulatorConnectCommand())
	return cmd
}

func simulate(ctx context.Context, flags simulatorFlags, out io.Writer) error {
	var config *tls.Config
	scheme := "http"
	if flags.tlsDir != "" {
		certificate, err := sandboxCertificate(flags.tlsDir, flags.tlsNames)
		if err != nil {
			return fmt.Errorf("--tls-dir: %w", err)
		}
		config, scheme = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}, "https"
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

	server := &http.Server{Handler: simulatorHandler(zoho), TLSConfig: config, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	failed := make(chan error, 1)
	go func() {
		if config != nil {
			failed <- server.ServeTLS(listener, "", "")
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

// simulatorHandler adds what a health check asks.
func simulatorHandler(zoho http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ready") })
	mux.Handle("/", zoho)
	return mux
}

// sandboxCertificate returns the directory's certificate and makes it where there
// is none yet. It is kept, because workers read it when they start.
func sandboxCertificate(dir string, names []string) (tls.Certificate, error) {
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "key.pem")
	if kept, err := tls.LoadX509KeyPair(certFile, keyFile); err == nil && time.Until(kept.Leaf.NotAfter) > 24*time.Hour {
		return kept, nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return tls.Certificate{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "zoho-worker sandbox"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// It signs nothing but itself, so whoever trusts it trusts these names only.
		BasicConstraintsValid: true,
		DNSNames:              append([]string{"localhost"}, names...), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		return tls.Certificate{}, err
	}
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return tls.Certificate{}, err
	}
	return tls.LoadX509KeyPair(certFile, keyFile)
}

func simulatorConnectCommand() *cobra.Command {
	config := app.Defaults()
	config.LogLevel = "error"
	var refresh string
	cmd := &cobra.Command{
		Use: "connect NAME", Short: "Add the connection of the simulator's user, if it is not there", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd, &config, func(ctx context.Context, store *connection.Store) error {
				_, err := store.Add(ctx, connection.Connection{
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
	for _, hidden := range []string{"replicas", "retention", "log-format"} {
		_ = cmd.Flags().MarkHidden(hidden)
	}
	return cmd
}
