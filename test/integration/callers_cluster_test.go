package integration

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/zoho/zohotest"
)

// nodeOptions are those of a node of the shipped cluster, of which each listens on
// localhost, with the certificate node. Clients and other nodes have ports of their own.
func nodeOptions(t *testing.T, a *authority, name string, port int, routes [3]int) *server.Options {
	t.Helper()
	dir := t.TempDir()
	swap := func(file string, pairs ...string) {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		for i := 0; i < len(pairs); i += 2 {
			if !strings.Contains(text, pairs[i]) {
				t.Fatalf("%s has no %s", file, pairs[i])
			}
			text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	swap("../../deploy/nats/accounts.conf", `{ user: "backup.zoho-worker",`, `{ user: "test.zoho-worker" }
      { user: "backup.zoho-worker",`)
	pairs := []string{
		"$POD_NAME", name, "port: 4222", "port: -1", "port: 6222", fmt.Sprint("port: ", port), "http_port: 8222", "", "pid_file: /run/nats/nats.pid", "",
		"store_dir: /data", "store_dir: " + strconv.Quote(dir), "/etc/nats-tls/tls.crt", strconv.Quote(a.path("node.crt")),
		"/etc/nats-tls/tls.key", strconv.Quote(a.path("node.key")), "/etc/nats-tls/ca.crt", strconv.Quote(a.path("ca.crt")),
	}
	for i, route := range routes {
		pairs = append(pairs, fmt.Sprintf("nats-%d.nats-headless:6222", i), fmt.Sprint("localhost:", route))
	}
	swap("../../deploy/k8s/overlays/production/nats.conf", pairs...)
	options, err := server.ProcessConfigFile(filepath.Join(dir, "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	options.Cluster.Host = "127.0.0.1"
	return options
}

// Callers in accounts of their own are served wherever in a cluster they, the streams
// and the worker are.
func TestCallersOfACluster(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	s := &secureRig{rig: r, authority: newAuthority(t), violations: &violations{}}
	s.authority.issue("node", x509.ExtKeyUsageAny, "localhost")
	for _, name := range []string{"worker", "acme", "globex", "test"} {
		s.authority.issue(name, x509.ExtKeyUsageClientAuth, name+".zoho-worker")
	}
	var ports [3]int
	for i := range ports {
		_, port, _ := net.SplitHostPort(freePort(t))
		ports[i], _ = strconv.Atoi(port)
	}
	var urls []string
	for i := range ports {
		node := natstest.Run(t, nodeOptions(t, s.authority, fmt.Sprint("nats-", i), ports[i], ports))
		urls = append(urls, fmt.Sprint("tls://localhost:", node.Addr().(*net.TCPAddr).Port))
	}
	as := func(user string) []nats.Option {
		return []nats.Option{
			nats.RootCAs(s.authority.path("ca.crt")), nats.ClientCert(s.authority.path(user+".crt"), s.authority.path(user+".key")),
		}
	}
	nc, err := nats.Connect(urls[0], as("test")...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster has a leader", func() bool {
		_, err := js.AccountInfo(t.Context())
		return err == nil
	})
	r.moveTo(urls[0], as("test")...)
	r.Zoho.AddOrg(zohotest.Org{ID: "770000001", Name: "Acme", Concurrency: 5})
	r.connect("acme", "770000001", 5)
	r.connect("globex", "770000001", 5)
	s.worker(s.as("worker"))
	for i, url := range urls {
		caller, err := nats.Connect(url, append(as("acme"), nats.CustomInboxPrefix("_INBOX.acme"))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(caller.Close)
		stored, err := caller.SubscribeSync("zoho.responses.acme.*")
		if err != nil {
			t.Fatal(err)
		}
		replies, err := caller.SubscribeSync(caller.NewInbox())
		if err != nil {
			t.Fatal(err)
		}
		// Word of a subscription takes a moment to the other nodes; there a reply is gone
		// for whom nobody listens yet.
		eventually(t, "the caller hears what comes from another node", func() bool {
			if err := r.nc.Publish(replies.Subject, []byte("there?")); err != nil {
				t.Fatal(err)
			}
			_, err := replies.NextMsg(100 * time.Millisecond)
			return err == nil
		})
		request := insert(fmt.Sprint("post-", i), "Posted")
		request["reply_to"] = replies.Subject
		acknowledged(t, caller, "zoho.requests.acme", request)
		eventually(t, "the reply comes", func() bool {
			msg, err := replies.NextMsg(patience)
			if err != nil {
				t.Fatalf("by node %d no reply: %v", i, err)
			}
			return string(msg.Data) != "there?" && responseIn(t, "reply", msg).Status == 201
		})
		wantStatus(t, answered(t, "stored response", stored), 201)
		msg, err := caller.Request("zoho.call.acme", fmt.Appendf(nil, `{"id":"call-%d","method":"GET","url":"/v8/Leads?fields=Last_Name"}`, i), patience)
		if err != nil {
			t.Fatalf("by node %d no answer: %v", i, err)
		}
		wantStatus(t, responseIn(t, "call", msg), 200)
		other, err := nats.Connect(url, as("globex")...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(other.Close)
		object := fmt.Sprint("globex/", i)
		putLarge(t, bodies(t, other), object, "Large")
		wantStatus(t, s.post(other, "globex", fmt.Sprint("large-", i), object), 201)
	}
}

// A route is for the nodes of the cluster: a caller's certificate, which is of the same
// authority, opens none. Whoever has one may say anything in any account.
func TestRoutesAreForNodes(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("node", x509.ExtKeyUsageAny, "localhost")
	a.issue("acme", x509.ExtKeyUsageClientAuth, "acme.zoho-worker")
	// A cluster of which no other node is there.
	options := nodeOptions(t, a, "nats-0", -1, [3]int{1, 2, 3})
	options.Host, options.NoSigs = "127.0.0.1", true
	ns, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	eventually(t, "there is a port for routes", func() bool { return ns.ClusterAddr() != nil })
	pem, err := os.ReadFile(a.path("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(pem)
	// knock comes as a node does, and returns what the server says to that.
	knock := func(name string) string {
		t.Helper()
		pair, err := tls.LoadX509KeyPair(a.path(name+".crt"), a.path(name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := tls.Dial("tcp", ns.ClusterAddr().String(), &tls.Config{RootCAs: authorities, ServerName: "localhost", Certificates: []tls.Certificate{pair}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprint(conn, "CONNECT {\"name\":\"intruder\",\"cluster\":\"zoho\",\"headers\":true}\r\nPING\r\n"); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			if line := lines.Text(); strings.HasPrefix(line, "PONG") || strings.HasPrefix(line, "-ERR") {
				return line
			}
		}
		return fmt.Sprint("gone: ", lines.Err())
	}
	if got := knock("node"); got != "PONG" {
		t.Errorf("a node is told %q", got)
	}
	if got := knock("acme"); !strings.Contains(got, "Authorization Violation") {
		t.Errorf("a caller is told %q", got)
	}
}
