package console

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho"
)

// listData is the list of connections.
type listData struct {
	Rows           []row
	OK, Wait, Bad  int
	Removed        []*connection.Connection
	RemovedOmitted int
}

func (c *Console) list(w http.ResponseWriter, r *http.Request) {
	all := c.Connections.All()
	names := make([]string, len(all))
	for i, conn := range all {
		names[i] = conn.Name
	}
	queues, known := c.board.look(r.Context())
	uses := c.board.lastUses(r.Context(), names)
	var data listData
	members := c.members()
	for _, conn := range all {
		line := c.row(conn, queues[conn.Name], known, uses[conn.Name])
		line.limit(members)
		switch line.State {
		case "ok":
			data.OK++
		case "wait":
			data.Wait++
		default:
			data.Bad++
		}
		data.Rows = append(data.Rows, line)
	}
	// Who needs somebody is not to be looked for among hundreds.
	slices.SortStableFunc(data.Rows, func(a, b row) int { return cmp.Compare(a.rank(), b.rank()) })
	data.Removed = c.Connections.Removed()
	const shown = 20
	if len(data.Removed) > shown {
		data.RemovedOmitted, data.Removed = len(data.Removed)-shown, data.Removed[:shown]
	}
	c.render(w, r, http.StatusOK, "list", page{Title: "Connections", Nav: "connections", Live: live(r), Data: data})
}

// live reports whether a list asks for itself, to put what has changed into place.
func live(r *http.Request) bool { return r.URL.Query().Has("rows") }

// connectData is the form to connect, as it was filled in.
type connectData struct {
	Nickname, Name, Location, Environment, Scopes string
	Faults                                        map[string]string
	Places                                        []zoho.DataCenter
	Existing                                      string // the connection that has the name
}

func (c *Console) connectForm(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	data := connectData{
		Nickname: clip(query.Get("nickname")), Name: clip(query.Get("name")),
		Environment: cmp.Or(query.Get("environment"), connection.Production),
		Scopes:      strings.Join(consent.DefaultScopes, "\n"), Places: zoho.DataCenters(),
	}
	if _, ok := zoho.LookupDataCenter(query.Get("location")); ok {
		data.Location = query.Get("location")
	}
	c.render(w, r, http.StatusOK, "connect", page{Title: "Connect a Zoho account", Nav: "connect", Data: data})
}

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// nameOf derives a connection's name from what people call it.
func nameOf(nickname string) string {
	name := strings.Trim(notName.ReplaceAllString(strings.ToLower(nickname), "-"), "-")
	return strings.TrimRight(name[:min(len(name), 63)], "-")
}

// pending reads the form. Faults are by field.
func (c *Console) pending(r *http.Request) (consent.Pending, connectData) {
	form := r.PostForm
	data := connectData{
		Nickname: strings.TrimSpace(form.Get("nickname")), Name: strings.TrimSpace(form.Get("name")),
		Location: form.Get("location"), Environment: cmp.Or(form.Get("environment"), connection.Production),
		Scopes: form.Get("scopes"), Faults: map[string]string{}, Places: zoho.DataCenters(),
	}
	data.Name = cmp.Or(data.Name, nameOf(data.Nickname))
	scopes := strings.FieldsFunc(data.Scopes, func(r rune) bool { return r == ',' || r <= ' ' })
	if data.Nickname == "" {
		data.Faults["nickname"] = "Say what people call this connection, like “Acme sales”."
	} else if clip(data.Nickname) != data.Nickname {
		data.Faults["nickname"] = "At most 150 characters, on one line."
	}
	switch _, taken := c.Connections.Get(data.Name); {
	case data.Name == "" && data.Nickname == "": // one fault is enough
	case !envelope.ValidConnection(data.Name):
		data.Faults["name"] = "A name is 1 to 63 of a–z, 0–9, - and _, the first a letter or digit."
	case taken:
		data.Faults["name"] = "There is a connection of this name already."
		data.Existing = data.Name
	}
	if _, ok := zoho.LookupDataCenter(data.Location); !ok && data.Location != "" {
		data.Faults["location"] = "Choose one of Zoho's data centres."
	}
	if !slices.Contains(connection.Environments(), data.Environment) {
		data.Faults["environment"] = "Choose production, sandbox or developer."
	}
	for _, scope := range scopes {
		if !connection.ValidScope(scope) {
			data.Faults["scopes"] = "Scopes look like ZohoCRM.modules.ALL, one per line."
		}
	}
	if len(scopes) > 100 {
		data.Faults["scopes"] = "At most 100 scopes."
	}
	return consent.Pending{
		Kind: consent.Connect, Name: data.Name, Nickname: data.Nickname, Location: data.Location,
		Environment: data.Environment, Scopes: scopes, RedirectURI: RedirectURI(c.PublicURL), Actor: person(r),
	}, data
}

