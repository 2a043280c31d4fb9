package app

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/lock"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// Config is everything that can be set. Every field is a flag, an environment
// variable and a key of the configuration file, of the same name (--nats-url,
// NATS_URL, nats-url:). A flag beats the environment, that the file, that the
// default. A secret may also come from the file named by NAME_FILE.
type Config struct {
	// File is the configuration file, YAML; empty: none.
	File string
	// NATSURL is a server's address, or several separated by commas; tls://
	// insists on TLS.
	NATSURL string
	// NATSCreds is a credentials file; empty: none.
	NATSCreds string
	// NATSNKey is a file with the seed of an nkey; empty: none.
	NATSNKey string
	// NATSCA is a file of certificate authorities for NATS; empty: the system's.
	NATSCA string
	// NATSCert and NATSKey are this side's certificate and key, for servers
	// that ask for one (mTLS); empty: none.
	NATSCert, NATSKey string
	// NATSInboxPrefix begins the subjects on which this side is answered. With
	// least privilege it is all a client may subscribe to. Empty: _INBOX, and
	// _INBOX.zoho-worker for a worker.
	NATSInboxPrefix string
	// RedisURL is redis:// or rediss://, with the password where there is one.
	// Empty: no Redis; then workers race for a refresh, and the claim in the
	// token record decides.
	RedisURL secret.Text
	// RedisCA, RedisCert and RedisKey are for rediss://, like those of NATS.
	RedisCA, RedisCert, RedisKey string
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
	// MaxInFlight bounds the calls under way of this worker, over all orgs that it
	// serves. Too little leaves orgs waiting though Zoho would take more calls;
	// too much costs memory, up to two times the server's max_payload each.
	MaxInFlight int
	// CreditsReserve is the part of an org's API credits, from 0 to less than 1,
	// that requests of the bulk lanes may not use. Too little lets a night's export
	// use up what people need in the morning; too much has bulk work wait for
	// credits that nobody else wants. All workers should have the same.
	CreditsReserve float64
	// Replicas of every stream: 1 on a single server, 3 in a cluster.
	Replicas int
	// Retention is how long responses and claims are kept, and so for how long an
	// id is remembered. A response costs the server about 170 bytes of memory for
	// as long, and its size on disk.
	Retention time.Duration
	// CallTimeout bounds one call to Zoho. Too little turns slow inserts into
	// unknown outcomes; too much keeps an org's place occupied by a dead call.
	CallTimeout time.Duration
	// AckWait is how long the server waits for a worker's sign of life before it
	// hands its requests to another; a worker gives one every third of it. Too
	// little hands requests out twice when a network stalls, too much leaves those
	// of a dead worker waiting. All workers should have the same; a queue that has
	// work keeps its own until it has been idle for ten minutes.
	AckWait time.Duration
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
	// ZohoClientSecrets are those of data centres that have one of their own:
	// location:secret, comma separated.
	ZohoClientSecrets secret.Text
	ConsoleConfig

	// origins says where each setting's value came from, by its name.
	origins map[string]string
	// unread are the faults that Load found.
	unread error
}

// Defaults are good for a worker beside a local NATS server and Redis.
func Defaults() Config {
	return Config{
		NATSURL: "nats://127.0.0.1:4222", RedisURL: secret.New("redis://127.0.0.1:6379"),
		HTTPAddr: ":8080", MaxInFlight: 512, CreditsReserve: 0.1, Replicas: 1,
		Retention: 24 * time.Hour, CallTimeout: zoho.DefaultCallTimeout, AckWait: consumer.DefaultAckWait, StopTimeout: 70 * time.Second,
		ReplyPrefixes: []string{"_INBOX.", envelope.WayBack}, LogLevel: "info", LogFormat: "auto",
	}
}

