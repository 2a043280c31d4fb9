package app

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"zoho-worker/internal/secret"
)

// Every flag says its environment variable, a secret also the one of its file.
func TestEveryFlagHasAVariable(t *testing.T) {
	t.Parallel()
	config := Defaults()
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	config.BindWorker(flags)
	for _, s := range config.settings() {
		name, flag := s.Name, flags.Lookup(s.Name)
		if !strings.Contains(flag.Usage, "$"+env(name)) {
			t.Errorf("the help of --%s does not name %s", name, env(name))
		}
		if flag.Value.Type() == "secret" && !strings.Contains(flag.Usage, "$"+env(name)+"_FILE") {
			t.Errorf("the help of --%s does not name %s_FILE", name, env(name))
		}
	}
}

// A secret comes from the environment or from a file, and neither help nor
// errors show it.
func TestSecretsFromFiles(t *testing.T) {
	t.Parallel()
	const planted = "planted-secret-1234"
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(planted+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(env map[string]string) (Config, string, error) {
		config := Defaults()
		flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
		config.BindWorker(flags)
		err := config.Load(flags, func(name string) (string, bool) {
			v, ok := env[name]
			return v, ok
		})
		return config, flags.FlagUsages(), err
	}
	for _, name := range []string{"ZOHO_CLIENT_SECRET", "ENCRYPTION_KEYS", "REDIS_URL"} {
		both, help, err := load(map[string]string{name: planted, name + "_FILE": file})
		if err == nil || !strings.Contains(err.Error(), name+"_FILE") {
			t.Errorf("%s and its file: %v", name, err)
		}
		missing, _, err2 := load(map[string]string{name + "_FILE": file + ".missing"})
		if err2 == nil || !strings.Contains(err2.Error(), name+"_FILE") {
			t.Errorf("%s of a missing file: %v", name, err2)
		}
		got, help3, err3 := load(map[string]string{name + "_FILE": file})
		if err3 != nil {
			t.Errorf("%s: %v", name, err3)
		}
		value := map[string]secret.Text{
			"ZOHO_CLIENT_SECRET": got.ZohoClientSecret, "ENCRYPTION_KEYS": got.EncryptionKeys, "REDIS_URL": got.RedisURL,
		}[name]
		if value.Reveal() != planted {
			t.Errorf("%s is %q", name, value.Reveal())
		}
		shown := help + help3
		for _, c := range []Config{both, missing, got} {
			if err := c.Validate(); err != nil {
				shown += err.Error()
			}
		}
		for _, err := range []error{err, err2} {
			if err != nil {
				shown += err.Error()
			}
		}
		if strings.Contains(shown, planted) {
			t.Errorf("%s shows", name)
		}
	}
}

// Everything that is wrong is said at once, each with its flag and variable.
func TestValidateSaysAll(t *testing.T) {
	t.Parallel()
	good := Defaults()
	good.ZohoClientID, good.ZohoClientSecret, good.EncryptionKeys = "1000.X", secret.New("s"), secret.Generate()
	if err := good.Validate(); err != nil {
		t.Fatal("the defaults:", err)
	}
	faults := map[string]func(*Config){
		"nats-url":           func(c *Config) { c.NATSURL = "" },
		"nats-creds":         func(c *Config) { c.NATSCreds = "/nowhere/creds" },
		"zoho-client-id":     func(c *Config) { c.ZohoClientID = "" },
		"zoho-client-secret": func(c *Config) { c.ZohoClientSecret = secret.Text{} },
		"encryption-keys":    func(c *Config) { c.EncryptionKeys = secret.New("k1:short") },
		"http-addr":          func(c *Config) { c.HTTPAddr = "nowhere" },
		"public-url":         func(c *Config) { c.PublicURL = "ftp://x" },
		"max-in-flight":      func(c *Config) { c.MaxInFlight = 0 },
		"credits-reserve":    func(c *Config) { c.CreditsReserve = 1 },
		"replicas":           func(c *Config) { c.Replicas = 6 },
		"call-timeout":       func(c *Config) { c.CallTimeout = 2 * time.Hour },
		"ack-wait":           func(c *Config) { c.AckWait = 2 * time.Second },
		"retention":          func(c *Config) { c.Retention = time.Hour },
		"reply-prefixes":     func(c *Config) { c.ReplyPrefixes = []string{"$JS."} },
		"log-level":          func(c *Config) { c.LogLevel = "loud" },
		"log-format":         func(c *Config) { c.LogFormat = "xml" },
	}
	all := good
	for flag, spoil := range faults {
		bad := good
		spoil(&bad)
		spoil(&all)
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), "--"+flag+" ("+env(flag)+")") {
			t.Errorf("%s: %v", flag, err)
		}
	}
	err := all.Validate()
	for flag := range faults {
		if err == nil || !strings.Contains(err.Error(), "--"+flag+" (") {
			t.Errorf("with everything wrong, %s is not said", flag)
		}
	}
	// Relations.
	late := good
	late.StopTimeout = late.CallTimeout
	if err := late.Validate(); err == nil || !strings.Contains(err.Error(), "--stop-timeout") {
		t.Errorf("a stop budget no longer than a call: %v", err)
	}
	shortest := good
	shortest.AckWait, shortest.CallTimeout = 3*time.Second, time.Second
	if err := shortest.Validate(); err != nil {
		t.Errorf("the least that is allowed: %v", err)
	}
}

