package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/event"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// freeAddr is a loopback address that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// page is the status and body of a worker's page; 0 where nobody answers.
func page(addr, path string) (int, string) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addr + path)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

// notReady waits until the worker at addr says that it isn't ready, and why.
func notReady(t testing.TB, addr, why string) {
	t.Helper()
	var last string
	defer func() {
		if t.Failed() {
			t.Logf("/readyz said %q", last)
		}
	}()
	eventually(t, "the worker is not ready: "+why, func() bool {
		var status int
		status, last = page(addr, "/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(last, why)
	})
}

func isReady(t testing.TB, addr string) {
	t.Helper()
	var last string
	defer func() {
		if t.Failed() {
			t.Logf("/readyz said %q", last)
		}
	}()
	eventually(t, "the worker is ready", func() bool {
		var status int
		status, last = page(addr, "/readyz")
		return status == http.StatusOK
	})
}

// A worker that is started before NATS waits for it: alive, not ready, with one
// line that says so; and then does its work.
func TestStartBeforeNATS(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	r.publish("demo", insert("early", "Early"))
	r.NATS.Shutdown()
	r.NATS.WaitForShutdown()
	addr := freeAddr(t)
	p := r.process("HTTP_ADDR=" + addr)
	notReady(t, addr, "waiting for NATS")
	if status, _ := page(addr, "/healthz"); status != http.StatusOK {
		t.Errorf("/healthz answers %d to a worker that waits", status)
	}
	if ready := metric(t, addr, "zoho_worker_ready"); ready != 0 {
		t.Errorf("zoho_worker_ready is %v", ready)
	}
	// Past several tries, it still waits and has said so once.
	select {
	case <-triedAgain(t, strings.TrimPrefix(r.NATSURL, "nats://")):
	case <-time.After(patience):
		t.Fatal("it doesn't try any more")
	}
	if !p.alive() {
		t.Fatal("the worker has ended")
	}
	if n := strings.Count(r.logs.text.String(), "NATS is not there yet"); n != 1 {
		t.Errorf("it said %d times that it waits", n)
	}
	if err := r.RestartNATS(); err != nil {
		t.Fatal(err)
	}
	isReady(t, addr)
	if ready := metric(t, addr, "zoho_worker_ready"); ready != 1 {
		t.Errorf("zoho_worker_ready is %v", ready)
	}
	wantStatus(t, r.await("demo", "early"), 201)
	p.signal(syscall.SIGTERM)
	p.exited()
}

// triedAgain is closed after three connections to addr, where nobody listens
// but for them: each is turned away.
func triedAgain(t *testing.T, addr string) <-chan struct{} {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	tried := make(chan struct{})
	go func() {
		defer close(tried)
		defer func() { _ = listener.Close() }()
		for range 3 {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	return tried
}

// One that is stopped while it waits ends at once, and cleanly.
func TestStopBeforeNATS(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	addr := freeAddr(t)
	p := r.process("HTTP_ADDR="+addr, "NATS_URL=nats://"+freeAddr(t))
	notReady(t, addr, "waiting for NATS")
	p.signal(syscall.SIGTERM)
	p.exited()
}

// A cluster whose JetStream has no leader is waited for: one server of three is
// up, and the others come later.
func TestStartBeforeLeader(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	var routes []*url.URL
	var held []net.Listener // each server's port until it starts, or another test may take it
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		routes, held = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()}), append(held, l)
	}
	dir := t.TempDir()
	start := func(i int) *server.Server {
		_ = held[i].Close()
		name := fmt.Sprintf("node-%d", i)
		return natstest.Run(t, &server.Options{
			JetStream: true, ServerName: name, StoreDir: filepath.Join(dir, name), Routes: routes,
			Cluster: server.ClusterOpts{Name: "three", Host: "127.0.0.1", Port: held[i].Addr().(*net.TCPAddr).Port},
		})
	}
	first := start(0)
	addr := freeAddr(t)
	p := r.process("HTTP_ADDR="+addr, "NATS_URL="+first.ClientURL(), "REPLICAS=3")
	notReady(t, addr, "waiting for JetStream")
	if !strings.Contains(r.logs.text.String(), "JetStream is not there yet") {
		t.Error("the log doesn't say what it waits for")
	}
	start(1)
	start(2)
	isReady(t, addr)
	p.signal(syscall.SIGTERM)
	p.exited()
}

