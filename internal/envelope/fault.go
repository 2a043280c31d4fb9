package envelope

// rule tells whether the JSON Schema refuses a fault too. Everything but
// inSchema is a rule that a schema can't hold, or not without becoming
// unreadable; the tests hold that this list is complete.
type rule uint8

const (
	inSchema        rule = iota
	ruleJSON             // not JSON, not UTF-8
	ruleBytes            // a bound on bytes: a schema counts characters, or can't count at all
	ruleDepth            // nesting of the body
	ruleDuplicate        // a key twice, or two header names that differ by case only
	ruleSurrogate        // half a surrogate pair
	ruleDecoded          // what shows only after percent-decoding
	ruleDeadline         // more than MaxDeadline ahead
	ruleReplyPrefix      // reply_to outside the configured prefixes
	ruleUniqueField      // the body doesn't carry the id in unique_field
	ruleProbe            // what makes a probe's condition, url and values safe to ask for
	ruleNumber           // 200.0 is an integer to a schema
)

func (r rule) String() string {
	return [...]string{
		"in schema", "json", "bytes", "depth", "duplicate", "surrogate", "decoded", "deadline",
		"reply prefix", "unique field", "probe", "number",
	}[r]
}

// fault is the first thing found wrong with a document. Its text is ours from
// end to end: no header value, query value or body gets into it.
type fault struct {
	code  Code
	rule  rule
	field string
	text  string
}

func (f *fault) message() string { return f.field + ": " + f.text }
