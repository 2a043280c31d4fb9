package zoho

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"syscall"
	"time"
)

// dialTimeout bounds resolving and connecting, handshakeTimeout the TLS
// handshake after it. Both lie within Config.CallTimeout of the call that waits.
const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
)

var (
	errAddress  = errors.New("zoho: the name resolves to an address that isn't public")
	errLoopback = errors.New("zoho: plain http, and the name resolves to an address that isn't loopback")
	errScheme   = errors.New("zoho: plain http is for configured loopback addresses only")
)

// dialer opens connections, to public addresses only. It looks at the address
// that is being connected to, after the name was resolved, so that a name can't
// be public when checked and private when used.
type dialer struct {
	public, loopback, free *net.Dialer
	config                 *tls.Config
	exempt                 map[string]bool // host:port of Config's own https URLs
	plainOK                map[string]bool // host:port of Config's own http URLs
}

func newDialer(roots *x509.CertPool, overrides ...string) *dialer {
	d := &dialer{
		public:   &net.Dialer{Timeout: dialTimeout, ControlContext: only(publicAddress, errAddress)},
		loopback: &net.Dialer{Timeout: dialTimeout, ControlContext: only(netip.Addr.IsLoopback, errLoopback)},
		free:     &net.Dialer{Timeout: dialTimeout},
		config: &tls.Config{
			RootCAs:            roots,
			MinVersion:         tls.VersionTLS12,
			NextProtos:         []string{"http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(0),
			// A request is one record and one system call; small records first
			// are for pages that are shown while they load.
			DynamicRecordSizingDisabled: true,
		},
		exempt:  make(map[string]bool),
		plainOK: make(map[string]bool),
	}
	for _, raw := range overrides {
		u, err := url.Parse(raw)
		if raw == "" || err != nil {
			continue
		}
		port := u.Port()
		switch {
		case u.Scheme == "https" && port == "":
			port = "443"
		case port == "":
			port = "80"
		}
		address := net.JoinHostPort(u.Hostname(), port)
		if u.Scheme == "https" {
			d.exempt[address] = true
		} else {
			d.plainOK[address] = true
		}
	}
	return d
}

// only returns a ControlContext that lets ok addresses pass.
func only(ok func(netip.Addr) bool, refusal error) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil || !ok(ap.Addr().Unmap()) {
			return refusal
		}
		return nil
	}
}

// refused are the IPv4 networks that hold no public server: the entries of the
// IANA IPv4 special-purpose registry that aren't globally reachable, multicast,
// and the one public address that a cloud (Azure) uses for its metadata. AWS's
// and Google's is link-local, Alibaba's is in the carrier-grade NAT network.
var refused = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("224.0.0.0/3"),
}

// Of IPv6 only global unicast is public, less what tunnels to an IPv4 address
// of the sender's choice (Teredo, 6to4) and documentation. NAT64, by which
// machines without IPv4 reach the rest of the world, is judged by the address within.
var (
	global6  = netip.MustParsePrefix("2000::/3")
	nat64    = netip.MustParsePrefix("64:ff9b::/96")
	refused6 = []netip.Prefix{
		netip.MustParsePrefix("2001::/23"),
		netip.MustParsePrefix("2001:db8::/32"),
		netip.MustParsePrefix("2002::/16"),
		netip.MustParsePrefix("3fff::/20"),
	}
)

// publicAddress reports whether a, unmapped, can be a server on the internet.
func publicAddress(a netip.Addr) bool {
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	list := refused
	if a.Is6() {
		if !global6.Contains(a) { // nor one with a zone
			return false
		}
		list = refused6
	}
	for _, p := range list {
		if p.Contains(a) {
			return false
		}
	}
	return a.IsValid()
}

// dial connects to a place.
func (d *dialer) dial(ctx context.Context, where place) (*kept, error) {
	address := where.host
	if _, _, err := net.SplitHostPort(address); err != nil {
		port := "443"
		if where.scheme == "http" {
			port = "80"
		}
		address = net.JoinHostPort(trimBrackets(address), port)
	}
	if where.scheme == "http" {
		return d.plain(ctx, where, address)
	}
	return d.tls(ctx, where, address)
}

func trimBrackets(host string) string {
	if n := len(host); n > 1 && host[0] == '[' && host[n-1] == ']' {
		return host[1 : n-1]
	}
	return host
}

// plain dials for plain http, which only a configured loopback address has.
func (d *dialer) plain(ctx context.Context, where place, address string) (*kept, error) {
	if !d.plainOK[address] {
		return nil, errScheme
	}
	c, err := d.loopback.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return newKept(c, where), nil
}

// tls dials and shakes hands.
func (d *dialer) tls(ctx context.Context, where place, address string) (*kept, error) {
	dial := d.public
	if d.exempt[address] {
		dial = d.free
	}
	c, err := dial.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	config := d.config.Clone()
	config.ServerName = host
	k := newKept(c, where)
	t := tls.Client(k.link, config)
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTimeout, errHandshakeTimeout)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, &handshakeError{err}
	}
	k.link = t
	return k, nil
}
