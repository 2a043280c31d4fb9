package app

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// lookAtFile is the time between two looks at the configuration file.
const lookAtFile = 2 * time.Second

// FollowChanges reads the configuration again when its file changes and at every
// SIGHUP, until ctx ends, and sets what may change while the worker runs: the log
// level. The file is looked at because a container without a shell can't be sent
// a signal from within, and Kubernetes changes a mounted file by itself. Limits and
// statuses of connections need neither: they are records in JetStream that all
// workers watch. A configuration with a fault changes nothing.
func FollowChanges(ctx context.Context, c Config, level *slog.LevelVar, logger *slog.Logger) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	content := func() []byte {
		if c.File == "" {
			return nil
		}
		data, _ := os.ReadFile(c.File) // one that is away for a moment has not changed
		return data
	}
	last := content()
	go func() {
		defer signal.Stop(hangups)
		look := time.NewTicker(lookAtFile)
		defer look.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
			case <-look.C:
				if now := content(); now == nil || bytes.Equal(now, last) {
					continue
				}
			}
			last = content()
			c = c.reloaded(level, logger)
		}
	}()
}

// reloaded is c with the log level as it is configured now.
func (c Config) reloaded(level *slog.LevelVar, logger *slog.Logger) Config {
	fresh, err := c.Reload(os.LookupEnv)
	if err != nil {
		logger.Error("configuration not taken: it has faults", "err", err)
		return c
	}
	var waiting []string
	for _, name := range c.Changed(fresh) {
		if name != "log-level" {
			waiting = append(waiting, name)
		}
	}
	// Seen by who reads at the level of before, or of now.
	seen := max(slog.LevelInfo, level.Level(), Level(fresh.LogLevel))
	level.Set(min(level.Level(), Level(fresh.LogLevel)))
	logger.Log(context.Background(), seen, "configuration read again", "log_level", fresh.LogLevel, "log_level_from", fresh.Origin("log-level"))
	if len(waiting) > 0 {
		logger.Warn("some settings change with a restart only", "settings", waiting)
	}
	level.Set(Level(fresh.LogLevel))
	c.LogLevel = fresh.LogLevel
	return c
}
