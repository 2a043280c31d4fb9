package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/token"
	"zoho-worker/internal/zoho"
)

// Tested is what one cheap call with a connection came to.
type Tested struct {
	Good          bool
	Title, Detail string
	Took          time.Duration
	// Body is what Zoho said of the user, in few fields.
	Body string
}

// Test asks Zoho who the connection's user is: one call, one credit.
func Test(ctx context.Context, tokens *token.Source, client *zoho.Client, c *connection.Connection) Tested {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	result := func(good bool, title, detail string) Tested {
		return Tested{Good: good, Title: title, Detail: detail, Took: time.Since(begun).Round(time.Millisecond)}
	}
	access, err := tokens.Token(ctx, c)
	for renewed := false; ; renewed = true {
		if u, ok := errors.AsType[*token.Unavailable](err); ok {
			switch u.Reason {
			case token.Revoked:
				return result(false, "Zoho no longer accepts this connection", "Re-authorize it; its callers need not change anything.")
			case token.Misconfigured:
				return result(false, "There can be no access token", "The client id or secret is wrong at Zoho, or an encryption key is missing here.")
			default:
				return result(false, "There is no access token now", reasonText(u.Reason)+".")
			}
		}
		if err != nil {
			return result(false, "There is no access token now", "The worker's storage did not answer.")
		}
		answer := client.Do(ctx, &zoho.Call{
			Location: c.Location, Environment: zoho.Environment(c.Environment), Token: access.Access,
			Method: http.MethodGet, Path: "/crm/v8/users", RawQuery: "type=CurrentUser",
		})
		switch {
		case answer.Err != nil:
			return result(false, "Zoho did not answer", "The call did not come through.")
		case answer.Status == http.StatusUnauthorized && answer.Code != "OAUTH_SCOPE_MISMATCH" && !renewed:
			access, err = tokens.Renew(ctx, c, access)
			continue
		case answer.Status == http.StatusOK:
			done := result(true, "The connection works", fmt.Sprintf("Zoho answered %s.", statusText(answer.Status)))
			done.Body = whoIn(answer.Body)
			return done
		default:
			return result(false, "Zoho refused the call", fmt.Sprintf("It answered %s %s.", statusText(answer.Status), answer.Code))
		}
	}
}

// whoIn picks the fields of the answer that say who it is.
func whoIn(body []byte) string {
	var doc struct {
		Users []struct {
			ID       string `json:"id"`
			FullName string `json:"full_name"`
			Email    string `json:"email"`
			Status   string `json:"status"`
		} `json:"users"`
	}
	if json.Unmarshal(body, &doc) != nil || len(doc.Users) == 0 {
		return ""
	}
	shown, err := json.MarshalIndent(doc.Users[0], "", "  ")
	if err != nil {
		return ""
	}
	return string(shown)
}
