package console

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consent"
	"zoho-worker/internal/dead"
	"zoho-worker/internal/envelope"
)

const (
	// A page lists so many letters; a person counts no further than mostCounted.
	lettersShown = 50
	mostCounted  = 1000
	// One press of a button works for so long at most; the next goes on.
	deadPatience = 30 * time.Second
	// Of a request so much is shown; `worker dead show` has all of it.
	mostShown = 64 << 10
)

// ages are what the list may be narrowed to, as durations and in words.
var ages = []struct {
	Value string
	Words string
	Span  time.Duration
}{
	{"", "any age", 0}, {"1h", "older than an hour", time.Hour}, {"24h", "older than a day", 24 * time.Hour}, {"168h", "older than a week", 7 * 24 * time.Hour},
}

// deadFilter is what the list of dead letters is narrowed to, as the address has it.
type deadFilter struct {
	Connection, Code, Age string
}

func filterOf(values url.Values) deadFilter {
	return deadFilter{strings.TrimSpace(clip(values.Get("connection"))), clip(values.Get("code")), clip(values.Get("age"))}
}

// Any says that something is filtered.
func (f deadFilter) Any() bool { return f != deadFilter{} }

// Query is the filter as an address has it, with further pairs.
func (f deadFilter) Query(pairs ...string) string {
	values := url.Values{}
	pairs = append([]string{"connection", f.Connection, "code", f.Code, "age", f.Age}, pairs...)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			values.Set(pairs[i], pairs[i+1])
		}
	}
	if len(values) == 0 {
		return ""
	}
	return "?" + values.Encode()
}

// picks is the filter for package dead. A name that none can have picks none.
func (f deadFilter) picks(now time.Time) (dead.Filter, bool) {
	filter := dead.Filter{Connection: f.Connection, Code: f.Code}
	for _, age := range ages {
		if age.Value == f.Age && age.Span > 0 {
			filter.Before = now.Add(-age.Span)
		}
	}
	return filter, f.Connection == "" || envelope.ValidConnection(f.Connection)
}

// letter is a dead letter as the pages show it.
type letter struct {
	*dead.Letter
	Ago string
}

func (c *Console) letterOf(l *dead.Letter) letter {
	return letter{l, span(c.Now().Sub(l.Buried)) + " ago"}
}

// letters opens the dead letters, or answers that they can't be read.
func (c *Console) letters(w http.ResponseWriter, r *http.Request) (*dead.Letters, bool) {
	letters, err := dead.Open(r.Context(), c.JS)
	if err != nil {
		c.fail(w, r, http.StatusBadGateway, consent.AsFault(err))
		return nil, false
	}
	return letters, true
}

// deadData is the list of dead letters.
type deadData struct {
	Filter  deadFilter
	Codes   []envelope.Code
	Ages    any
	Letters []letter
	Next    string // the address of the next page
	Later   bool   // this isn't the first page
}

func (c *Console) deadList(w http.ResponseWriter, r *http.Request) {
	letters, ok := c.letters(w, r)
	if !ok {
		return
	}
	data := deadData{Filter: filterOf(r.URL.Query()), Codes: envelope.Codes(), Ages: ages}
	filter, possible := data.Filter.picks(c.Now())
	filter.After, _ = strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	data.Later = filter.After > 0
	ctx, cancel := context.WithTimeout(r.Context(), deadPatience)
	defer cancel()
	if possible {
		picked, more, err := letters.Pick(ctx, filter, lettersShown)
		if err != nil {
			c.fail(w, r, http.StatusBadGateway, consent.AsFault(err))
			return
		}
		for _, l := range picked {
			data.Letters = append(data.Letters, c.letterOf(l))
		}
		if more {
			data.Next = "/dead" + data.Filter.Query("after", strconv.FormatUint(picked[len(picked)-1].Sequence, 10))
		}
	}
	c.render(w, r, http.StatusOK, "dead", page{Title: "Dead letters", Nav: "dead", Data: data})
}

