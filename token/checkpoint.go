package token

import (
	"crypto"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"postern/catalog"
)

// DocumentCheckpoint is the type of a checkpoint of the trust log, see [DocumentState].
const DocumentCheckpoint = "postern-checkpoint+jws"

// maxCheckpoint is far more than a checkpoint needs.
const maxCheckpoint = 4 << 10

// Checkpoint says how far a site's trust log went at a moment, and what its newest
// entry was. Signed by the site root and kept elsewhere, it shows later that the log
// was cut off or written anew (C113).
type Checkpoint struct {
	Hierarchy string    `json:"hierarchy"`
	Sequence  uint64    `json:"sequence"` // of the newest entry
	Hash      string    `json:"hash"`     // of that entry; it stands for all before it
	At        time.Time `json:"at"`

	// Restored is not 0 when the store was replaced by a backup: the number of the entry
	// that tells of it. What checkpoints from before saw at that number or later is gone.
	Restored uint64 `json:"restored,omitempty"`
}

// SignCheckpoint signs a checkpoint with the site root.
func SignCheckpoint(c Checkpoint, root crypto.Signer) (string, error) {
	c.At = c.At.UTC()
	return signDocument(root, DocumentCheckpoint, c)
}

// OpenCheckpoint verifies a checkpoint, which must be signed by a root with one of these
// pins, and returns the pin of the root that signed it. Without pins every root is
// taken, and the pin is for the caller to judge. Codes: CheckpointMalformed,
// CheckpointOtherRoot, CheckpointSignature.
func OpenCheckpoint(raw string, roots ...string) (c Checkpoint, pin string, err error) {
	trusted := func(pin string) error {
		known := func(root string) bool { return root != "" && strings.EqualFold(root, pin) }
		if pin == "" || len(roots) > 0 && !slices.ContainsFunc(roots, known) {
			return catalog.Errorf(catalog.CheckpointOtherRoot, "signed by the root %s", pin)
		}
		return nil
	}
	if pin, err = openDocument(raw, maxCheckpoint, DocumentCheckpoint, checkpointCodes(), trusted, &c); err != nil {
		return Checkpoint{}, "", err
	}
	sum, err := hex.DecodeString(c.Hash)
	if c.Hierarchy == "" || c.Sequence == 0 || err != nil || len(sum) != 32 || c.At.IsZero() || c.Restored > c.Sequence {
		return Checkpoint{}, "", catalog.Errorf(catalog.CheckpointMalformed, "a field is missing or is not what it should be")
	}
	return c, pin, nil
}

func checkpointCodes() codes {
	return codes{
		malformed: catalog.CheckpointMalformed, tooLarge: catalog.CheckpointMalformed, header: catalog.CheckpointMalformed,
		algorithm: catalog.CheckpointSignature, signature: catalog.CheckpointSignature,
	}
}
