package consent

import (
	"testing"
	"time"

	"zoho-worker/internal/register/storedtest"
)

// A person who was sent to Zoho by a worker of one version comes back to one of another.
func TestStoredForms(t *testing.T) {
	t.Parallel()
	at := func(minute int) time.Time { return time.Date(2026, 11, 27, 12, minute, 0, 0, time.UTC) }
	pending := Pending{
		Kind: Reauthorize, Name: "acme", Nickname: "Acme sales", Location: "eu", Environment: "sandbox", Scopes: []string{"ZohoCRM.modules.ALL"},
		RedirectURI: "https://zoho.example.com/oauth/callback", Share: "0123456789abcdef0123456789abcdef", Actor: "ada@example.com",
		Expires: at(15), Verifier: "verifier",
	}
	storedtest.Form(t, "document", document{Phase: phaseHeld, Expires: at(15), Sealed: []byte("sealed"), Day: "2026-11-27"})
	storedtest.Form(t, "pending", pending)
	storedtest.Form(t, "held", held{
		Pending: pending, Reason: Duplicate, Existing: "acme-2",
		Who:     Who{UserID: "5725767000000411001", UserName: "Ada", OrgID: "20078233816", OrgName: "Acme", Edition: "Enterprise"},
		Refresh: "1000.refresh", Granted: []string{"ZohoCRM.modules.ALL"},
	})
	storedtest.Form(t, "share", Share{
		ID: "0123456789abcdef0123456789abcdef", Pending: pending, Starts: 1, UsedAt: at(1), Expires: at(30),
	})
	if got := stateSubject("word"); got != "zoho.consents.state.b7ed3fe7aad6434342bf5dbeddd30273" {
		t.Errorf("a state is at %s", got)
	}
	if phases := [...]string{phasePending, phaseHeld, phaseUsed, phaseShare, phaseCheck}; phases != [...]string{"pending", "held", "used", "share", "check"} {
		t.Errorf("the phases are %q", phases)
	}
}
