package integration

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	spans "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
)

// otlp is an OTLP receiver over HTTP and protobuf.
type otlp struct {
	URL   string
	mu    sync.Mutex
	spans []*spans.Span
	text  strings.Builder // every attribute, name and status
}

func newOTLP(t *testing.T) *otlp {
	t.Helper()
	o := &otlp{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			body, _ = gzip.NewReader(r.Body)
		}
		data, err := io.ReadAll(body)
		var request collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(data, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			http.Error(w, fmt.Sprint(r.URL.Path, err), http.StatusBadRequest)
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, resource := range request.ResourceSpans {
			for _, a := range resource.Resource.Attributes {
				o.note(a)
			}
			for _, scope := range resource.ScopeSpans {
				for _, span := range scope.Spans {
					o.spans = append(o.spans, span)
					fmt.Fprintln(&o.text, span.Name, span.Status.GetMessage())
					for _, a := range span.Attributes {
						o.note(a)
					}
				}
			}
		}
	}))
	t.Cleanup(server.Close)
	o.URL = server.URL
	return o
}

func (o *otlp) note(a *common.KeyValue) { fmt.Fprintln(&o.text, a.Key, a.Value.String()) }

// trace returns the spans of a trace by name, the last of each.
func (o *otlp) trace(id string) map[string]*spans.Span {
	o.mu.Lock()
	defer o.mu.Unlock()
	found := map[string]*spans.Span{}
	for _, span := range o.spans {
		if hex.EncodeToString(span.TraceId) == id {
			found[span.Name] = span
		}
	}
	return found
}