func (c *Console) connect(w http.ResponseWriter, r *http.Request) {
	pending, data := c.pending(r)
	if len(data.Faults) > 0 {
		c.render(w, r, http.StatusUnprocessableEntity, "connect", page{Title: "Connect a Zoho account", Nav: "connect", Data: data})
		return
	}
	if r.PostForm.Get("how") == "link" {
		c.share(w, r, pending)
		return
	}
	c.begin(w, r, pending)
}

// begin sends the browser to Zoho.
func (c *Console) begin(w http.ResponseWriter, r *http.Request, pending consent.Pending) {
	begun, err := c.Consents.Begin(r.Context(), pending)
	if err != nil {
		c.fail(w, r, http.StatusBadGateway, consent.AsFault(err))
		return
	}
	c.Logger.Info("consent begun", "kind", pending.Kind, "connection", pending.Name, "by", pending.Actor)
	c.leave(w, r, begun)
}

// named returns the connection of the path, or answers that there is none.
func (c *Console) named(w http.ResponseWriter, r *http.Request) (*connection.Connection, bool) {
	name := r.PathValue("name")
	conn, ok := c.Connections.Get(name)
	if ok {
		return conn, true
	}
	text := "It may have been disconnected."
	for _, gone := range c.Connections.Removed() {
		if gone.Name == name {
			text = "It was disconnected on " + gone.UpdatedAt.UTC().Format("2 January 2006, 15:04 UTC") + " by " + cmp.Or(gone.UpdatedBy, "somebody") + "."
		}
	}
	c.fail(w, r, http.StatusNotFound, &consent.Fault{
		Code: consent.Gone, Title: "There is no such connection", Text: text, Todo: "Look at the list of connections.",
	})
	return nil, false
}

// showData is the page of one connection.
type showData struct {
	Row     row
	Flow    *orgRow
	Grants  int
	Warning string
	Test    *Tested
}

func (c *Console) show(w http.ResponseWriter, r *http.Request) {
	if conn, ok := c.named(w, r); ok {
		c.showWith(w, r, conn, nil)
	}
}

func (c *Console) showWith(w http.ResponseWriter, r *http.Request, conn *connection.Connection, test *Tested) {
	queues, known := c.board.look(r.Context())
	uses := c.board.lastUses(r.Context(), []string{conn.Name})
	members := c.members()
	data := showData{
		Row:  c.row(conn, queues[conn.Name], known, uses[conn.Name]),
		Flow: c.orgOf(r.Context(), conn, members[conn.Queue()], queues), Test: test,
	}
	data.Row.limit(members)
	data.Row.Scopes = conn.Scopes
	if identity, ok := conn.Identity(); ok {
		if _, grants, err := c.Connections.Holder(r.Context(), identity); err == nil {
			data.Grants, data.Warning = len(grants), consent.GrantWarning(grants)
		}
	}
	c.render(w, r, http.StatusOK, "show", page{Title: data.Row.Label(), Nav: "connections", Data: data})
}

func (c *Console) pendingOf(conn *connection.Connection, r *http.Request) consent.Pending {
	return consent.Pending{
		Kind: consent.Reauthorize, Name: conn.Name, Nickname: conn.Nickname, Location: conn.Location,
		Environment: conn.Environment, Scopes: conn.Scopes, RedirectURI: RedirectURI(c.PublicURL), Actor: person(r),
	}
}

func (c *Console) reauthorizeForm(w http.ResponseWriter, r *http.Request) {
	if conn, ok := c.readable(w, r); ok {
		line := c.row(conn, queueState{}, false, use{})
		c.render(w, r, http.StatusOK, "reauthorize", page{Title: "Re-authorize " + line.Label(), Nav: "connections", Data: line})
	}
}

func (c *Console) reauthorize(w http.ResponseWriter, r *http.Request) {
	if conn, ok := c.readable(w, r); ok {
		c.begin(w, r, c.pendingOf(conn, r))
	}
}

func (c *Console) shareExisting(w http.ResponseWriter, r *http.Request) {
	if conn, ok := c.readable(w, r); ok {
		c.share(w, r, c.pendingOf(conn, r))
	}
}

// readable is named, for what takes more of the connection than its name.
func (c *Console) readable(w http.ResponseWriter, r *http.Request) (*connection.Connection, bool) {
	conn, ok := c.named(w, r)
	if ok && conn.Status == connection.Unreadable {
		c.fail(w, r, http.StatusConflict, &consent.Fault{
			Code: consent.Invalid, Title: "The record can't be read", Text: "Without knowing what the connection was it can't be authorized again.",
			Todo: "Disconnect it and connect anew under the same name, so that nothing changes for its callers.",
		}, way{"/connections/" + url.PathEscape(conn.Name), "Back to the connection"})
		return nil, false
	}
	return conn, ok
}

// shareLife is how long a one-time link is good.
const shareLife = 24 * time.Hour

// linkOf begins what stands in the record of a connection that was made by a link.
const linkOf = "link of "

