// Package storedtest holds the stored forms of records against files. Workers of two
// versions run side by side while they are replaced, each reads what the other has
// stored, and a record may be older than both: so a form that was stored once is read
// for ever.
//
// It is for tests only, and looks at JSON: what a record means, the packages say.
package storedtest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// advice is what to do where a form is not that of its file.
const advice = "\nworkers of other versions have stored the form of the file, and read this one: add fields, with omitempty, and rename, " +
	"retype and take away none; then add them to the file as well"

// Form compares a record with the file of that name in testdata/stored: it is stored
// as the file says, the file is read as it, and what a later version adds to the file is
// passed over. Every field of the record must be set, or a new one would not be seen.
func Form[T any](tb testing.TB, name string, record T) {
	tb.Helper()
	path := filepath.Join("testdata", "stored", name+".json")
	file, err := os.ReadFile(path)
	if err != nil {
		tb.Fatalf("the stored form of %T has no file: %v", record, err)
	}
	for _, field := range unset(reflect.ValueOf(record), reflect.TypeFor[T]().Name()) {
		tb.Errorf("%s is not set in its test%s", field, advice)
	}
	data, err := json.Marshal(record)
	if err != nil {
		tb.Fatal(err)
	}
	if want, got := plain(tb, file), plain(tb, data); !reflect.DeepEqual(want, got) {
		tb.Errorf("%T is stored as\n%s\nand was stored as\n%s%s", record, data, bytes.TrimSpace(file), advice)
	}
	for what, text := range map[string][]byte{
		"the file":                 file,
		"a later form of the file": append([]byte(`{"something_later":{"a":[1]},`), bytes.TrimSpace(file)[1:]...),
	} {
		var read T
		if err := json.Unmarshal(text, &read); err != nil {
			tb.Errorf("%s can't be read: %v%s", what, err, advice)
		} else if !reflect.DeepEqual(read, record) {
			tb.Errorf("%s is read as\n%+v\nand says\n%+v%s", what, read, record, advice)
		}
	}
}

// plain is JSON without its layout.
func plain(tb testing.TB, text []byte) (value any) {
	tb.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&value); err != nil {
		tb.Fatalf("%v in %s", err, text)
	}
	return value
}

// unset are the stored fields of a value, and of what it holds, that say nothing.
func unset(v reflect.Value, name string) (names []string) {
	if v.IsZero() {
		return []string{name}
	}
	if _, own := v.Interface().(json.Marshaler); own {
		return nil // it has a form of its own, like a time's
	}
	switch v.Kind() {
	case reflect.Pointer:
		return unset(v.Elem(), name)
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if !field.IsExported() || field.Tag.Get("json") == "-" {
				continue
			}
			names = append(names, unset(v.Field(i), name+"."+field.Name)...)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return nil
		}
		for i := range v.Len() {
			names = append(names, unset(v.Index(i), name+"[]")...)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			names = append(names, unset(v.MapIndex(key), name+"[]")...)
		}
	}
	return names
}
