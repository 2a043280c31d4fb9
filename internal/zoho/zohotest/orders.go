package zohotest

import "sync"

// Order is what became of the calls of one ordered sequence, see Options.Order.
// A call that has the place of the one before it is a repetition and in order.
type Order struct {
	Calls    int
	Disorder int // arrived with an earlier place than one that had arrived before
	Overlaps int // arrived while another one of the sequence was in flight
	Last     int64
}

// orders are the sequences by key.
type orders struct {
	mu   sync.Mutex
	list map[string]*sequence
}

type sequence struct {
	Order
	inFlight int
}

func (o *orders) begin(x *exchange) {
	if x.s.opt.Order == nil || x.org == nil {
		return
	}
	key, place := x.s.opt.Order(x.call)
	if key == "" {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	q := o.list[key]
	if q == nil {
		q = &sequence{}
		if o.list == nil {
			o.list = map[string]*sequence{}
		}
		o.list[key] = q
	}
	if q.inFlight > 0 {
		q.Overlaps++
	}
	if q.Calls > 0 && place < q.Last {
		q.Disorder++
	}
	q.Calls++
	q.Last = max(q.Last, place)
	q.inFlight++
	x.order = q
}

func (o *orders) end(x *exchange) {
	if x.order == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	x.order.inFlight--
}

// Orders tells of each ordered sequence how its calls arrived.
func (s *Server) Orders() map[string]Order {
	s.orders.mu.Lock()
	defer s.orders.mu.Unlock()
	m := make(map[string]Order, len(s.orders.list))
	for key, q := range s.orders.list {
		m[key] = q.Order
	}
	return m
}
