package zohotest

import (
	"cmp"
	"encoding/base64"
	"hash/fnv"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The limits of reading, zoho-facts 4.2.
const (
	maxPage       = 200
	maxDiscrete   = 2_000 // records that page may reach
	maxPaged      = 100_000
	maxFields     = 50
	pageTokenLife = 24 * time.Hour
)

// one is GET of a record.
func (x *exchange) one(name, id string, query url.Values) *result {
	external := x.call.Header.Get("X-EXTERNAL") != ""
	if !external && !recordID.MatchString(id) {
		return fail(http.StatusBadRequest, "INVALID_DATA", "the id given seems to be invalid", params{"id": id})
	}
	var r *record
	var fields map[string]any
	var modified time.Time
	if external { // may build an index
		x.org.mu.Lock()
		if r = x.lookup(x.org.module(name), name, id); r != nil {
			fields, modified = r.fields, r.modified
		}
		x.org.mu.Unlock()
	} else {
		x.org.mu.RLock()
		if m := x.org.modules[name]; m != nil {
			if r = m.byID[id]; r != nil {
				fields, modified = r.fields, r.modified
			}
		}
		x.org.mu.RUnlock()
	}
	if r == nil {
		return empty(http.StatusNoContent)
	}
	if since, err := parseTime(x.call.Header.Get("If-Modified-Since")); err == nil && !modified.Truncate(time.Second).After(since) {
		return empty(http.StatusNotModified)
	}
	if names := query.Get("fields"); names != "" {
		fields = pick(fields, strings.Split(names, ","))
	}
	res := reply(http.StatusOK, "", params{"data": []any{fields}})
	res.ids = []string{r.id}
	return res
}

// pick returns the named fields, null where the record has none, and the id.
func pick(fields map[string]any, names []string) map[string]any {
	out := make(map[string]any, len(names)+1)
	for _, f := range names {
		f = strings.TrimSpace(f)
		out[f] = field(fields, f)
	}
	out["id"] = fields["id"]
	return out
}

// list is GET of a module.
func (x *exchange) list(name string, query url.Values) *result {
	sortBy := query.Get("sort_by")
	names := query.Get("fields")
	if names == "" && x.version >= 3 {
		return missingParam("fields")
	}
	if strings.Count(names, ",") >= maxFields {
		return fail(http.StatusBadRequest, "LIMIT_EXCEEDED", "number of fields in the request is more than the allowed limit", params{"limit": maxFields, "param_name": "fields"})
	}
	p, bad := x.paging(name, query)
	if bad != nil {
		return bad
	}
	sortBy = cmp.Or(sortBy, "id")
	order := cmp.Or(query.Get("sort_order"), "desc")
	if !slices.Contains([]string{"id", "Created_Time", "Modified_Time"}, sortBy) || order != "asc" && order != "desc" {
		return invalidParam("sort_by", "invalid sort")
	}
	info := params{"sort_by": sortBy, "sort_order": order}
	since, err := parseTime(x.call.Header.Get("If-Modified-Since"))
	conditional := err == nil
	if !conditional && sortBy != "Modified_Time" { // the list is by age, which is by id and Created_Time
		rows, total := x.window(name, p, order == "desc")
		return x.page(rows, total, names, p, info, true)
	}
	rows := x.all(name, func(r *record) bool { return !conditional || r.modified.Truncate(time.Second).After(since) })
	if len(rows) == 0 && conditional {
		return empty(http.StatusNotModified)
	}
	if sortBy == "Modified_Time" {
		slices.SortStableFunc(rows, func(a, b snapshot) int { return a.modified.Compare(b.modified) })
	}
	if order == "desc" {
		slices.Reverse(rows)
	}
	return x.page(p.of(rows), len(rows), names, p, info, true)
}

// snapshot is a record as it was while the org was locked.
type snapshot struct {
	fields            map[string]any
	created, modified time.Time
}

// all returns the records of a module for which want is true, by age.
func (x *exchange) all(name string, want func(*record) bool) []snapshot {
	x.org.mu.RLock()
	defer x.org.mu.RUnlock()
	m := x.org.modules[name]
	if m == nil {
		return nil
	}
	rows := make([]snapshot, 0, len(m.byID))
	for _, r := range m.list {
		if r != nil && want(r) {
			rows = append(rows, snapshot{r.fields, r.created, r.modified})
		}
	}
	return rows
}

// window returns one page of a module by age and the number of all its records,
// without looking at the others.
func (x *exchange) window(name string, p paging, newestFirst bool) (rows []snapshot, total int) {
	x.org.mu.RLock()
	defer x.org.mu.RUnlock()
	m := x.org.modules[name]
	if m == nil {
		return nil, 0
	}
	skip := p.from
	for i := range m.list {
		if newestFirst {
			i = len(m.list) - 1 - i
		}
		if r := m.list[i]; r == nil {
			continue
		} else if skip > 0 {
			skip--
		} else if rows = append(rows, snapshot{r.fields, r.created, r.modified}); len(rows) == p.per {
			break
		}
	}
	return rows, len(m.byID)
}

// paging is the part of a list that is asked for.
type paging struct {
	from, per, page int
	bound           string // what a page token is bound to
}

func (x *exchange) paging(name string, query url.Values) (paging, *result) {
	p := paging{page: 1, per: maxPage}
	for param, to := range map[string]*int{"page": &p.page, "per_page": &p.per} {
		if s := query.Get(param); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil || n < 1 || param == "per_page" && n > maxPage {
				return p, invalidParam(param, "invalid value for "+param)
			}
			*to = n
		}
	}
	bound := maps.Clone(query)
	delete(bound, "page")
	delete(bound, "page_token")
	h := fnv.New64a()
	_, _ = h.Write([]byte(x.user.ID + "\n" + name + "\n" + bound.Encode()))
	p.bound = strconv.FormatUint(h.Sum64(), 36)
	token := query.Get("page_token")
	if token == "" {
		if p.from = (p.page - 1) * p.per; p.from+p.per > maxDiscrete {
			return p, fail(http.StatusBadRequest, "DISCRETE_PAGINATION_LIMIT_EXCEEDED", "You can get only the first 2000 records without using page_token", params{"limit": maxDiscrete})
		}
		return p, nil
	}
	if query.Get("page") != "" {
		return p, fail(http.StatusBadRequest, "AMBIGUITY_DURING_PROCESSING", "page and page_token cannot be used together",
			params{"ambiguity_due_to": []any{params{"param_name": "page"}, params{"param_name": "page_token"}}})
	}
	raw, _ := base64.RawURLEncoding.DecodeString(token)
	part := strings.Split(string(raw), " ") // from, page, unix time, bound
	if len(part) != 4 {
		return p, invalidParam("page_token", "invalid page_token")
	}
	born, _ := strconv.ParseInt(part[2], 10, 64)
	switch {
	case part[3] != p.bound:
		return p, fail(http.StatusBadRequest, "TOKEN_BOUND_DATA_MISMATCH", "the parameters differ from those the token was made for", params{"param_name": "page_token"})
	case x.s.now().Sub(time.Unix(born, 0)) > pageTokenLife:
		return p, fail(http.StatusBadRequest, "EXPIRED_VALUE", "the page_token has expired", params{"param_name": "page_token"})
	}
	p.from, _ = strconv.Atoi(part[0])
	p.page, _ = strconv.Atoi(part[1])
	if p.from+p.per > maxPaged {
		return p, fail(http.StatusBadRequest, "PAGINATION_LIMIT_EXCEEDED", "only 100000 records can be fetched", params{"limit": maxPaged})
	}
	return p, nil
}

