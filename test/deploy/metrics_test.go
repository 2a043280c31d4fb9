package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/nats-io/nats.go"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"sigs.k8s.io/yaml"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/secret"
)

// series are the names that a worker's scrape has, each with the values of its labels.
type series map[string]map[string]map[string]bool

// scraped starts a worker on a devbox, sends a few requests through it, and returns its metrics.
var scraped = sync.OnceValues(func() (series, error) {
	box, err := devbox.Start(devbox.Options{})
	if err != nil {
		return nil, err
	}
	defer box.Close()
	box.Zoho.SeedDemo(devbox.OrgID)
	config := app.Defaults()
	config.NATSURL, config.RedisURL = box.NATSURL, secret.New(box.RedisURL)
	config.ZohoClientID, config.ZohoClientSecret = "1000.DEMO", secret.New("demo")
	config.ZohoAccountsURL, config.ZohoAPIURL = box.ZohoURL, box.ZohoURL
	config.EncryptionKeys, config.HTTPAddr = secret.Generate(), "127.0.0.1:0"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	worker, err := app.Start(ctx, config, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer worker.Stop(ctx)
	if _, err := worker.Connections.Add(ctx, connection.Connection{
		Name: "demo", Location: "us", OrgID: devbox.OrgID, UserID: devbox.UserID, UpdatedBy: "test",
	}, secret.New(box.Zoho.GrantRefreshToken(devbox.UserID))); err != nil {
		return nil, err
	}
	nc, err := nats.Connect(box.NATSURL)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	for i, request := range []string{
		`"method":"GET","url":"/v8/Leads?fields=Last_Name"`,
		`"method":"POST","url":"/v8/Leads","body":{"data":[{"Last_Name":"Noether"}]}`,
	} {
		inbox, err := nc.SubscribeSync(nc.NewInbox())
		if err != nil {
			return nil, err
		}
		if err := nc.Publish("zoho.requests.demo", fmt.Appendf(nil, `{"id":"deploy-%d","reply_to":%q,%s}`, i, inbox.Subject, request)); err != nil {
			return nil, err
		}
		if _, err := inbox.NextMsgWithContext(ctx); err != nil {
			return nil, fmt.Errorf("request %d: %w", i, err)
		}
	}
	response, err := http.Get("http://" + worker.HTTPAddr + "/metrics")
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	return parseScrape(response.Body)
})

func parseScrape(r io.Reader) (series, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(r)
	if err != nil {
		return nil, err
	}
	all := series{}
	for name, family := range families {
		names := []string{name}
		labels := map[string]map[string]bool{}
		switch family.GetType() {
		case dto.MetricType_HISTOGRAM, dto.MetricType_GAUGE_HISTOGRAM:
			names = []string{name + "_bucket", name + "_sum", name + "_count"}
			labels["le"] = map[string]bool{}
		case dto.MetricType_SUMMARY:
			names = []string{name, name + "_sum", name + "_count"}
		}
		for _, metric := range family.Metric {
			for _, label := range metric.Label {
				if labels[label.GetName()] == nil {
					labels[label.GetName()] = map[string]bool{}
				}
				labels[label.GetName()][label.GetValue()] = true
			}
		}
		for _, n := range names {
			all[n] = labels
		}
	}
	return all, nil
}

// known are the series that others make: Prometheus itself.
var known = series{
	"up":     {},
	"ALERTS": {"alertname": nil, "alertstate": {"firing": true, "pending": true}},
}

// target are the labels that a scrape config or the operator adds.
var target = []string{"job", "instance", "namespace", "pod", "container", "endpoint", "service"}

// check names what an expression asks for that is not there: metrics, labels,
// and values of labels, whose lists are closed and start at zero.
func (s series) check(expr string) []string {
	parsed, err := metricsql.Parse(expr)
	if err != nil {
		return []string{err.Error()}
	}
	var faults []string
	labels := map[string]bool{}
	metricsql.VisitAll(parsed, func(e metricsql.Expr) {
		m, ok := e.(*metricsql.MetricExpr)
		if !ok {
			return
		}
		for _, filters := range m.LabelFilterss {
			var name string
			var mine map[string]map[string]bool
			for _, f := range filters {
				if f.Label == "__name__" {
					if name = f.Value; f.IsRegexp {
						faults = append(faults, "names a metric by a regular expression")
					}
				}
			}
			switch {
			case s[name] != nil:
				mine = s[name]
			case known[name] != nil:
				mine = known[name]
			default:
				faults = append(faults, "there is no metric "+name)
				continue
			}
			for label := range mine {
				labels[label] = true
			}
			for _, f := range filters {
				if f.Label == "__name__" || slices.Contains(target, f.Label) {
					continue
				}
				values, ok := mine[f.Label]
				switch {
				case !ok:
					faults = append(faults, fmt.Sprintf("%s has no label %s", name, f.Label))
				case !f.IsRegexp && values != nil && !values[f.Value]:
					faults = append(faults, fmt.Sprintf("%s never has %s=%q, only %q", name, f.Label, f.Value, slices.Sorted(maps.Keys(values))))
				}
			}
		}
	})
	metricsql.VisitAll(parsed, func(e metricsql.Expr) {
		if a, ok := e.(*metricsql.AggrFuncExpr); ok {
			for _, by := range a.Modifier.Args {
				if !labels[by] && !slices.Contains(target, by) {
					faults = append(faults, "aggregates by "+by+", which nothing in it has")
				}
			}
		}
	})
	return faults
}

func metricsOf(t *testing.T) series {
	t.Helper()
	s, err := scraped()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rules is alerts.yml.
type rules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Record, Expr, For string
			Labels, Annotations      map[string]string
		}
	}
}

