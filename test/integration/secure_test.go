package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// authority signs certificates into a directory: ca.crt, name.crt, name.key.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	a.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a.sign("ca", a.cert, &a.key.PublicKey, nil)
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) sign(name string, template *x509.Certificate, public *ecdsa.PublicKey, private *ecdsa.PrivateKey) {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err == nil {
		err = os.WriteFile(a.path(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	}
	if err == nil && private != nil {
		var key []byte
		if key, err = x509.MarshalECPrivateKey(private); err == nil {
			err = os.WriteFile(a.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}), 0o600)
		}
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// issue makes name.crt and name.key for these DNS names.
func (a *authority) issue(name string, usage x509.ExtKeyUsage, dns ...string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, DNSNames: dns,
	}
	if usage == x509.ExtKeyUsageServerAuth {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	a.sign(name, template, &key.PublicKey, key)
}

// violations collects what the server complains of.
type violations struct {
	mu   sync.Mutex
	seen []string
}

func (v *violations) add(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if strings.Contains(text, "Violation") {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.seen = append(v.seen, text)
	}
}
func (v *violations) Noticef(f string, args ...any) {}
func (v *violations) Warnf(f string, args ...any)   { v.add(f, args...) }
func (v *violations) Fatalf(f string, args ...any)  {}
func (v *violations) Errorf(f string, args ...any)  { v.add(f, args...) }
func (v *violations) Debugf(f string, args ...any)  {}
func (v *violations) Tracef(f string, args ...any)  {}

// of are the violations of a user.
func (v *violations) of(user string) (list []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, text := range v.seen {
		if strings.Contains(text, user) {
			list = append(list, text)
		}
	}
	return list
}

// secureRig is a rig whose NATS is deploy/nats/nats-server.conf: TLS, users by
// certificate, permissions. The test itself is a user who may do everything.
type secureRig struct {
	*rig
	authority  *authority
	violations *violations
}

func newSecureRig(t *testing.T) *secureRig {
	t.Helper()
	r := newRig(t, zohotest.Options{})
	s := &secureRig{rig: r, authority: newAuthority(t), violations: &violations{}}
	s.authority.issue("nats", x509.ExtKeyUsageServerAuth, "localhost")
	for _, name := range []string{"worker", "observer", "acme", "bodies", "test", "stranger"} {
		s.authority.issue(name, x509.ExtKeyUsageClientAuth, name+".zoho-worker")
	}
	ns := s.serve()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	// From here on the rig drives this server, and the box's own is idle.
	r.NATSURL = strings.Replace(ns.ClientURL(), "nats://", "tls://", 1)
	r.nc = s.connect("test")
	var err error
	if r.js, err = jetstream.New(r.nc); err != nil {
		t.Fatal(err)
	}
	keyring, err := secret.ParseKeyring(r.keys.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	if err := (consumer.Topology{Replicas: 1, Retention: 24 * time.Hour}).Ensure(t.Context(), r.js); err != nil {
		t.Fatal(err)
	}
	if r.store, err = connection.Open(t.Context(), r.js, keyring, connection.Options{Logger: r.logs.logger()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.store.Close)
	return s
}

// serve starts a server with the shipped configuration: other paths, a free
// port, and two users more: the test, and bodies, which has what the configuration
// says in a comment besides what acme has.
func (s *secureRig) serve() *server.Server {
	s.t.Helper()
	conf, err := os.ReadFile("../../deploy/nats/nats-server.conf")
	if err != nil {
		s.t.Fatal(err)
	}
	accounts, err := os.ReadFile("../../deploy/nats/accounts.conf")
	if err != nil {
		s.t.Fatal(err)
	}
	swap := func(text string, pairs ...string) string {
		for i := 0; i < len(pairs); i += 2 {
			if !strings.Contains(text, pairs[i]) {
				s.t.Fatalf("the shipped configuration has no %s", pairs[i])
			}
			text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
		}
		return text
	}
	main := swap(string(conf), "/etc/nats/tls", s.authority.dir, `"/data"`, `"`+s.t.TempDir()+`"`, "http_port: 8222", "", "port: 4222", "port: -1",
		"sync_interval: always", "sync_interval: always")
	besides := strings.Join(regexp.MustCompile(`(?m)^#     (".*),$`).FindAllString(string(accounts), -1), "\n")
	caller := regexp.MustCompile(`(?ms)^CALLER_ACME: \{.*?^\}\n`).FindString(string(accounts))
	if caller == "" || besides == "" {
		s.t.Fatal("the shipped configuration has no caller, or no subjects for bodies")
	}
	bodies := swap(caller, "CALLER_ACME:", "CALLER_BODIES:", "publish: { allow: [", "publish: { allow: ["+strings.ReplaceAll(besides, "#     ", ""))
	users := swap(string(accounts), caller, caller+bodies, `{ user: "acme.zoho-worker",`, `{ user: "test.zoho-worker" }
      { user: "bodies.zoho-worker", permissions: $CALLER_BODIES }
      { user: "acme.zoho-worker",`)
	dir := s.t.TempDir()
	for name, text := range map[string]string{"nats-server.conf": main, "accounts.conf": users} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	options, err := server.ProcessConfigFile(filepath.Join(dir, "nats-server.conf"))
	if err != nil {
		s.t.Fatal(err)
	}
	if !options.SyncAlways {
		s.t.Fatal("sync_interval is not always")
	}
	options.Host, options.NoSigs = "127.0.0.1", true
	ns, err := server.NewServer(options)
	if err != nil {
		s.t.Fatal(err)
	}
	ns.SetLogger(s.violations, false, false)
	ns.Start()
	if !ns.ReadyForConnections(15 * time.Second) {
		s.t.Fatal("nats-server is not ready")
	}
	return ns
}

// connect connects as one of the users.
func (s *secureRig) connect(user string, options ...nats.Option) *nats.Conn {
	s.t.Helper()
	nc, err := nats.Connect(s.NATSURL, append([]nats.Option{
		nats.RootCAs(s.authority.path("ca.crt")), nats.ClientCert(s.authority.path(user+".crt"), s.authority.path(user+".key")),
	}, options...)...)
	if err != nil {
		s.t.Fatalf("connect as %s: %v", user, err)
	}
	s.t.Cleanup(nc.Close)
	return nc
}

// as has the configuration connect as a user.
func (s *secureRig) as(user string) func(*app.Config) {
	return func(c *app.Config) {
		c.NATSURL, c.NATSCA = s.NATSURL, s.authority.path("ca.crt")
		c.NATSCert, c.NATSKey = s.authority.path(user+".crt"), s.authority.path(user+".key")
	}
}
