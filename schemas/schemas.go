// Package schemas holds the published description of the words on the wire:
// JSON Schemas (draft 2020-12) of the two envelopes and an AsyncAPI document
// of the subjects they travel on.
//
// It is not what validates a request at run time: internal/envelope does, and
// its tests hold that the two agree, but for a written list of rules that no
// schema can express.
package schemas

import _ "embed" // for the documents below

// Request is the JSON Schema of a request envelope.
//
//go:embed request.schema.json
var Request []byte

// Response is the JSON Schema of a response envelope.
//
//go:embed response.schema.json
var Response []byte

// AsyncAPI is the AsyncAPI 3.0 document, in YAML. It refers to the schemas as
// files beside it.
//
//go:embed asyncapi.yaml
var AsyncAPI []byte
