package app

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// Config is everything that can be set. Every field is a flag and an
// environment variable of the same name (--nats-url, NATS_URL), a flag beating
// the environment; a secret may also come from the file named by NAME_FILE.
type Config struct {
	// NATSURL is a server's address, or several separated by commas.
	NATSURL string
	// NATSCreds is a credentials file; empty: none.
	NATSCreds string
	// RedisURL is redis:// or rediss://, with the password where there is one.
	// Empty: no Redis; then workers race for a refresh, and the claim in the
	// token record decides.
	RedisURL secret.Text
	// ZohoClientID and ZohoClientSecret are those of the app in Zoho's API console.
	ZohoClientID     string
	ZohoClientSecret secret.Text
	// EncryptionKeys seal what is stored: id:base64 of 32 bytes, comma
	// separated. The first seals, all open. Losing a key loses the connections
	// sealed with it: their people have to authorize again.
	EncryptionKeys secret.Text
	// HTTPAddr is where /metrics, /healthz and /readyz are.
	HTTPAddr string
	// PublicURL is how a browser reaches HTTPAddr.
	PublicURL string
	// MaxInFlight bounds the requests in hand of this worker. Too little leaves
	// orgs waiting though Zoho would take more calls; too much costs memory, up
	// to two times the server's max_payload each.
	MaxInFlight int
	// Replicas of every stream: 1 on a single server, 3 in a cluster.
	Replicas int
	// Retention is how long responses and claims are kept, and so for how long an
	// id is remembered. A response costs the server about 170 bytes of memory for
	// as long, and its size on disk.
	Retention time.Duration
	// CallTimeout bounds one call to Zoho. Too little turns slow inserts into
	// unknown outcomes; too much keeps an org's place occupied by a dead call.
	CallTimeout time.Duration
	// StopTimeout is the stop budget: how long a stopping worker waits for its
	// calls. It is longer than CallTimeout, or stopping cuts calls.
	StopTimeout time.Duration
	// ReplyPrefixes are what a reply_to may begin with. Too wide a list lets a
	// requester have the worker publish where only the worker may.
	ReplyPrefixes []string
	LogLevel      string
	LogFormat     string
	// ZohoAccountsURL and ZohoAPIURL replace every data centre's hosts, for a
	// simulator or a proxy. Plain http only for loopback addresses.
	ZohoAccountsURL string
	ZohoAPIURL      string
}

// Defaults are good for a worker beside a local NATS server and Redis.
func Defaults() Config {
	return Config{
		NATSURL: "nats://127.0.0.1:4222", RedisURL: secret.New("redis://127.0.0.1:6379"),
		HTTPAddr: ":8080", MaxInFlight: 512, Replicas: 1,
		Retention: 24 * time.Hour, CallTimeout: zoho.DefaultCallTimeout, StopTimeout: 70 * time.Second,
		ReplyPrefixes: []string{"_INBOX."}, LogLevel: "info", LogFormat: "auto",
	}
}

// setting ties a field to its flag and its environment variable.
type setting struct {
	flag   string
	secret *secret.Text
	bind   func(flags *pflag.FlagSet, name, help string)
	help   string
}

// env is the environment variable of a flag: --nats-url, NATS_URL.
func env(flag string) string { return strings.ToUpper(strings.ReplaceAll(flag, "-", "_")) }

// ConnectionSettings are the flags that reach the servers; WorkerSettings the rest.
func (c *Config) connectionSettings() []setting {
	return []setting{
		text("nats-url", &c.NATSURL, "NATS server, or several separated by commas"),
		text("nats-creds", &c.NATSCreds, "NATS credentials file"),
		hidden("encryption-keys", &c.EncryptionKeys, "keys that seal what is stored: id:base64 of 32 bytes, comma separated, the first seals"),
		number("replicas", &c.Replicas, "replicas of every stream: 1 on a single server, 3 in a cluster"),
		duration("retention", &c.Retention, "how long responses and claims are kept, and ids remembered"),
		text("log-level", &c.LogLevel, "debug, info, warn or error"),
		text("log-format", &c.LogFormat, "json, text, or auto: text on a terminal, else json"),
	}
}

