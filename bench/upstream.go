package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// upstream stands for Zoho: an accounts server that gives a token to everybody,
// and an API that answers 1 KiB at once, or after the delay that the query
// names. It is as fast as this machine lets it be, because the benchmark is about
// the worker: it looks at nothing that it doesn't need.
type upstream struct {
	connections, requests atomic.Int64
}

// counts is what the upstream saw, at GET /stats.
type counts struct{ Connections, Requests int64 }

// upstreamMain is the process: it prints its two addresses, plain and TLS, and
// writes the authority that signed for the second to dir.
func upstreamMain(dir string) error {
	certificate, err := authority(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	u := new(upstream)
	var addresses []string
	for _, secure := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		addresses = append(addresses, l.Addr().String())
		if secure {
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})
		}
		go u.accept(l)
	}
	fmt.Println(strings.Join(addresses, " "))
	_, err = io.Copy(io.Discard, os.Stdin) // the parent's end is ours
	return err
}

func (u *upstream) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close() //nolint:errcheck // nobody to tell
			_ = u.serve(c)
		}()
	}
}

var (
	getAnswer   = canned("200 OK", `{"data":[{"id":"5725767000000524157","Last_Name":"`+strings.Repeat("x", 972)+`"}]}`)
	postAnswer  = canned("201 Created", `{"data":[{"code":"SUCCESS","details":{"id":"5725767000000524157","note":"`+strings.Repeat("x", 895)+`"},"message":"record added","status":"success"}]}`)
	tokenAnswer = canned("200 OK", `{"access_token":"1000.benchmark","expires_in":3600,"api_domain":"https://www.zohoapis.com","token_type":"Bearer"}`)
)

// canned is an answer with about the headers that Zoho sends.
func canned(status, body string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\nServer: ZGS\r\nDate: Mon, 23 Nov 2026 21:00:00 GMT\r\nContent-Type: application/json;charset=UTF-8\r\n"+
		"Content-Length: %d\r\nCache-Control: private\r\nX-Content-Type-Options: nosniff\r\nStrict-Transport-Security: max-age=63072000\r\n\r\n%s",
		status, len(body), body)
}

func (u *upstream) serve(c net.Conn) error {
	r := bufio.NewReaderSize(c, 4096)
	counted := false
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		answer, stats := getAnswer, bytes.HasPrefix(line, []byte("GET /stats"))
		switch {
		case bytes.HasPrefix(line, []byte("POST /oauth/")):
			answer = tokenAnswer
		case bytes.HasPrefix(line, []byte("POST ")):
			answer = postAnswer
		case bytes.HasPrefix(line, []byte("GET /probe")):
			stats = false
		}
		api := bytes.Contains(line, []byte(" /crm/"))
		var delay time.Duration
		if _, after, ok := bytes.Cut(line, []byte("delay=")); ok {
			digits, _, _ := bytes.Cut(after, []byte(" "))
			ms, err := strconv.Atoi(string(digits))
			if err != nil {
				return err
			}
			delay = time.Duration(ms) * time.Millisecond
		}
		length := 0
		for {
			if line, err = r.ReadSlice('\n'); err != nil {
				return err
			}
			if len(line) <= 2 {
				break
			}
			if len(line) > 16 && line[7] == '-' && bytes.EqualFold(line[:16], []byte("content-length: ")) {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(line[16:]))); err != nil {
					return err
				}
			}
		}
		if _, err := r.Discard(length); err != nil {
			return err
		}
		if stats {
			body, err := json.Marshal(counts{u.connections.Load(), u.requests.Load()})
			if err != nil {
				return err
			}
			answer = canned("200 OK", string(body))
		}
		if api {
			if u.requests.Add(1); !counted {
				u.connections.Add(1)
				counted = true
			}
		}
		if delay > 0 {
			time.Sleep(delay)
		}
		if _, err := c.Write(answer); err != nil {
			return err
		}
	}
}

// authority makes a certificate for 127.0.0.1 that signs itself, and writes it to file.
func authority(file string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "benchmark"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if block == nil {
		return tls.Certificate{}, errors.New("encode certificate")
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, os.WriteFile(file, block, 0o600)
}
