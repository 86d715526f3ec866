package token

import (
	"reflect"
	"strings"
	"testing"

	"postern/catalog"
)

func testCheckpoint() Checkpoint {
	return Checkpoint{Hierarchy: hierarchy, Sequence: 1204, Hash: strings.Repeat("0f", 32), At: noon, Restored: 1200}
}

func TestCheckpointRoundTrip(t *testing.T) {
	raw, err := SignCheckpoint(testCheckpoint(), rootKey())
	if err != nil {
		t.Fatal(err)
	}
	pin := Pin(&rootKey().PublicKey)
	for name, roots := range map[string][]string{"the root": {pin}, "in upper case": {strings.ToUpper(pin)}, "a former root": {Pin(&otherRoot().PublicKey), pin}, "whatever root": nil} {
		got, by, err := OpenCheckpoint(raw, roots...)
		if err != nil || by != pin || !reflect.DeepEqual(got, testCheckpoint()) {
			t.Errorf("%s: got %+v by %s, %v", name, got, by, err)
		}
	}
	if _, _, err := OpenCheckpoint(raw, ""); catalog.CodeOf(err) != catalog.CheckpointOtherRoot {
		t.Errorf("an empty pin: %v, want code %s", err, catalog.CheckpointOtherRoot)
	}
	if Document(raw) != "" {
		t.Error("a checkpoint passes as a document that roles send each other")
	}
}

func TestHostileCheckpoints(t *testing.T) {
	signed := func(edit func(*Checkpoint)) string {
		c := testCheckpoint()
		edit(&c)
		raw, err := SignCheckpoint(c, rootKey())
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	good := signed(func(*Checkpoint) {})
	other, err := SignCheckpoint(testCheckpoint(), otherRoot())
	if err != nil {
		t.Fatal(err)
	}
	beat, err := SignBeat(7, noon, rootKey())
	if err != nil {
		t.Fatal(err)
	}
	parts, later := strings.Split(good, "."), strings.Split(signed(func(c *Checkpoint) { c.Sequence++ }), ".")
	for name, c := range map[string]struct {
		raw  string
		want catalog.Code
	}{
		"nothing":                   {"", catalog.CheckpointMalformed},
		"cut off":                   {good[:len(good)-len(parts[2])-1], catalog.CheckpointMalformed},
		"too large":                 {good + strings.Repeat("A", maxCheckpoint), catalog.CheckpointMalformed},
		"another root":              {other, catalog.CheckpointOtherRoot},
		"a later one's content":     {parts[0] + "." + later[1] + "." + parts[2], catalog.CheckpointSignature},
		"a heartbeat of the root":   {beat, catalog.CheckpointMalformed},
		"a token":                   {sign(t, KindCCM), catalog.CheckpointMalformed},
		"no hierarchy":              {signed(func(c *Checkpoint) { c.Hierarchy = "" }), catalog.CheckpointMalformed},
		"no entry":                  {signed(func(c *Checkpoint) { c.Sequence, c.Restored = 0, 0 }), catalog.CheckpointMalformed},
		"half a hash":               {signed(func(c *Checkpoint) { c.Hash = c.Hash[:32] }), catalog.CheckpointMalformed},
		"a hash that is no hash":    {signed(func(c *Checkpoint) { c.Hash = strings.Repeat("zz", 32) }), catalog.CheckpointMalformed},
		"a restore that is to come": {signed(func(c *Checkpoint) { c.Restored = c.Sequence + 1 }), catalog.CheckpointMalformed},
	} {
		got, _, err := OpenCheckpoint(c.raw, Pin(&rootKey().PublicKey))
		if catalog.CodeOf(err) != c.want || got != (Checkpoint{}) {
			t.Errorf("%s: got %+v, %v, want code %s", name, got, err, c.want)
		}
	}
}

func FuzzOpenCheckpoint(f *testing.F) {
	good, err := SignCheckpoint(testCheckpoint(), rootKey())
	if err != nil {
		f.Fatal(err)
	}
	changes(f, good)
	pin := Pin(&rootKey().PublicKey)
	f.Fuzz(func(t *testing.T, raw string) {
		if _, _, err := OpenCheckpoint(raw, pin); err == nil && !sameContent(raw, good) {
			t.Error("accepted a checkpoint that was never signed")
		}
		if c, by, err := OpenCheckpoint(raw); err == nil && (by == "" || c.Sequence == 0 || len(c.Hash) != 64) {
			t.Errorf("accepted %+v by %q", c, by)
		}
	})
}
