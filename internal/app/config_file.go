package app

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// configFile is a configuration file: flat YAML, a key per setting.
type configFile struct {
	path string
	keys map[string]*yaml.Node
}

// readConfigFile reads the file and refuses, line by line, what no setting is
// called, what comes twice and what is no plain value. yaml.v3 itself and not
// koanf: it knows the lines. No path, no file.
func readConfigFile(path string, settings []setting) (*configFile, error) {
	f := &configFile{path: path, keys: map[string]*yaml.Node{}}
	if path == "" {
		return f, nil
	}
	file, err := os.Open(path)
	if err != nil {
		return f, fmt.Errorf("--config (CONFIG): %w", err)
	}
	defer func() { _ = file.Close() }()
	decoder := yaml.NewDecoder(file)
	var document yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return f, nil // empty, or comments only
	} else if err != nil {
		return f, fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return f, fmt.Errorf("%s: one document only", path)
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return f, f.fault(root, "must be settings, one a line, like  nats-url: nats://127.0.0.1:4222")
	}
	var faults []error
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		name, s := keyName(key, settings)
		switch before, twice := f.keys[key.Value]; {
		case name == "":
			faults = append(faults, f.fault(key, unknownKey(key.Value, settings)))
		case twice:
			faults = append(faults, f.fault(key, fmt.Sprintf("%s: is set in line %d already", key.Value, before.Line)))
		default:
			f.keys[key.Value] = value
			if err := f.checkValue(s, key, value); err != nil {
				faults = append(faults, err)
				delete(f.keys, key.Value)
			}
		}
	}
	return f, errors.Join(faults...)
}

func (f *configFile) fault(node *yaml.Node, text string) error {
	return fmt.Errorf("%s: %s", f.at(node), text)
}

func (f *configFile) at(node *yaml.Node) string { return fmt.Sprintf("%s:%d", f.path, node.Line) }

// keyName is the setting that the key is of: of its own name, or NAME-file of a secret.
func keyName(key *yaml.Node, settings []setting) (string, setting) {
	for _, s := range settings {
		if key.Value == s.Name || s.secret != nil && key.Value == s.Name+"-file" {
			return s.Name, s
		}
	}
	return "", setting{}
}

func unknownKey(key string, settings []setting) string {
	want := strings.ToLower(strings.ReplaceAll(key, "_", "-"))
	for _, s := range settings {
		if s.Name == want {
			return fmt.Sprintf("%s: no such setting; it is written %s", key, s.Name)
		}
	}
	return fmt.Sprintf("%s: no such setting; `worker config print` shows them all", key)
}

func (f *configFile) checkValue(s setting, key, value *yaml.Node) error {
	_, takesList := s.Value.(interface{ GetSlice() []string })
	switch {
	case value.Kind == yaml.SequenceNode && takesList:
		plain := !slices.ContainsFunc(value.Content, func(n *yaml.Node) bool { return n.Kind != yaml.ScalarNode || n.Tag == "!!null" })
		if !plain {
			return f.fault(value, key.Value+": must be a list of plain values")
		}
	case value.Kind != yaml.ScalarNode:
		return f.fault(key, key.Value+": must be a plain value")
	case value.Tag == "!!null":
		return f.fault(key, key.Value+": has no value; leave the line out, or write \"\"")
	}
	return nil
}

// value is what the file says of the setting, or no origin.
func (f *configFile) value(s setting) (value, origin string, err error) {
	node, ok := f.keys[s.Name]
	if file, there := f.keys[s.Name+"-file"]; there && s.secret != nil {
		if ok {
			return "", "", f.fault(file, fmt.Sprintf("%s and %s-file: set one of them", s.Name, s.Name))
		}
		path := file.Value
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(f.path), path)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return "", "", f.fault(file, fmt.Sprintf("%s-file: %v", s.Name, err))
		}
		return strings.TrimSpace(string(data)), f.at(file), nil
	}
	if !ok {
		return "", "", nil
	}
	if node.Kind == yaml.SequenceNode {
		var values []string
		for _, n := range node.Content {
			values = append(values, n.Value)
		}
		return strings.Join(values, ","), f.at(node), nil
	}
	return node.Value, f.at(node), nil
}
