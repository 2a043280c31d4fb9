package lease

import (
	"encoding/json"
	"testing"

	"zoho-worker/internal/register/storedtest"
)

// Workers of two versions know each other's sessions, and hand orgs to each other.
func TestStoredForms(t *testing.T) {
	t.Parallel()
	storedtest.Form(t, "session", sessionRecord{
		Session: Session{Host: "zoho-worker-7d9f", PID: 1, Orgs: 12, Free: 500, Wanting: 3, Stopping: true}, Ended: true,
	})
	storedtest.Form(t, "org", Record{
		Queue: "org-eu-production-20078233816", Owner: "U8WOmnExRRxAAJJ31vpnYh", State: json.RawMessage(`{"limit":5}`),
	})
}