// Validate reports everything that is wrong, each with what to do, and what Load
// could not read.
func (c Config) Validate() error {
	faults := []error{c.unread}
	wrong := func(flag, format string, args ...any) {
		if c.Origin(flag) == notRead {
			return
		}
		faults = append(faults, fmt.Errorf("--%s (%s): %s", flag, env(flag), fmt.Sprintf(format, args...)))
	}
	if c.NATSURL == "" {
		wrong("nats-url", "missing: give the NATS server's address, like nats://127.0.0.1:4222")
	}
	for _, s := range c.settings() {
		if !s.file || s.raw() == "" {
			continue
		}
		if f, err := os.Open(s.raw()); err != nil {
			wrong(s.Name, "%v", err)
		} else {
			_ = f.Close()
		}
	}
	if (c.NATSCert == "") != (c.NATSKey == "") {
		wrong("nats-cert", "a certificate and its key go together: set --nats-cert and --nats-key")
	}
	if (c.RedisCert == "") != (c.RedisKey == "") {
		wrong("redis-cert", "a certificate and its key go together: set --redis-cert and --redis-key")
	}
	if c.NATSCreds != "" && c.NATSNKey != "" {
		wrong("nats-nkey", "set it or --nats-creds, not both")
	}
	if strings.ContainsAny(c.NATSInboxPrefix, "*> \t$") || strings.HasSuffix(c.NATSInboxPrefix, ".") {
		wrong("nats-inbox-prefix", "%q: a plain subject without a dot at its end, like _INBOX.acme", c.NATSInboxPrefix)
	}
	if address := c.RedisURL.Reveal(); address != "" {
		if client, err := lock.Client(address); err != nil {
			wrong("redis-url", "%v", err)
		} else {
			_ = client.Close()
		}
	}
	if c.ZohoClientID == "" {
		wrong("zoho-client-id", "missing: create a server-based application at https://api-console.zoho.com")
	}
	if c.ZohoClientSecret.IsZero() {
		wrong("zoho-client-secret", "missing: it stands beside the client id")
	}
	_, noSecrets := c.clientSecrets()
	for _, fault := range noSecrets {
		wrong("zoho-client-secrets", "%v", fault)
	}
	if err := zoho.CheckOverride(c.ZohoAccountsURL); err != nil {
		wrong("zoho-accounts-url", "%v", err)
	}
	if err := zoho.CheckOverride(c.ZohoAPIURL); err != nil {
		wrong("zoho-api-url", "%v", err)
	}
	if c.EncryptionKeys.IsZero() {
		wrong("encryption-keys", "missing: make one with  echo \"k1:$(openssl rand -base64 32)\"")
	} else if _, err := secret.ParseKeyring(c.EncryptionKeys.Reveal()); err != nil {
		wrong("encryption-keys", "%v", err)
	}
	if _, port, err := net.SplitHostPort(c.HTTPAddr); err != nil {
		wrong("http-addr", "%v: write host:port, like 127.0.0.1:8080, or :8080 for all addresses", err)
	} else if port == "" {
		wrong("http-addr", "%q: the port is missing, like :8080", c.HTTPAddr)
	}
	if u, err := url.Parse(c.PublicURL); err != nil || c.PublicURL != "" && (u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		wrong("public-url", "must be an http or https address, like https://zoho.example.com")
	}
	if c.MaxInFlight < 1 {
		wrong("max-in-flight", "must be at least 1")
	}
	if c.CreditsReserve < 0 || c.CreditsReserve >= 1 || math.IsNaN(c.CreditsReserve) {
		wrong("credits-reserve", "must be at least 0 and less than 1, like 0.1 for a tenth")
	}
	if c.Replicas < 1 || c.Replicas > 5 {
		wrong("replicas", "must be from 1 to 5; 3 is usual in a cluster")
	}
	if c.CallTimeout < time.Second || c.CallTimeout > time.Hour {
		wrong("call-timeout", "must be from 1s to 1h")
	}
	// A sign of life every third of it must get through a slow second.
	if c.AckWait < 3*time.Second {
		wrong("ack-wait", "must be at least 3s: a worker gives a sign of life every third of it")
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
	if err := CheckLevel(c.LogLevel); err != nil {
		wrong("log-level", "%v", err)
	}
	if !slices.Contains([]string{"json", "text", "auto"}, c.LogFormat) {
		wrong("log-format", "must be json, text or auto")
	}
	if !slices.ContainsFunc(c.consoleSettings(), func(s setting) bool { return c.Origin(s.Name) == notRead }) {
		faults = append(faults, c.validateConsole())
	}
	return errors.Join(faults...)
}

// zoho is the configuration of the client, with responses of at most maxResponse bytes.
func (c Config) zoho(maxResponse int) zoho.Config {
	secrets, _ := c.clientSecrets() // Validate tells the faults
	return zoho.Config{
		ClientID: c.ZohoClientID, ClientSecret: c.ZohoClientSecret, ClientSecrets: secrets,
		AccountsURL: c.ZohoAccountsURL, APIURL: c.ZohoAPIURL,
		CallTimeout: c.CallTimeout, MaxResponse: maxResponse, MaxIdlePerHost: cmp.Or(c.MaxInFlight, zoho.DefaultMaxIdlePerHost),
	}
}
