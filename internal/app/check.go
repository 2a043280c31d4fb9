package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/inspect"
	"zoho-worker/internal/lock"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// FindingState is how something was found.
type FindingState string

// The states of a finding; a fault keeps a worker from its work.
const (
	FindingOK      FindingState = "ok"
	FindingWarning FindingState = "warning"
	FindingFault   FindingState = "fault"
)

// Finding is one thing that Check looked at.
type Finding struct {
	What   string       `json:"what"`
	State  FindingState `json:"state"`
	Detail string       `json:"detail"`
	// Mend is what to do about it.
	Mend string `json:"mend,omitempty"`
}

// findings are collected in order.
type findings struct{ all []Finding }

func (f *findings) ok(what, detail string, args ...any) {
	f.all = append(f.all, Finding{What: what, State: FindingOK, Detail: fmt.Sprintf(detail, args...)})
}

func (f *findings) warn(what, mend, detail string, args ...any) {
	f.all = append(f.all, Finding{What: what, State: FindingWarning, Detail: fmt.Sprintf(detail, args...), Mend: mend})
}

func (f *findings) fault(what, mend, detail string, args ...any) {
	f.all = append(f.all, Finding{What: what, State: FindingFault, Detail: fmt.Sprintf(detail, args...), Mend: mend})
}

// minNATS is the oldest nats-server that a worker takes. Everything is tried with
// 2.14 and newer; older ones are not.
const minNATS = "2.14.0"

// minRedis is the oldest Redis that the lock is made for.
const minRedis = "6.0.0"

// Check validates the configuration and reaches every server that it names. It
// writes nothing but a lock in Redis, which it gives back. All faults are found
// at once: one server's don't hide another's.
func Check(ctx context.Context, c Config, logger *slog.Logger) []Finding {
	f := &findings{}
	if err := c.Validate(); err != nil {
		faults := unjoin(err)
		for i, fault := range faults {
			mend := "" // the fault says it; where to look is said once
			if i == len(faults)-1 {
				mend = "worker config print shows where each value came from"
			}
			f.fault("configuration", mend, "%v", fault)
		}
	} else {
		detail := "valid"
		if c.File != "" {
			detail += ", file " + c.File
		}
		f.ok("configuration", "%s", detail)
	}
	connections := checkNATS(ctx, f, c, logger)
	checkRedis(ctx, f, c, logger)
	checkZoho(ctx, f, c, connections)
	return f.all
}

func unjoin(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, unjoin(e)...)
		}
		return all
	}
	return []error{err}
}

// checkNATS returns the connections, nil where they can't be read.
func checkNATS(ctx context.Context, f *findings, c Config, logger *slog.Logger) []*connection.Connection {
	if c.Origin("nats-url") == notRead {
		f.warn("NATS", "mend the configuration first", "not tried: --nats-url can't be read")
		return nil
	}
	c.NATSInboxPrefix = c.inbox()
	var denied deniedSaid
	nc, err := connect(c, "zoho-worker check", logger, nats.NoReconnect(), nats.Timeout(5*time.Second),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied.add(err) }))
	if err != nil {
		f.fault("NATS", natsMend(err), "%v", err)
		return nil
	}
	defer nc.Close()
	version, tls := nc.ConnectedServerVersion(), "without TLS"
	if _, err := nc.TLSConnectionState(); err == nil {
		tls = "TLS"
	}
	rtt, _ := nc.RTT()
	detail := fmt.Sprintf("%s %s at %s, %s, round trip %s", nc.ConnectedServerName(), version, secret.RedactURLs(nc.ConnectedUrl()), tls, rtt.Round(10*time.Microsecond))
	if older(version, minNATS) {
		f.fault("NATS", "upgrade nats-server to "+minNATS+" or newer: older ones are not tried", "%s", detail)
	} else {
		f.ok("NATS", "%s", detail)
	}
	if most := nc.MaxPayload(); most < 1<<20 {
		f.warn("NATS max_payload", "set max_payload: 1MB or more in nats-server.conf; larger bodies go through body_object", "%d bytes: no request or response can be larger", most)
	} else {
		f.ok("NATS max_payload", "%d bytes", most)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		f.fault("JetStream", "", "%v", err)
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	asking, answered := context.WithTimeout(bounded, 5*time.Second) // who may not ask gets no answer
	account, err := js.AccountInfo(asking)
	answered()
	if err != nil {
		f.fault("JetStream", "enable it (jetstream { store_dir: … }) for this account, and allow the user what deploy/nats/accounts.conf allows the worker",
			"%v%s", err, &denied)
		return nil
	}
	checkLimits(f, account, c.Replicas)
	checkStreams(bounded, f, c, js, nc)
	return checkConnections(bounded, f, c, js, logger)
}

