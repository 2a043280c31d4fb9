// Command loaded runs two workers under load against a simulated Zoho in which
// things go wrong now and then, for somebody who wants to look at the dashboard
// with something on it:
//
//	go run ./loaded --for 10m
//
// It prints where the workers' metrics are. One org is at its limit of calls in
// flight, one is throttled, one connection is revoked in the middle.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

func main() {
	long := flag.Duration("for", 10*time.Minute, "how long")
	addrs := flag.String("http-addrs", "127.0.0.1:0,127.0.0.1:0", "HTTP addresses of the workers, comma separated")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	ctx, cancel := context.WithTimeout(ctx, *long)
	err := run(ctx, *long, strings.Split(*addrs, ","))
	cancel()
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

// orgs: their names, places, and requests per second.
var orgs = []struct {
	name      string
	places    int
	perSecond float64
}{{"acme", 10, 20}, {"globex", 5, 12}, {"initech", 5, 30}, {"umbrella", 10, 8}, {"hooli", 20, 25}}

func run(ctx context.Context, long time.Duration, addrs []string) error {
	box, err := devbox.Start(devbox.Options{Zoho: zohotest.Options{TokenLife: time.Minute, MaxMints: -1, KeepCalls: 1000}})
	if err != nil {
		return err
	}
	defer box.Close()
	box.Zoho.SetLatency(200 * time.Millisecond)
	config := app.Defaults()
	config.NATSURL, config.RedisURL = box.NATSURL, secret.New(box.RedisURL)
	config.ZohoClientID, config.ZohoClientSecret = "1000.DEMO", secret.New("demo")
	config.ZohoAccountsURL, config.ZohoAPIURL = box.ZohoURL, box.ZohoURL
	config.EncryptionKeys, config.MaxInFlight = secret.Generate(), 24
	var store *connection.Store
	for _, addr := range addrs {
		config.HTTPAddr = addr
		worker, err := app.Start(ctx, config, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer worker.Stop(context.Background())
		fmt.Printf("http://%s/metrics\n", worker.HTTPAddr)
		store = worker.Connections
	}
	nc, err := nats.Connect(box.NATSURL)
	if err != nil {
		return err
	}
	defer nc.Close()
	tokens := map[string]string{}
	for i, o := range orgs {
		org, user := fmt.Sprintf("7700%05d", i), fmt.Sprintf("57257670000004%05d", i)
		box.Zoho.AddOrg(zohotest.Org{ID: org, Name: o.name, Concurrency: o.places, SubConcurrency: o.places, Credits: 20_000})
		box.Zoho.AddUser(zohotest.User{ID: user, Email: o.name + "@example.com", Name: o.name, OrgID: org})
		box.Zoho.SeedDemo(org)
		tokens[o.name] = box.Zoho.GrantRefreshToken(user)
		if _, err := store.Add(ctx, connection.Connection{
			Name: o.name, Location: "us", OrgID: org, UserID: user, Concurrency: o.places, UpdatedBy: "loaded",
		}, secret.New(tokens[o.name])); err != nil {
			return err
		}
		go publish(ctx, nc, o.name, o.perSecond)
	}
	misfortune := func(after float64, f func()) {
		go func() {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(after * float64(long))):
				f()
			}
		}()
	}
	// In parts of the whole time: a throttled org, errors, a cut connection, a revoked grant.
	misfortune(0.25, func() { box.Zoho.Inject(zohotest.TooManyRequests(zohotest.Concurrency).ForOrg("770000000").Repeat(40)) })
	misfortune(0.4, func() { box.Zoho.Inject(zohotest.InternalError().Repeat(60)) })
	misfortune(0.5, func() { box.Zoho.Inject(zohotest.InternalError().On("POST", "").Repeat(3)) })
	misfortune(0.55, func() { box.Zoho.SetLatency(600 * time.Millisecond) })
	misfortune(0.7, func() { box.Zoho.SetLatency(200 * time.Millisecond) })
	misfortune(0.75, func() { box.Zoho.RevokeRefreshToken(tokens["umbrella"]) })
	<-ctx.Done()
	return nil
}

func publish(ctx context.Context, nc *nats.Conn, name string, perSecond float64) {
	requests := []string{
		`"method":"GET","url":"/v8/Leads?fields=Last_Name,Email&per_page=20"`,
		`"method":"GET","url":"/v8/Contacts?fields=Last_Name&per_page=50"`,
		`"method":"POST","url":"/v8/coql","body":{"select_query":"select Last_Name from Leads where Last_Name != 'x' limit 5"}`,
		`"method":"POST","url":"/v8/Leads","body":{"data":[{"Last_Name":"Load"}]}`,
		`"method":"GET","url":"/v8/Nothing?fields=id"`,
	}
	for i := 0; ; i++ {
		pause := time.Duration(rand.ExpFloat64() / perSecond * float64(time.Second))
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		_ = nc.Publish("zoho.requests."+name, fmt.Appendf(nil, `{"id":"load-%d",%s}`, i, requests[rand.IntN(len(requests))]))
	}
}
