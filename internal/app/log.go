package app

import (
	"io"
	"log/slog"
	"os"
	"regexp"

	"github.com/lmittmann/tint"
	"golang.org/x/term"
)

// Logger writes to w: lines for people on a terminal, JSON for machines elsewhere.
func Logger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo // Validate has said so
	}
	file, isFile := w.(*os.File)
	terminal := isFile && term.IsTerminal(int(file.Fd()))
	if format == "json" || format != "text" && !terminal {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l}))
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
