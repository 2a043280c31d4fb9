package integration

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/zoho/zohotest"
)

// BenchmarkPath measures the whole path in one process: nats-server, worker,
// requester, and an upstream that answers 1 KiB at once. Allocations are those
// of all of them together; messages per second is the figure to compare.
func BenchmarkPath(b *testing.B) {
	body := `{"data":[{"Last_Name":"` + strings.Repeat("x", 1000) + `"}]}`
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(body))
	}))
	b.Cleanup(upstream.Close)
	padding := strings.Repeat("p", 300)
	cases := map[string]func(inbox string, n int) []byte{
		"GET": func(inbox string, n int) []byte {
			return fmt.Appendf(nil, `{"id":"g-%d","method":"GET","url":"/v8/Leads?fields=Last_Name","headers":{"X-Note":"%s"},"reply_to":"%s"}`, n, padding, inbox)
		},
		"POST": func(inbox string, n int) []byte {
			return fmt.Appendf(nil, `{"id":"p-%d","method":"POST","url":"/v8/Leads","body":{"data":[{"Last_Name":"%s"}]},"reply_to":"%s"}`, n, padding, inbox)
		},
	}
	for _, method := range []string{"GET", "POST"} {
		b.Run(method, func(b *testing.B) {
			r := newRig(b, zohotest.Options{APIURL: upstream.URL})
			r.connect("demo", devbox.OrgID, 64)
			c := r.config()
			c.ZohoAPIURL = upstream.URL
			w, err := app.Start(b.Context(), c, app.Logger(io.Discard, "info", "json"))
			if err != nil {
				b.Fatal(err)
			}
			defer stop(w)
			inbox := r.nc.NewInbox()
			sub, err := r.nc.SubscribeSync(inbox)
			if err != nil {
				b.Fatal(err)
			}
			if err := sub.SetPendingLimits(-1, -1); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for n := range b.N {
				if _, err := r.js.PublishAsync("zoho.requests.demo", cases[method](inbox, n), jetstream.WithStallWait(patience)); err != nil {
					b.Fatal(err)
				}
			}
			for range b.N {
				msg, err := sub.NextMsg(patience)
				if err != nil {
					b.Fatal(err)
				}
				if !strings.Contains(string(msg.Data[:200]), `"status":200`) {
					b.Fatalf("%s", msg.Data)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}
