package app

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"zoho-worker/internal/secret"
)

// setting ties a field to its flag, and so to its environment variable and its
// key in the configuration file.
type setting struct {
	*pflag.Flag
	secret *secret.Text // where it is one
	file   bool         // it names a file
}

// env is the environment variable of a flag: --nats-url, NATS_URL.
func env(flag string) string { return strings.ToUpper(strings.ReplaceAll(flag, "-", "_")) }

// connectionSettings are what a command line beside a worker needs.
func (c *Config) connectionSettings() []setting {
	return []setting{
		text("nats-url", &c.NATSURL, "NATS server, or several separated by commas; tls:// insists on TLS"),
		file("nats-creds", &c.NATSCreds, "NATS credentials file"),
		file("nats-nkey", &c.NATSNKey, "file with the seed of a NATS nkey"),
		file("nats-ca", &c.NATSCA, "file of certificate authorities for NATS (default the system's)"),
		file("nats-cert", &c.NATSCert, "certificate of this side, for NATS servers that ask for one"),
		file("nats-key", &c.NATSKey, "key of --nats-cert"),
		text("nats-inbox-prefix", &c.NATSInboxPrefix, "what the subjects begin with on which this side is answered (default _INBOX; a worker's _INBOX.zoho-worker)"),
		hidden("encryption-keys", &c.EncryptionKeys, "keys that seal what is stored: id:base64 of 32 bytes, comma separated, the first seals"),
		number("replicas", &c.Replicas, "replicas of every stream: 1 on a single server, 3 in a cluster"),
		duration("retention", &c.Retention, "how long responses and claims are kept, and ids remembered"),
		text("log-level", &c.LogLevel, "debug, info, warn or error; a worker follows its file"),
		text("log-format", &c.LogFormat, "json, text, or auto: text on a terminal, else json"),
	}
}

// workerSettings are the rest.
func (c *Config) workerSettings() []setting {
	return []setting{
		hidden("redis-url", &c.RedisURL, "Redis server: redis://, rediss:// or unix://; ?addr= for a cluster, ?master_name= for Sentinel; empty: go without"),
		file("redis-ca", &c.RedisCA, "file of certificate authorities for rediss:// (default the system's)"),
		file("redis-cert", &c.RedisCert, "certificate of this side, for Redis servers that ask for one"),
		file("redis-key", &c.RedisKey, "key of --redis-cert"),
		text("zoho-client-id", &c.ZohoClientID, "client id of the app in Zoho's API console"),
		hidden("zoho-client-secret", &c.ZohoClientSecret, "client secret of the app in Zoho's API console"),
		hidden("zoho-client-secrets", &c.ZohoClientSecrets, "client secrets of data centres that have their own: location:secret, comma separated"),
		text("http-addr", &c.HTTPAddr, "address of /metrics, /healthz, /readyz and the console"),
		text("public-url", &c.PublicURL, "how a browser reaches the worker's pages"),
		number("max-in-flight", &c.MaxInFlight, "calls under way of this worker at one time, over all orgs"),
		fraction("credits-reserve", &c.CreditsReserve, "part of an org's API credits that bulk requests may not use, from 0 to less than 1"),
		duration("call-timeout", &c.CallTimeout, "bound of one call to Zoho"),
		duration("ack-wait", &c.AckWait, "after what silence of a worker the server hands its requests to another"),
		duration("stop-timeout", &c.StopTimeout, "how long a stopping worker waits for its calls"),
		list("reply-prefixes", &c.ReplyPrefixes, "what a reply_to may begin with, comma separated"),
		text("zoho-accounts-url", &c.ZohoAccountsURL, "replaces every data centre's accounts server, for a simulator or a proxy"),
		text("zoho-api-url", &c.ZohoAPIURL, "replaces every data centre's API host, for a simulator or a proxy"),
	}
}

func (c *Config) settings() []setting {
	return slices.Concat(c.connectionSettings(), c.workerSettings(), c.consoleSettings())
}

// BindClient adds the flags that a command line beside a worker needs.
func (c *Config) BindClient(flags *pflag.FlagSet) { c.bind(flags, c.connectionSettings()) }

// BindHealth adds the flags of who asks a worker on this machine how it is.
func (c *Config) BindHealth(flags *pflag.FlagSet) {
	c.bind(flags, slices.DeleteFunc(c.settings(), func(s setting) bool { return s.Name != "http-addr" }))
}

// BindWorker adds all flags.
func (c *Config) BindWorker(flags *pflag.FlagSet) { c.bind(flags, c.settings()) }

func (c *Config) bind(flags *pflag.FlagSet, settings []setting) {
	flags.StringVar(&c.File, "config", c.File, "configuration file, YAML: keys are the flags' names [$CONFIG]")
	for _, s := range settings {
		s.Usage += " [$" + env(s.Name)
		if s.secret != nil {
			s.Usage += ", $" + env(s.Name) + "_FILE"
		}
		s.Usage += "]"
		flags.AddFlag(s.Flag)
	}
}

// Where a setting's value came from: the name of an environment variable or the
// place in the configuration file, or one of these.
const (
	fromFlag    = "flag"
	fromDefault = "default"
	// notRead has a value that Load could not read: it is told as that and not as
	// missing.
	notRead = "can't be read"
)

