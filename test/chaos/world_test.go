package chaos

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// What makes waiting for a dead worker short. A claim's lease is the call
// timeout and 5 s; both it and AckWait are shorter than the longest SIGSTOP.
const (
	callTimeout = 2 * time.Second
	ackWait     = 3 * time.Second
	stopTimeout = 10 * time.Second
	workers     = 3
)

// tenants are the connections by name, and the org that each belongs to.
var tenants = []struct{ name, org string }{
	{"north", "880000001"}, {"south", "880000001"}, {"east", "880000002"}, {"west", "880000003"},
}

// world is everything that a run needs, each part in a process of its own but
// the simulator. Workers reach NATS, Redis and Zoho through proxies only; the
// test goes straight to them, as another service would.
type world struct {
	options
	t    testing.TB
	dir  string
	zoho *zohotest.Server

	servers []*process // NATS
	redis   *process
	workers []*process

	natsProxies          []*toxiproxy.Proxy
	redisProxy, apiProxy *toxiproxy.Proxy
	redisClient          *redis.Client

	nc    *nats.Conn
	js    jetstream.JetStream
	store *connection.Store
	keys  secret.Text

	mu      sync.Mutex
	refresh map[string]string   // the refresh token of each connection
	expired map[string]int      // by grant: how often its access tokens were ended
	busy    map[string]bool     // connections that are being revoked or throttled
	held    map[*process]int    // a worker that is down on purpose isn't restarted
	spans   []span              // of faults
	disrupt []time.Time         // when a NATS node was killed
	deaths  []time.Time         // when a worker died, or was away for longer than its session lasts
	seeds   map[string][]string // by org: records to update
	repairs sync.WaitGroup      // what faults left to be repaired
}

// options are what differs from world to world.
type options struct {
	nodes  int             // NATS servers
	lasts  time.Duration   // for how long it is under load; 0: some minutes
	server string          // the nats-server to start with; "": that of go.mod
	worker string          // the worker; "": as it is built
	clocks []time.Duration // how far each worker's clock is off
	stores string          // where the NATS servers store; "": beside the logs
	sync   string          // their sync_interval; "": always
}

// span is a fault while it lasts.
type span struct {
	kind       string
	start, end time.Time
}

func newWorld(t testing.TB, o options) *world {
	t.Helper()
	redisServer, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("REQUIRE_REDIS") == "1" {
			t.Fatal("REQUIRE_REDIS=1, but there is no redis-server in PATH")
		}
		t.Skip("no redis-server in PATH")
	}
	o.worker = cmp.Or(o.worker, program(t, "worker"))
	o.server = cmp.Or(o.server, program(t, "nats-server"))
	dir, err := os.MkdirTemp("", "zoho-chaos-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		options: o, t: t, dir: dir, keys: secret.Generate(), refresh: map[string]string{}, expired: map[string]int{},
		busy: map[string]bool{}, held: map[*process]int{}, seeds: map[string][]string{},
	}
	t.Cleanup(func() {
		if t.Failed() || os.Getenv("CHAOS_KEEP") == "1" {
			t.Log("logs and data are in", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	w.startNATS(o.server, o.nodes)
	w.startRedis(redisServer)
	w.startZoho()
	w.connect(o.nodes)
	w.startWorkers(o.worker, o.nodes)
	return w
}

func (w *world) startNATS(path string, n int) {
	w.t.Helper()
	ports := freePorts(w.t, 2*n)
	var routes []string
	for i := range n {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[n+i]))
	}
	for i := range n {
		name := fmt.Sprintf("nats-%d", i+1)
		config := fmt.Sprintf("server_name: %s\nlisten: 127.0.0.1:%d\njetstream { store_dir: %q, sync_interval: %s }\n",
			name, ports[i], filepath.Join(cmp.Or(w.stores, w.dir), name), cmp.Or(w.sync, "always"))
		if n > 1 {
			// Workers must not learn the way past the proxies.
			config += fmt.Sprintf("cluster { name: chaos, listen: 127.0.0.1:%d, no_advertise: true, routes: [%s] }\n",
				ports[n+i], strings.Join(routes, ", "))
		}
		file := filepath.Join(w.dir, name+".conf")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			w.t.Fatal(err)
		}
		node := newProcess(w.t, w.dir, name, path, []string{"-c", file}, nil)
		if err := node.start(); err != nil {
			w.t.Fatal(err)
		}
		w.servers = append(w.servers, node)
		w.natsProxies = append(w.natsProxies, w.proxy(name, fmt.Sprintf("127.0.0.1:%d", ports[i])))
	}
}