// freePort is a port that nobody has a moment before it is used.
func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// TestProduction runs two workers as processes, built as for production, with what the Compose file gives
// them: TLS, certificates and permissions at NATS, an ACL user at Redis, secrets
// in files, an OTLP endpoint. It rolls both over under load.
func TestProduction(t *testing.T) {
	t.Parallel()
	s := newSecureRig(t)
	refresh := s.demo(10)
	traces := newOTLP(t)
	if !s.redis.Real {
		t.Skip("needs a real Redis, for its ACL")
	}
	admin, err := redis.ParseURL(s.redis.URL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(admin)
	defer client.Close()
	acl := strings.Fields("acl setuser worker on >PLANTED-REDIS ~zoho:* &zoho:* -@all +@connection +evalsha +eval +get +set +del +pexpire +pttl +publish +subscribe +unsubscribe")
	words := make([]any, len(acl))
	for i, word := range acl {
		words[i] = word
	}
	if err := client.Do(t.Context(), words...).Err(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	environment := []string{
		"NATS_URL=" + s.NATSURL, "NATS_CA=" + s.authority.path("ca.crt"),
		"NATS_CERT=" + s.authority.path("worker.crt"), "NATS_KEY=" + s.authority.path("worker.key"),
		"REDIS_URL=", "REDIS_URL_FILE=" + file("redis-url", strings.Replace(s.redis.URL, "redis://", "redis://worker:PLANTED-REDIS@", 1)),
		"ENCRYPTION_KEYS=", "ENCRYPTION_KEYS_FILE=" + file("keys", s.keys.Reveal()),
		"ZOHO_CLIENT_SECRET=", "ZOHO_CLIENT_SECRET_FILE=" + file("secret", "PLANTED-CLIENT-SECRET"),
		"CONFIG=" + file("worker.yaml", "max-in-flight: 256\nlog-level: debug"), "LOG_LEVEL=",
		"OTEL_EXPORTER_OTLP_ENDPOINT=" + traces.URL, "OTEL_BSP_SCHEDULE_DELAY=200",
	}
	var addresses []string
	start := func() *process {
		address := freePort(t)
		addresses = append(addresses, address)
		p := s.run(productionBuild, append(environment, "HTTP_ADDR="+address)...)
		eventually(t, "worker at "+address+" is ready", func() bool {
			resp, err := http.Get("http://" + address + "/readyz")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		})
		return p
	}
	workers := []*process{start(), start()}
	// They are what `make build` makes: without the sandbox.
	if makefile, err := os.ReadFile("../../Makefile"); err != nil || !strings.Contains(string(makefile), "-tags "+productionBuild+" ") {
		t.Errorf("make build doesn't build with -tags %s (%v)", productionBuild, err)
	}
	if out, err := exec.Command(workers[0].cmd.Path, "dev", "--once").CombinedOutput(); err == nil || !strings.Contains(string(out), "unknown command") {
		t.Errorf("the worker has a sandbox: %s", out)
	}

	// A trace, from the caller's span to the worker's and back.
	const traceID, callerSpan = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	inbox := s.nc.NewInbox()
	replies, err := s.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	ask := &nats.Msg{
		Subject: "zoho.requests.demo", Header: nats.Header{"traceparent": {"00-" + traceID + "-" + callerSpan + "-01"}},
		Data: []byte(`{"id":"traced","method":"POST","url":"/v8/Leads?PLANTED-QUERY=1","reply_to":"` + inbox + `","body":{"data":[{"Last_Name":"PLANTED-BODY"}]}}`),
	}
	if _, err := s.js.PublishMsg(t.Context(), ask); err != nil {
		t.Fatal(err)
	}
	reply, err := replies.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	stored := s.last(consumer.ResponseStream)[consumer.ResponseSubject("demo", "traced")]
	for what, header := range map[string]nats.Header{"reply": reply.Header, "stored response": stored.Header} {
		if parent := header["traceparent"]; len(parent) != 1 || !strings.Contains(parent[0], traceID) {
			t.Errorf("the %s carries %v", what, header)
		}
	}
	eventually(t, "all spans of the trace have come", func() bool {
		found := traces.trace(traceID)
		return !slices.ContainsFunc([]string{"receive", "claim", "token", "refresh", "attempt", "respond"}, func(name string) bool { return found[name] == nil })
	})
	found := traces.trace(traceID)
	if parent := hex.EncodeToString(found["receive"].ParentSpanId); parent != callerSpan {
		t.Errorf("receive is a child of %s, not of the caller's span", parent)
	}
	for _, child := range []string{"claim", "token", "attempt", "respond"} {
		if !bytes.Equal(found[child].ParentSpanId, found["receive"].SpanId) {
			t.Errorf("%s is no child of receive", child)
		}
	}
	if !bytes.Equal(found["refresh"].ParentSpanId, found["token"].SpanId) {
		t.Error("refresh is no child of token")
	}

	// Load, and meanwhile one worker after the other is replaced.
	load := s.workload()
	load.add(doc{"id": "traced", "method": "POST"}, false).name = "PLANTED-BODY"
	requests := load.mix(600)
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range requests {
			load.publishAll(requests[i])
			time.Sleep(5 * time.Millisecond)
		}
	})
	for i, old := range workers {
		seen := s.Zoho.Seen()
		eventually(t, "the load goes on", func() bool { return s.Zoho.Seen() >= seen+50 })
		workers[i] = start()
		old.signal(syscall.SIGTERM)
		select {
		case <-old.gone:
		case <-time.After(patience):
			t.Fatal("a worker doesn't stop")
		}
		if code := old.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("a stopped worker exits with %d", code)
		}
	}
	publishing.Wait()
	if o := load.verify(); len(o.unknown) > 0 {
		t.Errorf("outcomes unknown after a clean roll-over: %v", o.unknown)
	}

	// What is left has served, and says so: an org is served by one worker at a time.
	served := 0.0
	for _, address := range addresses[2:] {
		served += metric(t, address, "zoho_worker_requests_total", "outcome=answered")
		for name, want := range map[string]float64{
			"zoho_worker_ready": 1, "zoho_worker_nats_connected": 1, "zoho_worker_redis_up": 1, "zoho_worker_build_info": 1,
			"zoho_worker_unknown_outcomes_total": 0, "zoho_worker_connections": 1, "zoho_worker_max_in_flight": 256,
		} {
			if got := metric(t, address, name); got != want {
				t.Errorf("%s at %s is %v, want %v", name, address, got, want)
			}
		}
		if failed := metric(t, address, "zoho_worker_jetstream_publishes_total", "result=failed"); failed != 0 {
			t.Errorf("%v publishes failed", failed)
		}
	}
	if served == 0 {
		t.Error("the workers that are left answered nothing")
	}
	if seen := s.violations.of("worker.zoho-worker"); len(seen) > 0 {
		t.Errorf("the workers wanted what they may not:\n%s", strings.Join(seen, "\n"))
	}
	// Nothing secret is in a span, a log line or a metric.
	traces.mu.Lock()
	said := map[string]string{"spans": traces.text.String(), "logs": s.logs.text.String()}
	traces.mu.Unlock()
	key := strings.TrimPrefix(s.keys.Reveal(), "k1:")
	for where, text := range said {
		for _, planted := range []string{"PLANTED", refresh, key, "Zoho-oauthtoken", "1000."} {
			if planted == "1000." && where == "logs" {
				continue // the client id may be told
			}
			if strings.Contains(text, planted) {
				t.Errorf("%s is in the %s", planted, where)
			}
		}
	}
	if response, err := envelope.DecodeResponse(reply.Data); err != nil || response.Status != 201 {
		t.Errorf("the traced request was answered %s, %v", reply.Data, err)
	}
}