// Whatever is wrong, each line says with which setting: those of Zoho's and of the
// console, which other packages judge, too.
func TestEveryFaultNamesItsSetting(t *testing.T) {
	t.Parallel()
	line := regexp.MustCompile(`^--([a-z-]+) \(([A-Z_]+)\): `)
	for name, row := range map[string]struct {
		spoil func(*Config)
		want  []string
	}{
		"zoho": {func(c *Config) {
			c.ZohoClientSecrets, c.ZohoAccountsURL, c.ZohoAPIURL = secret.New("eu:s,planted,xx:planted"), "http://zoho.example", "zoho"
		}, []string{"zoho-client-secrets", "zoho-client-secrets", "zoho-accounts-url", "zoho-api-url"}},
		"none":         {func(c *Config) { c.ConsoleAuth = "none" }, []string{"console-auth"}},
		"else":         {func(c *Config) { c.ConsoleAuth = "password" }, []string{"console-auth", "public-url"}},
		"basic":        {func(c *Config) { c.ConsoleAuth = "basic" }, []string{"console-users", "public-url"}},
		"basic, plain": {func(c *Config) { c.ConsoleAuth, c.ConsoleUsers = "basic", secret.New("a:planted,planted") }, []string{"console-users", "console-users", "public-url"}},
		"oidc":         {func(c *Config) { c.ConsoleAuth = "oidc" }, []string{"oidc-issuer", "oidc-client-id", "oidc-client-secret", "oidc-allowed", "public-url"}},
		"oidc, allowed": {func(c *Config) {
			c.ConsoleAuth, c.OIDCIssuer, c.OIDCClientID, c.OIDCClientSecret = "oidc", "https://id.example", "a", secret.New("b")
			c.OIDCAllowed, c.PublicURL = []string{"example.com"}, "http://zoho.example/path"
		}, []string{"oidc-allowed", "public-url", "public-url"}},
		"proxy-header": {func(c *Config) { c.ConsoleAuth = "proxy-header" }, []string{"console-proxy-header", "console-proxy-networks", "public-url"}},
		"proxy-header, network": {func(c *Config) {
			c.ConsoleAuth, c.ConsoleProxyHeader, c.ConsoleProxyNetworks = "proxy-header", "X-User", []string{"10.0.0.0/99"}
		}, []string{"console-proxy-networks", "public-url"}},
		"webhook": {func(c *Config) { c.WebhookURL = "http://hook.example" }, []string{"webhook-url"}},
	} {
		c := Defaults()
		c.ZohoClientID, c.ZohoClientSecret, c.EncryptionKeys = "1000.X", secret.New("s"), secret.Generate()
		row.spoil(&c)
		err := c.Validate()
		if err == nil {
			t.Errorf("%s: valid", name)
			continue
		}
		var got []string
		for _, fault := range strings.Split(err.Error(), "\n") {
			named := line.FindStringSubmatch(fault)
			if named == nil || named[2] != env(named[1]) || strings.Contains(fault, "planted") {
				t.Errorf("%s: %s", name, fault)
				continue
			}
			got = append(got, named[1])
		}
		if !slices.Equal(got, row.want) {
			t.Errorf("%s: faults of %v, want %v", name, got, row.want)
		}
	}
}
