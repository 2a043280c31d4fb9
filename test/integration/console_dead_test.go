package integration

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/dead"
)

// bury puts a dead letter onto the stream, as the consumer would.
func (r *rig) bury(connection, code, reason string, data []byte, header ...string) uint64 {
	r.t.Helper()
	msg := &nats.Msg{Subject: "zoho.dead." + connection, Data: data, Header: nats.Header{
		dead.CodeHeader: {code}, dead.ReasonHeader: {reason}, dead.SubjectHeader: {"zoho.requests." + connection},
		dead.ReceivedHeader: {"2026-03-04T05:06:07Z"},
	}}
	for i := 0; i+1 < len(header); i += 2 {
		msg.Header.Add(header[i], header[i+1])
	}
	ack, err := r.js.PublishMsg(r.t.Context(), msg)
	if err != nil {
		r.t.Fatal(err)
	}
	return ack.Sequence
}

// deadLeft is the number of dead letters.
func (r *rig) deadLeft() uint64 {
	r.t.Helper()
	stream, err := r.js.Stream(r.t.Context(), consumer.DeadStream)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := stream.Info(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return info.State.Msgs
}

// The list, its filters and its pages; one letter, whole; and what is no letter.
func TestConsoleDeadLetters(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.get("/dead").want(t, 200, "No dead letters", "Every request could be answered")
	first := c.bury("acme", "invalid_request", "no id", []byte(`{"method":"GET","note":"<script>alert(1)</script>"}`),
		"X-Trace", "<b>abc</b>", "traceparent", "00-1", dead.LifeHeader, "2026-03-04T05:06:08Z in hand of worker <i>h</i> (pid 7), delivery 3",
		dead.LifeHeader, "2026-03-04T05:06:09Z sent to Zoho, which answered 503", dead.HistoryHeader, "2026-03-01T00:00:00Z replayed", dead.HistoryHeader, "nonsense")
	c.bury("globex", "id_conflict", "the id was answered", []byte("\xff\x00 no text"))
	for i := range 60 {
		c.bury("many", "invalid_request", fmt.Sprint("reason ", i), []byte("no JSON"))
	}
	list := p.get("/dead").want(t, 200, "acme", "globex", "no id", "Next page", "reason 40")
	if strings.Contains(text(list.body), "reason 50") {
		t.Error("the first page has more than 50 letters")
	}
	p.get(fmt.Sprintf("/dead?after=%d", first+49)).want(t, 200, "reason 50", "First page")
	for query, want := range map[string][2]string{
		"connection=globex":                  {"the id was answered", "no id"},
		"code=invalid_request":               {"no id", "the id was answered"},
		"connection=acme&code=id_conflict":   {"No dead letter fits the filter", "no id"},
		"connection=not+a+name":              {"No dead letter fits the filter", "no id"},
		"connection=%3E":                     {"No dead letter fits the filter", "no id"},
		"age=1h":                             {"No dead letter fits the filter", "no id"},
		"age=nonsense&connection=acme&x=":    {"no id", "the id was answered"},
		"connection=globex&age=&code=&x=%00": {"the id was answered", "no id"},
	} {
		got := p.get("/dead?"+query).want(t, 200, want[0])
		if strings.Contains(text(got.body), want[1]) {
			t.Errorf("%s: shows %q", query, want[1])
		}
	}
	one := p.get(fmt.Sprint("/dead/", first)).want(t, 200, "no id", "invalid_request", "zoho.requests.acme", "no such connection now",
		"X-Trace", "<b>abc</b>", "traceparent", `"method": "GET"`, "<script>alert(1)</script>", "published to zoho.requests.acme", "in hand of worker <i>h</i> (pid 7), delivery 3",
		"sent to Zoho, which answered 503", "set aside as dead letter", "replayed", "4 Mar 2026, 05:06:07 UTC")
	if strings.Contains(one.body, "<script>alert") || strings.Contains(one.body, "<b>abc") || strings.Contains(one.body, "<i>h") {
		t.Error("a letter's content is markup")
	}
	if strings.Contains(text(one.body), dead.CodeHeader) {
		t.Error("our own headers are shown as the request's")
	}
	p.get(fmt.Sprint("/dead/", first+1)).want(t, 200, "not text", `\xff\x00 no text`)
	for _, none := range []string{"999999", "0", "-1", "x"} {
		p.get("/dead/"+none).want(t, 404, "There is no such dead letter")
		p.get("/dead/drop?number="+none).want(t, 404, "There is no such dead letter")
	}
}

// One letter or all that a filter picks are replayed and dropped after a
// confirmation, and only those that were confirmed.
func TestConsoleDeadReplayAndDrop(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.connect("Acme", ada)
	request := func(id string) []byte {
		return []byte(`{"id":"` + id + `","method":"POST","url":"/v8/Leads","body":{"data":[{"Last_Name":"` + id + `"}]}}`)
	}
	one := c.bury("acme", "id_conflict", "in the way", request("dead-1"), "X-Kept", "yes")
	page := fmt.Sprintf("/dead/replay?number=%d", one)
	p.get(page).want(t, 200, "published again as it came")
	got := p.submit(page, "/dead/replay", "number", fmt.Sprint(one))
	p.follow(got).want(t, 200, "1 dead letter replayed", "No dead letters")
	wantStatus(t, c.await("acme", "dead-1"), 201)
	if n := c.executed()["dead-1"]; n != 1 {
		t.Errorf("executed %d times", n)
	}
	// A letter that is gone can't be replayed a second time.
	p.raw("/dead/replay", url.Values{"number": {fmt.Sprint(one)}}, nil).want(t, 403) // no token
	p.submit("/connect", "/dead/replay", "number", fmt.Sprint(one)).want(t, 404, "There is no such dead letter")

	for i := range 3 {
		c.bury("acme", "id_conflict", "in the way", request(fmt.Sprint("bulk-", i)))
	}
	other := c.bury("globex", "invalid_request", "no id", []byte("no JSON"))
	form := p.get("/dead/drop?connection=acme").want(t, 200, "Drop 3 dead letters?", "deleted for good", "in the way")
	late := c.bury("acme", "id_conflict", "came later", request("late"))
	values := url.Values{}
	for _, name := range []string{"form", "connection", "code", "age", "before", "until"} {
		values.Set(name, inputOf(form.body, name))
	}
	p.follow(p.raw("/dead/drop", values, nil)).want(t, 200, "3 dead letters dropped", "came later")
	if n := c.deadLeft(); n != 2 {
		t.Errorf("%d letters are left", n)
	}
	p.follow(p.submit("/dead/replay?code=id_conflict", "/dead/replay", "code", "id_conflict", "until", fmt.Sprint(late))).want(t, 200, "1 dead letter replayed")
	wantStatus(t, c.await("acme", "late"), 201)
	if e := c.executed(); e["bulk-0"] != 0 {
		t.Errorf("executed %v", e)
	}
	p.follow(p.submit(fmt.Sprintf("/dead/drop?number=%d", other), "/dead/drop", "number", fmt.Sprint(other))).want(t, 200, "1 dead letter dropped", "No dead letters")
	p.get("/dead/drop").want(t, 200, "Nothing to drop")
	if n := c.deadLeft(); n != 0 {
		t.Errorf("%d letters are left", n)
	}
}

func inputOf(body, name string) string {
	_, rest, _ := strings.Cut(body, `name="`+name+`" value="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// What can't be replayed says why and stays; nobody without a sign-in or a form's
// token sees or changes anything.
func TestConsoleDeadRefuses(t *testing.T) {
	t.Parallel()
	c := newConsole(t, basic(t))
	stranger, p := c.person(), c.person()
	p.user = url.UserPassword("ops", "right")
	ack, err := c.js.PublishMsg(t.Context(), &nats.Msg{Subject: "zoho.dead.acme", Data: []byte("x"), Header: nats.Header{dead.CodeHeader: {"internal"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/dead", fmt.Sprint("/dead/", ack.Sequence), "/dead/replay", "/dead/drop", fmt.Sprintf("/dead/drop?number=%d", ack.Sequence)} {
		stranger.get(path).want(t, http.StatusUnauthorized)
		p.get(path).want(t, 200)
	}
	for _, path := range []string{"/dead/replay", "/dead/drop"} {
		stranger.raw(path, url.Values{}, nil).want(t, http.StatusUnauthorized)
		p.raw(path, url.Values{}, nil).want(t, http.StatusForbidden, "no longer good")
		p.raw(path, url.Values{}, http.Header{"Sec-Fetch-Site": {"cross-site"}}).want(t, http.StatusForbidden, "another site")
	}
	p.get(fmt.Sprint("/dead/", ack.Sequence)).want(t, 200, "not known")
	p.get("/dead/4711").want(t, http.StatusNotFound, "There is no such dead letter", "letter_gone", "Back to the dead letters")
	p.submit("/dead/replay", "/dead/replay").want(t, http.StatusBadGateway, "0 of 1 dead letter replayed", "can only be dropped")
	if n := c.deadLeft(); n != 1 {
		t.Errorf("%d letters are left", n)
	}
}
