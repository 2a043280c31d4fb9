package follow_test

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/follow"
	"zoho-worker/internal/connection/natstest"
)

// emptied is a stream whose values age out right before they are read.
type emptied struct{ jetstream.JetStream }

func (e emptied) OrderedConsumer(ctx context.Context, name string, config jetstream.OrderedConsumerConfig) (jetstream.Consumer, error) {
	stream, err := e.Stream(ctx, name)
	if err == nil {
		err = stream.Purge(ctx)
	}
	if err != nil {
		return nil, err
	}
	return e.JetStream.OrderedConsumer(ctx, name, config)
}

// A stream that was seen with values and has none when it is read is read whole.
func TestStartWhileTheLastValueEnds(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js, jetstream.StreamConfig{Name: "VALUES", Subjects: []string{"values.*"}, MaxMsgsPerSubject: 1})
	if _, err := js.Publish(t.Context(), "values.a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	f, err := follow.Start(ctx, emptied{js}, follow.Options{
		Stream: "VALUES", Check: 50 * time.Millisecond, Apply: func(follow.Change) {}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// mirror is what a follower handed over, as its users keep it.
type mirror struct {
	mu      sync.Mutex
	at      map[string]follow.Position
	values  map[string]string
	changed chan struct{} // there is news
}

func (m *mirror) apply(c follow.Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at, ok := m.at[c.Subject]; ok && !c.Position.After(at) {
		return
	}
	select {
	case m.changed <- struct{}{}:
	default: // it was told already
	}
	m.at[c.Subject] = c.Position
	if delete(m.values, c.Subject); !c.Gone {
		m.values[c.Subject] = string(c.Data)
	}
}

func (m *mirror) becomes(t *testing.T, want map[string]string) {
	t.Helper()
	for deadline := time.After(30 * time.Second); ; {
		m.mu.Lock()
		got := maps.Clone(m.values)
		m.mu.Unlock()
		if maps.Equal(got, want) {
			return
		}
		select {
		case <-m.changed:
		case <-deadline:
			t.Fatalf("the stream has %v, the follower handed over %v", want, got)
		}
	}
}

// A stream that has lost its last values, and has got as many others before anybody
// looked at it: no look would tell, nor the numbers, where they are of the same subjects.
func TestValuesLostAndOthersWritten(t *testing.T) {
	t.Parallel()
	for name, values := range map[string]struct{ lost, then []string }{
		"of other subjects":    {[]string{"a", "c"}, []string{"b", "d", "e"}},
		"of the same subjects": {[]string{"a"}, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := natstest.Start(t)
			js := server.JetStream()
			server.Create(js, jetstream.StreamConfig{Name: "VALUES", Subjects: []string{"values.*"}, MaxMsgsPerSubject: 1})
			write := func(subject, value string) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				for { // the server may just be starting
					if _, err := js.Publish(ctx, "values."+subject, []byte(value)); err == nil {
						return
					} else if ctx.Err() != nil {
						t.Fatal(err)
					}
				}
			}
			write("a", "1")
			write("b", "1")
			server.Save()
			m := &mirror{at: map[string]follow.Position{}, values: map[string]string{}, changed: make(chan struct{}, 1)}
			f, err := follow.Start(t.Context(), js, follow.Options{Stream: "VALUES", Check: time.Hour, Apply: m.apply, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			all := func(subjects []string, value string) {
				t.Helper()
				want := map[string]string{"values.a": "1", "values.b": "1"}
				for _, subject := range subjects {
					want["values."+subject] = value
					write(subject, value)
				}
				m.becomes(t, want)
			}
			all(values.lost, "lost")
			server.Revert()
			all(values.then, "2")
		})
	}
}

// A value that its user wrote, and that was lost with the stream before it was handed over.
func TestOwnValueLost(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := server.JetStream()
	config := jetstream.StreamConfig{Name: "VALUES", Subjects: []string{"values.*"}, MaxMsgsPerSubject: 1}
	server.Create(js, config)
	gone := make(chan follow.Change, 10)
	f, err := follow.Start(t.Context(), js, follow.Options{
		Stream: "VALUES", Check: 50 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		Kept: func() []string { return []string{"values.own"} }, Apply: func(c follow.Change) { gone <- c },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := js.DeleteStream(t.Context(), "VALUES"); err != nil {
		t.Fatal(err)
	}
	server.Create(js, config)
	for deadline := time.After(30 * time.Second); ; {
		select {
		case c := <-gone:
			if !c.Gone || c.Subject != "values.own" {
				t.Fatalf("%+v", c)
			}
			if c.Position.Epoch == 2 {
				return
			}
		case <-deadline:
			t.Fatal("nobody says that the value is gone")
		}
	}
}

// What has aged out is not missed when the stream is read anew: it is the same stream.
func TestAgedOutIsNotLost(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js, jetstream.StreamConfig{Name: "VALUES", Subjects: []string{"values.*"}, MaxMsgsPerSubject: 1, MaxAge: time.Second})
	if _, err := js.Publish(t.Context(), "values.a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	looks, found := make(chan struct{}, 1), make(chan struct{}, 10)
	f, err := follow.Start(t.Context(), js, follow.Options{
		Stream: "VALUES", Check: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		Apply: func(follow.Change) { found <- struct{}{} },
		Measured: func(time.Duration) {
			select {
			case looks <- struct{}{}:
			default: // nobody has waited for the one before
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	<-found
	for there := true; there; <-looks {
		stream, err := js.Stream(t.Context(), "VALUES")
		if err != nil {
			t.Fatal(err)
		}
		there = stream.CachedInfo().State.Msgs > 0
	}
	if err := js.Conn().ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	for range 20 { // one that misses something begins a new epoch at its third look
		<-looks
	}
	if n := f.Epoch(); n != 1 {
		t.Errorf("epoch %d", n)
	}
}
