package zoho

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func TestPublicAddress(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"8.8.8.8", "136.143.190.1", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "223.255.255.255",
		"2607:f8b0::1", "2a00::1", "64:ff9b::808:808",
	} {
		if !publicAddress(netip.MustParseAddr(s)) {
			t.Errorf("%s is refused", s)
		}
	}
	for _, s := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.8.8", "168.63.129.16", "169.254.169.254",
		"172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
		"224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001::1", "2001:db8::1", "2002:7f00:1::",
		"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "::127.0.0.1", "5f00::1",
	} {
		if publicAddress(netip.MustParseAddr(s)) {
			t.Errorf("%s is let through", s)
		}
	}
	if publicAddress(netip.Addr{}) {
		t.Error("no address is let through")
	}
	for _, s := range []string{"[::ffff:127.0.0.1]:443", "[::ffff:169.254.169.254]:443", "nonsense", ""} {
		if only(publicAddress, errAddress)(context.Background(), "tcp", s, nil) == nil {
			t.Errorf("%q is let through", s)
		}
	}
}

// resolver answers every A question with the next of addresses, the last one for ever.
func resolver(addresses ...string) *net.Resolver {
	var asked atomic.Int64
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		if len(addresses) == 0 {
			return nil, errors.New("no name server")
		}
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			var length [2]byte
			if _, err := io.ReadFull(server, length[:]); err != nil {
				return
			}
			raw := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(server, raw); err != nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(raw); err != nil {
				return
			}
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			q := m.Questions[0]
			if q.Type == dnsmessage.TypeA {
				i := min(int(asked.Add(1)), len(addresses)) - 1
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: netip.MustParseAddr(addresses[i]).As4()},
				}}
			}
			packed, err := m.Pack()
			if err != nil {
				return
			}
			server.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
		}()
		return client, nil
	}}
}

// withResolver makes c resolve names by r.
func withResolver(c *Client, r *net.Resolver, overrides ...string) {
	d := newDialer(c.config.RootCAs, overrides...)
	d.public.Resolver, d.free.Resolver, d.loopback.Resolver = r, r, r
	c.dial = d
}

// Row F41: a name of Zoho's that resolves to an address within is not
// connected to, also where it was public a moment before.
func TestNamesThatPointInside(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1", "169.254.169.254", "10.1.2.3", "100.100.100.200", "0.0.0.0"} {
		c := newClient(t, "")
		withResolver(c, resolver(address))
		a := do(t, c, insert())
		if !a.Unsent || !errors.Is(a.Err, errAddress) {
			t.Errorf("%s: %+v", address, a)
		}
		_, err := c.Refresh(context.Background(), "eu", insert().Token)
		var e *Error
		if !errors.As(err, &e) || e.Kind != Unavailable || !errors.Is(err, errAddress) {
			t.Errorf("%s: refresh: %v", address, err)
		}
	}
	// The override's exemption is its own: not another host's, not another port's.
	c := newClient(t, "https://simulator.example")
	withResolver(c, resolver("127.0.0.1"), "https://simulator.example:8443")
	if a := do(t, c, insert()); !a.Unsent || !errors.Is(a.Err, errAddress) {
		t.Errorf("other port: %+v", a)
	}
	// Plain http stays on the machine, whatever the name says.
	d := newDialer(nil, "http://simulator.example:1")
	d.loopback.Resolver = resolver("10.1.2.3")
	if _, err := d.dial(context.Background(), place{"http", "simulator.example:1"}); !errors.Is(err, errLoopback) {
		t.Errorf("plain http: %v", err)
	}
	if err := only(netip.Addr.IsLoopback, errLoopback)(context.Background(), "tcp", "93.184.215.14:80", nil); err != errLoopback {
		t.Error(err)
	}
	if _, err := newDialer(nil, "http://127.0.0.1:9").dial(context.Background(), place{"http", "127.0.0.1:8"}); err != errScheme {
		t.Error(err)
	}
}

func TestNameUnknown(t *testing.T) {
	t.Parallel()
	c := newClient(t, "")
	withResolver(c, resolver())
	a := do(t, c, insert())
	var dns *net.DNSError
	if !a.Unsent || !errors.As(a.Err, &dns) {
		t.Errorf("%+v", a)
	}
}

