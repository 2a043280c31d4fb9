// Package connection keeps the connections: one record per consent of a Zoho
// user, with the refresh token sealed, at zoho.connections.<name>.
//
// It does not talk to Zoho, and holds no access tokens: that is package token.
//
// Invariants: a record changes only by a compare-and-set, so no change is lost;
// a new refresh token is a new Grant, and a verdict on one grant never touches a
// later one; of a Zoho user one connection is active at most; a refresh token
// leaves the process only sealed for this connection and this grant; a record that
// can't be read or opened disables its own connection and no other; a removed
// connection keeps a tombstone without the secret, so that its grants are never
// counted from the start again.
package connection

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/register"
	"zoho-worker/internal/secret"
)

// StreamName is the stream of connection records.
const StreamName = "ZOHO_CONNECTIONS"

const subjectPrefix = "zoho.connections."

// StreamConfig is the configuration of the stream of connection records. They
// are kept for ever.
func StreamConfig(replicas int) jetstream.StreamConfig {
	config := register.Config(StreamName, "connections, their refresh tokens sealed, and who holds which Zoho user", subjectPrefix+"*", replicas, 0)
	config.Subjects = append(config.Subjects, identityPrefix+"*.*.*.*")
	return config
}

// Status says whether a connection can be used.
type Status string

// The statuses.
const (
	Active  Status = "active"
	Revoked Status = "revoked" // Zoho refused the refresh token for good: authorize again
	Removed Status = "removed" // a tombstone
	// Unreadable is never stored: the record there can't be decoded.
	Unreadable Status = "unreadable"
)

// The environments of an org: where a consent was given for.
const (
	Production = "production"
	Sandbox    = "sandbox"
	Developer  = "developer"
)

// Environments are all of them.
func Environments() []string { return []string{Production, Sandbox, Developer} }

// Connection is a connection record. Its JSON form, as the command line and
// the console show it, has no secret in it. A *Connection got from a Store is
// shared: read it, and change it through Update only.
type Connection struct {
	Name     string `json:"name"`
	Nickname string `json:"nickname,omitempty"`
	// Location is the data centre as Zoho's consent named it: us, eu, in, …
	Location    string `json:"location"`
	Environment string `json:"environment"`
	OrgID       string `json:"org_id,omitempty"`
	UserID      string `json:"user_id,omitempty"`
	// OrgName and UserName are what Zoho called them at the last consent, for people.
	OrgName  string `json:"org_name,omitempty"`
	UserName string `json:"user_name,omitempty"`
	Edition  string `json:"edition,omitempty"`
	// Concurrency is how many calls of the org may be in flight at one instant;
	// 0: as its edition allows.
	Concurrency int `json:"concurrency,omitempty"`
	// DailyCredits are the API credits of the org that requests of this connection
	// may use within 24 hours; 0: any.
	DailyCredits int `json:"daily_credits,omitempty"`
	// Ordered says that requests are carried out strictly one after the other, in
	// the order the stream got them; those that name an order key are so within it.
	Ordered      bool     `json:"ordered,omitempty"`
	Scopes       []string `json:"scopes,omitempty"`
	Status       Status   `json:"status"`
	StatusReason string   `json:"status_reason,omitempty"`
	// Grant counts the refresh tokens the connection has had, from 1.
	Grant     uint64    `json:"grant"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	UpdatedBy string    `json:"updated_by,omitempty"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	// Revision is the stream sequence of the record; 0 for one that is not stored.
	Revision uint64 `json:"-"`

	sealed  []byte
	grantID string
	renewed secret.Text // set by SetRefreshToken until the record is stored
	fault   error
}

// stored is the record as it stands in the stream.
type stored struct {
	*Connection
	Sealed []byte `json:"refresh_token_sealed,omitempty"`
}

// RefreshToken opens the connection's refresh token. The error is
// secret.ErrUnknownKey or secret.ErrTampered where it can't be opened.
func (c *Connection) RefreshToken(keyring *secret.Keyring) (secret.Text, error) {
	if len(c.sealed) == 0 {
		return secret.Text{}, fmt.Errorf("connection %s has no refresh token", c.Name)
	}
	token, err := keyring.Open(c.sealed, c.associated()...)
	if err != nil {
		return secret.Text{}, fmt.Errorf("open refresh token of connection %s: %w", c.Name, err)
	}
	return secret.New(string(token)), nil
}

// GrantID tells the connection's present grant from all others, also from one that
// has its number because records were lost and grants are counted anew. It is "" where
// the refresh token can't be opened.
func (c *Connection) GrantID() string { return c.grantID }

func (c *Connection) sameGrant(other *Connection) bool {
	return c.Grant == other.Grant && c.grantID == other.grantID
}

// SetRefreshToken gives the connection a new refresh token, inside Update: the
// record is stored with the next Grant, active.
func (c *Connection) SetRefreshToken(token secret.Text) { c.renewed = token }

func (c *Connection) associated() []string {
	return []string{"refresh-token", c.Name, strconv.FormatUint(c.Grant, 10)}
}

// Err says why the record is of no use: it can't be decoded, or its refresh
// token can't be opened with this process's keys. It is nil for a readable
// record, whatever its Status.
func (c *Connection) Err() error { return c.fault }

// Places is how many calls of the connection's org may be in flight at one
// instant: Concurrency, or what the edition allows (zoho-facts 3.3), or 10.
func (c *Connection) Places() int {
	if c.Concurrency > 0 {
		return c.Concurrency
	}
	edition := " " + strings.ToLower(c.Edition)
	for _, e := range editions {
		if strings.Contains(edition, e.word) {
			return e.places
		}
	}
	return 10
}

