// Package event tells the world what happened to a connection: on
// zoho.events.<connection>, and from there, where one is configured, to a
// webhook.
//
// Nothing in the worker depends on an event. Invariants: an event holds no
// secret; the webhook is driven by a durable consumer, so one worker sends each
// event, and one that dies while sending leaves it to another; a receiver may
// see an event twice, by the same Zoho-Event-Id.
package event

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
)

// StreamName is the stream of events.
const StreamName = "ZOHO_EVENTS"

const subjectPrefix = "zoho.events."

// Event is an event as it is published.
type Event struct {
	Event      string    `json:"event"`
	Connection string    `json:"connection"`
	At         time.Time `json:"at"`
	Nickname   string    `json:"nickname,omitempty"`
	Org        string    `json:"org,omitempty"`
	User       string    `json:"user,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	// ReauthorizeURL is where a person puts a revoked connection right.
	ReauthorizeURL string `json:"reauthorize_url,omitempty"`
	// Queue is the org's that is paused or goes on: until when, for which answer of
	// Zoho's, and for which limit that was taken.
	Queue string    `json:"queue,omitempty"`
	Until time.Time `json:"until,omitzero"`
	Cause string    `json:"cause,omitempty"`
	For   string    `json:"for,omitempty"`
}

// Send publishes an event. Nothing depends on it, so it is not retried.
func Send(ctx context.Context, js jetstream.JetStream, e Event, options ...jetstream.PublishOpt) error {
	data, err := json.Marshal(e)
	if err == nil {
		_, err = js.Publish(ctx, subjectPrefix+e.Connection, data, options...)
	}
	return err
}

// Publisher publishes events.
type Publisher struct {
	JS          jetstream.JetStream
	Connections *connection.Store
	// PublicURL is the console's, empty where there is none.
	PublicURL string
	Logger    *slog.Logger
}

// Publish sends an event of the connection, with who it is. It tries for five seconds.
func (p *Publisher) Publish(name, event string) {
	e := Event{Event: event, Connection: name, At: time.Now().UTC()}
	var options []jetstream.PublishOpt
	if c, ok := p.Connections.Get(name); ok {
		e.Nickname, e.Org, e.User = c.Nickname, c.OrgName, c.UserName
		if event == "revoked" {
			e.Reason = c.StatusReason
			if p.PublicURL != "" {
				e.ReauthorizeURL = strings.TrimSuffix(p.PublicURL, "/") + "/connections/" + name + "/reauthorize"
			}
			// Whoever tells of the same grant's end says the same.
			options = append(options, jetstream.WithMsgID(fmt.Sprintf("revoked.%s.%d.%d", name, c.CreatedAt.UnixMilli(), c.Grant)))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := Send(ctx, p.JS, e, options...); err != nil {
		p.Logger.Warn("event not published", "event", event, "connection", name, "err", err)
	}
}

// Watch publishes "revoked" for every connection that is seen to become so, so
// that the worker that found it out may die in between: the stream keeps one.
func (p *Publisher) Watch() (cancel func()) {
	return p.Connections.Subscribe(func(c *connection.Connection) {
		// A record that is replayed at start or after a failure is no news.
		if c.Status == connection.Revoked && time.Since(c.RevokedAt) < time.Minute {
			go p.Publish(c.Name, "revoked")
		}
	})
}
