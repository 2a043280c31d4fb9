package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// load publishes requests and hears the answers.
type load struct {
	w      *world
	method string
	delay  time.Duration
	inbox  string
	sub    *nats.Subscription
	pad    string

	next   int // the id of the next request
	mu     sync.Mutex
	sent   map[int]time.Time
	took   []time.Duration // of those that were timed
	free   chan struct{}
	count  atomic.Int64
	faults atomic.Int64
	fault  atomic.Pointer[string]
}

// patience is how long the harness waits for an answer before it gives up.
const patience = 60 * time.Second

func (w *world) load(method string, delay time.Duration) (*load, error) {
	l := &load{w: w, method: method, delay: delay, inbox: w.nc.NewInbox(), sent: map[int]time.Time{}}
	// Padded so that an envelope has 600 bytes.
	l.pad = strings.Repeat("p", 600-len(l.envelope(1_000_000, "")))
	var err error
	if l.sub, err = w.nc.Subscribe(l.inbox+".*", l.heard); err != nil {
		return nil, err
	}
	return l, l.sub.SetPendingLimits(-1, -1)
}

func (l *load) envelope(n int, pad string) []byte {
	query := "fields=Last_Name"
	if l.delay > 0 {
		query += "&delay=" + strconv.FormatInt(l.delay.Milliseconds(), 10)
	}
	reply := l.inbox + "." + strconv.Itoa(n)
	if l.method == "GET" {
		return fmt.Appendf(nil, `{"id":"g-%07d","method":"GET","url":"/v8/Leads?%s","headers":{"X-Note":"%s"},"reply_to":"%s"}`, n, query, pad, reply)
	}
	return fmt.Appendf(nil, `{"id":"p-%07d","method":"POST","url":"/v8/Leads?%s","body":{"data":[{"Last_Name":"%s"}]},"reply_to":"%s"}`, n, query, pad, reply)
}

func (l *load) heard(msg *nats.Msg) {
	at := time.Now()
	if !bytes.Contains(msg.Data, []byte(`"status":20`)) {
		l.faults.Add(1)
		text := string(msg.Data[:min(len(msg.Data), 300)])
		l.fault.CompareAndSwap(nil, &text)
	}
	l.mu.Lock()
	if len(l.sent) > 0 {
		if n, err := strconv.Atoi(msg.Subject[len(l.inbox)+1:]); err == nil {
			if begun, ok := l.sent[n]; ok {
				delete(l.sent, n)
				l.took = append(l.took, at.Sub(begun))
			}
		}
	}
	free := l.free
	l.mu.Unlock()
	l.count.Add(1)
	if free != nil {
		<-free
	}
}

// publish sends one request of the connection.
func (l *load) publish(connection string) error {
	l.next++
	return l.w.nc.Publish("zoho.requests."+connection, l.envelope(l.next, l.pad))
}

// wave sends n requests to the connections by turns, with at most window
// unanswered at a time, and waits for all the answers.
func (l *load) wave(n, window int, connections ...string) error {
	return l.bursts(n, 1, window, 0, connections...)
}

// bursts is wave with so many requests in a row for each connection, and no more
// than rate of them a second if that isn't 0.
func (l *load) bursts(n, burst, window, rate int, connections ...string) error {
	free := make(chan struct{}, window)
	l.mu.Lock()
	l.free = free
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.free = nil
		l.mu.Unlock()
	}()
	want, begun := l.count.Load()+int64(n), time.Now()
	for i := range n {
		if rate > 0 && i%burst == 0 {
			time.Sleep(time.Until(begun.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		}
		select {
		case free <- struct{}{}:
		default:
			if err := l.w.nc.Flush(); err != nil {
				return err
			}
			select {
			case free <- struct{}{}:
			case <-time.After(patience):
				return fmt.Errorf("no answer for %s: %d are missing%s", patience, want-l.count.Load(), l.complaint())
			}
		}
		if err := l.publish(connections[i/burst%len(connections)]); err != nil {
			return err
		}
	}
	return l.wait(want)
}

// backlog publishes n requests and waits until the server has stored them: it
// drops what comes faster than it can store, unless somebody waits for its word.
func (l *load) backlog(n int, connections ...string) error {
	var failed error
	js, err := jetstream.New(l.w.nc, jetstream.WithPublishAsyncMaxPending(4096),
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, _ *nats.Msg, err error) { failed = err }))
	if err != nil {
		return err
	}
	for i := range n {
		l.next++
		if _, err := js.PublishAsync("zoho.requests."+connections[i%len(connections)], l.envelope(l.next, l.pad)); err != nil {
			return err
		}
	}
	<-js.PublishAsyncComplete()
	js.CleanupPublisher()
	return failed
}

// wait waits until want answers were heard in all.
func (l *load) wait(want int64) error {
	if err := l.w.nc.Flush(); err != nil {
		return err
	}
	for last, since := l.count.Load(), time.Now(); l.count.Load() < want; time.Sleep(time.Millisecond) {
		if now := l.count.Load(); now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > patience {
			return fmt.Errorf("no answer for %s: %d are missing%s", patience, want-now, l.complaint())
		}
	}
	if l.faults.Load() > 0 {
		return fmt.Errorf("%d wrong answers%s", l.faults.Load(), l.complaint())
	}
	return nil
}

func (l *load) complaint() string {
	if text := l.fault.Load(); text != nil {
		return ", like " + *text
	}
	return ""
}

// steady sends requests at the rate for the time given, and between any two of
// them makes the same call directly; it returns how long each took.
func (l *load) steady(rate int, d time.Duration, base, connection string) (queued, direct []time.Duration, err error) {
	client := &http.Client{Timeout: patience}
	call := func() (time.Duration, error) {
		begun := time.Now()
		resp, err := client.Get(base + "/probe?fields=Last_Name")
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close() //nolint:errcheck // read to its end
		_, err = io.Copy(io.Discard, resp.Body)
		return time.Since(begun), err
	}
	want, half := l.count.Load(), time.Second/time.Duration(rate)/2
	next := time.Now()
	for range int(d.Seconds() * float64(rate)) {
		l.mu.Lock()
		l.sent[l.next+1] = time.Now()
		l.mu.Unlock()
		if err := l.publish(connection); err != nil {
			return nil, nil, err
		}
		if err := l.w.nc.Flush(); err != nil {
			return nil, nil, err
		}
		want++
		next = next.Add(half)
		time.Sleep(time.Until(next))
		took, err := call()
		if err != nil {
			return nil, nil, err
		}
		direct = append(direct, took)
		next = next.Add(half)
		time.Sleep(time.Until(next))
	}
	if err := l.wait(want); err != nil {
		return nil, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.took, direct, nil
}

// quantile is the value below which the share q of the times lies.
func quantile(times []time.Duration, q float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
