package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/spf13/pflag"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/console"
	"zoho-worker/internal/event"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
	"zoho-worker/internal/zoho"
)

// ConsoleConfig is who may open the console, and whom events are posted to.
type ConsoleConfig struct {
	// ConsoleAuth is "" (no console, and no OAuth callback), "none" (loopback
	// only), "basic", "oidc" or "proxy-header".
	ConsoleAuth string
	// ConsoleUsers are user:bcrypt-hash, comma separated (basic).
	ConsoleUsers secret.Text
	// OIDCIssuer, OIDCClientID and OIDCClientSecret are the OpenID provider's;
	// its redirect address is <public-url>/auth/callback.
	OIDCIssuer       string
	OIDCClientID     string
	OIDCClientSecret secret.Text
	// OIDCAllowed are e-mail addresses, or domains like @example.com.
	OIDCAllowed []string
	// ConsoleProxyHeader carries who is signed in, set by a proxy that connects
	// from one of ConsoleProxyNetworks.
	ConsoleProxyHeader   string
	ConsoleProxyNetworks []string
	// WebhookURL gets events of connections as POSTs, signed with WebhookSecret.
	WebhookURL    string
	WebhookSecret secret.Text
}

const (
	authNone   = "none"
	authBasic  = "basic"
	authOIDC   = "oidc"
	authHeader = "proxy-header"
)

func (c *Config) consoleSettings() []setting {
	return []setting{
		text("console-auth", &c.ConsoleAuth, "who may open the console: basic, oidc, proxy-header, or none (loopback only); empty: no console"),
		hidden("console-users", &c.ConsoleUsers, "for basic: user:bcrypt-hash, comma separated, as htpasswd -nB -C 12 prints them"),
		text("oidc-issuer", &c.OIDCIssuer, "for oidc: the OpenID provider's address"),
		text("oidc-client-id", &c.OIDCClientID, "for oidc: client id at the provider"),
		hidden("oidc-client-secret", &c.OIDCClientSecret, "for oidc: client secret at the provider"),
		list("oidc-allowed", &c.OIDCAllowed, "for oidc: who may come in: e-mail addresses, or domains like @example.com"),
		text("console-proxy-header", &c.ConsoleProxyHeader, "for proxy-header: the header that says who is signed in, like X-Forwarded-Email"),
		list("console-proxy-networks", &c.ConsoleProxyNetworks, "for proxy-header: networks that the proxy connects from, like 10.0.0.0/8"),
		text("webhook-url", &c.WebhookURL, "where events of connections (revoked, recovered, connected …) are posted to"),
		hidden("webhook-secret", &c.WebhookSecret, "key of the HMAC-SHA256 signature in the header Zoho-Signature of the webhook"),
	}
}

// auth builds the console's sign-in.
func (c Config) auth() (console.Auth, error) {
	switch c.ConsoleAuth {
	case authNone:
		if !console.Loopback(c.HTTPAddr) {
			return nil, errors.New("--console-auth (CONSOLE_AUTH): none is for a loopback --http-addr only, like 127.0.0.1:8080")
		}
		return nil, nil
	case authBasic:
		return console.NewBasic(c.ConsoleUsers.Reveal())
	case authOIDC:
		return console.NewOIDC(console.OIDCConfig{
			Issuer: c.OIDCIssuer, ClientID: c.OIDCClientID, ClientSecret: c.OIDCClientSecret, Allowed: c.OIDCAllowed,
		})
	case authHeader:
		return console.NewProxyHeader(c.ConsoleProxyHeader, c.ConsoleProxyNetworks)
	}
	return nil, errors.New("--console-auth (CONSOLE_AUTH): must be basic, oidc, proxy-header, none, or empty for no console")
}