// of cuts the page out of all rows.
func (p paging) of(rows []snapshot) []snapshot {
	return rows[min(p.from, len(rows)):min(p.from+p.per, len(rows))]
}

// page is the answer with one page of so many rows, and the info block.
func (x *exchange) page(rows []snapshot, total int, names string, p paging, info params, tokens bool) *result {
	if len(rows) == 0 {
		return empty(http.StatusNoContent)
	}
	from, to := p.from, p.from+len(rows)
	var wanted []string
	if names != "" {
		wanted = strings.Split(names, ",")
	}
	data := make([]map[string]any, 0, to-from)
	res := &result{}
	for _, r := range rows {
		if wanted != nil {
			data = append(data, pick(r.fields, wanted))
		} else {
			data = append(data, r.fields)
		}
	}
	more := to < total
	info["per_page"], info["count"], info["page"], info["more_records"] = p.per, to-from, p.page, more
	if tokens {
		info["next_page_token"], info["previous_page_token"], info["page_token_expiry"] = nil, nil, nil
		now := x.s.now()
		if more {
			info["next_page_token"] = pageToken(to, p.page+1, now, p.bound)
			info["page_token_expiry"] = stamp(now.Add(pageTokenLife))
		}
		if from > 0 {
			info["previous_page_token"] = pageToken(max(from-p.per, 0), p.page-1, now, p.bound)
		}
	}
	res.Status, res.Body = http.StatusOK, encode(params{"data": data, "info": info})
	return res
}

