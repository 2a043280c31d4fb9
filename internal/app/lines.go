package app

import (
	"context"
	"io"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"
)

// lines writes the same JSON as slog's handler for records of plain values and
// plain text, as the wide line of each request is, for half of the time;
// slog sends each float through encoding/json. All others it leaves to slog.
type lines struct {
	slow  slog.Handler // writes through out, too
	out   *oneWriter
	attrs []byte // those of the logger, each behind a comma
	plain bool   // attrs hold all that the logger has
}

// oneWriter has whole lines written one after the other.
type oneWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *oneWriter) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(p)
}

func newLines(w io.Writer, level slog.Leveler) *lines {
	out := &oneWriter{w: w}
	return &lines{slow: slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level}), out: out, plain: true}
}

// Enabled implements slog.Handler.
func (l *lines) Enabled(ctx context.Context, level slog.Level) bool {
	return l.slow.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (l *lines) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *l
	with.slow, with.attrs = l.slow.WithAttrs(attrs), slices.Clip(l.attrs)
	for _, a := range attrs {
		var ok bool
		if with.attrs, ok = appendAttr(with.attrs, a); !ok {
			with.plain = false
		}
	}
	return &with
}

// WithGroup implements slog.Handler.
func (l *lines) WithGroup(name string) slog.Handler { return l.slow.WithGroup(name) }

var lineBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, 1<<10)
	return &b
}}

// Handle implements slog.Handler.
func (l *lines) Handle(ctx context.Context, r slog.Record) error {
	if !l.plain || r.Time.IsZero() {
		return l.slow.Handle(ctx, r)
	}
	buffer := lineBuffers.Get().(*[]byte)
	defer lineBuffers.Put(buffer)
	b := (*buffer)[:0]
	b = append(b, `{"time":"`...)
	b = r.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","level":"`...)
	b = append(b, r.Level.String()...)
	b = append(b, `","msg":`...)
	b, ok := appendPlain(b, r.Message)
	b = append(b, l.attrs...)
	if ok {
		r.Attrs(func(a slog.Attr) bool {
			b, ok = appendAttr(b, a)
			return ok
		})
	}
	*buffer = b
	if !ok {
		return l.slow.Handle(ctx, r)
	}
	b = append(b, "}\n"...)
	*buffer = b
	_, err := l.out.Write(b)
	return err
}

// appendAttr appends an attribute behind a comma; false where it isn't plain.
func appendAttr(b []byte, a slog.Attr) ([]byte, bool) {
	b, ok := appendPlain(append(b, ','), a.Key)
	if !ok || a.Key == "" {
		return b, false
	}
	b = append(b, ':')
	switch v := a.Value; v.Kind() {
	case slog.KindString:
		return appendPlain(b, v.String())
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10), true
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10), true
	case slog.KindDuration:
		return strconv.AppendInt(b, int64(v.Duration()), 10), true
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool()), true
	case slog.KindFloat64:
		// Beyond these JSON has an exponent, or no number at all.
		f := v.Float64()
		if size := math.Abs(f); size != 0 && (size < 1e-6 || size >= 1e21) || math.IsNaN(f) {
			return b, false
		}
		return strconv.AppendFloat(b, f, 'f', -1, 64), true
	}
	return b, false
}

// appendPlain appends s as a JSON string; false where something is to be escaped.
func appendPlain(b []byte, s string) ([]byte, bool) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return b, false
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"'), true
}
