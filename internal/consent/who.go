package consent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// neededScopes are what it takes to ask Zoho who consented; every consent has them.
var neededScopes = []string{"ZohoCRM.users.READ", "ZohoCRM.org.READ"}

// DefaultScopes let callers do what the CRM API offers with records and metadata.
var DefaultScopes = []string{
	"ZohoCRM.modules.ALL", "ZohoCRM.settings.ALL", "ZohoCRM.bulk.ALL", "ZohoCRM.coql.READ",
	"ZohoCRM.notifications.ALL", "ZohoCRM.users.READ", "ZohoCRM.org.READ",
}

// Who is the user and the org behind a grant, as Zoho says.
type Who struct {
	UserID   string `json:"user_id"`
	UserName string `json:"user_name"`
	OrgID    string `json:"org_id"`
	OrgName  string `json:"org_name"`
	Edition  string `json:"edition,omitempty"`
}

// write brings a record up to date.
func (w Who) write(c *connection.Connection) {
	c.UserID, c.UserName, c.OrgID, c.OrgName = w.UserID, w.UserName, w.OrgID, w.OrgName
	if w.Edition != "" {
		c.Edition = w.Edition
	}
}

// identity is the user's in a data centre and environment.
func (w Who) identity(location, environment string) connection.Identity {
	return connection.Identity{Location: location, Environment: environment, OrgID: w.OrgID, UserID: w.UserID}
}

// askWho asks Zoho whose token it is. The error is a *Fault.
func askWho(ctx context.Context, client *zoho.Client, location, environment string, token secret.Text) (Who, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var users struct {
		Users []struct {
			ID       string `json:"id"`
			FullName string `json:"full_name"`
			Email    string `json:"email"`
		} `json:"users"`
	}
	var orgs struct {
		Org []struct {
			ID      string `json:"id"`
			Zgid    string `json:"zgid"`
			Name    string `json:"company_name"`
			License struct {
				PaidType string `json:"paid_type"`
			} `json:"license_details"`
		} `json:"org"`
	}
	if err := ask(ctx, client, location, environment, token, "/crm/v8/users", "type=CurrentUser", &users); err != nil {
		return Who{}, err
	}
	if err := ask(ctx, client, location, environment, token, "/crm/v8/org", "", &orgs); err != nil {
		return Who{}, err
	}
	if len(users.Users) == 0 || users.Users[0].ID == "" || len(orgs.Org) == 0 || orgs.Org[0].Zgid+orgs.Org[0].ID == "" {
		return Who{}, whoFault(errors.New("the answer names no user or no org"))
	}
	user, org := users.Users[0], orgs.Org[0]
	who := Who{UserID: user.ID, OrgID: org.Zgid, OrgName: plain(org.Name, 200), Edition: plain(org.License.PaidType, 64)}
	if who.OrgID == "" {
		who.OrgID = org.ID
	}
	who.UserName = plain(strings.TrimSpace(user.FullName), 150)
	if user.Email != "" {
		who.UserName = plain(strings.TrimSpace(who.UserName+" <"+user.Email+">"), 300)
	}
	probe := connection.Connection{
		Name: "x", Location: location, Environment: environment, OrgID: who.OrgID, UserID: who.UserID, Status: connection.Active,
	}
	if err := probe.Validate(); err != nil {
		return Who{}, whoFault(err)
	}
	return who, nil
}

// plain makes a name of Zoho's fit for a record.
func plain(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if r := []rune(s); len(r) > most {
		s = string(r[:most])
	}
	return s
}

func whoFault(err error) *Fault {
	return &Fault{
		Code: WhoUnknown, Title: "Zoho did not say who you are", Err: err,
		Text: "Without knowing the user and the org the worker can't keep to one connection per user. The fresh access was given back to Zoho.",
		Todo: "Try again in a minute.",
	}
}

// ask makes one call, again where Zoho has a bad moment.
func ask(ctx context.Context, client *zoho.Client, location, environment string, token secret.Text, path, query string, into any) error {
	var last error
	for try := range 3 {
		if try > 0 {
			select {
			case <-time.After(time.Duration(try) * 500 * time.Millisecond):
			case <-ctx.Done():
				return whoFault(context.Cause(ctx))
			}
		}
		answer := client.Do(ctx, &zoho.Call{
			Location: location, Environment: zoho.Environment(environment), Token: token,
			Method: http.MethodGet, Path: path, RawQuery: query,
		})
		switch {
		case answer.Err != nil:
			last = answer.Err
			continue
		case answer.Code == "OAUTH_SCOPE_MISMATCH":
			return &Fault{
				Code: ScopesMissing, Title: "The access is too narrow", Err: fmt.Errorf("%s: %s", path, answer.Code),
				Text: "The worker has to read the user and the org (" + strings.Join(neededScopes, ", ") + ") and may not.",
				Todo: "Begin again with these scopes added.",
			}
		case answer.Status == http.StatusUnauthorized:
			return &Fault{
				Code: WrongEnvironment, Title: "Another environment was chosen at Zoho", Err: fmt.Errorf("%s: %d %s", path, answer.Status, answer.Code),
				Text: "Zoho does not take this access for the " + environment + " environment. Access is for one environment only: the one picked on Zoho's page.",
				Todo: "Begin again and pick the same environment here and at Zoho.",
			}
		case answer.Status == http.StatusForbidden:
			return &Fault{
				Code: ScopesMissing, Title: "This Zoho user may not use the API", Err: fmt.Errorf("%s: %d %s", path, answer.Status, answer.Code),
				Text: "Zoho says that the user's profile has no API access or may not read users and org.",
				Todo: "Ask a Zoho administrator for API access, or connect as another user.",
			}
		case answer.Status == http.StatusTooManyRequests || answer.Status >= 500:
			last = fmt.Errorf("%s: status %d %s", path, answer.Status, answer.Code)
			continue
		case answer.Status != http.StatusOK:
			return whoFault(fmt.Errorf("%s: status %d %s", path, answer.Status, answer.Code))
		}
		if err := json.Unmarshal(answer.Body, into); err != nil {
			return whoFault(errors.New(path + ": the answer is not the JSON that is documented"))
		}
		return nil
	}
	return whoFault(last)
}