// deadShow is the page of one letter.
func (c *Console) deadShow(w http.ResponseWriter, r *http.Request) {
	letters, ok := c.letters(w, r)
	if !ok {
		return
	}
	l, ok := c.numbered(w, r, letters, r.PathValue("number"))
	if !ok {
		return
	}
	type pair struct{ Name, Value string }
	data := struct {
		Letter  letter
		History []dead.Event
		Headers []pair
		Body    string
		Kind    string // text, json or bytes
		Size    int
		Cut     bool
		Known   bool // the connection is there
	}{Letter: c.letterOf(l), History: l.History(), Size: len(l.Data)}
	names, header := l.Own()
	for _, name := range names {
		data.Headers = append(data.Headers, pair{name, strings.Join(header[name], ", ")})
	}
	data.Body, data.Kind = readable(l.Data)
	if len(data.Body) > mostShown {
		data.Body, data.Cut = strings.ToValidUTF8(data.Body[:mostShown], ""), true
	}
	_, data.Known = c.Connections.Get(l.Connection)
	c.render(w, r, http.StatusOK, "letter", page{Title: "Dead letter " + r.PathValue("number"), Nav: "dead", Data: data})
}

// readable is a request for people: JSON indented, text as it is, else quoted. What
// is longer than mostShown may be cut there.
func readable(data []byte) (text, kind string) {
	var compact bytes.Buffer
	switch {
	case json.Compact(&compact, data) == nil:
		return indented(compact.Bytes()), "json"
	case utf8.Valid(data):
		return string(data), "text"
	}
	return fmt.Sprintf("%q", data[:min(len(data), mostShown)]), "bytes"
}

// indented is compact JSON as json.Indent makes it, until it is longer than mostShown:
// 84 KB of nested arrays would be 168 MB.
func indented(data []byte) string {
	var b strings.Builder
	line := func(depth int) {
		b.WriteByte('\n')
		for range depth {
			b.WriteString("  ")
		}
	}
	depth, quoted := 0, false
	for i := 0; i < len(data) && b.Len() <= mostShown; i++ {
		c := data[i]
		opens, closes := !quoted && (c == '{' || c == '['), !quoted && (c == '}' || c == ']')
		if closes {
			depth--
			line(depth)
		}
		b.WriteByte(c)
		switch {
		case opens && (data[i+1] == '}' || data[i+1] == ']'):
			i++
			b.WriteByte(data[i])
		case opens:
			depth++
			line(depth)
		case quoted && c == '\\':
			i++
			b.WriteByte(data[i])
		case c == '"':
			quoted = !quoted
		case !quoted && c == ',':
			line(depth)
		case !quoted && c == ':':
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// numbered finds a letter, or answers that there is none.
func (c *Console) numbered(w http.ResponseWriter, r *http.Request, letters *dead.Letters, number string) (*dead.Letter, bool) {
	n, err := strconv.ParseUint(number, 10, 64)
	if err == nil {
		var l *dead.Letter
		if l, err = letters.Get(r.Context(), n); err == nil {
			return l, true
		}
		if !errors.Is(err, jetstream.ErrMsgNotFound) {
			c.fail(w, r, http.StatusBadGateway, consent.AsFault(err))
			return nil, false
		}
	}
	c.fail(w, r, http.StatusNotFound, &consent.Fault{
		Code: consent.LetterGone, Title: "There is no such dead letter", Text: "It may have been replayed or dropped, or is older than 30 days.", Todo: "Look at the list of dead letters.",
	})
	return nil, false
}

// task is something that is done to letters: its words and its action.
type task struct {
	Name   string // in addresses
	Verb   string // on buttons
	Done   string
	Danger bool
	do     dead.Action
}

var tasks = []task{
	{"replay", "Replay", "replayed", false, (*dead.Letters).Replay},
	{"drop", "Drop", "dropped", true, (*dead.Letters).Drop},
}

// taskData is the question before letters are replayed or dropped.
type taskData struct {
	Task    task
	Filter  deadFilter
	Number  uint64 // of the one letter; 0: all that the filter picks
	Until   uint64
	Before  string
	Count   int
	More    bool // there are more than Count
	Letters []letter
	Back    string
}

// chosen are the letters that an address or a form names.
func (c *Console) chosen(ctx context.Context, w http.ResponseWriter, r *http.Request, letters *dead.Letters, values url.Values) (*taskData, []*dead.Letter, bool) {
	data := &taskData{Filter: filterOf(values)}
	if number := values.Get("number"); number != "" {
		l, ok := c.numbered(w, r, letters, number)
		if !ok {
			return nil, nil, false
		}
		data.Number, data.Count, data.Back = l.Sequence, 1, "/dead/"+number
		return data, []*dead.Letter{l}, true
	}
	data.Back = "/dead" + data.Filter.Query()
	filter, possible := data.Filter.picks(c.Now())
	if !possible {
		return data, nil, true
	}
	// What is confirmed is what was shown, not what has come since.
	filter.Until, _ = strconv.ParseUint(values.Get("until"), 10, 64)
	if before, err := time.Parse(time.RFC3339Nano, values.Get("before")); err == nil && !filter.Before.IsZero() {
		filter.Before = before
	}
	picked, more, err := letters.Pick(ctx, filter, mostCounted)
	if err != nil {
		c.fail(w, r, http.StatusBadGateway, consent.AsFault(err))
		return nil, nil, false
	}
	data.Count, data.More = len(picked), more
	if !filter.Before.IsZero() {
		data.Before = filter.Before.UTC().Format(time.RFC3339Nano)
	}
	if len(picked) > 0 {
		data.Until = picked[len(picked)-1].Sequence
	}
	return data, picked, true
}

// deadForm asks whether letters shall be replayed or dropped.
func (c *Console) deadForm(t task) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		letters, ok := c.letters(w, r)
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), deadPatience)
		defer cancel()
		data, picked, ok := c.chosen(ctx, w, r, letters, r.URL.Query())
		if !ok {
			return
		}
		data.Task = t
		const shown = 5
		for _, l := range picked[:min(len(picked), shown)] {
			data.Letters = append(data.Letters, c.letterOf(l))
		}
		c.render(w, r, http.StatusOK, "deadtask", page{Title: t.Verb + " dead letters", Nav: "dead", Data: data})
	}
}

