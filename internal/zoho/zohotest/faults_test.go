package zohotest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const lead = `{"data":[{"Last_Name":"A"}]}`

func TestFaultAnswers(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, c := range []struct {
		fault  Fault
		status int
		body   string // "" or the whole; with a leading ~ a part
	}{
		{TooManyRequests(CreditsExhausted), 429, "~24 hours"},
		{TooManyRequests(Concurrency), 429, `{"code":"TOO_MANY_REQUESTS","details":{},"message":"` + string(Concurrency) + `","status":"error"}`},
		{TooManyRequests(SubConcurrency), 429, "~sub-concurrency"},
		{TooManyRequestsRetry(Concurrency, time.Minute), 429, `~"retry_after":60`},
		{TooManyRequestsLegacy(CreditsExhausted), 429, `{"code":429,"error":"TOO_MANY_REQUESTS","error_info":"Many requests fired than the allowed limit for the past 24 hours.","details":[]}`},
		{InternalError(), 500, `{"code":"INTERNAL_ERROR","message":"Internal Server Error","status":"error","details":{}}`},
		{Maintenance(), 503, `{"code":"SERVICE_UNAVAILABLE","details":{},"message":"Service temporarily unavailable for maintenance","status":"error"}`},
		{HTMLError(502), 502, "~<h1>502 Bad Gateway</h1>"},
		{HTMLError(504), 504, "~504"},
		{HTMLError(400), 400, "~<html>"},
		{InvalidToken(), 401, "~INVALID_TOKEN"},
		{ScopeMismatch(), 401, "~OAUTH_SCOPE_MISMATCH"},
		{NoPermission(), 403, `{"code":"NO_PERMISSION","details":{"permissions":["Crm_Implied_Api_Access"]},"message":"permission denied","status":"error"}`},
		{AnswerWith("own", 418, "hot", "X-Tea", "yes"), 418, "hot"},
	} {
		before := len(b.Records(demoOrg, "Leads"))
		b.Inject(c.fault)
		r := b.call("POST", "/crm/v8/Leads", lead)
		part, is := strings.CutPrefix(c.body, "~")
		if r.status != c.status || !is && r.body != part || !strings.Contains(r.body, part) {
			t.Errorf("%s: %d %s", c.fault.Name, r.status, r.body)
		}
		if n := len(b.Records(demoOrg, "Leads")); n != before {
			t.Errorf("%s was applied", c.fault.Name)
		}
		b.Inject(c.fault.Applied())
		b.call("POST", "/crm/v8/Leads", lead)
		calls := b.Calls()
		last := calls[len(calls)-1]
		if n := len(b.Records(demoOrg, "Leads")); n != before+1 || !last.Applied || last.Status != c.status || last.Fault != c.fault.Name {
			t.Errorf("%s: not applied: %+v", c.fault.Name, last)
		}
	}
	if b.FaultsLeft() != 0 {
		t.Error(b.FaultsLeft(), "faults left")
	}
}

func TestFaultsMatchInOrder(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.AddOrg(Org{ID: "2"})
	b.AddUser(User{ID: "u2", OrgID: "2"})
	b.Inject(AnswerWith("other org", 501, "").ForOrg("2"))
	b.Inject(AnswerWith("second post", 502, "").On("POST", "/crm/v8/Leads").After(1))
	b.Inject(AnswerWith("pattern", 503, "").On("GET", "/crm/*/Deals"))
	b.Inject(AnswerWith("twice", 504, "").On("GET", "/crm/v8/Leads/").Repeat(2))
	b.Inject(AnswerWith("marked", 505, "").If(func(c Call) bool { return c.Header.Get("X-Mark") != "" }).Repeat(-1))
	for i, c := range []struct {
		method, path string
		want         int
	}{
		{"POST", "/crm/v8/Leads", 201},
		{"POST", "/crm/v8/Leads", 502},
		{"POST", "/crm/v8/Leads", 201},
		{"GET", "/crm/v8/Leads/1", 504},
		{"GET", "/crm/v7/Deals", 503},
		{"GET", "/crm/v8/Leads/1", 504},
		{"GET", "/crm/v8/Leads/1", 204},
	} {
		if r := b.call(c.method, c.path, lead); r.status != c.want {
			t.Errorf("%d: %d, want %d", i, r.status, c.want)
		}
	}
	for range 3 {
		if r := b.call("GET", "/crm/v8/org", "", "X-Mark", "1"); r.status != 505 {
			t.Error(r.status)
		}
	}
	b.access = b.AccessToken(b.GrantRefreshToken("u2"))
	if r := b.call("GET", "/crm/v8/org", ""); r.status != 501 {
		t.Error(r.status)
	}
	b.ClearFaults()
	if r := b.call("GET", "/crm/v8/org", "", "X-Mark", "1"); r.status != 200 {
		t.Error(r.status)
	}
	b.Inject(CutApplied(Reset)) // waits for a call that is let in
	if r := b.call("POST", "/crm/v8/Leads", lead, "Authorization", "x"); r.status != 401 || b.FaultsLeft() != 1 {
		t.Error(r.status, b.FaultsLeft())
	}
}

