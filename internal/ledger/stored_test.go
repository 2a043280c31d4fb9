package ledger

import (
	"slices"
	"testing"

	"zoho-worker/internal/register/storedtest"
)

// A claim is judged by workers of every version.
func TestStoredForms(t *testing.T) {
	t.Parallel()
	storedtest.Form(t, "claim", record{
		Nonce: "U8WOmnExRRxAAJJ31vpnYh", Digest: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", LeaseMS: 65_000, State: claimed,
	})
	if states := []state{claimed, released, closed, sealed, refused}; !slices.Equal(states, []state{"claimed", "released", "closed", "sealed", "refused"}) {
		t.Errorf("the states of a claim are %q: others stand in the ledger", states)
	}
}
