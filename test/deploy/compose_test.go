package deploy

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/types"

	"zoho-worker/internal/app"
)

// compose loads docker-compose.yml as `docker compose config` does with that .env:
// it checks it against the specification's schema, and all references.
func compose(t *testing.T, envFile string, profiles ...string) *types.Project {
	t.Helper()
	project, err := tryCompose(t, envFile, profiles...)
	if err != nil {
		t.Fatal(err)
	}
	return project
}

func tryCompose(t *testing.T, envFile string, profiles ...string) (*types.Project, error) {
	t.Helper()
	var env []string
	if envFile != "" {
		values, err := dotenv.Read(filepath.Join(root, envFile))
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range values {
			env = append(env, key+"="+value)
		}
	}
	options, err := cli.NewProjectOptions([]string{filepath.Join(root, "docker-compose.yml")},
		cli.WithEnv(env), cli.WithProfiles(profiles), cli.WithInterpolation(true), cli.WithConsistency(true))
	if err != nil {
		t.Fatal(err)
	}
	return options.LoadProject(context.Background())
}

func everything(t *testing.T) *types.Project {
	return compose(t, "deploy/compose/sandbox.env", "sandbox", "monitoring")
}

func TestComposeServices(t *testing.T) {
	plain := compose(t, "deploy/compose/sandbox.env")
	want := []string{"nats", "redis", "worker-1", "worker-2"}
	if got := plain.ServiceNames(); !slices.Equal(got, want) {
		t.Errorf("without a profile: %v, want %v", got, want)
	}
	for profile, more := range map[string][]string{"sandbox": {"setup", "simulator"}, "monitoring": {"grafana", "prometheus"}} {
		got := compose(t, "deploy/compose/sandbox.env", profile).ServiceNames()
		sorted := slices.Sorted(slices.Values(append(slices.Clone(want), more...)))
		if !slices.Equal(got, sorted) {
			t.Errorf("with --profile %s: %v, want %v", profile, got, sorted)
		}
	}
}

func TestComposeAsksForTheClientID(t *testing.T) {
	if _, err := tryCompose(t, ""); err == nil || !strings.Contains(err.Error(), "ZOHO_CLIENT_ID") {
		t.Errorf("without .env: %v, want to be told of ZOHO_CLIENT_ID", err)
	}
	if _, err := tryCompose(t, "deploy/compose/example.env"); err == nil || !strings.Contains(err.Error(), "ZOHO_CLIENT_ID") {
		t.Errorf("with the example unchanged: %v, want to be told of ZOHO_CLIENT_ID", err)
	}
}

// Compose fills in the whole file for each of its commands, so each one of the docs needs
// the variables that up has: what they have somebody copy to .env.
func TestComposeCommandsOfTheDocs(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "deploy.md"))
	if err != nil {
		t.Fatal(err)
	}
	env, commands := "", 0
	for line := range strings.Lines(string(page)) {
		words := strings.Fields(line)
		switch {
		case len(words) > 2 && words[0] == "cp" && words[2] == ".env":
			env = words[1]
		case len(words) > 2 && words[0] == "docker" && words[1] == "compose":
			commands++
			if env == "deploy/compose/example.env" {
				continue // in which somebody has written his client id
			}
			if _, err := tryCompose(t, env); err != nil {
				t.Errorf("%s%v", line, err)
			}
		}
	}
	if commands < 5 {
		t.Errorf("the page has %d commands of Compose", commands)
	}
}

