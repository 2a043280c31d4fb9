//go:build !production

package main

import (
	"encoding/json"
	"net/http/httptest"
	"testing"

	"zoho-worker/internal/zoho/zohotest"
)

// Whoever judges a worker from another process reads each org's counts.
func TestSimulatorTellsCounts(t *testing.T) {
	t.Parallel()
	zoho := zohotest.New(zohotest.Options{})
	defer zoho.Close()
	zoho.AddOrg(zohotest.Org{ID: "7", Concurrency: 5})
	w := httptest.NewRecorder()
	simulatorHandler(zoho).ServeHTTP(w, httptest.NewRequest("GET", "/simulator/orgs", nil))
	var counts []zohotest.Counts
	if err := json.Unmarshal(w.Body.Bytes(), &counts); err != nil || len(counts) != 1 || counts[0].Org != "7" || counts[0].Limits.Concurrency != 5 {
		t.Errorf("%v: %s", err, w.Body)
	}
}