func (w *world) startRedis(path string) {
	w.t.Helper()
	port := freePorts(w.t, 1)[0]
	w.redis = newProcess(w.t, w.dir, "redis", path,
		[]string{"--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", w.dir}, nil)
	if err := w.redis.start(); err != nil {
		w.t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	w.redisProxy = w.proxy("redis", addr)
	w.redisClient = redis.NewClient(&redis.Options{Addr: addr})
	w.t.Cleanup(func() { _ = w.redisClient.Close() })
}

func (w *world) startZoho() {
	w.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.apiProxy = w.proxy("zoho", listener.Addr().String())
	w.zoho = zohotest.New(zohotest.Options{
		AccountsURL: w.zohoURL(), APIURL: w.zohoURL(), KeepCalls: -1,
	})
	web := &http.Server{Handler: w.zoho, ReadHeaderTimeout: 30 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = web.Serve(listener) }()
	w.t.Cleanup(func() {
		w.zoho.Close()
		_ = web.Close()
	})
	w.zoho.SetLatency(15 * time.Millisecond)
}

func (w *world) zohoURL() string { return "http://" + w.apiProxy.Listen }

// keyOf is the id of the request that a call is for: its query carries it, also where
// the call was cut before its body was read, and a lookup asks for it.
func keyOf(c zohotest.Call) string {
	if c.Endpoint != zohotest.API {
		return ""
	}
	if query, _ := url.ParseQuery(c.RawQuery); query.Has(idParameter) {
		return query.Get(idParameter)
	}
	var body struct {
		Select string `json:"select_query"`
	}
	if json.Unmarshal(c.Body, &body) != nil {
		return ""
	}
	_, id, _ := strings.Cut(body.Select, "Company in ('")
	id, _, _ = strings.Cut(id, "'")
	return id
}

// idParameter is where a request carries its id, which Zoho heeds not.
const idParameter = "request"

// proxies is the toxiproxy that this process runs.
var proxies = toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())

func (w *world) proxy(name, upstream string) *toxiproxy.Proxy {
	w.t.Helper()
	p := toxiproxy.NewProxy(proxies, name, fmt.Sprintf("127.0.0.1:%d", freePorts(w.t, 1)[0]), upstream)
	if err := p.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.Stop)
	return p
}

