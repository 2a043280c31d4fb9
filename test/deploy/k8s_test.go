package deploy

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	psaapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kubectl-validate/pkg/openapiclient"
	"sigs.k8s.io/kubectl-validate/pkg/validator"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"zoho-worker/internal/app"
)

// kubernetesVersion is the oldest one that the manifests are for.
const kubernetesVersion = "1.32"

// crdModules are the Go modules whose archives hold the schemas of the kinds that
// are not Kubernetes' own. Only their files are read; no code of them is built.
var crdModules = []struct{ module, glob string }{
	{"github.com/kedacore/keda/v2@v2.21.0", "config/crd/bases/keda.sh_scaledobjects.yaml"},
	{"github.com/prometheus-operator/prometheus-operator@v0.85.0", "example/prometheus-operator-crd/monitoring.coreos.com_*.yaml"},
	{"github.com/external-secrets/external-secrets@v1.3.2", "config/crds/bases/external-secrets.io_externalsecrets.yaml"},
	{"github.com/cert-manager/cert-manager@v1.21.2", "deploy/crds/*.yaml"},
}

var overlays = []string{"single", "production"}

// render is `kubectl kustomize`.
func render(t *testing.T, dir string) []*unstructured.Unstructured {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatalf("kustomize %s: %v", dir, err)
	}
	var objects []*unstructured.Unstructured
	for _, r := range resources.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, parse(t, text))
	}
	return objects
}

func overlay(t *testing.T, name string) []*unstructured.Unstructured {
	return render(t, filepath.Join(root, "deploy/k8s/overlays", name))
}

func parse(t *testing.T, text []byte) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.UnmarshalStrict(text, &u.Object); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return u
}

