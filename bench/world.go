package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/secret"
)

// programs are the paths of the binaries that are measured or measured against.
type programs struct {
	self, worker, baseline, bare, nats, redis string
	others, peers                             map[string]string // more workers, and programs of another kind
}

// build makes the binaries as they run in production, in dir.
func build(dir, root string) (*programs, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &programs{self: self, others: map[string]string{}, peers: map[string]string{}}
	for _, b := range []struct {
		path      *string
		name, pkg string
		args      []string
	}{
		{&p.worker, "worker", "./cmd/worker", []string{"-trimpath", "-tags", "production,grpcnotrace", "-ldflags", "-s -w"}},
		{&p.baseline, "baseline", "./bench/baseline", []string{"-trimpath"}},
		{&p.bare, bare, "./bench/bare", []string{"-trimpath"}},
		{&p.nats, "nats-server", "github.com/nats-io/nats-server/v2", []string{"-trimpath"}},
	} {
		*b.path = filepath.Join(dir, b.name)
		cmd := exec.Command("go", append(append([]string{"build", "-o", *b.path}, b.args...), b.pkg)...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", b.pkg, err, out)
		}
	}
	if p.redis, err = exec.LookPath("redis-server"); err != nil {
		return nil, errors.New("redis-server is not on the PATH: apt-get install redis-server")
	}
	for _, peer := range []string{"redpanda-connect", "bento"} {
		if path, err := exec.LookPath(peer); err == nil {
			p.peers[peer] = path
		}
	}
	return p, nil
}

// site is the upstream, which serves for the whole run.
type site struct {
	dir             string
	process         *process
	plain, security string // base URLs
}

func openSite(dir string, p *programs) (*site, error) {
	up, line, err := launch(dir, "upstream", true, nil, p.self, "-upstream", dir)
	if err != nil {
		return nil, err
	}
	plain, secure, ok := strings.Cut(line, " ")
	if !ok {
		up.stop()
		return nil, fmt.Errorf("upstream said %q", line)
	}
	return &site{dir: dir, process: up, plain: "http://" + plain, security: "https://" + secure}, nil
}

func (s *site) counts() (c counts, err error) {
	resp, err := http.Get(s.plain + "/stats")
	if err != nil {
		return c, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(body, &c)
}

// world is a NATS server and a Redis of their own for one candidate in one
// scenario, with the streams and connections in place.
type world struct {
	*site
	programs      *programs
	dir           string
	nats, redis   *process
	natsURL       string
	redisURL      string
	keys          secret.Text
	nc            *nats.Conn
	cleanup       []func()
	connectionIDs []string
}

// open starts a world with that many connections, each of an org of its own
// with that many places.
func (s *site) open(ctx context.Context, p *programs, connections, places int) (w *world, err error) {
	w = &world{site: s, programs: p, keys: secret.Generate()}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.dir, err = os.MkdirTemp(s.dir, "world-"); err != nil {
		return nil, err
	}
	w.cleanup = append(w.cleanup, func() { _ = os.RemoveAll(w.dir) })
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	if w.redis, _, err = launch(w.dir, "redis", false, nil, p.redis, "--port", strconv.Itoa(ports[0]), "--bind", "127.0.0.1",
		"--save", "", "--appendonly", "no", "--dir", w.dir); err != nil {
		return nil, err
	}
	w.cleanup = append(w.cleanup, w.redis.stop)
	if w.nats, _, err = launch(w.dir, "nats", false, nil, p.nats, "-a", "127.0.0.1", "-p", strconv.Itoa(ports[1]), "-js",
		"-sd", filepath.Join(w.dir, "js")); err != nil {
		return nil, err
	}
	w.cleanup = append(w.cleanup, w.nats.stop)
	w.redisURL = fmt.Sprintf("redis://127.0.0.1:%d", ports[0])
	w.natsURL = fmt.Sprintf("nats://127.0.0.1:%d", ports[1])
	w.nc, err = nats.Connect(w.natsURL, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		return nil, err
	}
	w.cleanup = append(w.cleanup, w.nc.Close)
	for deadline := time.Now().Add(10 * time.Second); !w.nc.IsConnected(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("nats-server did not start: %s", w.nats.tail())
		}
	}
	return w, w.seed(ctx, connections, places)
}

func (w *world) seed(ctx context.Context, connections, places int) error {
	js, err := jetstream.New(w.nc)
	if err != nil {
		return err
	}
	if err := (consumer.Topology{Replicas: 1, Retention: 24 * time.Hour}).Ensure(ctx, js); err != nil {
		return err
	}
	keyring, err := secret.ParseKeyring(w.keys.Reveal())
	if err != nil {
		return err
	}
	store, err := connection.Open(ctx, js, keyring, connection.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	for i := range connections {
		name := fmt.Sprintf("c%d", i)
		w.connectionIDs = append(w.connectionIDs, name)
		_, err := store.Add(ctx, connection.Connection{
			Name: name, Location: "us", OrgID: fmt.Sprintf("%d", 1000+i), UserID: fmt.Sprintf("%d", 1000+i), Concurrency: places,
		}, secret.New("1000.refresh."+name))
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *world) close() {
	for i := len(w.cleanup) - 1; i >= 0; i-- {
		w.cleanup[i]()
	}
	w.cleanup = nil
}

// profiles are what a worker built with -tags profile writes; BENCH_ before their
// names says into which directory.
var profiles = []string{"CPU_PROFILE", "BLOCK_PROFILE"}

// start starts a candidate; places is what it may have in flight.
func (w *world) start(candidate string, secure bool, places int) (*process, error) {
	api := w.plain
	if secure {
		api = w.security
	}
	env := []string{
		"NATS_URL=" + w.natsURL, "ZOHO_API_URL=" + api, "SSL_CERT_FILE=" + filepath.Join(w.site.dir, "ca.pem"),
		"PLACES=" + strconv.Itoa(places), "TOKEN=1000.benchmark",
	}
	binary := w.programs.others[candidate]
	if candidate == "worker" {
		binary = w.programs.worker
	}
	switch {
	case candidate == "baseline":
		p, _, err := launch(w.dir, candidate, false, env, w.programs.baseline)
		return p, err
	case candidate == bare:
		p, _, err := launch(w.dir, candidate, false, env, w.programs.bare)
		return p, err
	case binary != "":
		env = append(
			env, "REDIS_URL="+w.redisURL, "ZOHO_ACCOUNTS_URL="+w.plain, "ZOHO_CLIENT_ID=1000.BENCH", "ZOHO_CLIENT_SECRET=bench",
			"ENCRYPTION_KEYS="+w.keys.Reveal(), "HTTP_ADDR=127.0.0.1:0", "LOG_FORMAT=json", "MAX_IN_FLIGHT="+strconv.Itoa(max(places, 512)),
		)
		for _, kind := range profiles {
			if dir := os.Getenv("BENCH_" + kind); dir != "" {
				env = append(env, kind+"="+filepath.Join(dir, fmt.Sprintf("%d.prof", time.Now().UnixNano())))
			}
		}
		p, _, err := launch(w.dir, "worker", false, env, binary, "run")
		return p, err
	}
	p, _, err := launch(w.dir, candidate, false, env, w.programs.peers[candidate], "run", filepath.Join(root(), "bench", "peers", candidate+".yaml"))
	return p, err
}

func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() //nolint:errcheck // held until all are chosen
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}