// deadDo does it.
func (c *Console) deadDo(t task) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		letters, ok := c.letters(w, r)
		if !ok {
			return
		}
		// A browser that goes away doesn't leave it half done.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), deadPatience)
		defer cancel()
		data, picked, ok := c.chosen(ctx, w, r, letters, r.PostForm)
		if !ok {
			return
		}
		done, err := letters.Each(ctx, picked, 0, t.do, func(int) {})
		c.Logger.Info("dead letters "+t.Done, "letters", done, "of", len(picked), "connection", data.Filter.Connection, "code", data.Filter.Code, "by", person(r))
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			c.Logger.Error("console: dead letters are not "+t.Done, "err", err)
			fault := consent.AsFault(err)
			fault.Title = fmt.Sprintf("%d of %s %s", done, lettersWord(len(picked)), t.Done)
			fault.Text = cmp.Or(reasonOf(err), fault.Text)
			c.fail(w, r, http.StatusBadGateway, fault)
			return
		}
		f := flash{Kind: "good", Title: lettersWord(done) + " " + t.Done}
		if left := len(picked) - done; left > 0 || data.More {
			f.Text = "There are more of them: " + t.Name + " the rest the same way."
		}
		c.setFlash(w, f)
		http.Redirect(w, r, "/dead"+data.Filter.Query(), http.StatusSeeOther)
	}
}

// reasonOf is what NATS says against a replay, as far as a person can mend it.
func reasonOf(err error) string {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return "The NATS server says: " + api.Description + "."
	}
	if strings.Contains(err.Error(), "does not say where") {
		return "It does not say where its request was published, so it can only be dropped."
	}
	return ""
}

func lettersWord(n int) string {
	if n == 1 {
		return "1 dead letter"
	}
	return strconv.Itoa(n) + " dead letters"
}

// deadRoutes are the pages of dead letters.
func (c *Console) deadRoutes(private func(string, http.HandlerFunc)) {
	private("GET /dead", c.deadList)
	private("GET /dead/{number}", c.deadShow)
	for _, t := range tasks {
		private("GET /dead/"+t.Name, c.deadForm(t))
		private("POST /dead/"+t.Name, c.deadDo(t))
	}
}