// authority is a certificate authority for 127.0.0.1.
func authority(t *testing.T, notAfter time.Time, names ...string) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter,
		DNSNames: names, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if len(names) == 0 {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return pool, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Rows F40 and F41: what TLS can do wrong stops the call unsent; HTTP/2 is
// never spoken.
func TestTLS(t *testing.T) {
	t.Parallel()
	good, goodCert := authority(t, time.Now().Add(time.Hour))
	_, otherCert := authority(t, time.Now().Add(time.Hour))
	expired, expiredCert := authority(t, time.Now().Add(-time.Hour))
	named, namedCert := authority(t, time.Now().Add(time.Hour), "www.zohoapis.eu")
	for _, row := range []struct {
		name   string
		roots  *x509.CertPool
		config *tls.Config
		status int
	}{
		{"good", good, &tls.Config{Certificates: []tls.Certificate{goodCert}}, 201},
		{"prefers HTTP/2", good, &tls.Config{Certificates: []tls.Certificate{goodCert}, NextProtos: []string{"h2", "http/1.1"}}, 201},
		{"no HTTP/1.1", good, &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{goodCert}, NextProtos: []string{"spdy/3"}}, nil
		}, Certificates: []tls.Certificate{goodCert}}, 0},
		{"unknown authority", good, &tls.Config{Certificates: []tls.Certificate{otherCert}}, 0},
		{"expired", expired, &tls.Config{Certificates: []tls.Certificate{expiredCert}}, 0},
		{"another name", named, &tls.Config{Certificates: []tls.Certificate{namedCert}}, 0},
		{"TLS 1.1", good, &tls.Config{Certificates: []tls.Certificate{goodCert}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int64
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				if r.ProtoMajor != 1 {
					t.Errorf("spoke %s", r.Proto)
				}
				io.Copy(io.Discard, r.Body)
				w.WriteHeader(201)
			}))
			s.Config.ErrorLog = quiet
			s.TLS = row.config
			s.StartTLS()
			defer s.Close()
			c := newClient(t, s.URL, func(c *Config) { c.RootCAs = row.roots })
			for range 2 { // the second on the kept connection
				a := do(t, c, insert())
				if a.Status != row.status || a.Unsent != (row.status == 0) || (a.Err != nil) != (row.status == 0) {
					t.Errorf("%+v", a)
				}
			}
			if want := int64(2); row.status != 0 && requests.Load() != want || row.status == 0 && requests.Load() != 0 {
				t.Errorf("%d requests", requests.Load())
			}
		})
	}
}

// Row F40: a server that speaks HTTP/2 unasked, and one that resets after the
// whole request: over TLS too, one request arrives and nothing is called unsent.
func TestTLSBreaks(t *testing.T) {
	t.Parallel()
	roots, cert := authority(t, time.Now().Add(time.Hour))
	for name, say := range map[string]string{
		"HTTP/2 settings, goaway": "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01",
		"reset":                   "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int64
			s := listen(t, func(c *rawConn) {
				tc := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
				if tc.Handshake() != nil {
					return
				}
				buffer := make([]byte, 4096)
				if n, err := tc.Read(buffer); err == nil && strings.HasPrefix(string(buffer[:n]), "POST ") {
					requests.Add(1)
				}
				io.WriteString(tc, say)
				c.reset()
			})
			c := newClient(t, strings.Replace(s.url, "http:", "https:", 1), func(c *Config) { c.RootCAs = roots })
			a := do(t, c, insert())
			if a.Unsent || a.Status != 0 || a.Err == nil || requests.Load() != 1 || s.accepted.Load() != 1 {
				t.Errorf("%d requests, %d connections, answer %+v", requests.Load(), s.accepted.Load(), a)
			}
		})
	}
}

// A server that accepts and never shakes hands.
func TestHandshakeThatHangs(t *testing.T) {
	t.Parallel()
	s := listen(t, func(c *rawConn) { io.Copy(io.Discard, c) })
	c := newClient(t, strings.Replace(s.url, "http:", "https:", 1), func(c *Config) { c.CallTimeout = 50 * time.Millisecond })
	a := do(t, c, insert())
	if !a.Unsent || !errors.Is(a.Err, ErrCallTimeout) {
		t.Errorf("%+v", a)
	}
}
