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
	// together says that lines below a warning may wait for a moment.
	together bool
}

// oneWriter has whole lines written one after the other. Those that may wait are
// written together with what comes within gatherFor: a system call costs as much
// as all the rest of a line. They are lost where the process is killed meanwhile.
type oneWriter struct {
	mu      sync.Mutex
	w       io.Writer
	waiting []byte
	timer   *time.Timer
}

// Bounds of what waits: for how long, and how much.
const (
	gatherFor  = time.Millisecond
	gatherMost = 32 << 10
)

// Write writes p at once, behind what waits.
func (o *oneWriter) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.flush(); err != nil {
		return 0, err
	}
	return o.w.Write(p)
}

// gather writes p soon.
func (o *oneWriter) gather(p []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	first := len(o.waiting) == 0
	o.waiting = append(o.waiting, p...)
	switch {
	case len(o.waiting) >= gatherMost:
		return o.flush()
	case first && o.timer == nil:
		o.timer = time.AfterFunc(gatherFor, o.Flush)
	case first:
		o.timer.Reset(gatherFor)
	}
	return nil
}

// Flush writes what waits.
func (o *oneWriter) Flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.flush() // a log that can't be written has nobody to tell
}

// flush is Flush with the lock held.
func (o *oneWriter) flush() error {
	if len(o.waiting) == 0 {
		return nil
	}
	_, err := o.w.Write(o.waiting)
	o.waiting = o.waiting[:0]
	return err
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

// line is one line while it is written.
type line struct {
	text  []byte
	plain bool // up to here
	add   func(slog.Attr) bool
}

// lineBuffers hold the memory of lines.
var lineBuffers = sync.Pool{New: func() any {
	l := &line{text: make([]byte, 0, 1<<10)}
	l.add = func(a slog.Attr) bool {
		if a.Key == "" && a.Value.Kind() == slog.KindLogValuer {
			if many, ok := a.Value.Any().(attributes); ok {
				many.EachAttr(l.add)
				return l.plain
			}
		}
		l.text, l.plain = appendAttr(l.text, a)
		return l.plain
	}
	return l
}}

// attributes are an attribute without a key that stands for several.
type attributes interface {
	slog.LogValuer
	// EachAttr calls do with each, until it returns false.
	EachAttr(do func(slog.Attr) bool)
}

// Handle implements slog.Handler.
func (l *lines) Handle(ctx context.Context, r slog.Record) error {
	if !l.plain || r.Time.IsZero() {
		return l.slow.Handle(ctx, r)
	}
	b := lineBuffers.Get().(*line)
	defer lineBuffers.Put(b)
	b.text = append(b.text[:0], `{"time":"`...)
	b.text = r.Time.AppendFormat(b.text, time.RFC3339Nano)
	b.text = append(b.text, `","level":"`...)
	b.text = append(b.text, r.Level.String()...)
	b.text = append(b.text, `","msg":`...)
	b.text, b.plain = appendPlain(b.text, r.Message)
	b.text = append(b.text, l.attrs...)
	if b.plain {
		r.Attrs(b.add)
	}
	if !b.plain {
		return l.slow.Handle(ctx, r)
	}
	b.text = append(b.text, "}\n"...)
	if l.together && r.Level < slog.LevelWarn {
		return l.out.gather(b.text)
	}
	_, err := l.out.Write(b.text)
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