// share makes a one-time link and shows it, this once.
func (c *Console) share(w http.ResponseWriter, r *http.Request, pending consent.Pending) {
	pending.Actor = linkOf + cmp.Or(person(r), "the console")
	word, link, err := c.Consents.CreateShare(r.Context(), pending, shareLife)
	if err != nil {
		c.fail(w, r, http.StatusBadGateway, consent.AsFault(err))
		return
	}
	c.Logger.Info("one-time link made", "kind", pending.Kind, "connection", pending.Name, "by", person(r))
	c.render(w, r, http.StatusOK, "share", page{Title: "A link to send", Nav: "connect", Data: struct {
		URL     string
		Expires time.Time
		Pending consent.Pending
	}{LinkURL(c.PublicURL, word), link.Expires, pending}})
}

// links are the one-time links that are good: what each is for, not what it is.
func (c *Console) links(w http.ResponseWriter, r *http.Request) {
	good, err := c.Consents.Shares(r.Context())
	if err != nil {
		c.fail(w, r, http.StatusBadGateway, consent.AsFault(err), again(r, "Try again"))
		return
	}
	for _, link := range good {
		link.Pending.Actor = strings.TrimPrefix(link.Pending.Actor, linkOf)
	}
	c.render(w, r, http.StatusOK, "links", page{Title: "Open links", Nav: "connect", Data: good})
}

func (c *Console) withdraw(w http.ResponseWriter, r *http.Request) {
	link, err := c.Consents.Withdraw(r.Context(), r.PathValue("id"))
	f := flash{Kind: "good", Title: "The link is withdrawn", Text: "Whoever opens it is told that it is not valid."}
	switch {
	case err != nil && consent.AsFault(err).Code == consent.Internal:
		c.fail(w, r, http.StatusBadGateway, consent.AsFault(err), way{"/links", "Back to the links"})
		return
	case err != nil:
		f.Title, f.Text = "That link was good no more", "It has expired, or somebody else withdrew it."
	case !link.UsedAt.IsZero():
		f.Title, f.Text = "Somebody has used that link", "Look at the list of connections. Nobody else can use it."
		fallthrough
	default:
		c.Logger.Info("one-time link withdrawn", "connection", link.Pending.Name, "by", person(r))
	}
	c.setFlash(w, f)
	http.Redirect(w, r, "/links", http.StatusSeeOther)
}

// LinkURL is the address of a one-time link.
func LinkURL(publicURL, word string) string {
	return strings.TrimSuffix(publicURL, "/") + "/link/" + url.PathEscape(word)
}

func (c *Console) test(w http.ResponseWriter, r *http.Request) {
	conn, ok := c.named(w, r)
	if !ok {
		return
	}
	result := Test(r.Context(), c.Tokens, c.Zoho, conn)
	c.Logger.Info("connection tested", "connection", conn.Name, "by", person(r), "good", result.Good)
	if again, ok := c.Connections.Get(conn.Name); ok {
		conn = again
	}
	c.showWith(w, r, conn, &result)
}

func (c *Console) disconnectForm(w http.ResponseWriter, r *http.Request) {
	if conn, ok := c.named(w, r); ok {
		c.disconnectPage(w, r, conn, http.StatusOK, "")
	}
}

func (c *Console) disconnectPage(w http.ResponseWriter, r *http.Request, conn *connection.Connection, status int, fault string) {
	queues, known := c.board.look(r.Context())
	line := c.row(conn, queues[conn.Name], known, use{})
	c.render(w, r, status, "disconnect", page{Title: "Disconnect " + line.Label(), Nav: "connections", Data: struct {
		Row   row
		Fault string
	}{line, fault}})
}

func (c *Console) disconnect(w http.ResponseWriter, r *http.Request) {
	conn, ok := c.named(w, r)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 40*time.Second)
	defer cancel()
	revoked, err := c.Consents.Disconnect(ctx, conn.Name, person(r), r.PostForm.Get("force") == "yes")
	if revoke, ok := errors.AsType[*consent.RevokeError](err); ok {
		c.Logger.Warn("connection is not disconnected", "connection", conn.Name, "err", err)
		why := "Zoho did not confirm that the access is revoked, so nothing was removed."
		if e, ok := errors.AsType[*zoho.Error](revoke.Err); !ok || e.Kind == zoho.Misconfigured {
			why = "The access can't be revoked at Zoho from here, so nothing was removed."
		}
		c.disconnectPage(w, r, conn, http.StatusBadGateway, why)
		return
	}
	if err != nil && !errors.Is(err, connection.ErrNotFound) {
		c.fail(w, r, http.StatusBadGateway, consent.AsFault(err))
		return
	}
	text := "Its access was revoked at Zoho."
	switch {
	case err != nil: // it was gone
		text = "Somebody else has just done it."
	case !revoked:
		text = "Its access was not revoked at Zoho: somebody has to remove the app at accounts.zoho.com › Connected Apps."
	}
	c.setFlash(w, flash{Kind: "good", Title: conn.Name + " is disconnected", Text: text + " Who did it and when is kept below."})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}
