package site

import (
	"encoding/json"
	"testing"
)

// FuzzReadAuthorities: whatever a person uploads, it is refused or gives authorities within the budgets.
func FuzzReadAuthorities(f *testing.F) {
	f.Fuzz(func(t *testing.T, encoded []byte) {
		list, err := readAuthorities(encoded)
		if err == nil && (len(list) == 0 || len(list) > maxAuthorities) {
			t.Errorf("%d authorities", len(list))
		}
		for _, a := range list {
			if len(a.Fingerprint) != 64 || len(a.Certificate) > maxAuthority || len(a.Subject) > maxShown+3 {
				t.Errorf("got %+v", a)
			}
		}
	})
}

// FuzzReadKeySet: what is kept of a key set is JSON within the budget, and reads the same again.
func FuzzReadKeySet(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw []byte) {
		kept, names, err := readKeySet(raw)
		if err != nil || len(kept) == 0 {
			return
		}
		again, sameNames, err := readKeySet(kept)
		if err != nil || string(again) != string(kept) || len(sameNames) != len(names) || !json.Valid(kept) || len(kept) > maxTenantKeys {
			t.Errorf("kept %q, again %q, %v", kept, again, err)
		}
	})
}
