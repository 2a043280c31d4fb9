package zohotest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// module holds the records of one module of an org, guarded by the org's lock.
type module struct {
	byID      map[string]*record
	list      []*record // by age; nil where one was deleted
	unique    []string
	mandatory []string
	index     map[string]map[string][]*record // by field, then canonical value; made when first asked for
	deleted   []tombstone
}

// record is one record. fields is never changed in place but replaced, so that a
// reader may keep it after the lock.
type record struct {
	id                string
	at                int // in module.list
	fields            map[string]any
	created, modified time.Time
}

type tombstone struct {
	id, name string
	by       *User
	at       time.Time
}

// module returns a module, made if need be. The org is locked for writing.
func (o *org) module(name string) *module {
	m := o.modules[name]
	if m == nil {
		m = &module{byID: map[string]*record{}, index: map[string]map[string][]*record{}}
		o.modules[name] = m
	}
	return m
}

func (m *module) add(r *record) {
	r.at = len(m.list)
	m.list = append(m.list, r)
	m.byID[r.id] = r
	for field := range m.index {
		m.enlist(field, r)
	}
}

func (m *module) replace(r *record, fields map[string]any, now time.Time) {
	for field := range m.index {
		m.delist(field, r)
	}
	r.fields, r.modified = fields, now
	for field := range m.index {
		m.enlist(field, r)
	}
}

func (m *module) remove(r *record, by *User, now time.Time) {
	for field := range m.index {
		m.delist(field, r)
	}
	delete(m.byID, r.id)
	m.list[r.at] = nil
	if len(m.list) > 64 && len(m.byID) < len(m.list)/2 {
		m.list = slices.DeleteFunc(m.list, func(r *record) bool { return r == nil })
		for i, r := range m.list {
			r.at = i
		}
	}
	if len(m.deleted) == 10_000 { // of interest to /deleted only
		m.deleted = m.deleted[1:]
	}
	m.deleted = append(m.deleted, tombstone{r.id, displayName(r.fields), by, now})
}

func (m *module) enlist(field string, r *record) {
	if v := canonical(r.fields[field]); v != "" {
		m.index[field][v] = append(m.index[field][v], r)
	}
}

func (m *module) delist(field string, r *record) {
	v := canonical(r.fields[field])
	left := slices.DeleteFunc(m.index[field][v], func(o *record) bool { return o == r })
	if len(left) == 0 {
		delete(m.index[field], v)
		return
	}
	m.index[field][v] = left
}

// find returns a record other than not whose field has that value. The org is locked for writing.
func (m *module) find(field string, value any, not *record) *record {
	v := canonical(value)
	if v == "" {
		return nil
	}
	if m.index[field] == nil {
		m.index[field] = map[string][]*record{}
		for _, r := range m.list {
			if r != nil {
				m.enlist(field, r)
			}
		}
	}
	for _, r := range m.index[field][v] {
		if r != not {
			return r
		}
	}
	return nil
}

// canonical is a value as text, for comparison: Zoho's is blind to case, and a
// lookup compares by its id.
func canonical(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return strings.ToLower(v)
	case json.Number:
		return v.String()
	case map[string]any:
		return canonical(v["id"])
	}
	return fmt.Sprint(v)
}

func displayName(fields map[string]any) string {
	for _, f := range []string{"Full_Name", "Last_Name", "Account_Name", "Deal_Name", "Product_Name", "Subject", "Name"} {
		if s, ok := fields[f].(string); ok {
			return s
		}
	}
	return ""
}

// Seed puts records into a module as they are, without any check, and returns their
// ids: their own "id" where they have one, otherwise new ones.
func (s *Server) Seed(orgID, moduleName string, records ...map[string]any) []string {
	o, now := s.org(orgID), s.now()
	owner := s.anyUser(orgID)
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.module(moduleName)
	ids := make([]string, 0, len(records))
	for _, given := range records {
		var fields map[string]any
		if err := decode(encode(given), &fields); err != nil { // as if it had come as JSON
			panic("zohotest: " + err.Error())
		}
		if fields == nil {
			fields = map[string]any{}
		}
		id, _ := fields["id"].(string)
		if id == "" {
			id = s.newID()
		}
		m.add(newRecord(id, fields, owner, now))
		ids = append(ids, id)
	}
	return ids
}

// newRecord completes fields, which it owns from now on.
func newRecord(id string, fields map[string]any, by *User, now time.Time) *record {
	fields["id"] = id
	who := by.ref()
	for name, v := range map[string]any{"Owner": who, "Created_By": who, "Created_Time": stamp(now)} {
		if _, ok := fields[name]; !ok {
			fields[name] = v
		}
	}
	fields["Modified_By"], fields["Modified_Time"] = who, stamp(now)
	return &record{id: id, fields: fields, created: now, modified: now}
}

// ref is how records name a user.
func (u *User) ref() map[string]any {
	return map[string]any{"name": u.Name, "id": u.ID, "email": u.Email}
}

func stamp(t time.Time) string { return t.Format("2006-01-02T15:04:05-07:00") }

func (s *Server) anyUser(orgID string) *User {
	users := s.Users()
	for _, id := range slices.Sorted(maps.Keys(users)) {
		if u := users[id]; u.OrgID == orgID {
			return &u
		}
	}
	return &User{ID: "0", Name: "nobody", OrgID: orgID}
}

// Records returns copies of a module's records, by age.
func (s *Server) Records(orgID, moduleName string) []map[string]any {
	o := s.org(orgID)
	o.mu.RLock()
	defer o.mu.RUnlock()
	var all []map[string]any
	if m := o.modules[moduleName]; m != nil {
		for _, r := range m.list {
			if r != nil {
				all = append(all, maps.Clone(r.fields))
			}
		}
	}
	return all
}

// SetUnique forbids two records with the same value in a field: DUPLICATE_DATA.
func (s *Server) SetUnique(orgID, moduleName, field string) {
	o := s.org(orgID)
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.module(moduleName)
	m.unique = append(m.unique, field)
}

// SetMandatory makes fields mandatory for new records: MANDATORY_NOT_FOUND. Nothing
// is mandatory otherwise; SeedDemo sets what Zoho has.
func (s *Server) SetMandatory(orgID, moduleName string, fields ...string) {
	o := s.org(orgID)
	o.mu.Lock()
	defer o.mu.Unlock()
	m := o.module(moduleName)
	m.mandatory = append(m.mandatory, fields...)
}
