package consent

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/oauth2"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// Options of a Flow. All but Now, Event and Logger are required.
type Options struct {
	JS          jetstream.JetStream
	Keyring     *secret.Keyring
	Connections *connection.Store
	Zoho        *zoho.Client
	// Event, if set, is told what happened to a connection.
	Event func(connection, event string)
	// Now defaults to time.Now.
	Now func() time.Time
	// Logger defaults to slog.Default.
	Logger *slog.Logger
}

// The events that Options.Event is told.
const (
	EventConnected    = "connected"
	EventReauthorized = "reauthorized"
	EventDisconnected = "disconnected"
)

// Flow takes people through consents. It is safe for concurrent use and keeps
// nothing in memory.
type Flow struct {
	options Options
	store   *store
}

// New returns a Flow. The stream must exist; see StreamConfig.
func New(o Options) *Flow {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Event == nil {
		o.Event = func(string, string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Flow{options: o, store: newStore(o.JS, o.Keyring, o.Now)}
}

// Begun is a consent that was begun: where to send the person, and the state
// by which its callback is known. State is a secret of that person's browser.
type Begun struct{ URL, State string }

// Begin prepares a consent.
func (f *Flow) Begin(ctx context.Context, p Pending) (Begun, error) {
	p.Scopes = withNeeded(p.Scopes)
	p.Verifier = oauth2.GenerateVerifier()
	p.Expires = f.options.Now().Add(patience)
	state := random()
	if _, err := f.store.put(ctx, stateSubject(state), phasePending, p.Expires, p, 0); err != nil {
		return Begun{}, fmt.Errorf("begin consent: %w", err)
	}
	return Begun{URL: f.options.Zoho.AuthCodeURL(p.Location, state, p.RedirectURI, p.Verifier, p.Scopes), State: state}, nil
}

func withNeeded(scopes []string) []string {
	all := slices.Clone(scopes)
	if len(all) == 0 {
		all = slices.Clone(DefaultScopes)
	}
	for _, scope := range neededScopes {
		broader := scope[:len(scope)-len("READ")] + "ALL"
		if !slices.Contains(all, scope) && !slices.Contains(all, broader) {
			all = append(all, scope)
		}
	}
	return all
}

// Decision is what a person is asked about a fresh grant.
type Decision string

// The decisions.
const (
	// Duplicate: this Zoho user has a connection already: re-authorize that one?
	Duplicate Decision = "duplicate"
	// OtherUser: the connection is of another user of the same org: replace the user?
	OtherUser Decision = "other_user"
)

// Choice is a fresh grant that waits for a person's decision.
type Choice struct {
	Reason Decision
	// Existing is the connection that would get the fresh grant.
	Existing string
	Who      Who
	Location string
}

// Outcome is what became of a consent: a connection, or a choice to make.
type Outcome struct {
	Connection   *connection.Connection
	Reauthorized bool
	Choice       *Choice
	// Warning is for the person, if there is one.
	Warning string
	Shared  bool
}

// Callback completes a consent with what Zoho sent the browser back with. Bound
// is the state that this very browser is known to have set out with. The error
// is a *Fault.
func (f *Flow) Callback(ctx context.Context, query url.Values, bound string) (*Outcome, error) {
	state := query.Get("state")
	if state == "" || len(query["state"]) != 1 || subtle.ConstantTimeCompare([]byte(state), []byte(bound)) != 1 {
		return nil, stateFault(fmt.Errorf("%w: not this browser's", errUnknown))
	}
	var p Pending
	revision, err := f.store.take(ctx, stateSubject(state), phasePending, &p)
	if err != nil {
		return nil, stateFault(err)
	}
	outcome, err := f.complete(ctx, query, p, stateSubject(state), revision)
	if err != nil {
		return nil, p.of(err)
	}
	return outcome, nil
}

// errorWord is an error as OAuth has them; what else comes back is nothing for the log.
var errorWord = regexp.MustCompile(`^[a-z_]{1,40}$`)

// complete goes on with a consent that this callback is the one for.
func (f *Flow) complete(ctx context.Context, query url.Values, p Pending, subject string, revision uint64) (*Outcome, error) {
	if query.Get("error") != "" {
		return nil, &Fault{
			Code: Denied, Title: "Access was not given", Err: errors.New("an error came back: " + errorWord.FindString(query.Get("error"))),
			Text: "You rejected the request at Zoho, or Zoho did not let it through. Nothing was stored.",
			Todo: "If that was a mistake, begin again and choose Accept.",
		}
	}
	dc, err := f.options.Zoho.CheckCallback(query.Get("location"), query.Get("accounts-server"))
	if err != nil {
		return nil, &Fault{
			Code: BadLocation, Title: "The answer did not come from Zoho", Err: err,
			Text: "It names an accounts server that is not one of Zoho's. Nothing was sent there and nothing was stored.",
			Todo: "Begin again from the list of connections. If it happens again, tell whoever runs the worker.",
		}
	}
	if p.Location != "" && p.Location != dc.Location {
		return nil, &Fault{
			Code: WrongDataCentre, Title: "The account lives in another data centre", Location: dc.Location,
			Err:  fmt.Errorf("asked for %s, got %s", p.Location, dc.Location),
			Text: fmt.Sprintf("The connection is for the data centre %s, but the Zoho account you signed in with is at %s. Nothing was stored.", PlaceName(p.Location), PlaceName(dc.Location)),
			Todo: "Begin again with the right data centre, or sign in to Zoho with the other account.",
		}
	}
	p.Location = dc.Location
	code := query.Get("code")
	if code == "" {
		return nil, exchangeFault(&zoho.Error{Kind: zoho.BadAnswer, Op: "exchange"})
	}
	return f.redeem(ctx, p, code, subject, revision)
}

// Redeem exchanges a code that came without a consent of ours: Zoho's
// self-client, whose codes know no redirect. The error is a *Fault.
func (f *Flow) Redeem(ctx context.Context, p Pending, code string) (*Outcome, error) {
	return f.redeem(ctx, p, code, "", 0)
}

// redeem exchanges a code and makes what it was for. The subject and its
// revision are where a choice may be held; without them there is none to make.
func (f *Flow) redeem(ctx context.Context, p Pending, code string, subject string, revision uint64) (_ *Outcome, err error) {
	// What is begun here is ended, also when the browser has gone: a link may be in use, and
	// Zoho may have made a grant that only its answer names.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if p.Share != "" {
		if err := f.store.useShare(ctx, p.Share); err != nil {
			return nil, shareFault(err)
		}
		defer func() {
			if err != nil { // nothing came of it: the link is good again
				f.quiet("give back a one-time link", f.store.releaseShare(context.WithoutCancel(ctx), p.Share))
			}
		}()
	}
	grant, err := f.options.Zoho.Exchange(ctx, p.Location, code, p.RedirectURI, p.Verifier)
	if err != nil {
		return nil, exchangeFault(err)
	}
	if grant.RefreshToken.IsZero() {
		f.quiet("revoke", f.options.Zoho.Revoke(ctx, p.Location, grant.AccessToken))
		return nil, &Fault{
			Code: NoRefreshToken, Title: "Zoho gave no lasting access", Err: errors.New("no refresh token"),
			Text: "The answer has no refresh token, so the access would end within the hour. Nothing was stored.",
			Todo: "Begin again and accept when Zoho asks for consent. If it happens again, remove the app under accounts.zoho.com › Connected Apps first.",
		}
	}
	h := held{Pending: p, Refresh: grant.RefreshToken.Reveal(), Granted: grant.Scopes}
	h.Verifier = ""
	if h.Who, err = askWho(ctx, f.options.Zoho, p.Location, p.Environment, grant.AccessToken); err != nil {
		f.giveBack(ctx, h)
		return nil, err
	}
	if _, err := f.options.Connections.NoteGrant(ctx, h.identity(), grant.RefreshToken, ""); err != nil {
		f.giveBack(ctx, h)
		return nil, internal(err)
	}
	outcome, err := f.settle(ctx, h, subject, revision)
	if err != nil {
		f.unused(ctx, h, err)
		return nil, err
	}
	return outcome, nil
}

func (h *held) identity() connection.Identity { return h.Who.identity(h.Location, h.Environment) }

func (h *held) refresh() secret.Text { return secret.New(h.Refresh) }

// settle stores the grant, or holds it where a person has to decide.
func (f *Flow) settle(ctx context.Context, h held, subject string, revision uint64) (*Outcome, error) {
	existing, err := f.existing(ctx, h.identity())
	if err != nil {
		return nil, internal(err)
	}
	if h.Kind == Connect {
		if existing != "" {
			return f.hold(ctx, h, Duplicate, existing, subject, revision)
		}
		added, err := f.add(ctx, h)
		if duplicate, ok := errors.AsType[connection.ErrDuplicate](err); ok {
			return f.hold(ctx, h, Duplicate, duplicate.Existing, subject, revision)
		}
		if err != nil {
			return nil, storeFault(err, h.Name)
		}
		return f.done(ctx, h, added, false), nil
	}
	c, err := f.options.Connections.Fetch(ctx, h.Name)
	if err != nil {
		return nil, storeFault(err, h.Name)
	}
	switch {
	case c.OrgID != "" && c.OrgID != h.Who.OrgID:
		return nil, &Fault{
			Code: OtherOrg, Title: "That is another Zoho organisation", Err: errors.New("another org"),
			Text: fmt.Sprintf("You signed in for %s, but the connection %s is of %s. Its callers would suddenly work on other data, so nothing was changed.",
				orgLabel(h.Who.OrgName, h.Who.OrgID), h.Name, orgLabel(c.OrgName, c.OrgID)),
			Todo: "Sign in to the right organisation, or connect this one under a name of its own.",
		}
	case existing != "" && existing != h.Name:
		return f.hold(ctx, h, Duplicate, existing, subject, revision)
	case c.UserID != "" && c.UserID != h.Who.UserID:
		return f.hold(ctx, h, OtherUser, h.Name, subject, revision)
	}
	updated, err := f.reauthorize(ctx, h, h.Name)
	if duplicate, ok := errors.AsType[connection.ErrDuplicate](err); ok {
		return f.hold(ctx, h, Duplicate, duplicate.Existing, subject, revision)
	}
	if err != nil {
		return nil, storeFault(err, h.Name)
	}
	return f.done(ctx, h, updated, true), nil
}

func orgLabel(name, id string) string { return cmp.Or(name, "org "+id) }

// existing is the connection that the user has: active, or waiting to be
// re-authorized. Empty: none.
func (f *Flow) existing(ctx context.Context, identity connection.Identity) (string, error) {
	name, _, err := f.options.Connections.Holder(ctx, identity)
	if err != nil || name != "" {
		return name, err
	}
	for _, c := range f.options.Connections.All() {
		if theirs, ok := c.Identity(); ok && theirs == identity {
			return c.Name, nil
		}
	}
	return "", nil
}

func (f *Flow) add(ctx context.Context, h held) (*connection.Connection, error) {
	c := connection.Connection{
		Name: h.Name, Nickname: h.Nickname, Location: h.Location, Environment: h.Environment,
		Scopes: f.scopes(h), UpdatedBy: h.Actor,
	}
	h.Who.write(&c)
	return f.options.Connections.Add(ctx, c, h.refresh())
}

func (f *Flow) scopes(h held) []string {
	if len(h.Granted) > 0 {
		return h.Granted
	}
	return h.Scopes
}

// reauthorize gives the named connection the fresh grant, and the old one back
// to Zoho: it would only count among the twenty.
func (f *Flow) reauthorize(ctx context.Context, h held, name string) (*connection.Connection, error) {
	var old secret.Text
	var before connection.Identity
	updated, err := f.options.Connections.Reauthorize(ctx, name, h.refresh(), func(c *connection.Connection) error {
		before, _ = c.Identity()
		old = secret.Text{}
		if token, err := c.RefreshToken(f.options.Keyring); err == nil {
			old = token
		}
		if c.OrgID != "" && c.OrgID != h.Who.OrgID || c.Location != h.Location || c.Environment != h.Environment {
			return errors.New("the connection is of another org by now")
		}
		h.Who.write(c)
		c.Scopes, c.UpdatedBy = f.scopes(h), h.Actor
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !old.IsZero() && old != h.refresh() {
		err := f.options.Zoho.Revoke(ctx, h.Location, old)
		if dead(err) {
			err = nil
		}
		if err == nil && before.OrgID != "" && before.UserID != "" {
			err = f.options.Connections.ForgetGrant(ctx, before, old)
		}
		f.quiet("revoke the old grant of "+name, err)
	}
	return updated, nil
}

func dead(err error) bool {
	e, ok := errors.AsType[*zoho.Error](err)
	return ok && e.Kind == zoho.DeadGrant
}

func (f *Flow) done(ctx context.Context, h held, c *connection.Connection, again bool) *Outcome {
	event := EventConnected
	if again {
		event = EventReauthorized
	}
	f.options.Event(c.Name, event)
	f.options.Logger.Info("connection is "+event, "connection", c.Name, "location", c.Location, "environment", c.Environment,
		"org", c.OrgID, "user", c.UserID, "by", c.UpdatedBy)
	outcome := &Outcome{Connection: c, Reauthorized: again, Shared: h.Share != ""}
	if _, grants, err := f.options.Connections.Holder(ctx, h.identity()); err == nil {
		if outcome.Warning = GrantWarning(grants); outcome.Warning != "" {
			f.options.Logger.Warn("many refresh tokens of one user", "connection", c.Name, "living", len(grants))
		}
	}
	return outcome
}

// warnFrom is how many refresh tokens of one user may live before it is said.
const warnFrom = connection.MaxGrants - 3

// GrantWarning says that Zoho is about to drop a user's oldest refresh token,
// and whose that is; empty where there is nothing to fear.
func GrantWarning(grants []connection.MintedGrant) string {
	if len(grants) < warnFrom {
		return ""
	}
	oldest := grants[0]
	whose := "one that no connection uses"
	if oldest.Connection != "" {
		whose = "that of connection " + oldest.Connection
	}
	return fmt.Sprintf("Zoho keeps %d refresh tokens per user and app; this user has %d that were never revoked. One more than %d silently ends the oldest: %s, made on %s.",
		connection.MaxGrants, len(grants), connection.MaxGrants, whose, oldest.At.Format("2 January 2006"))
}

// hold keeps the grant until somebody decides.
func (f *Flow) hold(ctx context.Context, h held, reason Decision, existing, subject string, revision uint64) (*Outcome, error) {
	h.Reason, h.Existing = reason, existing
	if subject == "" {
		return nil, undecidable(h)
	}
	h.Expires = f.options.Now().Add(patience)
	if _, err := f.store.put(ctx, subject, phaseHeld, h.Expires, h, revision); err != nil {
		return nil, internal(err)
	}
	return &Outcome{Choice: h.choice()}, nil
}

func undecidable(h held) error {
	return &Fault{
		Code: NameTaken, Title: "This Zoho user is connected already", Err: errors.New("duplicate"),
		Text: fmt.Sprintf("%s of %s has the connection %s. The fresh access was given back to Zoho.", h.Who.UserName, orgLabel(h.Who.OrgName, h.Who.OrgID), h.Existing),
		Todo: "Re-authorize " + h.Existing + " instead.",
	}
}

func (h *held) choice() *Choice {
	return &Choice{Reason: h.Reason, Existing: h.Existing, Who: h.Who, Location: h.Location}
}

// Held returns the choice that the browser with this state has to make; one without
// a state has none. The error is a *Fault.
func (f *Flow) Held(ctx context.Context, state string) (*Choice, error) {
	if state == "" {
		return nil, stateFault(errUnknown)
	}
	var h held
	if _, err := f.store.get(ctx, stateSubject(state), phaseHeld, &h); err != nil {
		return nil, stateFault(err)
	}
	return h.choice(), nil
}

// Decide carries the choice out: accepted, the existing connection gets the
// fresh grant; else that is given back to Zoho. The error is a *Fault.
func (f *Flow) Decide(ctx context.Context, state string, accept bool, actor string) (*Outcome, error) {
	var h held
	if _, err := f.store.take(ctx, stateSubject(state), phaseHeld, &h); err != nil {
		return nil, stateFault(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if actor != "" {
		h.Actor = actor
	}
	if !accept {
		f.giveBack(ctx, h)
		f.release(ctx, h)
		return &Outcome{Shared: h.Share != ""}, nil
	}
	updated, err := f.reauthorize(ctx, h, h.Existing)
	if err != nil {
		f.unused(ctx, h, err)
		f.release(ctx, h)
		if duplicate, ok := errors.AsType[connection.ErrDuplicate](err); ok { // made while the choice was
			h.Existing = duplicate.Existing
			return nil, h.of(undecidable(h))
		}
		return nil, h.of(storeFault(err, h.Existing))
	}
	return f.done(ctx, h, updated, true), nil
}

func (f *Flow) release(ctx context.Context, h held) {
	if h.Share != "" {
		f.quiet("give back a one-time link", f.store.releaseShare(ctx, h.Share))
	}
}

// unused gives a fresh grant back that could not be stored because of err. One of
// which nobody knows stays: it may be the one in use.
func (f *Flow) unused(ctx context.Context, h held, err error) {
	if !errors.Is(err, connection.ErrUnclear) {
		f.giveBack(ctx, h)
	}
}

// giveBack revokes a fresh grant that nobody is going to use.
func (f *Flow) giveBack(ctx context.Context, h held) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err := f.options.Zoho.Revoke(ctx, h.Location, h.refresh())
	if dead(err) {
		err = nil
	}
	if err == nil && h.Who.UserID != "" {
		err = f.options.Connections.ForgetGrant(ctx, h.identity(), h.refresh())
	}
	f.quiet("give a fresh grant back", err)
}

// Sweep gives back the grants that nobody decided about in time.
func (f *Flow) Sweep(ctx context.Context) error {
	return f.store.abandoned(ctx, func(h held) {
		f.giveBack(ctx, h)
		f.release(ctx, h)
	})
}

// Disconnect revokes the connection's grant at Zoho and removes it, keeping the
// record of who and when. Where Zoho can't be asked it removes nothing, unless
// forced: then the grant lives on at Zoho, and revoked is false.
func (f *Flow) Disconnect(ctx context.Context, name, by string, force bool) (revoked bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	for {
		c, err := f.options.Connections.Fetch(ctx, name)
		if err != nil {
			return false, err
		}
		err = f.revoke(ctx, c)
		if err != nil && !force {
			return false, &RevokeError{Err: err}
		}
		revoked = err == nil
		f.quiet("revoke "+name, err)
		err = f.options.Connections.RemoveRevoked(ctx, c, by)
		if errors.Is(err, connection.ErrNewGrant) {
			continue // that one has to be revoked, too
		}
		if err != nil {
			return revoked, err
		}
		break
	}
	f.options.Event(name, EventDisconnected)
	f.options.Logger.Info("connection is disconnected", "connection", name, "by", by, "revoked", revoked)
	return revoked, nil
}

// revoke gives the connection's grant back to Zoho.
func (f *Flow) revoke(ctx context.Context, c *connection.Connection) error {
	token, err := c.RefreshToken(f.options.Keyring)
	if err != nil {
		return err
	}
	if err = f.options.Zoho.Revoke(ctx, c.Location, token); err != nil && !dead(err) {
		return err
	}
	if identity, ok := c.Identity(); ok {
		f.quiet("count grants", f.options.Connections.ForgetGrant(ctx, identity, token))
	}
	return nil
}

// RevokeError says that the grant could not be revoked at Zoho, so nothing was
// removed.
type RevokeError struct{ Err error }

// Error implements error.
func (e *RevokeError) Error() string { return "revoke at Zoho: " + e.Err.Error() }

// Unwrap returns what Zoho or the keyring said.
func (e *RevokeError) Unwrap() error { return e.Err }

// CreateShare makes a one-time link for the consent; word is its secret part.
func (f *Flow) CreateShare(ctx context.Context, p Pending, life time.Duration) (word string, share *Share, err error) {
	if life < time.Minute || life > MaxShare {
		return "", nil, fmt.Errorf("a link lives from 1m to %s", MaxShare)
	}
	word = random()
	p.Share = id(word)
	share = &Share{ID: p.Share, Pending: p, Expires: f.options.Now().Add(life)}
	if _, err := f.store.put(ctx, shareSubject(share.ID), phaseShare, share.Expires, share, 0); err != nil {
		return "", nil, fmt.Errorf("make a one-time link: %w", err)
	}
	return word, share, nil
}

// Share looks a one-time link up. The error is a *Fault.
func (f *Flow) Share(ctx context.Context, word string) (*Share, error) {
	share, err := f.store.share(ctx, id(word))
	if err == nil && !share.UsedAt.IsZero() {
		err = errUsed
	}
	if err != nil {
		return nil, shareFault(err)
	}
	return share, nil
}

// Shares are the one-time links that are good and not in use, those that expire first
// before the others.
func (f *Flow) Shares(ctx context.Context) ([]*Share, error) {
	good, err := f.store.shares(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for one-time links: %w", err)
	}
	slices.SortFunc(good, func(a, b *Share) int { return cmp.Or(a.Expires.Compare(b.Expires), strings.Compare(a.ID, b.ID)) })
	return good, nil
}

// Withdraw ends a one-time link before its time, also for who set out by it and isn't
// back yet. One whose UsedAt is set has connected an account, or is about to. The error
// is a *Fault.
func (f *Flow) Withdraw(ctx context.Context, id string) (*Share, error) {
	share, err := f.store.withdraw(ctx, id)
	if err != nil {
		return nil, shareFault(err)
	}
	return share, nil
}

// BeginShared begins the consent of a one-time link. The error is a *Fault.
func (f *Flow) BeginShared(ctx context.Context, word string) (Begun, error) {
	share, err := f.store.changeShare(ctx, id(word), func(share *Share) error {
		if !share.UsedAt.IsZero() || share.Starts >= maxStarts {
			return errUsed
		}
		share.Starts++
		return nil
	})
	if err != nil {
		return Begun{}, shareFault(err)
	}
	begun, err := f.Begin(ctx, share.Pending)
	if err != nil {
		return Begun{}, internal(err)
	}
	return begun, nil
}

func shareFault(err error) *Fault {
	f := &Fault{Err: err, Code: ShareInvalid, Title: "This link is not valid"}
	f.Text = "It has expired, it was withdrawn, or it was not copied whole."
	switch {
	case errors.Is(err, errUsed):
		f.Code, f.Title, f.Text = ShareUsed, "This link was used already", "A link connects one account, once."
	case !errors.Is(err, errUnknown):
		return internal(err)
	}
	f.Todo = "Ask whoever sent it to you for a new one."
	return f
}

func (f *Flow) quiet(what string, err error) {
	if err != nil {
		f.options.Logger.Warn("not done: "+what, "err", err)
	}
}

// PlaceName is a data centre in words.
func PlaceName(location string) string {
	if name, ok := placeNames[location]; ok {
		return name
	}
	return location
}

var placeNames = map[string]string{
	"us": "United States", "eu": "Europe", "in": "India", "au": "Australia", "jp": "Japan", "cn": "China",
	"ca": "Canada", "sa": "Saudi Arabia", "uk": "United Kingdom", "ae": "United Arab Emirates",
}
