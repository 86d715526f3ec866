package token

import (
	"crypto"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

func testState(t testing.TB) SiteState {
	t.Helper()
	keys, err := testRing().PublicKeys()
	if err != nil {
		t.Fatal(err)
	}
	return SiteState{
		Epoch: 7, Issued: noon, SiteCode: "PS1", Hierarchy: hierarchy, Keys: keys,
		Published:     []Published{{RoleID: 72057594037937981, Name: "mp", InternalURL: "https://mp.contoso.com", Endpoints: []ccm.Endpoint{ccm.EndpointSTS}}},
		BlockedTokens: []string{bulkID}, BlockedKeys: []proof.KeyThumbprint{"k"}, BlockedCertificates: []string{"aa"},
		Gateways: []Gateway{{Name: "g", URL: "https://cmg.contoso.com", Pin: "bb"}},
	}
}

func TestStateRoundTrip(t *testing.T) {
	want := testState(t)
	raw, err := SignState(want, rootKey())
	if err != nil {
		t.Fatal(err)
	}
	pin := Pin(&rootKey().PublicKey)
	for _, pin := range []string{pin, strings.ToUpper(pin)} {
		got, err := OpenState(raw, pin)
		if err != nil {
			t.Fatal(err)
		}
		want.Root = got.Root
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if got := Document(raw); got != DocumentState {
		t.Errorf("got %q, want %q", got, DocumentState)
	}
}

func TestHostileStates(t *testing.T) {
	state, err := SignState(testState(t), rootKey())
	if err != nil {
		t.Fatal(err)
	}
	other, err := SignState(testState(t), otherRoot())
	if err != nil {
		t.Fatal(err)
	}
	beat, err := SignBeat(7, noon, rootKey())
	if err != nil {
		t.Fatal(err)
	}
	ack, err := SignAck(rootKey(), Ack{Gateway: "g", Epoch: 7, At: noon})
	if err != nil {
		t.Fatal(err)
	}
	parts, otherParts := strings.Split(state, "."), strings.Split(other, ".")
	tests := map[string]struct {
		raw  string
		want catalog.Code
	}{
		"another root":                   {other, catalog.StateOtherRoot},
		"another root's content":         {parts[0] + "." + otherParts[1] + "." + parts[2], catalog.StateSignature},
		"another root's signature":       {parts[0] + "." + parts[1] + "." + otherParts[2], catalog.StateSignature},
		"our header, foreign document":   {parts[0] + "." + otherParts[1] + "." + otherParts[2], catalog.StateSignature},
		"tampered":                       {parts[0] + "." + parts[1][:len(parts[1])-8] + "AAAAAAAA." + parts[2], catalog.StateSignature},
		"a heartbeat":                    {beat, catalog.StateMalformed},
		"an acknowledgement by the root": {ack, catalog.StateMalformed},
		"a token":                        {sign(t, KindCCM), catalog.StateMalformed},
		"5 MiB":                          {strings.Repeat("a", 5<<20), catalog.StateTooLarge},
		"dots":                           {strings.Repeat(".", 1<<20), catalog.StateMalformed},
		"empty":                          {"", catalog.StateMalformed},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := OpenState(test.raw, Pin(&rootKey().PublicKey))
			wantCode(t, err, test.want)
		})
	}
	_, err = OpenState(state, "")
	wantCode(t, err, catalog.StateOtherRoot)
}

