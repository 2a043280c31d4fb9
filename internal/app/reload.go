package app

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// FollowHangups reads the configuration again at every SIGHUP, until ctx ends,
// and sets what may change while the worker runs: the log level. Limits and
// statuses of connections need no signal: they are records in JetStream that all
// workers watch. A configuration with a fault changes nothing.
func FollowHangups(ctx context.Context, c Config, level *slog.LevelVar, logger *slog.Logger) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				c = c.reloaded(level, logger)
			}
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
	level.Set(Level(fresh.LogLevel))
	logger.Info("configuration read again", "log_level", fresh.LogLevel, "log_level_from", fresh.Origin("log-level"))
	if len(waiting) > 0 {
		logger.Warn("some settings change with a restart only", "settings", waiting)
	}
	c.LogLevel = fresh.LogLevel
	return c
}
