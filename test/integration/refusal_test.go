package integration

import (
	"testing"

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
