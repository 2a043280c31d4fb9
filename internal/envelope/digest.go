package envelope

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Digest returns the SHA-256 of what makes a request the same content under
// the same id: method, path, query, headers in whatever order and case of
// names, body, unique_field, probe and retry_failed_records. The id itself,
// reply_to, deadline and order_key are not in it: who asks again may want the
// answer elsewhere, later, and in another order.
func (r *Request) Digest() [32]byte {
	h := sha256.New()
	var frame [8]byte
	// Every part comes after its length, so no two lists of parts run together alike.
	add := func(part string) {
		binary.BigEndian.PutUint64(frame[:], uint64(len(part)))
		h.Write(frame[:])
		h.Write([]byte(part))
	}
	add(r.Method)
	add(r.Path)
	add(r.RawQuery)
	headers := make([]Header, 0, len(r.Headers))
	for _, header := range r.Headers {
		headers = append(headers, Header{Name: lower(header.Name), Value: header.Value})
	}
	slices.SortFunc(headers, func(a, b Header) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Value, b.Value))
	})
	binary.BigEndian.PutUint64(frame[:], uint64(len(headers)))
	h.Write(frame[:])
	for _, header := range headers {
		add(header.Name)
		add(header.Value)
	}
	add(r.UniqueField)
	if p := r.Probe; p != nil {
		// What wasn't there before has a mark, and the digests of all other
		// requests are what older workers make of them.
		get := (&Request{Path: p.Path, RawQuery: p.RawQuery, Headers: p.Headers}).Digest()
		h.Write([]byte{markProbe})
		add(p.COQL)
		add(p.Field)
		h.Write(get[:])
	}
	if r.RetryFailedRecords {
		h.Write([]byte{markRetry})
	}
	h.Write([]byte{byte(r.Body.Kind)})
	h.Write(r.Body.Data) // last, so its length is told by the end
	return [32]byte(h.Sum(nil))
}

// Marks of what only some requests have, told apart from every BodyKind.
const (
	markProbe = 0x81
	markRetry = 0x82
)