func TestBeatsAndAcksAreNothingElse(t *testing.T) {
	pin := Pin(&rootKey().PublicKey)
	beat, err := SignBeat(7, noon, rootKey())
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenBeat(beat, pin)
	if err != nil || got.Epoch != 7 || !got.At.Equal(noon) {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = OpenBeat(beat, Pin(&otherRoot().PublicKey))
	wantCode(t, err, catalog.StateOtherRoot)
	state, err := SignState(testState(t), rootKey())
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenBeat(state, pin)
	wantCode(t, err, catalog.StateMalformed)
	_, _, err = OpenAck(state)
	wantCode(t, err, catalog.AckMalformed)
	_, _, err = OpenAck(beat)
	wantCode(t, err, catalog.AckMalformed)
}

func TestAckNamesItsKey(t *testing.T) {
	want := Ack{Gateway: "g", Epoch: 7, At: noon, CSR: []byte{1, 2}}
	for name, key := range map[string]crypto.Signer{"P-256": rootKey(), "RSA": deviceKey()} {
		t.Run(name, func(t *testing.T) {
			raw, err := SignAck(key, want)
			if err != nil {
				t.Fatal(err)
			}
			got, pin, err := OpenAck(raw)
			if err != nil || !reflect.DeepEqual(got, want) || pin != Pin(key.Public()) {
				t.Errorf("got %+v by %s, %v", got, pin, err)
			}
			parts := strings.Split(raw, ".")
			_, _, err = OpenAck(parts[0] + "." + parts[1][:len(parts[1])-4] + "AAAA." + parts[2])
			wantCode(t, err, catalog.AckSignature)
		})
	}
}

// What a gateway has to say is never more than the site takes: an acknowledgement that
// is refused for its size would be made again and again, with no end.
func TestTheLargestAckIsTaken(t *testing.T) {
	largest := Ack{Gateway: strings.Repeat("g", 255), Epoch: 1 << 63, At: noon, CSR: make([]byte, 4<<10), Log: make([]byte, MaxAckLog)}
	for i := range MaxUnknownKeys {
		name := strings.Repeat("<", maxUnknownKeyName-1) // six characters each in JSON
		largest.UnknownKeys = append(largest.UnknownKeys, UnknownKey{Tenant: name + "t", KeyID: name + string(rune('0'+i))})
	}
	field := strings.Repeat("<", maxRefusalField)
	for range MaxRefusals {
		largest.Refusals = append(largest.Refusals, Refusal{
			At: noon, Times: 1 << 40, Code: catalog.Code(field), Endpoint: field, Key: proof.KeyThumbprint(field), Address: field, TraceID: field, Detail: strings.Repeat("<", MaxRefusalDetail),
		})
	}
	raw, err := SignAck(deviceKey(), largest)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenAck(raw); err != nil {
		t.Errorf("%d bytes: %v", len(raw), err)
	}
	short := Refusal{At: noon, Times: 1, Code: "P215"}
	for name, beyond := range map[string]Ack{
		"a key too many":     {UnknownKeys: append(largest.UnknownKeys, UnknownKey{Tenant: "t", KeyID: "k"})},
		"a refusal too many": {Refusals: append(largest.Refusals, short)},
		"no code":            {Refusals: []Refusal{{Times: 1}}},
		"no count":           {Refusals: []Refusal{{Code: "P215"}}},
		"a long detail":      {Refusals: []Refusal{{Times: 1, Code: "P215", Detail: strings.Repeat("d", MaxRefusalDetail+1)}}},
		"a long address":     {Refusals: []Refusal{{Times: 1, Code: "P215", Address: field + "1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if raw, err = SignAck(deviceKey(), beyond); err != nil {
				t.Fatal(err)
			}
			_, _, err = OpenAck(raw)
			wantCode(t, err, catalog.AckMalformed)
		})
	}
}

func TestRoleURI(t *testing.T) {
	u := RoleURI(strings.ToUpper(hierarchy), RoleConnector, "c1")
	if got, want := u.String(), "postern://"+hierarchy+"/connector/c1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if h, role, name, ok := ParseRoleURI(u); !ok || h != hierarchy || role != RoleConnector || name != "c1" {
		t.Errorf("got %s %s %s %t", h, role, name, ok)
	}
	for _, raw := range []string{"https://h/connector/c1", "postern:///connector/c1", "postern://h/connector", "postern://h/connector/", "postern://h/connector/a/b", "postern://h//c1", "postern://u@h/connector/c1", "postern://h/connector/c1?x", "postern:connector/c1"} {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, _, ok := ParseRoleURI(u); ok {
			t.Errorf("%s: accepted", raw)
		}
	}
}

func TestStatesAreEqualWhateverTheirTime(t *testing.T) {
	a, b := testState(t), testState(t)
	b.Issued = noon.AddDate(0, 0, 1)
	if !a.Equal(b) {
		t.Error("got different, want equal")
	}
	b.BlockedTokens = nil
	if a.Equal(b) {
		t.Error("got equal, want different")
	}
}