func TestCuts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault   Fault
		applied bool
		read    bool
		reset   bool
	}{
		"unread, closed":  {CutUnread(Close), false, false, false},
		"unread, reset":   {CutUnread(Reset), false, false, true},
		"read, closed":    {CutRead(Close), false, true, false},
		"read, reset":     {CutRead(Reset), false, true, true},
		"applied, closed": {CutApplied(Close), true, true, false},
		"applied, reset":  {CutApplied(Reset), true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t)
			b.Inject(c.fault)
			r, err := b.try("POST", "/crm/v8/Leads", lead)
			if err == nil {
				t.Fatal("answered:", r)
			}
			if c.read && c.reset != errors.Is(err, syscall.ECONNRESET) {
				t.Error(err)
			}
			calls := b.Calls()
			if len(calls) != 1 {
				t.Fatalf("%d calls: a transport that sent a POST again", len(calls))
			}
			if got := calls[0]; got.Applied != c.applied || got.Status != 0 || got.Finished.IsZero() || (got.BodySHA256 != "") != c.read || got.Fault != c.fault.Name {
				t.Errorf("%+v", got)
			}
			if (len(b.Records(demoOrg, "Leads")) == 1) != c.applied {
				t.Error("records and ledger differ")
			}
		})
	}
}

func TestBodiesGoneWrong(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.Seed(demoOrg, "Leads", map[string]any{"id": "5725767000000000001", "Last_Name": "A"})
	get := func() (reply3, error) { return b.try("GET", "/crm/v8/Leads/5725767000000000001", "") }
	whole, _ := get()

	b.Inject(Drip(10, time.Millisecond))
	if r, err := get(); err != nil || r.body != whole.body {
		t.Error(err, r.body)
	}
	b.Inject(Truncated(10))
	if r, err := get(); !errors.Is(err, io.ErrUnexpectedEOF) || r.body != whole.body {
		t.Error(err, r.body)
	}
	b.Inject(HugeBody(3<<20 + 7))
	if r, err := get(); err != nil || len(r.body) != 3<<20+7 || !strings.HasSuffix(r.body, `x"`) {
		t.Error(err, len(r.body))
	}
	b.Inject(GzipBomb(5 << 20))
	if r, err := get(); err != nil || len(r.body) != 5<<20 || !strings.HasSuffix(r.body, `x"`) {
		t.Error(err, len(r.body))
	}
	for _, c := range b.Calls() {
		if c.Status != 200 || c.Finished.IsZero() {
			t.Errorf("%+v", c)
		}
	}

	b.Inject(HugeBody(-1))
	r, _ := http.NewRequest("GET", b.http.URL+"/crm/v8/org", nil)
	r.Header.Set("Authorization", "Bearer "+b.access)
	res, err := b.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, res.Body, 10<<20); err != nil {
		t.Error(err)
	}
	_ = res.Body.Close() // ends it
	if err := b.Await(t.Context(), 1, Match{Path: "/crm/v8/org"}); err != nil {
		t.Error(err)
	}
}

func TestDelayedCallExecutesWithoutItsClient(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	hold := b.Hold(BodyRead, Match{Method: "POST"})
	b.Inject(DelayBefore(time.Millisecond))
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		r, _ := http.NewRequestWithContext(ctx, "POST", b.http.URL+"/crm/v8/Leads", strings.NewReader(lead))
		r.Header.Set("Authorization", "Bearer "+b.access)
		_, err := b.client.Do(r)
		gone <- err
	}()
	c := <-hold.Reached()
	if string(c.Body) != lead || c.Applied || !c.Finished.IsZero() {
		t.Errorf("%+v", c)
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	executed := b.Hold(Executed, Match{Method: "POST"})
	hold.Release()
	if c := <-executed.Reached(); !c.Applied {
		t.Errorf("%+v", c)
	}
	executed.Release()
}

func TestTokenFaults(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for _, c := range []struct {
		fault  Fault
		status int
		want   string
	}{
		{TokenThrottle(), 400, deniedBody},
		{TokenThrottle200(), 200, deniedBody},
		{TokenInvalidClient(), 200, `{"error":"invalid_client"}`},
	} {
		b.Inject(c.fault)
		if r := b.call("GET", "/crm/v8/org", ""); r.status != 200 {
			t.Fatal("a token fault hit the API")
		}
		b.refreshWith(b.refresh).want(t, c.status, c.want)
	}
	if b.Refreshes() != 0 {
		t.Error(b.Refreshes())
	}
	b.Inject(TokenHTML500().ForOrg(demoOrg))
	if r := b.refreshWith(b.refresh); r.status != 500 || !strings.HasPrefix(r.body, "<html>") {
		t.Error(r)
	}
	b.Inject(TokenAPIDomain(""))
	if r := b.refreshWith(b.refresh); r.part(t, "api_domain") != nil || r.part(t, "access_token") == nil {
		t.Error(r.body)
	}
	b.Inject(TokenAPIDomain("https://evil.example"))
	if r := b.refreshWith(b.refresh); r.part(t, "api_domain") != "https://evil.example" {
		t.Error(r.body)
	}
	b.Inject(TokenSlow(time.Millisecond))
	if r := b.refreshWith(b.refresh); r.part(t, "access_token") == nil || b.Refreshes() != 3 {
		t.Error(r.body)
	}
}

