package deploy

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the files that are made from others")

// promtool is of Debian's package prometheus; CI sets REQUIRE_PROMTOOL=1.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("REQUIRE_PROMTOOL") != "" {
			t.Fatal("promtool is missing: apt-get install --no-install-recommends prometheus")
		}
		t.Skip("promtool is missing (apt-get install --no-install-recommends prometheus): the rules were not tried")
	}
	cmd := exec.Command("promtool", args...)
	cmd.Dir = filepath.Join(root, "deploy/prometheus")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestRulesByPromtool(t *testing.T) {
	promtool(t, "check", "rules", "alerts.yml")
	promtool(t, "test", "rules", "alerts_test.yml")
}

// The paths of prometheus.yml are those in its container.
func TestPrometheusConfigByPromtool(t *testing.T) {
	config := strings.ReplaceAll(read(t, "deploy/prometheus/prometheus.yml"), "/etc/prometheus/", "")
	file, err := os.CreateTemp(filepath.Join(root, "deploy/prometheus"), ".prometheus-*.yml")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(file.Name()) })
	if _, err := file.WriteString(config); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "config", filepath.Base(file.Name()))
}

func TestEveryAlertIsTriedAndHasARunbook(t *testing.T) {
	tests, runbooks := read(t, "deploy/prometheus/alerts_test.yml"), read(t, "docs/runbooks.md")
	alerts := map[string]bool{}
	for _, g := range loadRules(t).Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts[r.Alert] = true
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			for _, a := range []string{"summary", "description", "runbook_url"} {
				if r.Annotations[a] == "" {
					t.Errorf("%s: no %s", r.Alert, a)
				}
			}
			if anchor := "docs/runbooks.md#" + strings.ToLower(r.Alert); !strings.HasSuffix(r.Annotations["runbook_url"], anchor) {
				t.Errorf("%s: its runbook_url does not end in %s", r.Alert, anchor)
			}
			if !strings.Contains(runbooks, "\n## "+r.Alert+"\n") {
				t.Errorf("%s: docs/runbooks.md has no section of it", r.Alert)
			}
			if !regexp.MustCompile(`alertname: ` + r.Alert + `\n\s+exp_alerts:`).MatchString(tests) {
				t.Errorf("%s: no test in alerts_test.yml sees it fire", r.Alert)
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^## (ZohoWorker\w+)$`).FindAllStringSubmatch(runbooks, -1) {
		if !alerts[m[1]] {
			t.Errorf("docs/runbooks.md: there is no alert %s", m[1])
		}
	}
}

// The PrometheusRule of the operator holds the same rules.
func TestPrometheusRule(t *testing.T) {
	const file = "deploy/k8s/components/monitoring/prometheusrule.yaml"
	var spec map[string]any
	if err := yaml.Unmarshal([]byte(read(t, "deploy/prometheus/alerts.yml")), &spec); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
		"metadata": map[string]any{"name": "zoho-worker"}, "spec": spec,
	}
	if *update {
		text, err := yaml.Marshal(want)
		if err == nil {
			text = append([]byte("# Made from deploy/prometheus/alerts.yml: cd test/deploy && go test -run PrometheusRule -update\n"), text...)
			err = os.WriteFile(filepath.Join(root, file), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var got map[string]any
	if err := yaml.Unmarshal([]byte(read(t, file)), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s is not alerts.yml (go test -run PrometheusRule -update):\n%s", file, diff)
	}
}