// deniedSaid is what the server says out of turn, of another goroutine.
type deniedSaid struct {
	mu   sync.Mutex
	said []string
}

func (d *deniedSaid) add(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.said = append(d.said, err.Error())
}

// String is that in brackets, "" where it is nothing.
func (d *deniedSaid) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.said) == 0 {
		return ""
	}
	return " (" + strings.Join(d.said, "; ") + ")"
}

func natsMend(err error) string {
	text := err.Error()
	var file *os.PathError
	switch {
	case errors.Is(err, errNoURL):
		return "percent-encode its user and password"
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "the server has no TLS, which tls:// in --nats-url, --nats-ca and --nats-cert ask for"
	case errors.As(err, &file):
		return "is the file there, and may this user read it?"
	case strings.Contains(text, "custom prefix"):
		return "--nats-inbox-prefix is a plain subject without a dot at its end, like _INBOX.acme"
	case strings.Contains(text, "nkey"):
		return "--nats-nkey names a file with the seed of a user's nkey, SU…"
	case strings.Contains(text, "root certificate"), strings.Contains(text, "client certificate"):
		return "--nats-ca, --nats-cert and --nats-key name PEM files: is this one?"
	case errors.Is(err, nats.ErrAuthorization), strings.Contains(strings.ToLower(text), "authorization"):
		return "the server doesn't know this user: check --nats-creds, --nats-nkey, or the user and password in --nats-url"
	case strings.Contains(text, "x509"), strings.Contains(text, "tls"):
		return "TLS: check --nats-ca, --nats-cert and --nats-key, and that the server's certificate names its host"
	}
	return "is the server up, and --nats-url its address? A network policy or firewall may be in between"
}

var versionForm = regexp.MustCompile(`^(\d+)\.(\d+)\.(\d+)`)

// older reports whether version a is older than b; what is no version is not.
func older(a, b string) bool {
	x, y := versionForm.FindStringSubmatch(a), versionForm.FindStringSubmatch(b)
	if x == nil || y == nil {
		return false
	}
	for i := 1; i <= 3; i++ {
		n, _ := strconv.Atoi(x[i])
		m, _ := strconv.Atoi(y[i])
		if n != m {
			return n < m
		}
	}
	return false
}

func checkLimits(f *findings, account *jetstream.AccountInfo, replicas int) {
	tier := account.Tier
	if len(account.Tiers) > 0 { // the limits are by the number of replicas
		name := fmt.Sprintf("R%d", replicas)
		var there bool
		if tier, there = account.Tiers[name]; !there {
			f.fault("JetStream", "set --replicas to one that it has, or give it this one", "the account has the tiers %s, and none for %s",
				strings.Join(slices.Sorted(maps.Keys(account.Tiers)), ", "), name)
			return
		}
	}
	limits := tier.Limits
	var details []string
	limited := func(name string, limit, used int64, spare int64) {
		switch {
		case limit < 0:
			details = append(details, name+" without limit")
		case limit-used < spare:
			f.fault("JetStream "+name, "raise the account's limit", "%d of %d are used", used, limit)
		default:
			details = append(details, fmt.Sprintf("%s %d of %d", name, used, limit))
		}
	}
	missing := int64(max(0, len(inspect.Streams())-tier.Streams))
	limited("streams", int64(limits.MaxStreams), int64(tier.Streams), missing)
	limited("consumers", int64(limits.MaxConsumers), int64(tier.Consumers), 10)
	limited("storage", limits.MaxStore, int64(tier.Store), 100<<20)
	limited("memory", limits.MaxMemory, int64(tier.Memory), 16<<20)
	if limits.MaxBytesRequired {
		f.fault("JetStream max_bytes", "drop max_bytes_required of the account: a stream that is full refuses requests", "the account demands a max_bytes of every stream")
	}
	f.ok("JetStream", "%s", strings.Join(details, ", "))
}