// connect brings up the streams, the orgs and the connections.
func (w *world) connect(replicas int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	var urls []string
	for _, p := range w.natsProxies {
		urls = append(urls, "nats://"+p.Upstream)
	}
	var err error
	w.nc, err = nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1), nats.PingInterval(2*time.Second))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.nc.Close)
	if w.js, err = jetstream.New(w.nc); err != nil {
		w.t.Fatal(err)
	}
	topology := consumer.Topology{Replicas: replicas, Retention: w.retention()}
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = topology.Ensure(attempt, w.js)
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			w.t.Fatal("bring up the streams: ", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	keyring, err := secret.ParseKeyring(w.keys.Reveal())
	if err != nil {
		w.t.Fatal(err)
	}
	if w.store, err = connection.Open(ctx, w.js, keyring, connection.Options{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.store.Close)
	for _, c := range tenants {
		if w.seeds[c.org] == nil {
			w.zoho.AddOrg(zohotest.Org{ID: c.org, Name: "Org " + c.org, Concurrency: 10})
			w.zoho.SetUnique(c.org, "Leads", "External_Id")
			w.seeds[c.org] = w.zoho.Seed(c.org, "Leads", map[string]any{"Last_Name": "Seed"}, map[string]any{"Last_Name": "Seed"})
		}
		user := "user-of-" + c.name
		w.zoho.AddUser(zohotest.User{ID: user, Email: c.name + "@example.com", OrgID: c.org})
		token := w.zoho.GrantRefreshToken(user)
		w.refresh[c.name] = token
		if _, err := w.store.Add(ctx, connection.Connection{
			Name: c.name, Location: "us", OrgID: c.org, UserID: user, Concurrency: 8,
		}, secret.New(token)); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) startWorkers(path string, replicas int) {
	w.t.Helper()
	var urls []string
	for _, p := range w.natsProxies {
		urls = append(urls, "nats://"+p.Listen)
	}
	for i := range workers {
		p := newProcess(w.t, w.dir, fmt.Sprintf("worker-%d", i+1), path, []string{"run"}, []string{
			"NATS_URL=" + strings.Join(urls, ","), "REDIS_URL=redis://" + w.redisProxy.Listen,
			"ZOHO_CLIENT_ID=1000.CHAOS", "ZOHO_CLIENT_SECRET=" + clientSecret,
			"ZOHO_ACCOUNTS_URL=" + w.zohoURL(), "ZOHO_API_URL=" + w.zohoURL(),
			"ENCRYPTION_KEYS=" + w.keys.Reveal(), "HTTP_ADDR=127.0.0.1:0", fmt.Sprintf("REPLICAS=%d", replicas),
			"CALL_TIMEOUT=" + callTimeout.String(), "ACK_WAIT=" + ackWait.String(), "STOP_TIMEOUT=" + stopTimeout.String(),
			"RETENTION=" + w.retention().String(),
			"LOG_FORMAT=text", "LOG_LEVEL=debug", "NO_COLOR=1", w.clock(i),
		})
		if err := p.start(); err != nil {
			w.t.Fatal(err)
		}
		w.workers = append(w.workers, p)
	}
}

// retention is for longer than a run: its books are balanced at its end.
func (w *world) retention() time.Duration { return 24*time.Hour + w.lasts }

const clientSecret = "planted-client-secret-of-chaos"

// supervise starts workers again that ended, as a supervisor would, until stop
// is closed. It returns how those ended that had not been killed.
func (w *world) supervise(stop <-chan struct{}) (own []string) {
	for {
		select {
		case <-stop:
			return own
		case <-time.After(100 * time.Millisecond):
		}
		for _, p := range w.workers {
			w.mu.Lock()
			held := w.held[p] > 0
			w.mu.Unlock()
			if held || p.alive() {
				continue
			}
			own = append(own, p.end())
			w.died()
			if err := p.start(); err != nil {
				w.t.Error(err)
			}
		}
	}
}

// died notes the death of a worker.
func (w *world) died() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaths = append(w.deaths, time.Now())
}

// hold keeps the supervisor from starting p until the returned function is called.
func (w *world) hold(p *process) (release func()) {
	w.mu.Lock()
	w.held[p]++
	w.mu.Unlock()
	return func() {
		w.mu.Lock()
		w.held[p]--
		w.mu.Unlock()
	}
}

// reauthorize gives the connection a new grant, as its person would, and keeps at it.
func (w *world) reauthorize(name string) {
	token := w.zoho.GrantRefreshToken("user-of-" + name)
	w.mu.Lock()
	old := w.refresh[name]
	w.mu.Unlock()
	for {
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		_, err := w.store.Reauthorize(ctx, name, secret.New(token), nil)
		cancel()
		if err == nil {
			break
		}
		if w.t.Context().Err() != nil {
			return
		}
		time.Sleep(300 * time.Millisecond)
	}
	w.mu.Lock()
	w.refresh[name] = token
	delete(w.busy, name)
	w.mu.Unlock()
	w.zoho.RevokeRefreshToken(old)
}
