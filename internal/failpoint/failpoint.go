// Package failpoint marks the places between two steps of a request where a
// test kills the worker. Without the build tag failpoint a mark compiles to nothing.
package failpoint

// Point names a place on the path of a request.
type Point string

// The points, in the order in which a request passes them.
const (
	Decoded  Point = "decoded"  // the envelope is read, nothing is written yet
	Claimed  Point = "claimed"  // the claim is stored, no byte has left
	Answered Point = "answered" // Zoho's answer is here, nothing is stored yet
	Stored   Point = "stored"   // the response is stored, the requester has not got it
	Replied  Point = "replied"  // the requester has the response, the request is not acked
	Acked    Point = "acked"    // the ack is handed to the connection
)

// Points returns all points in the order of the path.
func Points() []Point {
	return []Point{Decoded, Claimed, Answered, Stored, Replied, Acked}
}