func pageToken(from, page int, now time.Time, bound string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(
		strconv.Itoa(from) + " " + strconv.Itoa(page) + " " + strconv.FormatInt(now.Unix(), 10) + " " + bound))
}

// search is GET of /search: exactly one of criteria, email, phone and word.
func (x *exchange) search(name string, query url.Values) *result {
	if !x.access.grant.allows("ZohoSearch", "securesearch.READ") {
		return scopeMismatch()
	}
	p, bad := x.paging(name, query)
	if bad != nil {
		return bad
	}
	var want func(map[string]any) bool
	switch {
	case query.Get("criteria") != "":
		c, err := parseCriteria(query.Get("criteria"))
		if err != nil {
			return fail(http.StatusBadRequest, "INVALID_QUERY", "invalid query formed", params{"reason": err.Error(), "api_name": "criteria"})
		}
		want = c
	case query.Get("email") != "":
		want = anyField(query.Get("email"), func(f string, v, w string) bool { return strings.Contains(f, "Email") && v == w })
	case query.Get("phone") != "":
		want = anyField(query.Get("phone"), func(f string, v, w string) bool {
			return (f == "Phone" || f == "Mobile") && v == w
		})
	case query.Get("word") != "":
		want = anyField(query.Get("word"), func(_ string, v, w string) bool { return strings.Contains(v, w) })
	default:
		return missingParam("criteria")
	}
	seen := x.s.now().Add(-x.s.opt.SearchLag)
	rows := x.all(name, func(r *record) bool { return !r.created.After(seen) && want(r.fields) })
	return x.page(p.of(rows), len(rows), query.Get("fields"), p, params{}, false)
}

// anyField tests every text field against a word, both in lower case.
func anyField(word string, hit func(name, value, word string) bool) func(map[string]any) bool {
	word = strings.ToLower(word)
	return func(fields map[string]any) bool {
		for f, v := range fields {
			if s, ok := v.(string); ok && hit(f, strings.ToLower(s), word) {
				return true
			}
		}
		return false
	}
}

// deletedRecords is GET of /deleted.
func (x *exchange) deletedRecords(name string, query url.Values) *result {
	p, bad := x.paging(name, query)
	if bad != nil {
		return bad
	}
	var rows []snapshot
	x.org.mu.RLock()
	if m := x.org.modules[name]; m != nil {
		for _, t := range m.deleted {
			rows = append(rows, snapshot{fields: params{
				"id": t.id, "display_name": t.name, "type": "recycle", "deleted_time": stamp(t.at),
				"deleted_by": t.by.ref(), "created_by": t.by.ref(),
			}})
		}
	}
	x.org.mu.RUnlock()
	slices.Reverse(rows)
	return x.page(p.of(rows), len(rows), "", p, params{}, false)
}

// count is GET of /actions/count.
func (x *exchange) count(name string) *result {
	return reply(http.StatusOK, "", params{"count": len(x.all(name, func(*record) bool { return true }))})
}