// find returns the one object of a kind and name, as its type.
func find[T any](t *testing.T, objects []*unstructured.Unstructured, kind, name string) *T {
	t.Helper()
	for _, u := range objects {
		// Generated ConfigMaps end in a hash of ten characters.
		if u.GetKind() == kind && (u.GetName() == name || kind == "ConfigMap" && hashed.ReplaceAllString(u.GetName(), "") == name) {
			return as[T](t, u)
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

var hashed = regexp.MustCompile(`-[a-z0-9]{10}$`)

func as[T any](t *testing.T, u *unstructured.Unstructured) *T {
	t.Helper()
	typed := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(u.Object, typed, true); err != nil {
		t.Fatalf("%s %s: %v", u.GetKind(), u.GetName(), err)
	}
	return typed
}

// pods returns the pod templates of the objects, by kind and name.
func pods(t *testing.T, objects []*unstructured.Unstructured) map[string]corev1.PodTemplateSpec {
	all := map[string]corev1.PodTemplateSpec{}
	for _, u := range objects {
		switch u.GetKind() {
		case "Deployment":
			all["Deployment "+u.GetName()] = as[appsv1.Deployment](t, u).Spec.Template
		case "StatefulSet":
			all["StatefulSet "+u.GetName()] = as[appsv1.StatefulSet](t, u).Spec.Template
		case "DaemonSet", "Job", "CronJob", "Pod", "ReplicaSet":
			t.Errorf("%s %s: this test does not know the kind: teach it", u.GetKind(), u.GetName())
		}
	}
	return all
}

// schemas loads the validator once: it is slow.
var schemas = sync.OnceValues(func() (*validator.Validator, error) {
	crds, err := os.MkdirTemp("", "crds-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(crds) }()
	for _, m := range crdModules {
		out, err := exec.Command("go", "mod", "download", "-json", m.module).Output()
		var module struct{ Dir, Error string }
		if json.Unmarshal(out, &module) != nil || module.Dir == "" {
			return nil, fmt.Errorf("go mod download %s: %v %s", m.module, err, module.Error)
		}
		files, err := filepath.Glob(filepath.Join(module.Dir, m.glob))
		if err != nil || len(files) == 0 {
			return nil, fmt.Errorf("%s has no %s", m.module, m.glob)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err == nil {
				err = os.WriteFile(filepath.Join(crds, filepath.Base(file)), text, 0o600)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	v, err := validator.New(openapiclient.NewOverlay(openapiclient.HardcodedPatchLoader(kubernetesVersion),
		openapiclient.NewComposite(
			openapiclient.NewLocalCRDFiles(os.DirFS(crds)),
			openapiclient.NewHardcodedBuiltins(kubernetesVersion),
		)))
	return v, err
})

// valid holds a document against the schema of its kind; unknown fields and kinds are faults.
func valid(t *testing.T, what string, text []byte) {
	t.Helper()
	v, err := schemas()
	if err != nil {
		t.Fatal(err)
	}
	_, object, err := v.Parse(text)
	if err == nil {
		err = v.Validate(object)
	}
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func TestOverlaysAreValid(t *testing.T) {
	for _, name := range overlays {
		t.Run(name, func(t *testing.T) {
			objects := overlay(t, name)
			t.Logf("%d objects", len(objects))
			for _, u := range objects {
				text, err := yaml.Marshal(u.Object)
				if err != nil {
					t.Fatal(err)
				}
				valid(t, u.GetKind()+" "+u.GetName(), text)
			}
		})
	}
}

func TestExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "deploy/k8s/examples/*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no examples", err)
	}
	for _, file := range files {
		for i, document := range documents(t, file) {
			valid(t, fmt.Sprintf("%s, document %d", filepath.Base(file), i+1), document)
		}
	}
}

// The validator itself is tried: what it lets pass proves nothing otherwise.
func TestTheValidatorRefuses(t *testing.T) {
	v, err := schemas()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"a field that is not there": "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {prots: []}",
		"a wrong type":              "apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: a}\nspec: {scaleTargetRef: {name: a}, triggers: [], minReplicaCount: two}",
		"a missing field":           "apiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {name: a}\nspec: {selector: {}}",
		"an unknown kind":           "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: a}",
	} {
		_, object, err := v.Parse([]byte(text))
		if err == nil {
			err = v.Validate(object)
		}
		if err == nil {
			t.Errorf("%s: passed", name)
		}
	}
}

func TestPodsAreRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := psaapi.LevelVersion{Level: psaapi.LevelRestricted, Version: psaapi.LatestVersion()}
	for _, name := range overlays {
		for what, pod := range pods(t, overlay(t, name)) {
			what = name + ": " + what
			for _, result := range evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec) {
				if !result.Allowed {
					t.Errorf("%s: %s: %s", what, result.ForbiddenReason, result.ForbiddenDetail)
				}
			}
			if pod.Spec.AutomountServiceAccountToken == nil || *pod.Spec.AutomountServiceAccountToken {
				t.Errorf("%s: mounts a token of the Kubernetes API", what)
			}
			for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
				what := what + ": container " + c.Name
				if c.SecurityContext == nil || c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem {
					t.Errorf("%s: the root file system can be written", what)
				}
				if c.StartupProbe == nil || c.ReadinessProbe == nil || c.LivenessProbe == nil {
					t.Errorf("%s: lacks a probe", what)
				}
				if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
					t.Errorf("%s: lacks a request or the limit of memory", what)
				}
				if fault := pinned(c.Image); fault != "" {
					t.Errorf("%s: image %s", what, fault)
				}
				for _, e := range c.Env {
					if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
						t.Errorf("%s: %s is a secret in the environment", what, e.Name)
					}
				}
			}
		}
	}
}

