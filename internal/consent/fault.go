package consent

import (
	"errors"
	"fmt"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/zoho"
)

// Code says what went wrong. The list is closed.
type Code string

// The codes.
const (
	StateInvalid     Code = "oauth_state_invalid"
	StateUsed        Code = "oauth_state_used"
	Denied           Code = "oauth_denied"
	BadLocation      Code = "oauth_bad_location"
	WrongDataCentre  Code = "oauth_wrong_data_centre"
	CodeExpired      Code = "oauth_code_expired"
	NoRefreshToken   Code = "oauth_no_refresh_token"
	BadAPIDomain     Code = "oauth_bad_api_domain"
	Throttled        Code = "oauth_throttled"
	Misconfigured    Code = "oauth_misconfigured"
	Unavailable      Code = "oauth_unavailable"
	WrongEnvironment Code = "wrong_environment"
	ScopesMissing    Code = "scopes_missing"
	WhoUnknown       Code = "who_unknown"
	OtherOrg         Code = "other_org"
	NameTaken        Code = "name_taken"
	Gone             Code = "connection_gone"
	LetterGone       Code = "letter_gone"
	ShareInvalid     Code = "share_invalid"
	ShareUsed        Code = "share_used"
	Invalid          Code = "invalid"
	Internal         Code = "internal"
)

// Fault is an ending for a person: what happened and what to do.
type Fault struct {
	Code Code
	// Title says what happened in some words, Text in a sentence or two, Todo
	// what to do now.
	Title, Text, Todo string
	// Location is the data centre that would have been right (WrongDataCentre).
	Location string
	// Of is the consent that ended so, nil where it is not known which: what to begin again.
	Of *Pending
	// Err is what is behind it, for the log.
	Err error
}

// Error implements error.
func (f *Fault) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("%s: %s: %v", f.Code, f.Title, f.Err)
	}
	return fmt.Sprintf("%s: %s", f.Code, f.Title)
}

// LinkIsGood reports whether the consent came by a one-time link that is still of use.
func (f *Fault) LinkIsGood() bool {
	if f.Of == nil || f.Of.Share == "" {
		return false
	}
	switch f.Code {
	case ShareUsed, ShareInvalid, NameTaken, Gone:
		return false
	}
	return true
}

// Unwrap returns what is behind it.
func (f *Fault) Unwrap() error { return f.Err }

// AsFault is the *Fault that an error is, or one for what a person can't mend.
func AsFault(err error) *Fault {
	if fault, ok := errors.AsType[*Fault](err); ok {
		return fault
	}
	return internal(err)
}

// of says which consent ended so.
func (p Pending) of(err error) *Fault {
	fault := *AsFault(err)
	p.Verifier = ""
	fault.Of = &p
	return &fault
}

func internal(err error) *Fault {
	return &Fault{
		Code: Internal, Title: "That did not work", Err: err,
		Text: "The worker could not reach its storage, or something unexpected happened.",
		Todo: "Try again in a minute. The details are in the worker's log.",
	}
}

func stateFault(err error) *Fault {
	switch {
	case errors.Is(err, errUsed):
		return &Fault{
			Code: StateUsed, Title: "This sign-in was used already", Err: err,
			Text: "Each sign-in at Zoho can be completed once. This one has been, perhaps in another tab.",
			Todo: "Look at the list of connections. If yours is not there, begin again.",
		}
	case errors.Is(err, errUnknown):
		return &Fault{
			Code: StateInvalid, Title: "This sign-in can't be completed", Err: err,
			Text: "It did not begin in this browser, or it took longer than 15 minutes.",
			Todo: "Begin again, in one browser and without a long pause.",
		}
	}
	return internal(err)
}

// exchangeFault says what the accounts server's refusal of a code means.
func exchangeFault(err error) *Fault {
	f := &Fault{Err: err}
	e, ok := errors.AsType[*zoho.Error](err)
	switch {
	case !ok:
		return internal(err)
	case e.Code == zoho.CodeBadAPIDomain:
		f.Code, f.Title = BadAPIDomain, "Zoho's answer named an unknown API host"
		f.Text = "The worker does not call hosts that are not Zoho's. Nothing was stored."
		f.Todo = "Tell whoever runs the worker: the log has the details."
	case e.Kind == zoho.DeadGrant:
		f.Code, f.Title = CodeExpired, "Zoho's code has expired"
		f.Text = "The code that Zoho hands over after you accept works once, for one to two minutes."
		f.Todo = "Begin again and accept without a pause."
	case e.Kind == zoho.Throttled:
		f.Code, f.Title = Throttled, "Zoho asks for a pause"
		f.Text = "There were too many sign-ins for this app in the last ten minutes. Nothing is broken."
		f.Todo = "Try again in ten minutes; trying earlier makes the pause longer."
	case e.Kind == zoho.Misconfigured:
		f.Code, f.Title = Misconfigured, "Zoho does not accept the app"
		f.Text = "The client id, its secret or the redirect address is not what Zoho's API console has for this data centre."
		f.Todo = "Tell whoever runs the worker: in the API console the app needs this data centre enabled (multi-DC), its secret there, and the redirect address of this page."
	default:
		f.Code, f.Title = Unavailable, "Zoho did not answer"
		f.Text = "Zoho's accounts server could not be reached or gave no usable answer."
		f.Todo = "Try again in a minute."
	}
	return f
}

// storeFault says why a record was not stored.
func storeFault(err error, name string) *Fault {
	switch {
	case errors.Is(err, connection.ErrExists):
		return &Fault{
			Code: NameTaken, Title: "The name " + name + " is taken", Err: err,
			Text: "Another connection got this name meanwhile. Nothing was changed, and the fresh access was given back to Zoho.",
			Todo: "Begin again with another name.",
		}
	case errors.Is(err, connection.ErrNotFound):
		return &Fault{
			Code: Gone, Title: "The connection " + name + " is gone", Err: err,
			Text: "Somebody disconnected it meanwhile. The fresh access was given back to Zoho.",
			Todo: "Connect it anew.",
		}
	}
	return internal(err)
}
