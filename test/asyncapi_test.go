package test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"zoho-worker/internal/event"
	"zoho-worker/schemas"
)

// The AsyncAPI document is one that a parser takes, what it refers to is there, and
// it names every event.
func TestAsyncAPI(t *testing.T) {
	t.Parallel()
	var document map[string]any
	if err := yaml.Unmarshal(schemas.AsyncAPI, &document); err != nil {
		t.Fatal(err)
	}
	find := func(path string) (found any) {
		found = document
		for _, key := range strings.Split(path, "/") {
			object, _ := found.(map[string]any)
			found = object[key]
		}
		return found
	}
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case []any:
			for _, item := range node {
				walk(item)
			}
		case map[string]any:
			for key, value := range node {
				ref, _ := value.(string)
				path, local := strings.CutPrefix(ref, "#/")
				switch {
				case key != "$ref":
					walk(value)
				case local && find(path) == nil:
					t.Errorf("%s: there is nothing", ref)
				case !local:
					if _, err := os.Stat(filepath.Join("..", "schemas", ref)); err != nil {
						t.Error(err)
					}
				}
			}
		}
	}
	walk(document)
	description, _ := find("channels/events/description").(string)
	for _, name := range slices.Concat(event.Posted, []string{"paused", "resumed"}) {
		if !strings.Contains(description, name) {
			t.Errorf("the event %s is not named: %s", name, description)
		}
		if kinds, _ := find("components/messages/event/payload/properties/event/enum").([]any); !slices.Contains(kinds, any(name)) {
			t.Errorf("the event %s is not in the payload's list: %v", name, kinds)
		}
	}
	fields, _ := find("components/messages/event/payload/properties").(map[string]any)
	for i := range reflect.TypeFor[event.Event]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[event.Event]().Field(i).Tag.Get("json"), ",")
		if fields[name] == nil {
			t.Errorf("the event's field %s is not described", name)
		}
	}
}