// Smallest returns of each org, by its Queue, the connection with the fewest Places:
// where they disagree, the smallest limit is the org's. It is safe for all.
func Smallest(all []*Connection) map[string]*Connection {
	smallest := map[string]*Connection{}
	for _, c := range all {
		if s := smallest[c.Queue()]; s == nil || c.Places() < s.Places() {
			smallest[c.Queue()] = c
		}
	}
	return smallest
}

// editions by what stands in Zoho's name of them; "one" begins a word, so that it
// is not found in "none".
var editions = []struct {
	word   string
	places int
}{
	{"free", 5},
	{"standard", 10},
	{"professional", 15},
	{"ultimate", 25},
	{"crm plus", 25},
	{"crmplus", 25},
	{"enterprise", 20},
	{" one", 20},
}

// Editions returns the names of the editions that Places knows, in lower case.
func Editions() []string {
	var names []string
	for _, e := range editions {
		names = append(names, strings.TrimSpace(e.word))
	}
	return names
}

// Queue is the key of the org that the connection belongs to, for which Zoho
// counts calls: "org-eu-production-20078233816". Where the org is not known
// the connection has a queue of its own, "connection-acme". It fits into the
// name of a JetStream consumer.
func (c *Connection) Queue() string {
	if c.OrgID == "" || c.Location == "" {
		return "connection-" + c.Name
	}
	return "org-" + c.Location + "-" + c.Environment + "-" + c.OrgID
}

var (
	validLocation = regexp.MustCompile(`^[a-z]{2,8}$`)
	validID       = regexp.MustCompile(`^[A-Za-z0-9_-]{0,64}$`)
	validScope    = regexp.MustCompile(`^[A-Za-z0-9._:/-]{1,128}$`)
)

// Validate reports everything that is wrong with the record, joined; nil if nothing is.
func (c *Connection) Validate() error {
	var faults []error
	check := func(ok bool, field, rule string) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s: %s", field, rule))
		}
	}
	check(envelope.ValidConnection(c.Name), "name", "must be 1 to 63 of a-z 0-9 _ -, the first a letter or digit")
	check(printable(c.Nickname, 200), "nickname", "must be at most 200 characters without control characters")
	check(validLocation.MatchString(c.Location), "location", "must be a data centre: us, eu, in, au, jp, cn, ca, sa, uk, …")
	check(slices.Contains(Environments(), c.Environment), "environment", "must be production, sandbox or developer")
	check(validID.MatchString(c.OrgID), "org_id", "must be at most 64 letters, digits, _ or -")
	check(validID.MatchString(c.UserID), "user_id", "must be at most 64 letters, digits, _ or -")
	check(printable(c.OrgName, 200), "org_name", "must be at most 200 characters without control characters")
	check(printable(c.UserName, 300), "user_name", "must be at most 300 characters without control characters")
	check(printable(c.Edition, 64), "edition", "must be at most 64 characters without control characters")
	check(c.Concurrency >= 0 && c.Concurrency <= 100, "concurrency", "must be 0 (as the edition allows) to 100")
	check(c.DailyCredits >= 0, "daily_credits", "must be 0 (any) or more")
	check(len(c.Scopes) <= 200, "scopes", "must be at most 200")
	for _, scope := range c.Scopes {
		check(ValidScope(scope), "scopes", fmt.Sprintf("%.40q is not a scope", scope))
	}
	check(slices.Contains([]Status{Active, Revoked, Removed}, c.Status), "status", "must be active, revoked or removed")
	check(printable(c.StatusReason, 500), "status_reason", "must be at most 500 characters without control characters")
	check(printable(c.UpdatedBy, 200), "updated_by", "must be at most 200 characters without control characters")
	return errors.Join(faults...)
}

// ValidScope reports whether s can be the name of a scope.
func ValidScope(s string) bool { return validScope.MatchString(s) }

func printable(s string, most int) bool {
	return utf8.ValidString(s) && utf8.RuneCountInString(s) <= most &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// encode seals a new refresh token, if there is one, and returns the document to store.
func (c *Connection) encode(keyring *secret.Keyring) ([]byte, error) {
	if !c.renewed.IsZero() {
		c.Grant++
		c.Status, c.StatusReason, c.RevokedAt = Active, "", time.Time{}
		c.sealed = keyring.Seal([]byte(c.renewed.Reveal()), c.associated()...)
		c.renewed = secret.Text{}
	}
	if c.Status == Active && len(c.sealed) == 0 {
		return nil, errors.New("an active connection needs a refresh token")
	}
	return json.Marshal(stored{Connection: c, Sealed: c.sealed})
}

// decode never fails: what can't be read becomes a connection with a fault. Without
// a keyring nobody looks whether its refresh token can be opened.
func decode(name string, revision uint64, data []byte, keyring *secret.Keyring) *Connection {
	c := &Connection{}
	doc := stored{Connection: c}
	err := json.Unmarshal(data, &doc)
	if err == nil && c.Name != name {
		err = fmt.Errorf("the record says it is %.70q", c.Name)
	}
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		return &Connection{
			Name: name, Status: Unreadable, Revision: revision,
			fault: fmt.Errorf("connection record %s can't be read: %w", name, err),
		}
	}
	c.sealed, c.Revision = doc.Sealed, revision
	if c.Status != Removed && keyring != nil {
		var token secret.Text
		token, c.fault = c.RefreshToken(keyring)
		c.grantID = grantID(token)
	}
	return c
}

// clone is a copy that shares nothing that can be written to.
func (c *Connection) clone() *Connection {
	copied := *c
	copied.Scopes = slices.Clone(c.Scopes)
	copied.sealed = slices.Clone(c.sealed)
	return &copied
}