func (c *Config) workerSettings() []setting {
	return []setting{
		hidden("redis-url", &c.RedisURL, "Redis server (redis:// or rediss://); none: go without"),
		text("zoho-client-id", &c.ZohoClientID, "client id of the app in Zoho's API console"),
		hidden("zoho-client-secret", &c.ZohoClientSecret, "client secret of the app in Zoho's API console"),
		text("http-addr", &c.HTTPAddr, "address of /metrics, /healthz and /readyz"),
		text("public-url", &c.PublicURL, "how a browser reaches the worker's pages"),
		number("max-in-flight", &c.MaxInFlight, "requests in hand of this worker at one time, over all orgs"),
		duration("call-timeout", &c.CallTimeout, "bound of one call to Zoho"),
		duration("stop-timeout", &c.StopTimeout, "how long a stopping worker waits for its calls"),
		list("reply-prefixes", &c.ReplyPrefixes, "what a reply_to may begin with, comma separated"),
		text("zoho-accounts-url", &c.ZohoAccountsURL, "replaces every data centre's accounts server, for a simulator or a proxy"),
		text("zoho-api-url", &c.ZohoAPIURL, "replaces every data centre's API host, for a simulator or a proxy"),
	}
}

// BindClient adds the flags that a command line beside a worker needs.
func (c *Config) BindClient(flags *pflag.FlagSet) { bind(flags, c.connectionSettings()) }

// BindWorker adds all flags.
func (c *Config) BindWorker(flags *pflag.FlagSet) {
	bind(flags, c.connectionSettings())
	bind(flags, c.workerSettings())
}

func bind(flags *pflag.FlagSet, settings []setting) {
	for _, s := range settings {
		help := s.help + " [$" + env(s.flag)
		if s.secret != nil {
			help += ", $" + env(s.flag) + "_FILE"
		}
		s.bind(flags, s.flag, help+"]")
	}
}

