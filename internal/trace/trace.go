// Package trace follows a request across processes: W3C trace context comes
// with the NATS headers of a request and goes with those of its response, and
// spans go to an OTLP endpoint, by OpenTelemetry's standard variables.
//
// It is not for metrics or logs, and it decides nothing.
//
// Invariants: off, it costs a nil check and allocates nothing; what is on the
// wire to Zoho is the same, on or off; no attribute holds a token, a body, a
// header or a query string.
package trace

import (
	"context"
	"log/slog"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	api "go.opentelemetry.io/otel/trace"
)

// Tracer begins the spans of requests. A nil Tracer is off.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   api.Tracer
}

const scope = "zoho-worker"

// Wanted reports whether the environment asks for traces.
func Wanted() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || strings.EqualFold(os.Getenv("OTEL_TRACES_EXPORTER"), "none") {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
}

// Start returns a tracer that sends to the endpoint that the environment names,
// nil where it names none. An endpoint that is away costs spans, nothing else.
func Start(ctx context.Context, version string, logger *slog.Logger) (*Tracer, error) {
	if !Wanted() {
		return nil, nil
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { logger.Debug("traces", "err", err) }))
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	about, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", scope), attribute.String("service.version", version), attribute.String("host.name", host),
		attribute.Int("process.pid", os.Getpid()),
	), resource.WithFromEnv())
	if err != nil {
		return nil, err
	}
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
	return &Tracer{provider: provider, tracer: provider.Tracer(scope)}, nil
}

// Stop sends what is left, for as long as ctx lasts.
func (t *Tracer) Stop(ctx context.Context) {
	if t != nil {
		_ = t.provider.Shutdown(ctx)
	}
}

// Span is a stretch of work. The zero Span is none, and all of its methods do nothing.
type Span struct{ span api.Span }

// Receive begins the span of a delivery, in the trace that the headers name or
// in a new one.
func (t *Tracer) Receive(ctx context.Context, header nats.Header, connection string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	ctx = propagation.TraceContext{}.Extract(ctx, carrier(header))
	ctx, span := t.tracer.Start(ctx, "receive", api.WithSpanKind(api.SpanKindConsumer), api.WithAttributes(
		attribute.String("messaging.system", "nats"), attribute.String("zoho.connection", connection)))
	return ctx, Span{span}
}

// Begin begins a span within that of ctx; none where there is none.
func Begin(ctx context.Context, name string) (context.Context, Span) {
	parent := api.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, Span{}
	}
	return begin(ctx, parent, name, api.SpanKindInternal)
}

// BeginCall is Begin for what goes to another service.
func BeginCall(ctx context.Context, name string) (context.Context, Span) {
	parent := api.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, Span{}
	}
	return begin(ctx, parent, name, api.SpanKindClient)
}

func begin(ctx context.Context, parent api.Span, name string, kind api.SpanKind) (context.Context, Span) {
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name, api.WithSpanKind(kind))
	return ctx, Span{span}
}

// On reports whether the span is one.
func (s Span) On() bool { return s.span != nil }

// String sets an attribute.
func (s Span) String(key, value string) {
	if s.span != nil {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// Int sets an attribute.
func (s Span) Int(key string, value int) {
	if s.span != nil {
		s.span.SetAttributes(attribute.Int(key, value))
	}
}

// Fail marks the span as failed; what is a word of a closed list, not an error's text.
func (s Span) Fail(what string) {
	if s.span != nil {
		s.span.SetStatus(codes.Error, what)
	}
}

// End ends the span.
func (s Span) End() {
	if s.span != nil {
		s.span.End()
	}
}

// Carry returns to with the span of from, so that work that outlives from is
// seen in its trace.
func Carry(from, to context.Context) context.Context {
	span := api.SpanFromContext(from)
	if !span.IsRecording() {
		return to
	}
	return api.ContextWithSpan(to, span)
}

// Inject writes the span of ctx into the headers, which it makes where they are
// nil; without a span it leaves them as they are.
func Inject(ctx context.Context, header nats.Header) nats.Header {
	if !api.SpanFromContext(ctx).SpanContext().IsValid() {
		return header
	}
	if header == nil {
		header = nats.Header{}
	}
	propagation.TraceContext{}.Inject(ctx, carrier(header))
	return header
}

// carrier is trace context in NATS headers, whose names are case-sensitive: lower
// case is written, and what an HTTP library wrote (Traceparent) is understood.
type carrier nats.Header

// Get implements propagation.TextMapCarrier.
func (c carrier) Get(key string) string {
	for _, name := range []string{key, strings.ToUpper(key[:1]) + key[1:]} {
		if values := c[name]; len(values) > 0 {
			return values[0]
		}
	}
	return ""
}

// Set implements propagation.TextMapCarrier.
func (c carrier) Set(key, value string) { c[key] = []string{value} }

// Keys implements propagation.TextMapCarrier.
func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c))
	for key := range c {
		keys = append(keys, key)
	}
	return keys
}
