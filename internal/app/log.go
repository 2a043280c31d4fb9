package app

import (
	"io"
	"log/slog"
	"os"
	"regexp"

	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

// Level is a level by its name; Validate has said so where it is none.
func Level(name string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return slog.LevelInfo
	}
	return l
}

// Logger writes to w: lines for people on a terminal, JSON for machines elsewhere.
func Logger(w io.Writer, level, format string) *slog.Logger { return LoggerAt(w, Level(level), format) }

// LoggerAt is Logger with a level that may change: a *slog.LevelVar.
func LoggerAt(w io.Writer, l slog.Leveler, format string) *slog.Logger {
	file, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(file.Fd()))
	if format == "json" || format != "text" && !terminal {
		return slog.New(newLines(w, l))
	}
	return slog.New(tint.NewTextHandler(w, &tint.Options{Level: l, NoColor: !terminal || os.Getenv("NO_COLOR") != "", TimeFormat: "15:04:05.000"}))
}

var semverForm = regexp.MustCompile(`^v?(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?)`)

// semver is the version as NATS services want it.
func semver(version string) string {
	if m := semverForm.FindStringSubmatch(version); m != nil {
		return m[1]
	}
	return "0.0.0"
}