func TestConcurrency(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(_ *Options, org *Org) { org.Concurrency = 3 })
	hold := b.Hold(BodyRead, Match{Where: func(c Call) bool { return c.RawQuery == "held" }})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { b.call("GET", "/crm/v8/org?held", "") })
		<-hold.Reached()
	}
	b.call("GET", "/crm/v8/org", "").want(t, 429, `{"code":"TOO_MANY_REQUESTS","details":{},"message":"`+string(Concurrency)+`","status":"error"}`)
	hold.Release()
	wg.Wait()
	if b.MaxInFlight(demoOrg) != 4 || b.InFlight(demoOrg) != 0 || b.Throttled(demoOrg) != 1 {
		t.Error(b.MaxInFlight(demoOrg), b.InFlight(demoOrg), b.Throttled(demoOrg))
	}
	// Whoever keeps the limit is never refused.
	for range 3 {
		wg.Go(func() {
			for range 200 {
				if r := b.call("GET", "/crm/v8/org", ""); r.status != 200 {
					t.Error(r.status)
				}
			}
		})
	}
	wg.Wait()
}

func TestSubConcurrency(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(_ *Options, org *Org) { org.SubConcurrency = 1 })
	hold := b.Hold(Executed, Match{Path: "/crm/v8/coql"})
	query := `{"select_query":"select id from Leads"}`
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.call("POST", "/crm/v8/coql", query)
	}()
	<-hold.Reached()
	if r := b.call("GET", "/crm/v8/Leads?fields=id&sort_by=id", ""); r.status != 429 || !strings.Contains(r.body, "sub-concurrency") {
		t.Error(r.status, r.body)
	}
	if r := b.call("GET", "/crm/v8/Leads?fields=id", ""); r.status != 204 {
		t.Error(r.status)
	}
	hold.Release()
	<-done
	if r := b.call("POST", "/crm/v8/coql", query); r.status != 204 {
		t.Error(r.status)
	}
}

func TestCredits(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(_ *Options, org *Org) { org.Credits = 10 })
	for i := range 10 {
		r := b.call("GET", "/crm/v8/org", "")
		left := r.header.Get("X-API-CREDITS-REMAINING")
		if r.status != 200 || (left != "") != (i >= 4) || i == 9 && left != "0" {
			t.Errorf("call %d: %d, %q left", i, r.status, left)
		}
	}
	r := b.call("POST", "/crm/v8/Leads", lead)
	if r.status != 429 || !strings.Contains(r.body, "24 hours") || b.CreditsUsed(demoOrg) != 10 || b.Applied("POST") != 0 {
		t.Error(r.body)
	}
	b.clock.pass(24 * time.Hour)
	b.access = b.AccessToken(b.refresh)
	if r := b.call("POST", "/crm/v8/Leads", `{"data":[`+strings.Repeat(`{},`, 19)+`{}]}`); r.status != 201 || b.CreditsUsed(demoOrg) != 2 {
		t.Error(r.status, b.CreditsUsed(demoOrg))
	}
}

func TestCloseEndsHeldCalls(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	hold := b.Hold(BodyRead, Match{})
	failed := make(chan error, 1)
	go func() {
		_, err := b.try("POST", "/crm/v8/Leads", lead)
		failed <- err
	}()
	<-hold.Reached()
	b.Close()
	if err := <-failed; err == nil {
		t.Error("answered")
	}
	if n := b.Applied("POST"); n != 0 {
		t.Error("executed")
	}
	hold.Release()
}

func TestLedgerIsBounded(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(o *Options, _ *Org) {
		o.KeepCalls, o.KeepBodies = 5, 10
	})
	for range 12 {
		b.call("POST", "/crm/v8/Leads", lead)
	}
	calls := b.Calls()
	if len(calls) != 5 || calls[0].Seq != 8 || calls[4].Seq != 12 || b.Seen() != 12 || b.Applied("POST") != 12 {
		t.Error(len(calls), b.Seen(), b.Applied("POST"))
	}
	if c := calls[0]; string(c.Body) != lead[:10] || c.BodyBytes != int64(len(lead)) || len(c.BodySHA256) != 64 {
		t.Errorf("%+v", c)
	}
}

func BenchmarkGet(b *testing.B) {
	x := newBox(b)
	id := x.Seed(demoOrg, "Leads", map[string]any{"Last_Name": "Burns", "Email": "a@b.example"})[0]
	b.Run("handler", func(b *testing.B) {
		r, _ := http.NewRequest("GET", "/crm/v8/Leads/"+id, nil)
		r.Header.Set("Authorization", "Bearer "+x.access)
		b.ReportAllocs()
		for b.Loop() {
			x.ServeHTTP(&discard{http.Header{}}, r)
		}
	})
	b.Run("network", func(b *testing.B) {
		for b.Loop() {
			x.call("GET", "/crm/v8/Leads/"+id, "")
		}
	})
}

type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}