func checkStreams(ctx context.Context, f *findings, c Config, js jetstream.JetStream, nc *nats.Conn) {
	clustered := nc.ConnectedClusterName() != ""
	if c.Replicas > 1 && !clustered {
		f.fault("JetStream replicas", "set --replicas 1, or --nats-url to the cluster", "--replicas %d, and the server is in no cluster", c.Replicas)
	}
	if known := len(nc.Servers()); clustered && c.Replicas > known {
		f.warn("JetStream replicas", "add servers, or lower --replicas; name all servers in --nats-url where the cluster doesn't advertise them",
			"--replicas %d, and %d servers of cluster %s are known", c.Replicas, known, nc.ConnectedClusterName())
	}
	if c.Replicas == 1 && clustered {
		f.warn("JetStream replicas", "set --replicas 3: an insert is sent once only as long as its claim is kept", "the server is in cluster %s, and --replicas is 1", nc.ConnectedClusterName())
	}
	var missing, other []string
	var skew time.Duration
	for _, name := range inspect.Streams() {
		stream, err := js.Stream(ctx, name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			missing = append(missing, name)
			continue
		case err != nil:
			f.fault("stream "+name, "may this user ask for it? See deploy/nats/accounts.conf", "%v", err)
			continue
		}
		info := stream.CachedInfo()
		if info.Cluster != nil {
			for _, replica := range info.Cluster.Replicas {
				if replica.Offline || !replica.Current {
					f.warn("stream "+name, "see `nats stream report`", "replica %s is behind or offline", replica.Name)
				}
			}
			if info.Cluster.Leader == "" {
				f.fault("stream "+name, "too few servers of its group are up", "it has no leader")
			}
		}
		if info.Config.Replicas != c.Replicas {
			other = append(other, fmt.Sprintf("%s %d", name, info.Config.Replicas))
		}
		if !info.TimeStamp.IsZero() {
			skew = time.Since(info.TimeStamp)
		}
	}
	if skew.Abs() > 10*time.Second {
		side := "ahead of"
		if skew < 0 {
			side = "behind"
		}
		f.warn("clock", "set the time of this machine by NTP", "this machine's clock is %s %s the NATS server's", skew.Abs().Round(time.Second), side)
	}
	if len(other) > 0 {
		f.warn("stream replicas", "a worker that starts changes them", "--replicas says %d, there are: %s", c.Replicas, strings.Join(other, ", "))
	}
	switch n := len(inspect.Streams()); {
	case len(missing) == n:
		f.ok("streams", "none yet: the first worker makes them")
	case len(missing) > 0:
		f.warn("streams", "a worker that starts makes them", "missing: %s", strings.Join(missing, ", "))
	default:
		f.ok("streams", "all %d are there", n)
	}
}

// checkConnections reads the connections with the configured keys; nil where it can't.
func checkConnections(ctx context.Context, f *findings, c Config, js jetstream.JetStream, logger *slog.Logger) []*connection.Connection {
	keyring, err := secret.ParseKeyring(c.EncryptionKeys.Reveal())
	if err != nil {
		return nil // the configuration's fault, told already
	}
	if _, err := js.Stream(ctx, connection.StreamName); err != nil {
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return []*connection.Connection{}
		}
		return nil // told already
	}
	store, err := connection.Open(ctx, js, keyring, connection.Options{Logger: logger})
	if err != nil {
		f.fault("connections", "may this user read "+connection.StreamName+"? See deploy/nats/accounts.conf", "%v", err)
		return nil
	}
	defer store.Close()
	all := append([]*connection.Connection{}, store.All()...)
	active := 0
	for _, known := range all {
		switch {
		case known.Err() != nil:
			f.fault("connection "+known.Name, "add the key that sealed it to --encryption-keys, at the end", "%v", known.Err())
		case known.Status == connection.Revoked:
			f.warn("connection "+known.Name, "authorize it again", "revoked since %s: %s", known.RevokedAt.Local().Format("2006-01-02 15:04"), known.StatusReason)
		default:
			active++
		}
	}
	f.ok("connections", "%d active of %d", active, len(all))
	return all
}

