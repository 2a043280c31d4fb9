package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"zoho-worker/internal/app"
)

// healthzCommand asks the worker of this container how it is: the image has no
// shell and no curl that a container's health check could use.
func healthzCommand() *cobra.Command {
	var url string
	var timeout time.Duration
	config := app.Defaults()
	cmd := &cobra.Command{
		Use: "healthz", Short: "Exit 0 if the worker at HTTP_ADDR is ready, 1 if not", Args: cobra.NoArgs,
		Long: `Ask the worker on this machine whether it is ready and exit 0, or 1 where it is not.
It is what a container's health check runs; Kubernetes asks /readyz and /healthz itself.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if url == "" {
				_ = config.Load(cmd.Flags(), os.LookupEnv) // its faults are the worker's to tell, which goes on with what it has
				var err error
				if url, err = readyURL(config.HTTPAddr); err != nil {
					return fmt.Errorf("--http-addr (HTTP_ADDR): %w", err)
				}
			}
			answer, err := askHealth(ctx, url)
			if err != nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "not ready:", err)
				return exitError{1}
			}
			fmt.Fprintln(cmd.OutOrStdout(), answer)
			return nil
		},
	}
	config.BindHealth(cmd.Flags())
	cmd.Flags().StringVar(&url, "url", "", "what to ask (default /readyz at --http-addr)")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "how long to wait for the answer")
	return cmd
}

// readyURL is where a worker that listens on addr says whether it is ready.
func readyURL(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	// What listens on every address is asked on loopback.
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port) + "/readyz", nil
}

// askHealth returns what the worker says, and an error if that is not 200.
func askHealth(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// A proxy of the environment is for Zoho, not for this.
	client := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1024))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(body))
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", response.Status, text)
	}
	return text, nil
}