func loadRules(t *testing.T) rules {
	t.Helper()
	var r rules
	if err := yaml.Unmarshal([]byte(read(t, "deploy/prometheus/alerts.yml")), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRulesNameMetricsThatExist(t *testing.T) {
	metrics := maps.Clone(metricsOf(t))
	for _, g := range loadRules(t).Groups {
		for _, r := range g.Rules {
			for _, fault := range metrics.check(r.Expr) {
				t.Errorf("%s%s: %s", r.Alert, r.Record, fault)
			}
			if r.Record != "" {
				metrics[r.Record] = map[string]map[string]bool{}
			}
		}
	}
}

type dashboard struct {
	UID        string
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
	Annotations struct {
		List []struct{ Expr string }
	}
	Panels []struct {
		ID         int
		Title      string
		Type       string
		Datasource *struct{ UID string }
		GridPos    struct{ H, W, X, Y int }
		Targets    []struct{ Expr string }
	}
}

func loadDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(read(t, "deploy/grafana/zoho-worker.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// grafana puts plain values in place of Grafana's variables.
var grafana = strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$namespace", ".*")

func TestDashboardNamesMetricsThatExist(t *testing.T) {
	metrics, d := metricsOf(t), loadDashboard(t)
	ids, used := map[int]bool{}, map[string]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s: id %d is taken", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			continue
		}
		if p.Datasource == nil || p.Datasource.UID != "${datasource}" {
			t.Errorf("%s: has a data source of its own", p.Title)
		}
		if len(p.Targets) == 0 {
			t.Errorf("%s: shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			expr := grafana.Replace(q.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("%s: a variable that this test does not know: %s", p.Title, expr)
			}
			for _, fault := range metrics.check(expr) {
				t.Errorf("%s: %s", p.Title, fault)
			}
			for _, name := range regexp.MustCompile(`zoho_worker_\w+`).FindAllString(expr, -1) {
				used[strings.TrimSuffix(name, "_bucket")] = true
			}
		}
		for _, other := range d.Panels {
			a, b := p.GridPos, other.GridPos
			if p.ID < other.ID && a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s and %s lie over each other", p.Title, other.Title)
			}
		}
	}
	for _, a := range d.Annotations.List {
		if a.Expr != "" {
			for _, fault := range metrics.check(a.Expr) {
				t.Errorf("annotation: %s", fault)
			}
		}
	}
	for _, v := range d.Templating.List {
		if v.Type != "query" {
			continue
		}
		inner := regexp.MustCompile(`^label_values\((.*), \w+\)$`).FindStringSubmatch(v.Definition)
		if inner == nil {
			t.Errorf("variable %s: %s", v.Name, v.Definition)
			continue
		}
		for _, fault := range metrics.check(grafana.Replace(inner[1])) {
			t.Errorf("variable %s: %s", v.Name, fault)
		}
	}
	// What a worker measures is shown, or there is no use in measuring it.
	for name := range metrics {
		base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
		if strings.HasPrefix(base, "zoho_worker_") && !used[base] {
			t.Errorf("%s is on no panel", base)
		}
	}
}

func TestKEDAScalesOnMetricsThatExist(t *testing.T) {
	for _, u := range overlay(t, "production") {
		if u.GetKind() != "ScaledObject" {
			continue
		}
		text, err := json.Marshal(u.Object["spec"].(map[string]any)["triggers"])
		if err != nil {
			t.Fatal(err)
		}
		var triggers []struct{ Metadata map[string]string }
		if err := json.Unmarshal(text, &triggers); err != nil || len(triggers) != 1 {
			t.Fatalf("%v %s", err, text)
		}
		query := triggers[0].Metadata["query"]
		for _, fault := range metricsOf(t).check(query) {
			t.Error(fault)
		}
		if !strings.Contains(query, "max(zoho_worker_runnable_backlog") {
			t.Errorf("KEDA scales on %s, not on the largest runnable backlog", query)
		}
	}
}

// The check itself is tried: what it lets pass proves nothing otherwise.
func TestTheCheckFindsFaults(t *testing.T) {
	metrics := metricsOf(t)
	for expr, want := range map[string]string{
		`sum(zoho_worker_request_total)`:                                        "no metric zoho_worker_request_total",
		`zoho_worker_connections{state="revoked"}`:                              "no label state",
		`zoho_worker_connections{status="dead"}`:                                `never has status="dead"`,
		`sum by (reason) (zoho_worker_requests_total)`:                          "aggregates by reason",
		`histogram_quantile(0.9, sum by (le) (zoho_worker_request_age_bucket))`: "no metric",
		`sum(`: "",
	} {
		faults := strings.Join(metrics.check(expr), "; ")
		if faults == "" || !strings.Contains(faults, want) {
			t.Errorf("%s: found %q, want %q", expr, faults, want)
		}
	}
}
