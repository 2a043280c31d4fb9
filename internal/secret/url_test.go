package secret

import "testing"

func TestRedactURLs(t *testing.T) {
	t.Parallel()
	for list, want := range map[string]string{
		"nats://127.0.0.1:4222": "nats://127.0.0.1:4222",
		"a:4222, b":             "a:4222,b",
		"nats://me:PLANTED@a:1,tls://PLANTED@b:2": "nats://me:xxxxx@a:1,tls://redacted@b:2",
		"me:PLANTED@a:1":                    "me:xxxxx@a:1",
		"PLANTED@a:1":                       "redacted@a:1",
		"nats://me:a@PLANTED@a:1":           "nats://me:xxxxx@a:1",
		"nats://me:a,PLANTED@a:1":           "redacted,redacted@a:1",
		"redis://:1/PLANTED@a:6379":         "redacted",
		"redis://:1?PLANTED@a:6379":         "redacted",
		"redis://:1#PLANTED@a:6379":         "redacted",
		"redis://a:6379/0?password=PLANTED": "redis://a:6379/0?redacted",
		"nats://a:4222#PLANTED":             "nats://a:4222",
		"nats://me:PLANTED%zz@a:1":          "redacted",
	} {
		if got := RedactURLs(list); got != want {
			t.Errorf("%s is shown as %s, want %s", list, got, want)
		}
	}
}