func checkRedis(ctx context.Context, f *findings, c Config, logger *slog.Logger) {
	if c.Origin("redis-url") == notRead {
		f.warn("Redis", "mend the configuration first", "not tried: --redis-url can't be read")
		return
	}
	client, err := openRedis(c, logger)
	if err != nil {
		f.fault("Redis", "", "%v", err)
		return
	}
	if client == nil {
		f.warn("Redis", "set --redis-url: it spares workers the race for a refresh", "none configured")
		return
	}
	defer func() { _ = client.Close() }()
	bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := client.Ping(bounded).Err(); err != nil {
		f.fault("Redis", redisMend(err), "%v", err)
		return
	}
	asked := time.Now() // the first ping connected
	_ = client.Ping(bounded).Err()
	took := time.Since(asked)
	info := redisInfo(bounded, client)
	detail := fmt.Sprintf("Redis %s, ping %s", cmp.Or(info["redis_version"], "of unknown version"), took.Round(10*time.Microsecond))
	switch {
	case older(info["redis_version"], minRedis):
		f.warn("Redis", "upgrade Redis to "+minRedis+" or newer: older ones are not tried", "%s", detail)
	case took > 100*time.Millisecond:
		f.warn("Redis", "a lock that takes longer than 300 ms is gone without: bring Redis nearer, or raise ?read_timeout in --redis-url", "%s: slow", detail)
	default:
		f.ok("Redis", "%s", detail)
	}
	if err := lock.New(client, lock.Options{Prefix: "zoho:lock:", TTL: 2 * time.Second, Logger: logger}).Check(bounded, "check"); err != nil {
		f.fault("Redis lock", "the ACL user needs the commands, keys and channels of docs/configuration.md", "%v", err)
	} else {
		f.ok("Redis lock", "taken, waited for, renewed, given back and heard of")
	}
	if policy := info["maxmemory_policy"]; policy != "" && policy != "noeviction" && info["maxmemory"] != "0" {
		f.warn("Redis eviction", "CONFIG SET maxmemory-policy noeviction, or a Redis of its own", "%s may evict a lock: that costs a race for a refresh", policy)
	}
}

func redisMend(err error) string {
	text := err.Error()
	switch {
	case strings.Contains(text, "NOAUTH"), strings.Contains(text, "WRONGPASS"):
		return "user and password in --redis-url"
	case strings.Contains(text, "x509"), strings.Contains(text, "tls"):
		return "TLS: check --redis-ca, and rediss:// against redis://"
	}
	return "is the server up, and --redis-url its address?"
}

// redisInfo is what INFO says; empty where it may not be asked.
func redisInfo(ctx context.Context, client redis.UniversalClient) map[string]string {
	info := map[string]string{}
	for _, section := range []string{"server", "memory"} {
		text, err := client.Info(ctx, section).Result()
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				info[name] = value
			}
		}
	}
	return info
}

// checkZoho reaches the hosts of each data centre in use.
func checkZoho(ctx context.Context, f *findings, c Config, connections []*connection.Connection) {
	client, err := zoho.New(c.zoho(0))
	if err != nil {
		return // the configuration's fault, told already
	}
	defer client.Close()
	type place struct {
		location    string
		environment zoho.Environment
	}
	var places []place
	for _, known := range connections {
		p := place{known.Location, zoho.Environment(known.Environment)}
		if known.Status == connection.Active && known.Err() == nil && !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	switch {
	case len(places) > 0:
	case c.ZohoAccountsURL != "":
		places = append(places, place{"us", zoho.Production})
	case connections == nil:
		f.warn("Zoho", "mend what is above first", "not tried: which data centres are in use can't be read")
	case len(connections) == 0:
		f.ok("Zoho", "no connection yet, so no data centre is in use")
	default:
		f.ok("Zoho", "no connection is active, so no data centre is in use")
	}
	seen := map[string]bool{}
	for _, p := range places {
		urls, faults := client.Reach(ctx, p.location, p.environment)
		for i, url := range urls {
			switch what := "Zoho " + p.location; {
			case seen[url]:
			case faults[i] != nil:
				f.fault(what, "DNS, firewall or network policy: a worker reaches it directly, without a proxy", "%s: %v", url, faults[i])
			default:
				f.ok(what, "%s answers", url)
			}
			seen[url] = true
		}
	}
}
