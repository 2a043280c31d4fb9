package app

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"zoho-worker/internal/lock"
	"zoho-worker/internal/secret"
)

// workerInbox begins the subjects on which a worker is answered, so that it need
// not be allowed to listen to the callers' inboxes.
const workerInbox = nats.InboxPrefix + "zoho-worker"

// inbox begins the subjects at which a worker itself is answered, below what its
// user may listen to. Nobody may have a response sent there: it would pass for the
// server's answer, and each PubAck of a response shows who hears that where it is.
// A command line beside the worker is answered outside of it.
func (c Config) inbox() string { return cmp.Or(c.NATSInboxPrefix, workerInbox) + ".run" }

var errNoURL = errors.New("is not a URL")

// Connect connects to NATS for as long as the process lives. Its error says what to do.
func Connect(c Config, name string, logger *slog.Logger) (*nats.Conn, error) {
	nc, err := connect(c, name, logger)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, natsMend(err))
	}
	return nc, nil
}

// connect is Connect; more options come last, and so win.
func connect(c Config, name string, logger *slog.Logger, more ...nats.Option) (*nats.Conn, error) {
	options := []nats.Option{
		nats.Name(name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		// No write that was given up on may appear later.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				logger.Warn("NATS connection lost: reconnecting", "err", err)
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			logger.Info("NATS connection is back", "nats", secret.RedactURLs(nc.ConnectedUrl()))
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if m := violation.FindStringSubmatch(err.Error()); m != nil && strings.EqualFold(m[1], "subscription") && strings.HasPrefix(m[2], nats.InboxPrefix) {
				logger.Error("no answer of NATS will come: this user may not listen to its inbox; set the prefix that it may listen to, "+
					"--nats-inbox-prefix (NATS_INBOX_PREFIX)", "err", err)
				return
			}
			logger.Warn("NATS", "err", err)
		}),
		// A credentials file that is renewed is read again at the next try.
		nats.IgnoreAuthErrorAbort(),
		nats.CustomInboxPrefix(cmp.Or(c.NATSInboxPrefix, "_INBOX")),
	}
	if c.NATSCreds != "" {
		options = append(options, nats.UserCredentials(c.NATSCreds))
	}
	if c.NATSNKey != "" {
		nkey, err := nats.NkeyOptionFromSeed(c.NATSNKey)
		if err != nil {
			return nil, fmt.Errorf("--nats-nkey (NATS_NKEY): %w", err)
		}
		options = append(options, nkey)
	}
	if c.NATSCA != "" {
		options = append(options, nats.RootCAs(c.NATSCA))
	}
	if c.NATSCert != "" {
		options = append(options, nats.ClientCert(c.NATSCert, c.NATSKey))
	}
	nc, err := nats.Connect(c.NATSURL, append(options, more...)...)
	if _, isURL := errors.AsType[*url.Error](err); isURL { // it quotes what it can't read, with the password
		return nil, fmt.Errorf("connect to NATS at %s (--nats-url): %w", secret.RedactURLs(c.NATSURL), errNoURL)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s (--nats-url): %w", secret.RedactURLs(c.NATSURL), err)
	}
	return nc, nil
}

// Refused is what NATS last refused to this connection's user, in words, "" where
// nothing: whoever asked sees only that no answer comes.
func Refused(nc *nats.Conn) string {
	err := nc.LastError()
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return ""
	}
	m := violation.FindStringSubmatch(err.Error())
	switch {
	case m == nil:
		return ""
	case strings.EqualFold(m[1], "subscription"):
		return "subscribe to " + m[2]
	}
	return "publish to " + m[2]
}

// openRedis returns the Redis client that the configuration asks for, nil where
// it asks for none. It connects when it is first used.
func openRedis(c Config, logger *slog.Logger) (redis.UniversalClient, error) {
	address := c.RedisURL.Reveal()
	if address == "" {
		return nil, nil
	}
	redis.SetLogger(redisLog{logger})
	secure, err := tlsConfig(c.RedisCA, c.RedisCert, c.RedisKey)
	if err != nil {
		return nil, fmt.Errorf("--redis-ca, --redis-cert: %w", err)
	}
	client, err := lock.Client(address, secure)
	if err != nil {
		return nil, fmt.Errorf("--redis-url (REDIS_URL): %w", err)
	}
	return client, nil
}

// tlsConfig is nil where no file is given.
func tlsConfig(ca, cert, key string) (*tls.Config, error) {
	if ca == "" && cert == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New(ca + ": holds no certificate")
		}
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// redisLog has go-redis' own lines go where all others go. They are about
// connections that come and go; what matters of that is said by package lock.
type redisLog struct{ logger *slog.Logger }

func (l redisLog) Printf(_ context.Context, format string, args ...any) {
	l.logger.Debug("redis client: " + fmt.Sprintf(format, args...))
}
