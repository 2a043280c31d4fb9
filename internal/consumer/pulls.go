package consumer

import (
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
)

// pulls are what a lane asks its consumer for: as many requests as it has room
// for, so that none waits for room in this process. They have an inbox of their
// own, because the server drops what is open when nobody listens there any more.
type pulls struct {
	conn    *nats.Conn
	most    int    // requests that are asked for at a time
	subject string // of the server's API
	sub     *nats.Subscription
	// come has what comes, and is closed when nobody listens any more and all has
	// come. What doesn't fit is handed out again only after AckWait.
	come  chan *nats.Msg
	ended sync.Once
}

// signs is the room for messages of the server's own among the requests.
const signs = 32

// listen opens the inbox; no more than most requests may be asked for at a time.
func listen(conn *nats.Conn, durable string, most int) (*pulls, error) {
	p := &pulls{
		conn: conn, most: most, subject: "$JS.API.CONSUMER.MSG.NEXT." + RequestStream + "." + durable,
		come: make(chan *nats.Msg, most+signs),
	}
	var err error
	if p.sub, err = conn.ChanSubscribe(conn.NewInbox(), p.come); err != nil {
		return nil, err
	}
	var closed sync.Once // the library may say so twice
	p.sub.SetClosedHandler(func(string) { closed.Do(func() { close(p.come) }) })
	return p, nil
}

// ask asks for n requests, and no more than bytes of them; 0: any.
func (p *pulls) ask(n int, bytes int64) error {
	var room [128]byte
	ask := strconv.AppendInt(append(room[:0], `{"batch":`...), int64(n), 10)
	if bytes > 0 {
		ask = strconv.AppendInt(append(ask, `,"max_bytes":`...), bytes, 10)
	}
	ask = strconv.AppendInt(append(ask, `,"expires":`...), int64(pullExpiry), 10)
	ask = strconv.AppendInt(append(ask, `,"idle_heartbeat":`...), int64(pullHeartbeat), 10)
	return p.conn.PublishRequest(p.subject, p.sub.Subject, append(ask, '}'))
}

// end ends the listening: come is closed when what is on its way has come.
func (p *pulls) end() {
	p.ended.Do(func() { _ = p.sub.Drain() }) // an error means that the connection is closed, and come as well
}

// errMoved says that the consumer is gone, or has another leader, which knows no pull.
var errMoved = errors.New("the consumer is elsewhere")

// tooLarge is what the server says where the next request doesn't fit into a pull.
const tooLarge = "Message Size Exceeds MaxBytes"

// said reads what the server says of a pull: how many of its requests won't come
// any more, and whether the consumer is there to say so. Any error ends all of them.
func said(msg *nats.Msg) (left int, there bool, err error) {
	status, text := msg.Header.Get("Status"), msg.Header.Get("Description")
	switch {
	case status == "100": // it is open
		return 0, true, nil
	// It is over. The last is said where all came that was asked for and more bytes might have.
	case status == "404", status == "408", text == "Server Shutdown", text == tooLarge, text == "Batch Completed":
		left, _ = strconv.Atoi(msg.Header.Get("Nats-Pending-Messages"))
		return left, true, nil
	case text == "Leadership Change", text == "Consumer Deleted":
		// Of a new leader each pull says so: to ask again after the first of them
		// would be to ask twice.
		return 0, true, errMoved
	case status == "503":
		// Nobody heard of it. It stays open until the lane misses signs of life: a
		// server that is about to know the consumer may need a moment.
		return 0, false, nil
	}
	return 0, true, fmt.Errorf("the server says %s %s", status, text)
}