func TestGracePeriodCoversTheStopBudget(t *testing.T) {
	for _, name := range overlays {
		objects := overlay(t, name)
		budget := app.Defaults().StopTimeout
		config := find[corev1.ConfigMap](t, objects, "ConfigMap", "zoho-worker")
		if text, ok := config.Data["STOP_TIMEOUT"]; ok {
			var err error
			if budget, err = time.ParseDuration(text); err != nil {
				t.Fatal(err)
			}
		}
		seconds := find[appsv1.Deployment](t, objects, "Deployment", "zoho-worker").Spec.Template.Spec.TerminationGracePeriodSeconds
		if seconds == nil {
			t.Fatalf("%s: no terminationGracePeriodSeconds", name)
		}
		// The servers' connections close after the budget is used up.
		if grace := time.Duration(*seconds) * time.Second; grace < budget+10*time.Second || grace < app.Defaults().StopTimeout+10*time.Second {
			t.Errorf("%s: terminationGracePeriodSeconds is %s, the stop budget %s: SIGKILL may cut calls", name, grace, budget)
		}
	}
}

// What the ConfigMap sets, the worker must know.
func TestConfigMapIsTheWorkers(t *testing.T) {
	for _, name := range overlays {
		objects := overlay(t, name)
		config := find[corev1.ConfigMap](t, objects, "ConfigMap", "zoho-worker")
		names := workerVariables(t)
		for key := range config.Data {
			if !names[key] && !strings.HasPrefix(key, "OTEL_") {
				t.Errorf("%s: ConfigMap zoho-worker sets %s, which no worker reads", name, key)
			}
		}
		container := find[appsv1.Deployment](t, objects, "Deployment", "zoho-worker").Spec.Template.Spec.Containers[0]
		for _, e := range container.Env {
			if !names[e.Name] && e.Name != "GOMEMLIMIT" {
				t.Errorf("%s: the Deployment sets %s, which no worker reads", name, e.Name)
			}
		}
		want := "1"
		if name == "production" {
			want = "3"
		}
		if got := config.Data["REPLICAS"]; got != want && (want != "1" || got != "") {
			t.Errorf("%s: REPLICAS is %q, want %s", name, got, want)
		}
	}
}

func TestEgressIsNarrow(t *testing.T) {
	for _, name := range overlays {
		objects := overlay(t, name)
		deny := find[networkingv1.NetworkPolicy](t, objects, "NetworkPolicy", "default-deny")
		if len(deny.Spec.PodSelector.MatchLabels) != 0 || len(deny.Spec.PolicyTypes) != 2 || len(deny.Spec.Egress)+len(deny.Spec.Ingress) != 0 {
			t.Errorf("%s: default-deny denies not everything", name)
		}
		for _, u := range objects {
			if u.GetKind() != "NetworkPolicy" {
				continue
			}
			p := as[networkingv1.NetworkPolicy](t, u)
			for _, rule := range p.Spec.Egress {
				if len(rule.To) == 0 || len(rule.Ports) == 0 {
					t.Errorf("%s: NetworkPolicy %s: egress to anywhere or to any port", name, p.Name)
				}
				for _, to := range rule.To {
					if to.IPBlock == nil || to.IPBlock.CIDR != "0.0.0.0/0" {
						continue
					}
					if len(rule.Ports) != 1 || rule.Ports[0].Port.IntValue() != 443 {
						t.Errorf("%s: NetworkPolicy %s: to the Internet by other than 443", name, p.Name)
					}
					for _, private := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"} {
						if !slices.Contains(to.IPBlock.Except, private) {
							t.Errorf("%s: NetworkPolicy %s: lets %s pass", name, p.Name, private)
						}
					}
				}
			}
		}
	}
}

