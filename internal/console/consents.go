package console

import (
	"cmp"
	"net/http"
	"net/url"

	"zoho-worker/internal/consent"
)

// callback is where Zoho sends the browser back to.
func (c *Console) callback(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	state := query.Get("state")
	outcome, err := c.Consents.Callback(r.Context(), query, c.bound(r, state))
	choose := err == nil && outcome.Choice != nil
	if err != nil && consent.AsFault(err).Code == consent.StateUsed { // by the same page, before it was loaded again?
		_, held := c.Consents.Held(r.Context(), state)
		choose = held == nil
	}
	if choose {
		// Away from the address that has the code in it.
		http.Redirect(w, r, decidePage(consentCookie(state)), http.StatusSeeOther)
		return
	}
	if ended(err) {
		c.dropCookie(w, consentCookie(state))
	}
	if err != nil {
		c.refuse(w, r, err, "")
		return
	}
	c.arrive(w, r, outcome)
}

// ended reports whether a consent has come to its end just now. One that is another
// browser's, is used already, or can't be looked up has not.
func ended(err error) bool { return err == nil || consent.AsFault(err).Of != nil }

// refuse says why a consent came to nothing, and leads to where it is begun again, or,
// where it is not over, to itself ("" is the address of the page).
func (c *Console) refuse(w http.ResponseWriter, r *http.Request, err error, itself string) {
	fault := consent.AsFault(err)
	of := fault.Of
	switch {
	case of != nil && of.Share == "":
		c.fail(w, r, statusOf(fault), fault, anew(fault, of))
	case of == nil && fault.Code == consent.Internal:
		c.fail(w, r, statusOf(fault), fault, way{itself, "Try again"})
	case of == nil && (fault.Code == consent.StateInvalid || fault.Code == consent.StateUsed):
		c.fail(w, r, statusOf(fault), fault, c.home("Open the console"))
	default: // a guest, who has a link to begin by, and no place in the console
		c.fail(w, r, statusOf(fault), fault)
	}
}

// anew is where a consent that ended so is begun again.
func anew(fault *consent.Fault, of *consent.Pending) way {
	if of.Kind == consent.Reauthorize && fault.Code != consent.Gone {
		return way{"/connections/" + url.PathEscape(of.Name) + "/reauthorize", "Begin again"}
	}
	form, text := url.Values{"nickname": {of.Nickname}, "environment": {of.Environment}}, "Begin again"
	if fault.Code != consent.NameTaken {
		form.Set("name", of.Name)
	}
	if of.Location != "" {
		form.Set("location", of.Location)
	}
	if fault.Location != "" {
		form.Set("location", fault.Location)
		text = "Connect at " + consent.PlaceName(fault.Location)
	}
	return way{"/connect?" + form.Encode(), text}
}

func statusOf(fault *consent.Fault) int {
	switch fault.Code {
	case consent.Internal, consent.Unavailable, consent.WhoUnknown, consent.BadAPIDomain, consent.Misconfigured:
		return http.StatusBadGateway
	case consent.Throttled:
		return http.StatusServiceUnavailable
	case consent.NameTaken, consent.Gone, consent.OtherOrg, consent.StateUsed:
		return http.StatusConflict
	case consent.ShareInvalid, consent.ShareUsed:
		return http.StatusGone
	}
	return http.StatusBadRequest
}

