package envelope

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"strings"
	"sync"
)

// Digest returns the SHA-256 of what makes a request the same content under
// the same id: method, path, query, headers in whatever order and case of
// names, body, unique_field, probe and retry_failed_records. The id itself,
// reply_to, deadline and order_key are not in it: who asks again may want the
// answer elsewhere, later, and in another order.
func (r *Request) Digest() [32]byte {
	d := digesters.Get().(*digester)
	defer digesters.Put(d)
	// Every part comes after its length, so no two lists of parts run together alike.
	b := d.parts[:0]
	part := func(text string) {
		b = binary.BigEndian.AppendUint64(b, uint64(len(text)))
		b = append(b, text...)
	}
	part(r.Method)
	part(r.Path)
	part(r.RawQuery)
	var room [8]Header
	headers := room[:0]
	names := d.names[:0]
	for _, header := range r.Headers {
		from := len(names)
		names = appendLower(names, header.Name)
		headers = append(headers, Header{Name: view(names[from:]), Value: header.Value})
	}
	d.names = names
	slices.SortFunc(headers, func(a, b Header) int { return strings.Compare(a.Name, b.Name) })
	b = binary.BigEndian.AppendUint64(b, uint64(len(headers)))
	for _, header := range headers {
		part(header.Name)
		part(header.Value)
	}
	part(r.UniqueField)
	if p := r.Probe; p != nil {
		// What wasn't there before has a mark, and the digests of all other
		// requests are what older workers make of them.
		get := (&Request{Path: p.Path, RawQuery: p.RawQuery, Headers: p.Headers}).Digest()
		b = append(b, markProbe)
		part(p.COQL)
		part(p.Field)
		b = append(b, get[:]...)
	}
	if r.RetryFailedRecords {
		b = append(b, markRetry)
	}
	b = append(b, byte(r.Body.Kind))
	d.hash.Reset()
	d.hash.Write(b)
	d.hash.Write(r.Body.Data) // last, so its length is told by the end
	d.parts = d.hash.Sum(b[:0])
	return [32]byte(d.parts)
}

// digester is memory of Digest that is used again.
type digester struct {
	hash  hash.Hash
	parts []byte
	names []byte // of headers, in small letters
}

var digesters = sync.Pool{New: func() any { return &digester{hash: sha256.New()} }}

// Marks of what only some requests have, told apart from every BodyKind.
const (
	markProbe = 0x81
	markRetry = 0x82
)
