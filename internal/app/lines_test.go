package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// several are attributes that stand in one.
type several []slog.Attr

func (s several) LogValue() slog.Value { return slog.GroupValue(s...) }

func (s several) EachAttr(do func(slog.Attr) bool) {
	for _, a := range s {
		if !do(a) {
			return
		}
	}
}

// What lines writes is byte for byte what slog writes.
func TestLinesAreSlogs(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		attrs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) slog.Attr {
			key := rapid.SampledFrom([]string{"id", "took_ms", "", "ü", "a b", `q"`}).Draw(t, "key")
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0:
				return slog.Float64(key, rapid.OneOf(rapid.Float64(), rapid.Float64Range(0, 1e5), rapid.SampledFrom([]float64{0, 1e-6, 1e21, math.Copysign(0, -1)})).
					Filter(func(f float64) bool { return !math.IsInf(f, 0) && !math.IsNaN(f) }).Draw(t, "float"))
			case 1:
				return slog.Int64(key, rapid.Int64().Draw(t, "int"))
			case 2:
				return slog.Bool(key, rapid.Bool().Draw(t, "bool"))
			case 3:
				return slog.Duration(key, time.Duration(rapid.Int64().Draw(t, "duration")))
			case 4:
				return slog.Any(key, errors.New("broken"))
			case 5:
				return slog.Group(key, slog.Int("x", 1))
			case 6:
				return slog.Uint64(key, rapid.Uint64().Draw(t, "uint"))
			case 7:
				return slog.Time(key, time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "time"), 0))
			case 8:
				return slog.Any(key, several{slog.String("a", rapid.String().Draw(t, "string")), slog.Int("b", 1)})
			}
			return slog.String(key, rapid.String().Draw(t, "string"))
		}), 0, 8).Draw(t, "attrs")
		var ours, theirs bytes.Buffer
		mine, plain := slog.Handler(newLines(&ours, slog.LevelInfo)), slog.Handler(slog.NewJSONHandler(&theirs, nil))
		of := rapid.IntRange(0, len(attrs)).Draw(t, "of the logger")
		if of > 0 {
			mine, plain = mine.WithAttrs(attrs[:of]), plain.WithAttrs(attrs[:of])
		}
		if rapid.Bool().Draw(t, "group") {
			mine, plain = mine.WithGroup("g"), plain.WithGroup("g")
		}
		r := slog.NewRecord(time.Unix(1_800_000_000, rapid.Int64Range(0, 999_999_999).Draw(t, "nanoseconds")), slog.LevelWarn, rapid.String().Draw(t, "message"), 0)
		r.AddAttrs(attrs[of:]...)
		if err := errors.Join(mine.Handle(t.Context(), r), plain.Handle(t.Context(), r)); err != nil {
			t.Fatal(err)
		}
		if ours.String() != theirs.String() {
			t.Fatalf("\n%s%s", ours.String(), theirs.String())
		}
	})
}

// Lines keep their order, whether they are written together or at once, and what
// waits is there after Flush.
func TestLinesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var out bytes.Buffer
		logger := LoggerAt(&out, slog.LevelInfo, "json")
		var want []string
		for range rapid.IntRange(0, 40).Draw(t, "lines") {
			message := rapid.SampledFrom([]string{"plain", "a \"quoted\" one", strings.Repeat("long", gatherMost/8)}).Draw(t, "message")
			level := rapid.SampledFrom([]slog.Level{slog.LevelInfo, slog.LevelWarn}).Draw(t, "level")
			logger.Log(t.Context(), level, message)
			want = append(want, level.String()+" "+message)
		}
		Flush(logger)
		var got []string
		for d := json.NewDecoder(&out); d.More(); {
			var line struct{ Level, Msg string }
			if err := d.Decode(&line); err != nil {
				t.Fatal(err)
			}
			got = append(got, line.Level+" "+line.Msg)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%q\ninstead of\n%q", got, want)
		}
	})
}

// A line that may wait is written although nobody asks for it.
func TestLinesAreWrittenSoon(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	defer r.Close()
	logger := LoggerAt(w, slog.LevelInfo, "json")
	for range 3 {
		logger.Info("settled")
		var line struct{ Msg string }
		if err := json.NewDecoder(r).Decode(&line); err != nil || line.Msg != "settled" {
			t.Fatalf("%+v, %v", line, err)
		}
	}
}

func BenchmarkWideLine(b *testing.B) {
	for name, handler := range map[string]slog.Handler{
		"slog": newLines(io.Discard, slog.LevelInfo).slow, "lines": newLines(io.Discard, slog.LevelInfo),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := slog.NewRecord(time.Now(), slog.LevelInfo, "request settled", 0)
				r.AddAttrs(slog.Any("", several{
					slog.String("connection", "acme"), slog.String("queue", "org-us-production-1000"), slog.String("method", "GET"),
					slog.String("operation", "records.list"), slog.String("id", "01J9ZC6W3Y4V8QK2M5T7R1XAPB"), slog.Int("attempts", 1),
					slog.String("outcome", "answered"), slog.String("code", ""), slog.Int("status", 200),
					slog.Float64("waited_ms", 0.253), slog.Float64("took_ms", 120.529),
				}))
				_ = handler.Handle(b.Context(), r)
			}
		})
	}
}