// arrive says what came of a consent, on the connection's page, or to a guest on
// one without anything else on it.
func (c *Console) arrive(w http.ResponseWriter, r *http.Request, outcome *consent.Outcome) {
	f := flash{Kind: "good", Warning: outcome.Warning}
	to := "/"
	if outcome.Connection == nil {
		f.Title, f.Text = "Nothing was changed", "The fresh access was given back to Zoho."
	} else {
		label := cmp.Or(outcome.Connection.Nickname, outcome.Connection.Name)
		to = "/connections/" + outcome.Connection.Name
		f.Title = label + " is connected"
		f.Text = "Requests published to zoho.requests." + outcome.Connection.Name + " are carried out as " + cmp.Or(outcome.Connection.UserName, "this user") + "."
		if outcome.Reauthorized {
			f.Title = label + " is connected again"
			f.Text = "Requests that waited for it go on by themselves."
		}
	}
	if outcome.Shared {
		f.Warning, to = "", "/oauth/done"
		if outcome.Connection != nil {
			f.Text = "You can close this page."
		}
	}
	c.setFlash(w, f)
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func (c *Console) doneShared(w http.ResponseWriter, r *http.Request) {
	done := c.takeFlash(w, r)
	if done == nil {
		done = &flash{Title: "All done", Text: "You can close this page."}
	}
	c.render(w, r, http.StatusOK, "done", page{Title: done.Title, Open: true, Data: done, Flash: &flash{}})
}

// decidePage is where the choice is made whose state is in the cookie of that name.
func decidePage(name string) string { return "/oauth/decide?consent=" + url.QueryEscape(name) }

// decision reads the state of a choice from the cookie that the page names.
func (c *Console) decision(w http.ResponseWriter, r *http.Request, name string) (state string, choice *consent.Choice, ok bool) {
	if len(name) > 40 || !c.cookie(r, name, &state) || consentCookie(state) != name {
		state = ""
	}
	choice, err := c.Consents.Held(r.Context(), state)
	if err != nil {
		c.refuse(w, r, err, decidePage(name))
		return "", nil, false
	}
	return state, choice, true
}

func (c *Console) decideForm(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("consent")
	if _, choice, ok := c.decision(w, r, name); ok {
		title := "This Zoho user is connected already"
		if choice.Reason == consent.OtherUser {
			title = "Another Zoho user signed in"
		}
		c.render(w, r, http.StatusOK, "decide", page{Title: title, Open: true, Data: struct {
			*consent.Choice
			Consent string
		}{choice, name}})
	}
}

func (c *Console) decide(w http.ResponseWriter, r *http.Request) {
	if !c.formOK(w, r) {
		return
	}
	name := r.PostForm.Get("consent")
	state, _, ok := c.decision(w, r, name)
	if !ok {
		return
	}
	outcome, err := c.Consents.Decide(r.Context(), state, r.PostForm.Get("do") == "reauthorize", "")
	if ended(err) {
		c.dropCookie(w, name)
	}
	if err != nil {
		c.refuse(w, r, err, decidePage(name))
		return
	}
	c.arrive(w, r, outcome)
}

// welcome keeps strangers who try words from keeping JetStream busy.
func (c *Console) welcome(w http.ResponseWriter, r *http.Request) bool {
	if c.guests.Allow() {
		return true
	}
	w.Header().Set("Retry-After", "5")
	c.fail(w, r, http.StatusTooManyRequests, &consent.Fault{
		Code: consent.Invalid, Title: "Too many at once", Text: "Many people open links right now.", Todo: "Try again in a few seconds.",
	}, again(r, "Try again"))
	return false
}

// link is where a one-time link leads: what is asked for, and one button.
func (c *Console) link(w http.ResponseWriter, r *http.Request) {
	if !c.welcome(w, r) {
		return
	}
	share, err := c.Consents.Share(r.Context(), r.PathValue("word"))
	if err != nil {
		c.refuse(w, r, err, "")
		return
	}
	c.render(w, r, http.StatusOK, "link", page{Title: "Connect your Zoho account", Open: true, Data: struct {
		*consent.Share
		Action string
	}{share, "/link/" + url.PathEscape(r.PathValue("word"))}})
}

func (c *Console) beginLink(w http.ResponseWriter, r *http.Request) {
	if !c.formOK(w, r) {
		return
	}
	if !c.welcome(w, r) {
		return
	}
	begun, err := c.Consents.BeginShared(r.Context(), r.PathValue("word"))
	if err != nil {
		c.refuse(w, r, err, "")
		return
	}
	c.leave(w, r, begun)
}

// leave sends the browser to Zoho, by a page: a redirect would belong to the
// form, and form-action would have to name every server that Zoho, or the sign-in
// of a customer of Zoho's, may lead on to.
func (c *Console) leave(w http.ResponseWriter, r *http.Request, begun consent.Begun) {
	c.bind(w, begun.State)
	c.render(w, r, http.StatusOK, "leave", page{Title: "To Zoho", Open: true, Leave: begun.URL})
}
