package zohotest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	errTrailing = errors.New("trailing data")
	versions    = regexp.MustCompile(`^v[2-9](\.[0-9])?$`)
	moduleName  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,99}$`)
	recordID    = regexp.MustCompile(`^[0-9]{1,19}$`)
)

// api answers a call under /crm/: method and path pick the operation.
func (s *Server) api(x *exchange) *result {
	segments := strings.Split(strings.TrimPrefix(x.call.Path, "/"), "/")
	if len(segments) < 3 || segments[0] != "crm" || slices.Contains(segments, "") {
		return noSuchURL()
	}
	bulk := segments[1] == "bulk"
	segments = segments[1:]
	if bulk {
		segments = segments[1:]
	}
	if len(segments) < 2 || !versions.MatchString(segments[0]) {
		return noSuchURL()
	}
	x.version = int(segments[0][1] - '0')
	query, err := url.ParseQuery(x.call.RawQuery)
	if err != nil {
		return fail(http.StatusBadRequest, "INVALID_DATA", "invalid query parameter", nil)
	}
	rest := segments[1:]
	if bulk {
		return x.bulk(rest)
	}
	switch rest[0] {
	case "coql":
		return x.only(rest, http.MethodPost, "coql.READ", x.coql)
	case "org":
		return x.only(rest, http.MethodGet, "org.READ", x.orgInfo)
	case "users":
		return x.only(rest, http.MethodGet, "users.READ", func() *result { return x.users(query) })
	case "__composite_requests":
		return x.only(rest, http.MethodPost, "", x.composite)
	case "upload":
		return x.only(rest, http.MethodPost, "", x.upload)
	case "functions":
		return callFunction(rest)
	case "settings":
		if len(rest) == 2 && rest[1] == "modules" {
			return x.only(rest[1:], http.MethodGet, "settings.modules.READ", x.modules)
		}
		return noSuchURL()
	}
	return x.records(rest, query)
}

// only runs an operation that has one method and no path below it.
func (x *exchange) only(rest []string, method, scope string, f func() *result) *result {
	if len(rest) > 1 {
		return noSuchURL()
	}
	if x.call.Method != method {
		return wrongMethod()
	}
	if scope != "" && !x.access.grant.allows("ZohoCRM", scope) {
		return scopeMismatch()
	}
	return f()
}

// verbs are the methods in the words of scopes.
var verbs = map[string]string{
	http.MethodGet: "READ", http.MethodPost: "CREATE", http.MethodPut: "UPDATE", http.MethodPatch: "UPDATE", http.MethodDelete: "DELETE",
}

// records routes what belongs to a module.
func (x *exchange) records(rest []string, query url.Values) *result {
	name := rest[0]
	verb, ok := verbs[x.call.Method]
	if !moduleName.MatchString(name) {
		const code, message = "INVALID_MODULE", "the module name given seems to be invalid"
		if verb == "CREATE" || verb == "UPDATE" {
			return failOnce(code, message, params{"resource_path_index": 0})
		}
		return fail(http.StatusBadRequest, code, message, params{"resource_path_index": 0})
	}
	if !ok {
		return wrongMethod()
	}
	if !x.access.grant.allows("ZohoCRM", "modules."+name+"."+verb) {
		return scopeMismatch()
	}
	method := x.call.Method
	if method == http.MethodPatch {
		method = http.MethodPut
	}
	thing := place(rest)
	switch method + " " + thing {
	case "GET module":
		return x.list(name, query)
	case "POST module":
		return x.insert(name)
	case "PUT module":
		return x.update(name, "")
	case "DELETE module":
		return x.deleteMany(name, query)
	case "GET record":
		return x.one(name, rest[1], query)
	case "PUT record":
		return x.update(name, rest[1])
	case "DELETE record":
		return x.deleteOne(name, rest[1])
	case "POST upsert":
		return x.upsert(name)
	case "GET search":
		return x.search(name, query)
	case "GET deleted":
		return x.deletedRecords(name, query)
	case "GET count", "POST count":
		return x.count(name)
	case "POST action":
		return takeAction(rest[len(rest)-1])
	}
	if thing == "" {
		return noSuchURL()
	}
	return wrongMethod()
}

// place says what a path below /crm/v<N>/ names; "": nothing.
func place(rest []string) string {
	switch {
	case len(rest) == 1:
		return "module"
	case len(rest) == 2 && slices.Contains([]string{"upsert", "search", "deleted"}, rest[1]):
		return rest[1]
	case len(rest) == 2:
		return "record"
	case len(rest) == 3 && rest[1] == "actions" && rest[2] == "count":
		return "count"
	case (len(rest) == 3 || len(rest) == 4) && rest[len(rest)-2] == "actions":
		return "action"
	}
	return ""
}

// actions are those of a module or a record that are taken for their price alone:
// nothing comes of them but the answer.
var actions = []string{"convert", "mass_convert", "send_mail", "merge", "add_tags", "remove_tags", "mass_delete"}

func takeAction(name string) *result {
	if !slices.Contains(actions, name) {
		return noSuchURL()
	}
	return applied(params{"data": []any{params{"code": "SUCCESS", "details": params{}, "message": name + " done", "status": "success"}}})
}

// callFunction is /functions/{name}/actions/execute: the org's own code, of which this one does nothing.
func callFunction(rest []string) *result {
	if len(rest) != 4 || rest[2] != "actions" || rest[3] != "execute" {
		return noSuchURL()
	}
	return applied(params{
		"code": "success", "details": params{"output": "", "output_type": "string", "id": "null"}, "message": "function executed successfully",
	})
}

// applied is the answer to a write without records.
func applied(body any) *result {
	res := reply(http.StatusOK, "SUCCESS", body)
	res.applied = true
	return res
}

func (x *exchange) orgInfo() *result {
	return reply(http.StatusOK, "", params{"org": []any{params{
		"id": x.org.ID, "zgid": x.org.ID, "company_name": x.org.name(), "primary_email": x.user.Email,
		"time_zone": "UTC", "iso_code": "US", "currency": "US Dollar - USD",
		"license_details": params{"paid": x.org.edition() != "free", "paid_type": x.org.edition()},
	}}})
}

func (x *exchange) users(query url.Values) *result {
	var list []any
	users := x.s.Users()
	for _, id := range slices.Sorted(maps.Keys(users)) {
		u := users[id]
		if u.OrgID != x.org.ID || query.Get("type") == "CurrentUser" && id != x.user.ID {
			continue
		}
		list = append(list, params{
			"id": u.ID, "zuid": u.ZUID, "full_name": u.Name, "email": u.Email, "status": "active",
			"confirm": true, "role": params{"name": "CEO", "id": "1"}, "profile": params{"name": "Administrator", "id": "2"},
		})
	}
	return reply(http.StatusOK, "", params{"users": list, "info": params{
		"per_page": 200, "count": len(list), "page": 1, "more_records": false,
	}})
}

func (x *exchange) modules() *result {
	var list []any
	for i, name := range x.s.Modules(x.org.ID) {
		list = append(list, params{
			"api_name": name, "module_name": name, "plural_label": name, "id": strconv.Itoa(i + 1), "api_supported": true,
			"creatable": true, "editable": true, "deletable": true, "viewable": true, "generated_type": "default",
		})
	}
	if list == nil {
		return empty(http.StatusNoContent)
	}
	return reply(http.StatusOK, "", params{"modules": list})
}

// composite is several calls in one.
type composite struct {
	Requests []subRequest `json:"__composite_requests"`
}

type subRequest struct {
	ID      string            `json:"sub_request_id"`
	Method  string            `json:"method"`
	URI     string            `json:"uri"`
	Params  map[string]any    `json:"params"`
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
}

// target is what it calls.
func (r subRequest) target() (path, rawQuery string, err error) {
	u, err := url.Parse(r.URI)
	if err != nil {
		return "", "", err
	}
	q := u.Query()
	for name, v := range r.Params {
		q.Set(name, fmt.Sprint(v))
	}
	return u.Path, q.Encode(), nil
}

// composite runs up to five calls one after another. rollback_on_fail is not simulated.
func (x *exchange) composite() *result {
	var body composite
	if err := decode(x.body, &body); err != nil {
		return notJSON()
	}
	if n := len(body.Requests); n == 0 || n > 5 {
		return fail(http.StatusBadRequest, "LIMIT_REACHED", "Limit of composite requests is 5", params{"limit": 5})
	}
	type response struct {
		Status  int             `json:"status_code"`
		Headers params          `json:"headers"`
		Body    json.RawMessage `json:"body"`
	}
	total := &result{code: "SUCCESS"}
	var rows []any
	failed := 0
	for _, r := range body.Requests {
		path, query, err := r.target()
		if err != nil || strings.Contains(path, "__composite_requests") {
			return noSuchURL()
		}
		sub := &exchange{s: x.s, r: x.r, user: x.user, org: x.org, access: x.access, body: r.Body}
		sub.call = Call{Endpoint: API, Method: r.Method, Path: path, RawQuery: query, Header: http.Header{}}
		for name, v := range r.Headers {
			sub.call.Header.Set(name, v)
		}
		res := x.s.api(sub)
		total.applied = total.applied || res.applied
		total.ids = append(total.ids, res.ids...)
		status, message := "success", "composite sub request executed successfully"
		if res.Status >= http.StatusBadRequest {
			status, message = "error", "composite sub request failed"
			failed++
		}
		if len(res.Body) == 0 {
			res.Body = []byte("null")
		}
		rows = append(rows, params{
			"code": "SUCCESS", "status": status, "message": message, "sub_request_id": r.ID,
			"details": params{"response": response{res.Status, params{}, res.Body}},
		})
	}
	total.Status = written(len(rows)-failed, failed, http.StatusOK)
	total.Body = encode(params{"__composite_requests": rows})
	return total
}

// written is the status of a call with so many good and bad parts.
func written(good, bad, success int) int {
	switch {
	case bad == 0:
		return success
	case good == 0:
		return http.StatusBadRequest
	}
	return http.StatusMultiStatus
}

func notJSON() *result {
	return fail(http.StatusBadRequest, "INVALID_DATA", "body", params{"expected_data_type": "jsonobject"})
}
