package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
)

// KeySize is the size of a key in bytes: AES-256.
const KeySize = 32

// sealedV1 is the first byte of what Seal returns: format 1, which is
//
//	1 | length of the key id | key id | nonce (12) | ciphertext | tag (16)
const sealedV1 = 1

var keyID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// ErrTampered says that sealed bytes were cut, changed, sealed in a format this
// program doesn't know, or sealed for another owner than the one they were
// opened for. It can't be told which.
var ErrTampered = errors.New("sealed data is damaged or belongs to something else")

// ErrUnknownKey says that the bytes were sealed with a key that the keyring
// does not hold: the operator took it away too early, or never added it.
type ErrUnknownKey struct{ ID string }

// Error implements error.
func (e ErrUnknownKey) Error() string {
	return fmt.Sprintf("sealed with key %q, which is not among the encryption keys", e.ID)
}

// Keyring seals with its first key and opens with all of them, so that a new
// key is put in front and an old one goes once everything is sealed anew.
// It is safe for concurrent use. Its keys are random-nonce GCM keys: good for
// 2^32 seals each, which is one per second for 136 years.
type Keyring struct {
	first string
	keys  map[string]cipher.AEAD
}

// ParseKeyring reads "id:base64,id2:base64", each key KeySize bytes in standard
// base64. The error names every fault and never any part of a key.
func ParseKeyring(text string) (*Keyring, error) {
	ring := &Keyring{keys: map[string]cipher.AEAD{}}
	var faults []error
	for i, item := range strings.Split(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		id, key, err := parseKey(item)
		if err != nil {
			faults = append(faults, fmt.Errorf("encryption key %d: %w", i+1, err))
			continue
		}
		if _, twice := ring.keys[id]; twice {
			faults = append(faults, fmt.Errorf("encryption key %d: id %q is used twice", i+1, id))
			continue
		}
		if ring.first == "" {
			ring.first = id
		}
		ring.keys[id] = key
	}
	if len(faults) == 0 && ring.first == "" {
		faults = append(faults, errors.New("no encryption key: want id:base64 of 32 random bytes"))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return ring, nil
}

// parseKey mentions the id in an error only where it has the form of one: what
// stands there may be a key whose id was forgotten.
func parseKey(item string) (string, cipher.AEAD, error) {
	id, encoded, ok := strings.Cut(item, ":")
	if !ok {
		return "", nil, errors.New("want id:base64, there is no colon")
	}
	if !keyID.MatchString(id) {
		return "", nil, errors.New("the id before the colon must be 1 to 64 of A-Z a-z 0-9 . _ -")
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return "", nil, errors.New("what follows the colon is not standard base64")
	}
	defer clear(key)
	if len(key) != KeySize {
		return "", nil, fmt.Errorf("the key has %d bytes, want %d", len(key), KeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return "", nil, fmt.Errorf("use key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return "", nil, fmt.Errorf("use key: %w", err)
	}
	return id, aead, nil
}

// Generate returns one new random key in the form that ParseKeyring reads, its
// id "dev": for development and tests, or to begin with.
func Generate() Text {
	key := make([]byte, KeySize)
	_, _ = rand.Read(key) // never fails: it ends the program instead
	return New("dev:" + base64.StdEncoding.EncodeToString(key))
}

// First is the id of the key that seals.
func (k *Keyring) First() string { return k.first }

// Seal encrypts plaintext for the owner that associated names: its purpose, the
// connection, the version. Only Open with the same strings in the same order
// gives it back.
func (k *Keyring) Seal(plaintext []byte, associated ...string) []byte {
	head := append([]byte{sealedV1, byte(len(k.first))}, k.first...)
	return k.keys[k.first].Seal(head, nil, plaintext, frame(head, associated))
}

// Open decrypts what Seal returned. The error is ErrUnknownKey where the key is
// not in the ring, ErrTampered for everything else.
func (k *Keyring) Open(sealed []byte, associated ...string) ([]byte, error) {
	id, head, err := parseHead(sealed)
	if err != nil {
		return nil, err
	}
	key, ok := k.keys[id]
	if !ok {
		return nil, ErrUnknownKey{ID: id}
	}
	plaintext, err := key.Open(nil, nil, sealed[len(head):], frame(head, associated))
	if err != nil {
		return nil, ErrTampered
	}
	return plaintext, nil
}

// SealedByFirst reports whether sealed was sealed with the first key, so that
// sealing it again changes nothing.
func (k *Keyring) SealedByFirst(sealed []byte) bool {
	id, _, err := parseHead(sealed)
	return err == nil && id == k.first
}

func parseHead(sealed []byte) (id string, head []byte, err error) {
	if len(sealed) < 2 || len(sealed) < 2+int(sealed[1]) {
		return "", nil, fmt.Errorf("%w: cut short", ErrTampered)
	}
	if sealed[0] != sealedV1 {
		return "", nil, fmt.Errorf("%w: format %d is not known", ErrTampered, sealed[0])
	}
	head = sealed[: 2+int(sealed[1]) : 2+int(sealed[1])]
	id = string(head[2:])
	if !keyID.MatchString(id) {
		return "", nil, fmt.Errorf("%w: no key id", ErrTampered)
	}
	return id, head, nil
}

// frame makes one byte string of the head and the associated ones, each with
// its length before it: ("a", "bc") and ("ab", "c") differ.
func frame(head []byte, associated []string) []byte {
	framed := binary.AppendUvarint(nil, uint64(len(head)))
	framed = append(framed, head...)
	framed = binary.AppendUvarint(framed, uint64(len(associated)))
	for _, s := range associated {
		framed = binary.AppendUvarint(framed, uint64(len(s)))
		framed = append(framed, s...)
	}
	return framed
}

// String implements fmt.Stringer with a fixed word.
func (k *Keyring) String() string { return redacted }

// GoString implements fmt.GoStringer with a fixed word.
func (k *Keyring) GoString() string { return redacted }

// LogValue implements slog.LogValuer with a fixed word.
func (k *Keyring) LogValue() slog.Value { return slog.StringValue(redacted) }
