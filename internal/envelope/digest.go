package envelope

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Digest returns the SHA-256 of what makes a request the same content under
// the same id: method, path, query, headers in whatever order and case of
// names, body and unique_field. The id itself, reply_to and deadline are not in it:
// who asks again may want the answer elsewhere, and later.
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
	h.Write([]byte{byte(r.Body.Kind)})
	h.Write(r.Body.Data) // last, so its length is told by the end
	return [32]byte(h.Sum(nil))
}