func TestComposeIsHardened(t *testing.T) {
	project := everything(t)
	for name, s := range project.Services {
		if s.Image == "" && s.Build == nil {
			t.Errorf("%s: no image", name)
		}
		if fault := pinned(s.Image); fault != "" {
			t.Errorf("%s: image %s", name, fault)
		}
		if s.Build != nil && s.Build.DockerfileInline != "" {
			for _, line := range strings.Split(s.Build.DockerfileInline, "\n") {
				if from, ok := strings.CutPrefix(line, "FROM "); ok && pinned(from) != "" {
					t.Errorf("%s: FROM %s", name, pinned(from))
				}
			}
		}
		if !s.ReadOnly {
			t.Errorf("%s: the root file system can be written", name)
		}
		if user, _, _ := strings.Cut(s.User, ":"); user == "" || user == "0" || user == "root" {
			t.Errorf("%s: runs as root, or as the image says", name)
		}
		if !slices.Contains(s.CapDrop, "ALL") || len(s.CapAdd) > 0 {
			t.Errorf("%s: has capabilities", name)
		}
		if !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: may gain privileges", name)
		}
		if s.Privileged || s.NetworkMode == "host" || s.Pid == "host" {
			t.Errorf("%s: is not kept apart from the host", name)
		}
		if s.MemLimit == 0 || s.PidsLimit == 0 {
			t.Errorf("%s: memory or processes are not limited", name)
		}
		switch {
		case name == "setup": // ends by itself
		case s.HealthCheck == nil || s.HealthCheck.Disable || len(s.HealthCheck.Test) < 2:
			t.Errorf("%s: no health check", name)
		case s.Restart != "unless-stopped":
			t.Errorf("%s: is not started again", name)
		}
		for _, p := range s.Ports {
			if p.HostIP != "127.0.0.1" {
				t.Errorf("%s: port %s is open to the network", name, p.Published)
			}
		}
		for key, value := range s.Environment {
			if value == nil {
				continue
			}
			for _, fault := range secretLooking(*value) {
				t.Errorf("%s: %s %s", name, key, fault)
			}
			upper := strings.ToUpper(key)
			for _, word := range []string{"SECRET", "PASSWORD", "TOKEN", "ENCRYPTION_KEYS", "REDIS_URL"} {
				if strings.Contains(upper, word) && !strings.HasSuffix(upper, "_FILE") {
					t.Errorf("%s: %s is a secret in the environment: use %s_FILE", name, key, key)
				}
			}
			if file, ok := strings.CutPrefix(*value, "/run/secrets/"); ok &&
				!slices.ContainsFunc(s.Secrets, func(c types.ServiceSecretConfig) bool { return c.Source == file }) {
				t.Errorf("%s: %s names /run/secrets/%s, which is not mounted", name, key, file)
			}
		}
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind {
				if !v.ReadOnly {
					t.Errorf("%s: can write %s", name, v.Source)
				}
				if _, err := os.Stat(v.Source); err != nil {
					t.Errorf("%s: mounts %v", name, err)
				}
			}
		}
	}
	for name, secret := range project.Secrets {
		if secret.File == "" || secret.Content != "" || secret.Environment != "" {
			t.Errorf("secret %s comes not from a file", name)
		}
	}
	for _, fault := range secretLooking(read(t, "docker-compose.yml")) {
		t.Errorf("docker-compose.yml: %s", fault)
	}
}

func TestComposeWorkers(t *testing.T) {
	project := everything(t)
	names := workerVariables(t)
	others := []string{"GOMEMLIMIT", "SSL_CERT_FILE", "OTEL_EXPORTER_OTLP_ENDPOINT"}
	for _, name := range []string{"worker-1", "worker-2"} {
		s := project.Services[name]
		for key := range s.Environment {
			if !names[key] && !slices.Contains(others, key) {
				t.Errorf("%s sets %s, which no worker reads", name, key)
			}
		}
		if s.StopGracePeriod == nil || time.Duration(*s.StopGracePeriod) < app.Defaults().StopTimeout+10*time.Second {
			t.Errorf("%s: stop_grace_period %v is not above the stop budget %s", name, s.StopGracePeriod, app.Defaults().StopTimeout)
		}
		for _, server := range []string{"nats", "redis"} {
			if s.DependsOn[server].Condition != types.ServiceConditionHealthy {
				t.Errorf("%s does not wait for %s to be healthy", name, server)
			}
		}
		if !slices.Contains(s.Networks["backend"].Aliases, "workers") {
			t.Errorf("%s: Prometheus does not find it", name)
		}
	}
	if !project.Networks["backend"].Internal {
		t.Error("the backend network has a way out")
	}
	for _, name := range []string{"redis", "simulator", "setup"} {
		if s := project.Services[name]; len(s.Networks) != 1 {
			t.Errorf("%s has a way out", name)
		}
	}
}
