// Command baseline is the worker that an engineer who knows NATS and net/http
// writes by hand: it pulls, calls, answers and acks. It checks nothing, logs
// nothing, counts nothing, keeps no limit of an org and forgets what it was doing
// when it dies; the benchmark compares the real worker with it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

type request struct {
	ID      string            `json:"id"`
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
	ReplyTo string            `json:"reply_to"`
}

type response struct {
	ID      string            `json:"id"`
	Status  int               `json:"status,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    json.RawMessage   `json:"body,omitempty"`
	Error   string            `json:"error,omitempty"`
}

func main() {
	places, err := strconv.Atoi(os.Getenv("PLACES"))
	must(err)
	nc, err := nats.Connect(os.Getenv("NATS_URL"))
	must(err)
	js, err := jetstream.New(nc)
	must(err)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	consumer, err := js.CreateOrUpdateConsumer(ctx, "ZOHO_REQUESTS", jetstream.ConsumerConfig{
		Durable: "baseline", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: places,
	})
	must(err)
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		MaxIdleConns: places, MaxIdleConnsPerHost: places, IdleConnTimeout: time.Minute, DisableCompression: true,
	}}
	work, err := consumer.Consume(func(msg jetstream.Msg) {
		go func() { // MaxAckPending bounds how many there are
			var in request
			if err := json.Unmarshal(msg.Data(), &in); err != nil {
				_ = msg.Term()
				return
			}
			out, err := json.Marshal(call(client, &in))
			must(err)
			if nc.Publish(in.ReplyTo, out) == nil {
				_ = msg.Ack()
			}
		}()
	}, jetstream.PullMaxMessages(places))
	must(err)
	<-ctx.Done()
	work.Stop()
}

func call(client *http.Client, in *request) response {
	req, err := http.NewRequest(in.Method, os.Getenv("ZOHO_API_URL")+"/crm"+in.URL, bytes.NewReader(in.Body))
	if err != nil {
		return response{ID: in.ID, Error: err.Error()}
	}
	for name, value := range in.Headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Authorization", "Zoho-oauthtoken "+os.Getenv("TOKEN"))
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return response{ID: in.ID, Error: err.Error()}
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return response{ID: in.ID, Error: err.Error()}
	}
	out := response{ID: in.ID, Status: resp.StatusCode, Body: body, Headers: make(map[string]string, len(resp.Header))}
	for name := range resp.Header {
		out.Headers[name] = resp.Header.Get(name)
	}
	return out
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