// A leader that goes away while a worker starts is waited for at each step: what the step
// asks is refused once, after it was answered as often as the steps before it asked.
func TestLeaderGoesAwayDuringStart(t *testing.T) {
	t.Parallel()
	for subject, answered := range map[string]int{
		"$JS.API.STREAM.INFO." + consumer.RequestStream:            1,
		"$JS.API.STREAM.INFO.OBJ_" + consumer.BodyBucket:           1,
		"$JS.API.CONSUMER.CREATE." + event.StreamName + ".webhook": 0,
	} {
		t.Run(subject, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, zohotest.Options{})
			var answer []byte
			if answered > 0 {
				msg, err := r.nc.Request(subject, nil, patience)
				if err != nil {
					t.Fatal(err)
				}
				answer = msg.Data
			}
			account := r.NATS.GlobalAccount()
			var refused atomic.Bool
			asked := 0
			sub, err := r.nc.Subscribe("asked", func(m *nats.Msg) {
				if asked++; asked <= answered {
					_ = m.Respond(answer)
					return
				}
				account.RemoveMapping(subject)
				refused.Store(true)
				_ = m.Respond([]byte(`{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}`))
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sub.Unsubscribe() }()
			if err := r.nc.Flush(); err != nil {
				t.Fatal(err)
			}
			if err := account.AddMapping(subject, "asked"); err != nil {
				t.Fatal(err)
			}
			r.worker(func(c *app.Config) {
				c.WebhookURL, c.WebhookSecret = "https://hooks.example.com", secret.New(strings.Repeat("s", 32))
			})
			if !refused.Load() {
				t.Error("nothing was refused")
			}
		})
	}
}

// What waiting doesn't mend ends the process at once, with what to do.
func TestStartThatWaitingDoesNotHelp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		says string
		make func(t *testing.T, r *rig) (url string)
	}{
		"wrong password": {"authorization violation", func(t *testing.T, _ *rig) string {
			return withUser(t, "worker", "right", nil, "worker:wrong")
		}},
		"a permission is missing": {"may not publish to $JS.API.STREAM", func(t *testing.T, _ *rig) string {
			return withUser(t, "worker", "right", &server.Permissions{
				Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.>"}},
			}, "worker:right")
		}},
		"a stream that is something else": {"stream ZOHO_REQUESTS", func(t *testing.T, r *rig) string {
			if err := r.js.DeleteStream(t.Context(), consumer.RequestStream); err != nil {
				t.Fatal(err)
			}
			_, err := r.js.CreateStream(t.Context(), jetstream.StreamConfig{
				Name: consumer.RequestStream, Subjects: []string{"zoho.requests.>"}, Storage: jetstream.MemoryStorage,
			})
			if err != nil {
				t.Fatal(err)
			}
			return r.NATSURL
		}},
		"a server that is too old": {"2.10.0: a worker needs", func(t *testing.T, _ *rig) string { return oldServer(t) }},
		"an authority nobody trusts": {"certificate", func(t *testing.T, _ *rig) string {
			s := newSecureRig(t)
			return s.NATSURL
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, zohotest.Options{})
			p := r.process("NATS_URL=" + c.make(t, r))
			select {
			case <-p.gone:
			case <-time.After(patience):
				t.Fatal("the worker waits")
			}
			if code := p.cmd.ProcessState.ExitCode(); code != 2 {
				t.Errorf("it ended with %s", p.cmd.ProcessState)
			}
			if log := r.logs.text.String(); !strings.Contains(strings.ToLower(log), strings.ToLower(c.says)) {
				t.Errorf("it doesn't say %q:\n%s", c.says, log)
			}
		})
	}
}

// withUser starts a server with one user, and returns its address for as.
func withUser(t *testing.T, user, password string, permissions *server.Permissions, as string) string {
	t.Helper()
	ns := natstest.Run(t, &server.Options{
		JetStream: true, Users: []*server.User{{Username: user, Password: password, Permissions: permissions}},
	})
	return strings.Replace(ns.ClientURL(), "nats://", "nats://"+as+"@", 1)
}

// oldServer greets as nats-server 2.10.0 does, and no more.
func oldServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() {
		stop()
		_ = l.Close()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { _ = c.Close() })
			go func() {
				defer func() { _ = c.Close() }()
				_, _ = io.WriteString(c, `INFO {"server_id":"OLD","version":"2.10.0","headers":true,"max_payload":1048576,"proto":1}`+"\r\n")
				lines := bufio.NewScanner(c)
				for lines.Scan() {
					if strings.HasPrefix(lines.Text(), "PING") {
						_, _ = io.WriteString(c, "PONG\r\n")
					}
				}
			}()
		}
	}()
	return "nats://" + l.Addr().String()
}
