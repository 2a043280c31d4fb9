package consumer

import (
	"context"
	"encoding/json"
)

// event tells whoever listens at zoho.events.<connection>. Nothing depends on
// it, so it is not retried.
func (c *Consumer) event(ctx context.Context, name, event string, more map[string]any) {
	more["event"], more["connection"], more["at"] = event, name, c.Clock.Now().UTC()
	data, err := json.Marshal(more)
	if err == nil {
		_, err = c.JetStream.Publish(ctx, "zoho.events."+name, data)
	}
	if err != nil {
		c.Logger.Warn("event not published", "event", event, "connection", name, "err", err)
	}
}
