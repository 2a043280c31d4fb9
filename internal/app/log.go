package app

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"regexp"
	"slices"

	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

// CheckLevel returns what is wrong with the name of a level; nil if nothing is.
func CheckLevel(name string) error {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, name) {
		return errors.New("must be debug, info, warn or error")
	}
	return nil
}

// Level is a level by its name; CheckLevel has said so where it is none.
func Level(name string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return slog.LevelInfo
	}
	return l
}

// Logger writes to w: lines for people on a terminal, JSON for machines elsewhere.
func Logger(w io.Writer, level, format string) *slog.Logger {
	return logger(w, Level(level), format, false)
}

// LoggerAt is Logger for a worker: with a level that may change, a *slog.LevelVar,
// and with lines for machines that may come a millisecond late, several in one
// piece, unless they are warnings. Flush is for its end.
func LoggerAt(w io.Writer, l slog.Leveler, format string) *slog.Logger {
	return logger(w, l, format, true)
}

func logger(w io.Writer, l slog.Leveler, format string, together bool) *slog.Logger {
	file, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(file.Fd()))
	if format == "json" || format != "text" && !terminal {
		handler := newLines(w, l)
		handler.together = together
		return slog.New(handler)
	}
	return slog.New(tint.NewTextHandler(w, &tint.Options{Level: l, NoColor: !terminal || os.Getenv("NO_COLOR") != "", TimeFormat: "15:04:05.000"}))
}

// Flush writes what a logger of LoggerAt has not written yet.
func Flush(logger *slog.Logger) {
	if l, ok := logger.Handler().(*lines); ok {
		l.out.Flush()
	}
}

var semverForm = regexp.MustCompile(`^v?(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?)`)

// semver is the version as NATS services want it.
func semver(version string) string {
	if m := semverForm.FindStringSubmatch(version); m != nil {
		return m[1]
	}
	return "0.0.0"
}
