package trace

import (
	"context"
	"log/slog"
	"testing"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	api "go.opentelemetry.io/otel/trace"
)

// Off, all of a request's spans together allocate nothing.
func TestOffCostsNothing(t *testing.T) {
	var off *Tracer
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	header := nats.Header{"traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	request := func() {
		ctx, receive := off.Receive(ctx, header, "acme")
		for _, name := range []string{"claim", "token", "refresh", "attempt", "respond"} {
			ctx, span := Begin(ctx, name)
			_, call := BeginCall(Carry(ctx, ctx), name)
			span.String("method", "GET")
			call.Int("status", 200)
			call.Fail("x")
			call.End()
			span.End()
		}
		if Inject(ctx, nil) != nil {
			t.Fatal("a header without a trace")
		}
		receive.End()
	}
	if n := testing.AllocsPerRun(1000, request); n != 0 {
		t.Fatalf("%v allocations a request", n)
	}
}

func BenchmarkOff(b *testing.B) {
	var off *Tracer
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		ctx, receive := off.Receive(ctx, nil, "acme")
		for range 5 {
			_, span := Begin(ctx, "step")
			span.Int("status", 200)
			span.End()
		}
		_ = Inject(ctx, nil)
		receive.End()
	}
}

func TestWanted(t *testing.T) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"} {
		t.Setenv(name, "")
	}
	if tracer, err := Start(t.Context(), "1", slog.Default()); tracer != nil || err != nil {
		t.Fatalf("%v, %v without an endpoint", tracer, err)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces")
	if !Wanted() {
		t.Error("off with an endpoint")
	}
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	if Wanted() {
		t.Error("on without an exporter")
	}
	t.Setenv("OTEL_TRACES_EXPORTER", "otlp")
	t.Setenv("OTEL_SDK_DISABLED", "true")
	if Wanted() {
		t.Error("on though it is disabled")
	}
}

// All spans of a request are of one trace, also those of work that outlives it, and say
// what they are and what failed.
func TestSpans(t *testing.T) {
	t.Parallel()
	recorder := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder))
	tracer := &Tracer{provider: provider, tracer: provider.Tracer(scope)}
	ctx, request := tracer.Receive(t.Context(), nil, "acme")
	_, claim := Begin(ctx, "claim")
	claim.End()
	_, refresh := BeginCall(Carry(ctx, context.Background()), "refresh")
	request.End()
	refresh.Fail("no token")
	refresh.End()
	kinds := map[string]api.SpanKind{"receive": api.SpanKindConsumer, "claim": api.SpanKindInternal, "refresh": api.SpanKindClient}
	ended := recorder.Ended()
	for _, span := range ended {
		if span.SpanKind() != kinds[span.Name()] || span.SpanContext().TraceID() != ended[0].SpanContext().TraceID() {
			t.Errorf("%s is %s of trace %s", span.Name(), span.SpanKind(), span.SpanContext().TraceID())
		}
		if failed := span.Status().Code == codes.Error; failed != (span.Name() == "refresh") {
			t.Errorf("%s: %+v", span.Name(), span.Status())
		}
	}
	if len(ended) != len(kinds) {
		t.Errorf("%d spans, want %d", len(ended), len(kinds))
	}
}

// The context of a request comes in and goes out, in lower case.
func TestContext(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	tracer, err := Start(t.Context(), "1", slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		tracer.Stop(over)
	}()
	const id = "0af7651916cd43dd8448eb211c80319c"
	for _, name := range []string{"traceparent", "Traceparent"} {
		ctx, span := tracer.Receive(t.Context(), nats.Header{name: {"00-" + id + "-b7ad6b7169203331-01"}, "tracestate": {"a=b"}}, "acme")
		inner, child := Begin(ctx, "claim")
		out := Inject(inner, nil)
		if got := out["traceparent"]; len(got) != 1 || got[0][3:35] != id || !child.On() || out["tracestate"][0] != "a=b" {
			t.Fatalf("%s: headers %v", name, out)
		}
		child.End()
		span.End()
	}
	if _, span := tracer.Receive(t.Context(), nats.Header{"traceparent": {"nonsense"}}, "acme"); !span.On() {
		t.Fatal("no trace of its own where the caller's is nonsense")
	}
}
