package test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/secret"
)

// AddLead is what the README shows: a test holds that the two are the same.
func AddLead(ctx context.Context, nc *nats.Conn, id, lastName string) (int, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	replies, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		return 0, err
	}
	defer replies.Unsubscribe()
	request, err := json.Marshal(map[string]any{
		"id": id, "method": "POST", "url": "/v8/Leads", "reply_to": replies.Subject,
		"body": map[string]any{"data": []any{map[string]any{"Last_Name": lastName}}},
	})
	if err != nil {
		return 0, err
	}
	// After the PubAck the request is the worker's to answer.
	if _, err := js.Publish(ctx, "zoho.requests.demo", request); err != nil {
		return 0, err
	}
	msg, err := replies.NextMsgWithContext(ctx)
	if err != nil {
		return 0, err // the response will be stored at zoho.responses.demo.<id>
	}
	var response struct {
		Status int
		Error  *struct{ Code, Message string }
	}
	if err := json.Unmarshal(msg.Data, &response); err != nil {
		return 0, err
	}
	if response.Error != nil {
		return response.Status, fmt.Errorf("%s: %s", response.Error.Code, response.Error.Message)
	}
	return response.Status, nil
}

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	nc, stop, err := sandbox(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer stop()
	defer nc.Close()
	fmt.Println(AddLead(ctx, nc, "order-4711", "Boyle"))
	// The same id again is the same answer, and no second lead.
	fmt.Println(AddLead(ctx, nc, "order-4711", "Boyle"))
	fmt.Println(AddLead(ctx, nc, "order-4711", "Somebody else"))
	// Output:
	// 201 <nil>
	// 201 <nil>
	// 0 id_conflict: id: order-4711 belongs to an earlier request with other content: take a new id
}

// sandbox starts what `worker dev` starts.
func sandbox(ctx context.Context) (_ *nats.Conn, stop func(), err error) {
	box, err := devbox.Start(devbox.Options{})
	if err != nil {
		return nil, nil, err
	}
	box.Zoho.SeedDemo(devbox.OrgID)
	c := app.Defaults()
	c.NATSURL, c.RedisURL = box.NATSURL, secret.New(box.RedisURL)
	c.ZohoClientID, c.ZohoClientSecret = "1000.DEMO", secret.New("demo")
	c.ZohoAccountsURL, c.ZohoAPIURL = box.ZohoURL, box.ZohoURL
	c.EncryptionKeys, c.HTTPAddr = secret.Generate(), "127.0.0.1:0"
	worker, err := app.Start(ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		box.Close()
		return nil, nil, err
	}
	stop = func() {
		worker.Stop(context.WithoutCancel(ctx))
		box.Close()
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	_, err = worker.Connections.Add(ctx, connection.Connection{
		Name: "demo", Location: "us", OrgID: devbox.OrgID, UserID: devbox.UserID,
	}, secret.New(box.Zoho.GrantRefreshToken(devbox.UserID)))
	if err != nil {
		return nil, stop, err
	}
	nc, err := nats.Connect(box.NATSURL)
	return nc, stop, err
}
