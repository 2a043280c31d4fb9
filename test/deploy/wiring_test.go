package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"zoho-worker/internal/connection/natstest"
)

// There is no Docker here, so what docker-compose.yml says is done by hand: the
// secrets of init.sh, NATS with the shipped configuration (TLS, permissions), a real
// redis-server with the shipped ACL, the simulator, the setup and the two workers,
// each as a process of its own with the command and the environment of the file.
// Only addresses and the directory of the secrets are put in their place.
func TestComposeWiring(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: builds two binaries")
	}
	for _, tool := range []string{"openssl", "redis-server"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing: the wiring was not tried", tool)
		}
	}
	secrets := t.TempDir()
	if out, err := exec.Command("sh", filepath.Join(root, "deploy/compose/init.sh"), secrets).CombinedOutput(); err != nil {
		t.Fatalf("init.sh: %v\n%s", err, out)
	}
	before := files(t, secrets)
	if out, err := exec.Command("sh", filepath.Join(root, "deploy/compose/init.sh"), secrets).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("init.sh a second time: %v\n%s", err, out)
	}
	if after := files(t, secrets); !slices.Equal(before, after) {
		t.Error("init.sh changed secrets that were there")
	}
	project := everything(t)
	for name := range project.Secrets {
		if _, err := os.Stat(filepath.Join(secrets, name)); err != nil {
			t.Errorf("init.sh makes not every secret of the Compose file: %v", err)
		}
	}
	production, sandbox := build(t, "production,grpcnotrace"), build(t, "grpcnotrace")

	natsAddr := startNATS(t, secrets)
	redisAddr, simulatorAddr := freeAddr(t), freeAddr(t)
	_, simulatorPort, _ := net.SplitHostPort(simulatorAddr)
	place := strings.NewReplacer(
		"/run/secrets/", secrets+"/", "/etc/zoho-worker/", filepath.Join(root, "deploy/compose/config")+"/", "tls://nats:4222", "tls://"+natsAddr,
		"https://simulator:8443", "https://localhost:"+simulatorPort, ":8443", simulatorAddr,
	)
	rewrite(t, filepath.Join(secrets, "redis-url"), "redis:6379", redisAddr)

	redis := project.Services["redis"]
	args := append(replaced(place, redis.Command[1:]), "--port", redisAddr[strings.LastIndex(redisAddr, ":")+1:], "--bind", "127.0.0.1", "--dir", t.TempDir())
	start(t, redis.Command[0], args, nil)
	simulator := project.Services["simulator"]
	start(t, sandbox, replaced(place, simulator.Command), environment(place, simulator))
	probe := func(binary string, env []string, args ...string) {
		t.Helper()
		var out []byte
		for range 100 {
			cmd := exec.Command(binary, append([]string{"healthz"}, args...)...)
			cmd.Env = env
			var err error
			if out, err = cmd.CombinedOutput(); err == nil {
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
		t.Fatalf("never healthy: %s", out)
	}
	probe(sandbox, environment(place, simulator), "--url", "https://localhost:"+simulatorPort+"/readyz")

	var workers []*process
	var addrs []string
	for _, name := range []string{"worker-1", "worker-2"} {
		addr := freeAddr(t)
		env := append(environment(place, project.Services[name]), "HTTP_ADDR="+addr)
		workers = append(workers, start(t, production, project.Services[name].Command, env))
		probe(production, env)
		addrs = append(addrs, addr)
	}
	for _, want := range []string{"added connection acme", "is there already"} {
		setup := project.Services["setup"]
		cmd := exec.Command(sandbox, setup.Command...)
		cmd.Env = environment(place, setup)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Fatalf("setup: %v, %s", err, out)
		}
	}

	// What `docker compose exec worker-1 worker …` does, as the docs have it.
	for _, args := range [][]string{
		{"connections", "list"}, {"dead", "list"}, {"status"}, {"check"}, {"call", "acme", "GET", "/v8/Leads?fields=Last_Name"},
	} {
		cmd := exec.Command(production, args...)
		cmd.Env = environment(place, project.Services["worker-1"])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("worker %s: %v\n%s", args[0], err, out)
		}
	}

	// The caller acme, by its certificate.
	refused := make(chan error, 8)
	nc, err := nats.Connect("tls://"+natsAddr, nats.RootCAs(secrets+"/ca.crt"), nats.ClientCert(secrets+"/acme.crt", secrets+"/acme.key"),
		nats.CustomInboxPrefix("_INBOX.acme"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	inbox, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	const calls = 20
	for i := range calls {
		request := fmt.Appendf(nil, `{"id":"wiring-%d","method":"POST","url":"/v8/Leads","body":{"data":[{"Last_Name":"Wired"}]},"reply_to":%q}`, i, inbox.Subject)
		if err := nc.Publish("zoho.requests.acme", request); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	answered := map[string]bool{}
	for len(answered) < calls {
		msg, err := inbox.NextMsgWithContext(ctx)
		if err != nil {
			t.Fatalf("%d of %d answered: %v\n%s", len(answered), calls, err, workers[0].log())
		}
		var response struct {
			ID     string
			Status int
		}
		if err := json.Unmarshal(msg.Data, &response); err != nil || response.Status != 201 {
			t.Fatalf("%v: %s", err, msg.Data)
		}
		answered[response.ID] = true
	}
	select {
	case err := <-refused:
		t.Errorf("the caller was refused what it may do: %v", err)
	default:
	}
	for _, subject := range []string{"zoho.requests.other", "zoho.call.other"} {
		if _, err := nc.RequestWithContext(ctx, subject, []byte("{}")); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("acme may use another connection: %s, %v", subject, err)
		}
	}
	// As `nats request zoho.call.acme` does.
	if msg, err := nc.RequestWithContext(ctx, "zoho.call.acme", []byte(`{"id":"wiring-call","method":"GET","url":"/v8/Leads?fields=Last_Name"}`)); err != nil || !strings.Contains(string(msg.Data), `"status":200`) {
		t.Errorf("zoho.call.acme: %v, %v", msg, err)
	}
	backUp(t, natsAddr, secrets, "ZOHO_CONNECTIONS")
	if nc, err := nats.Connect("tls://"+natsAddr, nats.RootCAs(secrets+"/ca.crt")); err == nil {
		nc.Close()
		t.Error("NATS lets in whoever comes without a certificate")
	}

	for i, addr := range addrs {
		response, err := http.Get("http://" + addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		var page bytes.Buffer
		_, _ = page.ReadFrom(response.Body)
		_ = response.Body.Close()
		for _, want := range []string{"\nzoho_worker_ready 1\n", "\nzoho_worker_redis_up 1\n", "\nzoho_worker_nats_connected 1\n"} {
			if !strings.Contains(page.String(), want) {
				t.Errorf("worker-%d: its metrics lack %q", i+1, want)
			}
		}
		if strings.Contains(page.String(), `zoho_worker_token_locks_total{result="unavailable"} 1`) {
			t.Errorf("worker-%d: Redis' ACL refuses the lock", i+1)
		}
	}
	for i, w := range workers {
		if code := w.stop(30 * time.Second); code != 0 {
			t.Errorf("worker-%d: exit status %d after SIGTERM\n%s", i+1, code, w.log())
		}
		for _, bad := range []string{`"level":"ERROR"`, "Permissions Violation", "NOPERM"} {
			if strings.Contains(w.log(), bad) {
				t.Errorf("worker-%d: %s in its log:\n%s", i+1, bad, w.log())
			}
		}
	}
}

// backUp does what `nats backup stream` does, with the certificate that is for it.
func backUp(t *testing.T, addr, secrets, stream string) {
	t.Helper()
	refused := make(chan error, 8)
	nc, err := nats.Connect("tls://"+addr, nats.RootCAs(secrets+"/ca.crt"), nats.ClientCert(secrets+"/backup.crt", secrets+"/backup.key"),
		nats.CustomInboxPrefix("_INBOX.backup"), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	chunks, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	if msg, err := nc.Request("$JS.API.STREAM.SNAPSHOT."+stream, fmt.Appendf(nil, `{"deliver_subject":%q}`, chunks.Subject), 5*time.Second); err != nil || strings.Contains(string(msg.Data), `"error"`) {
		t.Fatalf("snapshot: %v %v", msg, err)
	}
	size := 0
	for {
		msg, err := chunks.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatalf("snapshot: %v", err)
		}
		if len(msg.Data) == 0 {
			break
		}
		size += len(msg.Data)
		_ = msg.Respond(nil)
	}
	if size < 500 {
		t.Errorf("the backup of %s has %d bytes", stream, size)
	}
	select {
	case err := <-refused:
		t.Errorf("the backup was refused what it needs: %v", err)
	default:
	}
	if _, err := nc.Request("$JS.API.STREAM.DELETE."+stream, nil, time.Second); err == nil {
		t.Error("the backup may delete a stream")
	}
}

// The shipped configurations of the cluster are read by nats-server too.
func TestClusterNATSConfigs(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is missing: no certificates")
	}
	secrets := t.TempDir()
	if out, err := exec.Command("sh", filepath.Join(root, "deploy/compose/init.sh"), secrets).CombinedOutput(); err != nil {
		t.Fatalf("init.sh: %v\n%s", err, out)
	}
	for _, name := range overlays {
		t.Setenv("POD_NAME", "nats-0")
		dir := t.TempDir()
		text := read(t, "deploy/k8s/overlays/"+name+"/nats.conf")
		for from, to := range map[string]string{"tls.crt": "nats.crt", "tls.key": "nats.key", "ca.crt": "ca.crt"} {
			text = strings.ReplaceAll(text, "/etc/nats-tls/"+from, filepath.Join(secrets, to))
		}
		write(t, filepath.Join(dir, "nats.conf"), text)
		write(t, filepath.Join(dir, "accounts.conf"), read(t, "deploy/nats/accounts.conf"))
		options, err := server.ProcessConfigFile(filepath.Join(dir, "nats.conf"))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !options.SyncAlways || options.ServerName != "nats-0" || !options.TLSMap || len(options.Accounts) < 2 {
			t.Errorf("%s: sync always %v, name %s, by certificate %v, %d accounts", name, options.SyncAlways, options.ServerName, options.TLSMap, len(options.Accounts))
		}
		if clustered := len(options.Routes) == 3 && options.Cluster.TLSConfig != nil; clustered != (name == "production") {
			t.Errorf("%s: cluster by TLS: %v", name, clustered)
		}
	}
}

func startNATS(t *testing.T, secrets string) string {
	t.Helper()
	dir := t.TempDir()
	text := strings.NewReplacer("/etc/nats/tls/", secrets+"/", `"/data"`, `"`+dir+`/data"`, "port: 4222", "port: -1", "http_port: 8222", "").
		Replace(read(t, "deploy/nats/nats-server.conf"))
	write(t, filepath.Join(dir, "nats-server.conf"), text)
	write(t, filepath.Join(dir, "accounts.conf"), read(t, "deploy/nats/accounts.conf"))
	options, err := server.ProcessConfigFile(filepath.Join(dir, "nats-server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	return natstest.Run(t, options).Addr().String()
}

// environment is what a service's process gets: what the file says, and nothing of this one's.
func environment(place *strings.Replacer, s types.ServiceConfig) []string {
	env := []string{"PATH=" + os.Getenv("PATH")}
	for key, value := range s.Environment {
		if value != nil {
			env = append(env, key+"="+place.Replace(*value))
		}
	}
	return env
}

func replaced(place *strings.Replacer, args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = place.Replace(a)
	}
	return out
}

// process is one that the test started and ends.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	mu   sync.Mutex
	text bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

func (p *process) stop(patience time.Duration) int {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return p.cmd.ProcessState.ExitCode()
}

func start(t *testing.T, binary string, args, env []string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(binary, args...), done: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = env, p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop(10 * time.Second)
		if t.Failed() {
			t.Logf("%s %s:\n%s", filepath.Base(binary), strings.Join(args, " "), p.log())
		}
	})
	return p
}

func build(t *testing.T, tags string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "worker")
	cmd := exec.Command("go", "build", "-trimpath", "-tags", tags, "-o", out, "./cmd/worker")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return out
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Name()+"\n"+string(text))
	}
	return all
}

func rewrite(t *testing.T, file, from, to string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), from) {
		t.Fatalf("%s does not name %s", file, from)
	}
	write(t, file, strings.ReplaceAll(string(text), from, to))
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
