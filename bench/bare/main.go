// Command bare is the least that a worker can be: it pulls, writes the call to a
// kept connection, looks for the end of the answer, replies and acks, with no
// HTTP client and no JSON decoder. It is fit for the benchmark only, where it tells
// what of a figure belongs to the machine and to the other programs on it.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// connection is kept and used by one call at a time.
type connection struct {
	net.Conn
	buf []byte // what is read, and before that what is written
	out []byte // the response envelope
}

func main() {
	places, err := strconv.Atoi(os.Getenv("PLACES"))
	must(err)
	addr, plain := strings.CutPrefix(os.Getenv("ZOHO_API_URL"), "http://")
	if !plain {
		log.Fatal("bare speaks no TLS: measure it with scenarios without")
	}
	nc, err := nats.Connect(os.Getenv("NATS_URL"))
	must(err)
	js, err := jetstream.New(nc)
	must(err)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	consumer, err := js.CreateOrUpdateConsumer(ctx, "ZOHO_REQUESTS", jetstream.ConsumerConfig{
		Durable: "bare", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 3 * places,
	})
	must(err)
	head := fmt.Appendf(nil, " HTTP/1.1\r\nHost: %s\r\nAuthorization: Zoho-oauthtoken %s\r\n\r\n", addr, os.Getenv("TOKEN"))
	idle := make(chan *connection, places) // one for each place, made when it is first used
	for range places {
		idle <- new(connection)
	}
	work, err := consumer.Consume(func(msg jetstream.Msg) {
		c := <-idle
		go func() {
			if c.Conn == nil {
				conn, err := net.Dial("tcp", addr)
				must(err)
				*c = connection{Conn: conn, buf: make([]byte, 4<<10), out: make([]byte, 0, 4<<10)}
			}
			to, err := c.call(msg.Data(), head)
			must(err)
			must(nc.Publish(to, c.out))
			must(msg.Ack())
			idle <- c
		}()
	}, jetstream.PullMaxMessages(3*places))
	must(err)
	<-ctx.Done()
	work.Stop()
}

// call carries out the request in data, which is a GET, and leaves the response
// envelope in c.out; to is where it goes.
func (c *connection) call(data, head []byte) (to string, err error) {
	req := append(append(c.buf[:0], "GET /crm"...), member(data, "url")...)
	if _, err := c.Write(append(req, head...)); err != nil {
		return "", err
	}
	for n := 0; n < len(c.buf); {
		more, err := c.Read(c.buf[n:])
		if err != nil {
			return "", err
		}
		n += more
		head, body, found := bytes.Cut(c.buf[:n], []byte("\r\n\r\n"))
		if !found {
			continue
		}
		_, length, _ := bytes.Cut(head, []byte("Content-Length: "))
		length, _, _ = bytes.Cut(length, []byte("\r\n"))
		size, err := strconv.Atoi(string(length))
		if err != nil {
			return "", err
		}
		if len(body) < size {
			continue
		}
		c.out = append(append(append(c.out[:0], `{"id":"`...), member(data, "id")...), `","status":`...)
		c.out = append(append(c.out, head[len("HTTP/1.1 "):len("HTTP/1.1 200")]...), `,"body":`...)
		c.out = append(append(c.out, body...), '}')
		return string(member(data, "reply_to")), nil
	}
	return "", io.ErrShortBuffer
}

// member returns the text of a member of the envelope, which has no escapes.
func member(data []byte, name string) []byte {
	_, text, _ := bytes.Cut(data, []byte(`"`+name+`":"`))
	text, _, _ = bytes.Cut(text, []byte(`"`))
	return text
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