// FromEnvironment fills in what no flag has set. All faults are reported at once.
func (c *Config) FromEnvironment(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	var faults []error
	for _, s := range append(c.connectionSettings(), c.workerSettings()...) {
		flag := flags.Lookup(s.flag)
		if flag == nil || flag.Changed {
			continue
		}
		name := env(s.flag)
		value, ok := lookup(name)
		if s.secret != nil {
			if file, there := lookup(name + "_FILE"); there && file != "" {
				if ok && value != "" {
					faults = append(faults, fmt.Errorf("%s and %s_FILE: set one of them", name, name))
					continue
				}
				data, err := os.ReadFile(file)
				if err != nil {
					faults = append(faults, fmt.Errorf("%s_FILE: %w", name, err))
					continue
				}
				value, ok = strings.TrimSpace(string(data)), true
			}
		}
		if !ok || value == "" && s.flag != "redis-url" {
			continue
		}
		if err := flag.Value.Set(value); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(faults...)
}

// Validate reports everything that is wrong, each with what to do.
func (c Config) Validate() error {
	var faults []error
	wrong := func(flag, format string, args ...any) {
		faults = append(faults, fmt.Errorf("--%s (%s): %s", flag, env(flag), fmt.Sprintf(format, args...)))
	}
	if c.NATSURL == "" {
		wrong("nats-url", "missing: give the NATS server's address, like nats://127.0.0.1:4222")
	}
	if c.NATSCreds != "" {
		if _, err := os.Stat(c.NATSCreds); err != nil {
			wrong("nats-creds", "%v", err)
		}
	}
	if c.ZohoClientID == "" {
		wrong("zoho-client-id", "missing: create a server-based application at https://api-console.zoho.com")
	}
	if c.ZohoClientSecret.IsZero() {
		wrong("zoho-client-secret", "missing: it stands beside the client id")
	}
	if c.EncryptionKeys.IsZero() {
		wrong("encryption-keys", "missing: make one with  echo \"k1:$(openssl rand -base64 32)\"")
	} else if _, err := secret.ParseKeyring(c.EncryptionKeys.Reveal()); err != nil {
		wrong("encryption-keys", "%v", err)
	}
	if _, _, err := net.SplitHostPort(c.HTTPAddr); err != nil {
		wrong("http-addr", "%v", err)
	}
	if u, err := url.Parse(c.PublicURL); err != nil || c.PublicURL != "" && (u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		wrong("public-url", "must be an http or https address, like https://zoho.example.com")
	}
	if c.MaxInFlight < 1 {
		wrong("max-in-flight", "must be at least 1")
	}
	if c.Replicas < 1 || c.Replicas > 5 {
		wrong("replicas", "must be from 1 to 5; 3 is usual in a cluster")
	}
	if c.CallTimeout < time.Second {
		wrong("call-timeout", "must be at least 1s")
	}
	if c.StopTimeout <= c.CallTimeout {
		wrong("stop-timeout", "must be longer than --call-timeout (%s), or stopping cuts calls", c.CallTimeout)
	}
	// A claim must outlive its call and the longest wait of its request.
	if c.Retention < envelope.MaxDeadline {
		wrong("retention", "must be at least %s, the longest deadline of a request", envelope.MaxDeadline)
	}
	for _, prefix := range c.ReplyPrefixes {
		if prefix == "" || strings.HasPrefix(prefix, "$") || strings.HasPrefix(prefix, "zoho.") || strings.ContainsAny(prefix, "*> \t") {
			wrong("reply-prefixes", "%q: a plain beginning of a subject, outside $… and zoho.…", prefix)
		}
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		wrong("log-level", "must be debug, info, warn or error")
	}
	if !slices.Contains([]string{"json", "text", "auto"}, c.LogFormat) {
		wrong("log-format", "must be json, text or auto")
	}
	if err := c.zoho(0).Validate(); err != nil && c.ZohoClientID != "" && !c.ZohoClientSecret.IsZero() {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// zoho is the configuration of the client, with responses of at most maxResponse bytes.
func (c Config) zoho(maxResponse int) zoho.Config {
	return zoho.Config{
		ClientID: c.ZohoClientID, ClientSecret: c.ZohoClientSecret,
		AccountsURL: c.ZohoAccountsURL, APIURL: c.ZohoAPIURL,
		CallTimeout: c.CallTimeout, MaxResponse: maxResponse, MaxIdlePerHost: cmp.Or(c.MaxInFlight, zoho.DefaultMaxIdlePerHost),
	}
}

func text(flag string, field *string, help string) setting {
	return setting{flag: flag, help: help, bind: func(f *pflag.FlagSet, name, help string) { f.StringVar(field, name, *field, help) }}
}

func number(flag string, field *int, help string) setting {
	return setting{flag: flag, help: help, bind: func(f *pflag.FlagSet, name, help string) { f.IntVar(field, name, *field, help) }}
}

func duration(flag string, field *time.Duration, help string) setting {
	return setting{flag: flag, help: help, bind: func(f *pflag.FlagSet, name, help string) { f.DurationVar(field, name, *field, help) }}
}

func list(flag string, field *[]string, help string) setting {
	return setting{flag: flag, help: help, bind: func(f *pflag.FlagSet, name, help string) { f.StringSliceVar(field, name, *field, help) }}
}

func hidden(flag string, field *secret.Text, help string) setting {
	return setting{flag: flag, secret: field, help: help, bind: func(f *pflag.FlagSet, name, help string) {
		f.Var((*secretValue)(field), name, help)
	}}
}

// secretValue is a flag that help and error messages never show.
type secretValue secret.Text

func (v *secretValue) Set(s string) error {
	*v = secretValue(secret.New(s))
	return nil
}
func (v *secretValue) String() string { return "" }
func (v *secretValue) Type() string   { return "secret" }