// A selector that selects nothing fails silently in a cluster.
func TestSelectorsSelect(t *testing.T) {
	for _, name := range overlays {
		objects := overlay(t, name)
		templates := pods(t, objects)
		selects := func(labels map[string]string) bool {
			for _, pod := range templates {
				if subset(labels, pod.Labels) {
					return true
				}
			}
			return false
		}
		for _, u := range objects {
			what := name + ": " + u.GetKind() + " " + u.GetName()
			switch u.GetKind() {
			case "Service":
				s := as[corev1.Service](t, u)
				if !selects(s.Spec.Selector) {
					t.Errorf("%s selects no pod", what)
				}
			case "PodDisruptionBudget", "NetworkPolicy":
				path := []string{"spec", "selector", "matchLabels"}
				if u.GetKind() == "NetworkPolicy" {
					path = []string{"spec", "podSelector", "matchLabels"}
				}
				labels, _, _ := unstructured.NestedStringMap(u.Object, path...)
				if !selects(labels) {
					t.Errorf("%s selects no pod", what)
				}
			case "ServiceMonitor":
				labels, _, _ := unstructured.NestedStringMap(u.Object, "spec", "selector", "matchLabels")
				if !slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool {
					return o.GetKind() == "Service" && subset(labels, o.GetLabels())
				}) {
					t.Errorf("%s selects no service", what)
				}
			case "ScaledObject":
				target, _, _ := unstructured.NestedString(u.Object, "spec", "scaleTargetRef", "name")
				d := find[appsv1.Deployment](t, objects, "Deployment", target)
				if d.Spec.Replicas != nil {
					t.Errorf("%s: Deployment %s sets replicas: each apply would work against KEDA", what, target)
				}
			}
		}
		for what, pod := range templates {
			var mounted []string
			for _, v := range pod.Spec.Volumes {
				if v.ConfigMap != nil {
					mounted = append(mounted, v.ConfigMap.Name)
				}
				if v.Projected != nil {
					for _, s := range v.Projected.Sources {
						mounted = append(mounted, s.ConfigMap.Name)
					}
				}
			}
			for _, wanted := range mounted {
				if !slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool {
					return o.GetKind() == "ConfigMap" && o.GetName() == wanted
				}) {
					t.Errorf("%s: %s mounts the ConfigMap %s, which is not there", name, what, wanted)
				}
			}
		}
	}
}

func TestProductionSurvivesAZone(t *testing.T) {
	objects := overlay(t, "production")
	nats := find[appsv1.StatefulSet](t, objects, "StatefulSet", "nats")
	if nats.Spec.Replicas == nil || *nats.Spec.Replicas != 3 {
		t.Error("NATS has not three nodes")
	}
	if len(nats.Spec.VolumeClaimTemplates) == 0 {
		t.Error("NATS has no volume of its own: what it holds may not be lost")
	}
	for what, pod := range pods(t, objects) {
		if what == "StatefulSet nats" || what == "Deployment zoho-worker" {
			if !slices.ContainsFunc(pod.Spec.TopologySpreadConstraints, func(c corev1.TopologySpreadConstraint) bool {
				return c.TopologyKey == corev1.LabelTopologyZone && c.WhenUnsatisfiable == corev1.DoNotSchedule
			}) {
				t.Errorf("%s is not spread over zones", what)
			}
		}
	}
	config := find[corev1.ConfigMap](t, objects, "ConfigMap", "nats")
	all := ""
	for _, text := range config.Data {
		all += text
	}
	if !strings.Contains(all, "sync_interval: always") {
		t.Error("NATS does not sync each write: a power failure may lose claims, and an insert goes twice")
	}
	find[unstructured.Unstructured](t, objects, "ScaledObject", "zoho-worker")
	find[unstructured.Unstructured](t, objects, "ServiceMonitor", "zoho-worker")
	find[unstructured.Unstructured](t, objects, "PodDisruptionBudget", "nats")
}

func TestNoSecretIsInTheManifests(t *testing.T) {
	for _, name := range overlays {
		for _, u := range overlay(t, name) {
			if u.GetKind() == "Secret" {
				t.Errorf("%s: Secret %s is in the overlay", name, u.GetName())
			}
		}
	}
	err := filepath.WalkDir(filepath.Join(root, "deploy"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err == nil {
			for _, fault := range secretLooking(string(text)) {
				t.Errorf("%s: %s", path, fault)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func subset(labels, of map[string]string) bool {
	for key, value := range labels {
		if of[key] != value {
			return false
		}
	}
	return true
}