// Load fills in what no flag has set: from the environment, else from the
// configuration file. All faults are reported at once, those of the file with
// their lines. Settings of the file that this command has no use for are read
// past, unknown ones refused. The other settings are there all the same, and Validate
// reports the faults again, for a command that shows everything at once.
func (c *Config) Load(flags *pflag.FlagSet, lookup func(string) (string, bool)) error {
	if path, ok := lookup("CONFIG"); ok && !flags.Changed("config") {
		c.File = path
	}
	file, fileFault := readConfigFile(c.File, c.settings())
	faults := []error{fileFault}
	c.origins = map[string]string{}
	for _, s := range c.settings() {
		flag := flags.Lookup(s.Name)
		if flag == nil {
			continue
		}
		c.origins[s.Name] = fromDefault
		if flag.Changed {
			c.origins[s.Name] = fromFlag
			continue
		}
		value, origin, err := s.fromEnvironment(lookup)
		if err == nil && origin == "" {
			value, origin, err = file.value(s)
		}
		if err != nil {
			faults = append(faults, err)
			c.origins[s.Name] = notRead
			continue
		}
		if origin == "" {
			if fileFault != nil && len(file.keys) == 0 { // the whole file
				c.origins[s.Name] = notRead
			}
			continue
		}
		c.origins[s.Name] = origin
		if err := flag.Value.Set(value); err != nil {
			faults = append(faults, fmt.Errorf("%s: %s: %w", origin, s.Name, err))
		}
	}
	c.unread = errors.Join(faults...)
	return c.unread
}

// fromEnvironment returns the value that the environment gives, or no origin.
func (s setting) fromEnvironment(lookup func(string) (string, bool)) (value, origin string, err error) {
	name := env(s.Name)
	value, ok := lookup(name)
	if s.secret != nil {
		if file, there := lookup(name + "_FILE"); there && file != "" {
			if ok && value != "" {
				return "", "", fmt.Errorf("%s and %s_FILE: set one of them", name, name)
			}
			data, err := os.ReadFile(file)
			if err != nil {
				return "", "", fmt.Errorf("%s_FILE: %w", name, err)
			}
			return strings.TrimSpace(string(data)), name + "_FILE", nil
		}
	}
	// Compose files hand over variables that are empty for ones that aren't set.
	// Only Redis can be done without.
	if !ok || value == "" && s.Name != "redis-url" {
		return "", "", nil
	}
	return value, name, nil
}

// raw is the setting's value as it would be written in a file, secrets included.
func (s setting) raw() string {
	if s.secret != nil {
		return s.secret.Reveal()
	}
	if slice, ok := s.Value.(pflag.SliceValue); ok {
		return strings.Join(slice.GetSlice(), ",")
	}
	return s.Value.String()
}

// Origin returns where the setting of that name got its value.
func (c Config) Origin(name string) string { return cmp.Or(c.origins[name], fromDefault) }

// Reload reads the environment and the file again, with the same flags. All faults are
// reported at once.
func (c Config) Reload(lookup func(string) (string, bool)) (Config, error) {
	fresh := Defaults()
	fresh.File = c.File
	flags := pflag.NewFlagSet("reload", pflag.ContinueOnError)
	fresh.BindWorker(flags)
	if err := flags.Set("config", c.File); err != nil { // CONFIG doesn't name another
		return c, err
	}
	for _, s := range c.settings() {
		if c.Origin(s.Name) == fromFlag {
			if err := flags.Set(s.Name, s.raw()); err != nil {
				return c, err
			}
		}
	}
	_ = fresh.Load(flags, lookup) // Validate reports it, with all else
	return fresh, fresh.Validate()
}

// Changed returns the names of the settings that differ from those of other.
func (c Config) Changed(other Config) []string {
	var names []string
	theirs := other.settings()
	for i, s := range c.settings() {
		if s.raw() != theirs[i].raw() {
			names = append(names, s.Name)
		}
	}
	return names
}

// made has pflag make the flag, so that it brings its own parser.
func made(define func(*pflag.FlagSet)) *pflag.Flag {
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	define(set)
	var flag *pflag.Flag
	set.VisitAll(func(f *pflag.Flag) { flag = f })
	return flag
}

func text(name string, field *string, help string) setting {
	return setting{Flag: made(func(f *pflag.FlagSet) { f.StringVar(field, name, *field, help) })}
}

func file(name string, field *string, help string) setting {
	s := text(name, field, help)
	s.file = true
	return s
}

func number(name string, field *int, help string) setting {
	return setting{Flag: made(func(f *pflag.FlagSet) { f.Var((*Decimal)(field), name, help) })}
}

func fraction(name string, field *float64, help string) setting {
	return setting{Flag: made(func(f *pflag.FlagSet) { f.Float64Var(field, name, *field, help) })}
}

func duration(name string, field *time.Duration, help string) setting {
	return setting{Flag: made(func(f *pflag.FlagSet) { f.DurationVar(field, name, *field, help) })}
}

func list(name string, field *[]string, help string) setting {
	return setting{Flag: made(func(f *pflag.FlagSet) { f.StringSliceVar(field, name, *field, help) })}
}

func hidden(name string, field *secret.Text, help string) setting {
	return setting{secret: field, Flag: made(func(f *pflag.FlagSet) { f.Var((*secretValue)(field), name, help) })}
}

// Decimal is a flag with digits alone: of pflag's own, 010 would be eight.
type Decimal int

// Set implements pflag.Value.
func (d *Decimal) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil {
		return errors.New("must be an integer, like 10")
	}
	*d = Decimal(n)
	return nil
}

// String implements pflag.Value.
func (d *Decimal) String() string { return strconv.Itoa(int(*d)) }

// Type implements pflag.Value.
func (d *Decimal) Type() string { return "int" }

// secretValue is a flag that help and error messages never show.
type secretValue secret.Text

func (v *secretValue) Set(s string) error {
	*v = secretValue(secret.New(s))
	return nil
}
func (v *secretValue) String() string { return "" }
func (v *secretValue) Type() string   { return "secret" }
