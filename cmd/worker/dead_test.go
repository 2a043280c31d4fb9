//go:build !production

package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/dead"
	"zoho-worker/internal/envelope"
)

// bury has the stream hold a dead letter of a request, as a worker leaves it.
func bury(t *testing.T, js jetstream.JetStream, connection, code, data string) uint64 {
	t.Helper()
	ack, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: "zoho.dead." + connection, Data: []byte(data), Header: nats.Header{
		dead.CodeHeader: {code}, dead.ReasonHeader: {"id: in the way"}, dead.SubjectHeader: {"zoho.requests." + connection},
		dead.ReceivedHeader: {"2026-03-04T05:06:07Z"}, "X-Own": {"kept"},
		dead.LifeHeader: {"2026-03-04T05:06:08Z in hand of worker h (pid 7), delivery 3", "2026-03-04T05:06:09Z sent to Zoho, which answered 503"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return ack.Sequence
}

func (s *shell) left(js jetstream.JetStream) uint64 {
	s.t.Helper()
	stream, err := js.Stream(s.t.Context(), dead.StreamName)
	if err != nil {
		s.t.Fatal(err)
	}
	return stream.CachedInfo().State.Msgs
}

// answered waits for the stored response to a request of demo.
func (s *shell) answered(js jetstream.JetStream, id string) (status int) {
	s.t.Helper()
	watch, err := js.OrderedConsumer(s.t.Context(), consumer.ResponseStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{consumer.ResponseSubject("demo", id)}})
	if err != nil {
		s.t.Fatal(err)
	}
	msg, err := watch.Next(jetstream.FetchMaxWait(time.Minute))
	if err != nil {
		s.t.Fatalf("no response to %s: %v", id, err)
	}
	response, err := envelope.DecodeResponse(msg.Data())
	if err != nil {
		s.t.Fatal(err)
	}
	return response.Status
}

// says runs a command that must work and say all of that; it returns what it said.
func (s *shell) says(args []string, says ...string) string {
	s.t.Helper()
	out, errs, err := s.command(args...)
	if err != nil {
		s.t.Fatalf("%v: %v\n%s%s", args, err, out, errs)
	}
	contains(s.t, out+errs, says...)
	return out + errs
}

// fails runs a command that must not work, and say why.
func (s *shell) fails(says string, args ...string) {
	s.t.Helper()
	if _, _, err := s.command(args...); err == nil || !strings.Contains(err.Error(), says) {
		s.t.Errorf("%v: %v, want %q", args, err, says)
	}
}

// Dead letters are listed, narrowed, shown whole with their history, sent again
// and dropped; a dry run changes nothing.
func TestDeadCommands(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.fails("no worker has run against it", "dead", "list")
	s.serve()
	_, js := s.jetstream()
	s.says([]string{"dead", "list"}, "no dead letters")
	// One that a worker sets aside.
	if _, err := js.Publish(t.Context(), "zoho.requests.demo", []byte("no JSON")); err != nil {
		t.Fatal(err)
	}
	for s.left(js) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	conflict := bury(t, js, "demo", "id_conflict", `{"id":"again","method":"POST","url":"/v8/Leads","body":{"data":[{"Last_Name":"Again"}]}}`)
	other := bury(t, js, "globex", "id_conflict", "\xff\x00")
	s.says([]string{"dead", "show", "1"}, "invalid_request: ", "published to zoho.requests.demo", "in hand of worker ", ", delivery 1", "set aside as dead letter 1, invalid_request", "\nno JSON\n")
	s.says([]string{"dead", "show", fmt.Sprint(conflict)}, "2026-03-04T05:06:07Z  published to zoho.requests.demo", "2026-03-04T05:06:08Z  in hand of worker h (pid 7), delivery 3",
		"2026-03-04T05:06:09Z  sent to Zoho, which answered 503", "X-Own: kept", `"id":"again"`)
	s.says([]string{"dead", "show", fmt.Sprint(other)}, `2 bytes, not text: "\xff\x00"`)
	s.fails("there is no dead letter 99: see `worker dead list`", "dead", "show", "99")
	s.fails("is no number of a dead letter", "dead", "show", "x")

	for args, want := range map[string][]string{
		"":                                       {"1", "2", "3"},
		"--connection demo":                      {"1", "2"},
		"--code id_conflict":                     {"2", "3"},
		"--code id_conflict --connection globex": {"3"},
		"--older-than 1h":                        {},
		"--older-than 1ns --code invalid_request": {"1"},
	} {
		var numbers []string
		for _, line := range strings.Split(s.says(append([]string{"dead", "list"}, strings.Fields(args)...)), "\n") {
			if number, _, _ := strings.Cut(line, " "); regexp.MustCompile(`^\d+$`).MatchString(number) {
				numbers = append(numbers, number)
			}
		}
		if strings.Join(numbers, " ") != strings.Join(want, " ") {
			t.Errorf("%q lists %v, want %v", args, numbers, want)
		}
	}
	s.says([]string{"dead", "list", "--connection", "nobody"}, "no dead letters that the filters pick")
	s.fails(`--code "nonsense": no such error code`, "dead", "list", "--code", "nonsense")
	s.fails(`--connection "*": the name of one connection`, "dead", "drop", "--all", "--connection", "*")
	s.fails("--rate -1: 0 (as fast as it goes) or more", "dead", "replay", "--all", "--rate", "-1")
	var letter dead.Letter
	if err := json.Unmarshal([]byte(s.says([]string{"dead", "list", "--connection", "globex", "--json"})), &letter); err != nil || string(letter.Data) != "\xff\x00" || letter.Sequence != other {
		t.Errorf("%v: %+v", err, letter)
	}

	evil := bury(t, js, "evil\x1b[2J", "id_conflict", "\x1b]0;gone\x07")
	if out := s.says([]string{"dead", "list"}, "evil") + s.says([]string{"dead", "drop", fmt.Sprint(evil), "--dry-run"}, "evil"); strings.Contains(out, "\x1b") {
		t.Errorf("a name does something to a terminal: %q", out)
	}
	s.says([]string{"dead", "drop", fmt.Sprint(evil)}, "1 dropped")
	s.fails("name the letters by number, or give --all", "dead", "replay")
	s.fails("name the letters by number, or give --all", "dead", "drop", "1", "--all")
	s.says([]string{"dead", "replay", "--all", "--connection", "demo", "--dry-run"}, "2  demo  id_conflict  id: in the way", "2 would be replayed")
	s.says([]string{"dead", "drop", fmt.Sprint(other), "--dry-run"}, "3  globex", "1 would be dropped")
	if n := s.left(js); n != 3 {
		t.Fatalf("%d letters are left after dry runs", n)
	}
	// Sent again, the request is carried out.
	s.says([]string{"dead", "replay", fmt.Sprint(conflict)}, "1 replayed")
	if status := s.answered(js, "again"); status != 201 {
		t.Errorf("replayed, it is answered %d", status)
	}
	s.fails("there is no dead letter 2", "dead", "replay", fmt.Sprint(conflict))
	s.says([]string{"dead", "drop", "--all", "--code", "id_conflict"}, "1 dropped")
	s.says([]string{"dead", "drop", "--all", "--older-than", "1h"}, "0 dropped")
	s.says([]string{"dead", "drop", "1"}, "1 dropped")
	if n := s.left(js); n != 0 {
		t.Errorf("%d letters are left", n)
	}
}

// Many letters are sent again at the rate that is asked for, with a bar that says
// how far it is, and each is carried out once.
func TestDeadReplayAtARate(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.serve()
	_, js := s.jetstream()
	const n, rate = 30, 40
	for i := range n {
		bury(t, js, "demo", "id_conflict", fmt.Sprintf(`{"id":"bulk-%d","method":"POST","url":"/v8/Leads","body":{"data":[{"Last_Name":"Bulk"}]}}`, i))
	}
	begun := time.Now()
	out := s.says([]string{"dead", "replay", "--all", "--connection", "demo", "--rate", fmt.Sprint(rate)}, "30 replayed")
	// No faster: the pauses between them alone take as long.
	if took := time.Since(begun); took < (n-1)*time.Second/rate {
		t.Errorf("%d letters in %s are more than %d a second", n, took, rate)
	}
	if !regexp.MustCompile(`\[#+\.+\] \d+ of 30 replayed`).MatchString(out) {
		t.Errorf("no bar: %s", out)
	}
	for i := range n {
		if status := s.answered(js, fmt.Sprint("bulk-", i)); status != 201 {
			t.Fatalf("bulk-%d is answered %d", i, status)
		}
	}
	inserted := 0
	for _, record := range s.box.Zoho.Records("770000001", "Leads") {
		if record["Last_Name"] == "Bulk" {
			inserted++
		}
	}
	if inserted != n || s.left(js) != 0 {
		t.Errorf("%d records of %d, %d letters left", inserted, n, s.left(js))
	}
}
