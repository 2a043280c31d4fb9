//go:build !production

package main

import (
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/inspect"
	"zoho-worker/internal/secret"
)

// bare is a shell on a nats-server that no worker has run against.
func bare(t *testing.T, options server.Options) *shell {
	t.Helper()
	ns := natstest.Run(t, &options)
	s := newShell(t)
	s.box.NATSURL = ns.ClientURL()
	return s
}

// looks are commands that need JetStream.
var looks = []string{
	"call acme GET /v8/Leads", "status", "why acme x", "queues pause acme 1m", "queues resume acme", "dead list", "dead drop --all",
	"connections list", "connections show acme", "connections limit acme 5", "connections add acme --refresh-token x",
}

// does runs a command line; the keys are for those that take them.
func (s *shell) does(line string) (out, errs string, err error) {
	args := strings.Fields(line)
	if args[0] == "connections" {
		args = append(args, "--encryption-keys", secret.Generate().Reveal())
	}
	return s.command(args...)
}

// That JetStream is off is told by every command, and what to do.
func TestJetStreamIsOff(t *testing.T) {
	t.Parallel()
	s := bare(t, server.Options{})
	for _, line := range looks {
		if _, _, err := s.does(line); err == nil || !strings.Contains(err.Error(), "JetStream is off at this NATS server, or for this account: switch it on") {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// What NATS refuses is named: without that a command sees a wait that is over.
func TestSubjectIsRefused(t *testing.T) {
	t.Parallel()
	s := bare(t, server.Options{JetStream: true, Users: []*server.User{{Username: "u", Password: "p", Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Allow: []string{"$JS.API.INFO"}},
	}}}})
	s.box.NATSURL = strings.Replace(s.box.NATSURL, "nats://", "nats://u:p@", 1)
	for line, subject := range map[string]string{
		"call acme GET /v8/Leads": "zoho.requests.acme",
		"dead list":               "$JS.API.STREAM.INFO.ZOHO_DEAD",
		"connections list":        "$JS.API.STREAM.INFO.ZOHO_CONNECTIONS",
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			if _, _, err := s.does(line); err == nil || !strings.Contains(err.Error(), "NATS does not let this user publish to "+subject+": ") {
				t.Error(err)
			}
		})
	}
}

// Who looks, and who changes what is not there, makes no stream; who adds, makes all.
func TestLooksMakeNothing(t *testing.T) {
	t.Parallel()
	s := bare(t, server.Options{JetStream: true})
	_, js := s.jetstream()
	for _, line := range append(looks[:len(looks)-1:len(looks)-1], "connections list --json", "connections reseal", "connections remove acme") {
		_, _, err := s.does(line)
		if quiet := strings.HasPrefix(line, "connections list") || line == "status"; quiet != (err == nil) {
			t.Errorf("%s: %v", line, err)
		}
		for info := range js.ListStreams(t.Context()).Info() {
			t.Fatalf("%s made the stream %s", line, info.Config.Name)
		}
	}
	if out, _, err := s.does("connections list --json"); err != nil || strings.TrimSpace(out) != "[]" {
		t.Errorf("%q, %v", out, err)
	}
	if _, _, err := s.does(looks[len(looks)-1]); err != nil {
		t.Fatal(err)
	}
	made := 0
	for range js.ListStreams(t.Context()).Info() {
		made++
	}
	if made != len(inspect.Streams()) {
		t.Errorf("%d streams were made, and a worker needs %d", made, len(inspect.Streams()))
	}
}
