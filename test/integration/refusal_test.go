package integration

import (
	"testing"
	"time"

	"zoho-worker/internal/app"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho/zohotest"
)

// A 401 whose body is cut says that nothing was carried out and not why: it is
// no answer for the requester, insert or not.
func TestRefusalCutInside(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	refresh := r.demo(1)
	r.worker()
	r.publish("demo", list("before"))
	wantStatus(t, r.await("demo", "before"), 200)
	for _, d := range []doc{insert("post", "Once"), list("get")} {
		r.Zoho.ExpireAccessTokens(refresh)
		r.Zoho.Inject(zohotest.Truncated(10))
		r.publish("demo", d)
		response := r.await("demo", d["id"].(string))
		if response.Error != nil || response.Status/100 != 2 {
			t.Errorf("%s is answered %s", d["id"], response.AppendJSON(nil))
		}
	}
	if n := r.executed()["Once"]; n != 1 {
		t.Errorf("the insert was executed %d times", n)
	}
}

// An answer that comes a byte at a time ends at the call's timeout: the org's only
// place is free again, and what Zoho said so far counts.
func TestSlowDripHoldsNoPlace(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(1)
	r.worker(func(c *app.Config) { c.CallTimeout = 2 * time.Second })
	r.Zoho.Inject(zohotest.Drip(1, 500*time.Millisecond).On("POST", "/crm/v8/Leads"))
	r.publish("demo", insert("drip", "Drip"))
	if err := r.Zoho.Await(t.Context(), 1, zohotest.Match{Method: "POST"}); err != nil {
		t.Fatal(err)
	}
	r.publish("demo", insert("next", "Next"))
	response := r.await("demo", "drip")
	wantCode(t, response, envelope.OutcomeUnknown)
	wantStatus(t, r.await("demo", "next"), 201)
	if n := r.executed(); n["Drip"] != 1 || n["Next"] != 1 {
		t.Errorf("executed %v", n)
	}
	if n := r.Zoho.MaxInFlight(devbox.OrgID); n != 1 {
		t.Errorf("%d calls in flight at one time", n)
	}
}