// validateConsole is the part of Validate that is about the console and the webhook.
func (c Config) validateConsole() error {
	var faults []error
	if c.ConsoleAuth != "" {
		_, err := c.auth()
		faults = append(faults, err)
		if c.PublicURL == "" && c.ConsoleAuth != authNone {
			faults = append(faults, errors.New("--public-url (PUBLIC_URL): missing: the console needs to know how browsers reach it"))
		}
		if u, err := url.Parse(c.PublicURL); err == nil && u.Host != "" {
			if strings.Trim(u.Path, "/") != "" {
				faults = append(faults, errors.New("--public-url (PUBLIC_URL): must have no path: the console wants a host of its own"))
			}
			if u.Scheme == "http" && c.ConsoleAuth != authNone && !isLoopback(u.Hostname()) {
				faults = append(faults, errors.New("--public-url (PUBLIC_URL): must be https: passwords and sessions travel by it"))
			}
		}
	}
	if c.WebhookURL != "" {
		u, err := url.Parse(c.WebhookURL)
		if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Hostname())) {
			faults = append(faults, errors.New("--webhook-url (WEBHOOK_URL): must be an https address (http for loopback)"))
		}
	}
	return errors.Join(faults...)
}

func isLoopback(host string) bool { return console.Loopback(net.JoinHostPort(host, "0")) }

// BindConnections adds the flags of the commands about connections: those that
// reach the servers, and what it takes to talk to Zoho's accounts servers.
func (c *Config) BindConnections(flags *pflag.FlagSet) {
	settings := c.connectionSettings()
	for _, s := range c.settings() {
		if slices.Contains([]string{
			"zoho-client-id", "zoho-client-secret", "zoho-client-secrets", "zoho-accounts-url", "zoho-api-url", "public-url", "redis-url",
		}, s.Name) {
			settings = append(settings, s)
		}
	}
	c.bind(flags, settings)
}

// NewZoho returns the client of Zoho that the configuration asks for.
func (c Config) NewZoho() (*zoho.Client, error) { return zoho.New(c.zoho(0)) }

// consoleParts is what the console is built of.
type consoleParts struct {
	js      jetstream.JetStream
	keyring *secret.Keyring
	store   *connection.Store
	tokens  *token.Source
	zoho    *zoho.Client
	events  *event.Publisher
}

// startConsole starts what people need of a worker: the console, where it is
// configured, the webhook, and the daily check of idle connections. It returns
// the console's pages, nil where there are none.
func (w *Worker) startConsole(ctx context.Context, c Config, parts consoleParts) (http.Handler, error) {
	logger := parts.events.Logger
	w.onStopNow(parts.events.Watch())
	if c.WebhookURL != "" {
		hook := &event.Webhook{JS: parts.js, URL: c.WebhookURL, Secret: c.WebhookSecret, Logger: logger}
		err := w.await(ctx, logger, "JetStream", func(ctx context.Context) error {
			stop, err := hook.Start(ctx)
			if err == nil {
				w.onStopNow(stop)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	flow := consent.New(consent.Options{
		JS: parts.js, Keyring: parts.keyring, Connections: parts.store, Zoho: parts.zoho, Event: parts.events.Publish, Logger: logger,
	})
	checking, cancel := context.WithCancel(context.WithoutCancel(ctx))
	idle := &consent.Idle{Flow: flow, Connections: parts.store, Tokens: parts.tokens}
	var work sync.WaitGroup
	work.Go(func() { idle.Run(checking) })
	w.onStopNow(func() {
		cancel()
		work.Wait()
	})
	if c.ConsoleAuth == "" {
		return nil, nil
	}
	auth, err := c.auth()
	if err != nil {
		return nil, err
	}
	pages, err := console.New(console.Options{
		JS: parts.js, Keyring: parts.keyring, Connections: parts.store, Consents: flow, Tokens: parts.tokens, Zoho: parts.zoho,
		PublicURL: c.PublicURL, Auth: auth, Version: Version, Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	return pages.Handler(), nil
}

func (w *Worker) onStopNow(stop func()) { w.onStop(func(context.Context) { stop() }) }

// clientSecrets are the secrets of single data centres, and what of the setting is none,
// without a word of it: it may be a secret.
func (c Config) clientSecrets() (secrets map[string]secret.Text, faults []error) {
	if c.ZohoClientSecrets.IsZero() {
		return nil, nil
	}
	secrets = map[string]secret.Text{}
	for i, item := range strings.Split(c.ZohoClientSecrets.Reveal(), ",") {
		location, value, _ := strings.Cut(strings.TrimSpace(item), ":")
		if _, ok := zoho.LookupDataCenter(location); !ok || value == "" {
			faults = append(faults, fmt.Errorf("entry %d: want location:secret, with the location of one of Zoho's data centres, like eu:…", i+1))
			continue
		}
		secrets[location] = secret.New(value)
	}
	return secrets, faults
}
