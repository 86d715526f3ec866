package site

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"postern/catalog"
	"postern/proof"
)

func TestRealms(t *testing.T) {
	for _, test := range []struct {
		name, text, want string
		realms           []proof.Realm
	}{
		{"none", "", "", nil},
		{"the usual", "CORP.EXAMPLE", "CORP.EXAMPLE", []proof.Realm{{Name: "CORP.EXAMPLE", Domain: "CORP", Suffixes: []string{"corp.example"}}}},
		{"the usual, said aloud", " CORP.EXAMPLE=CORP;corp.example ,", "CORP.EXAMPLE", []proof.Realm{{Name: "CORP.EXAMPLE", Domain: "CORP", Suffixes: []string{"corp.example"}}}},
		{"all parts", "CORP.EXAMPLE=old;A.test.;.b.Test,X", "CORP.EXAMPLE=OLD;a.test;b.test,X",
			[]proof.Realm{{Name: "CORP.EXAMPLE", Domain: "OLD", Suffixes: []string{"a.test", "b.test"}}, {Name: "X", Domain: "X", Suffixes: []string{"x"}}}},
	} {
		got, err := ParseRealms(test.text)
		if err != nil || !reflect.DeepEqual(got, test.realms) || writeRealms(got) != test.want {
			t.Errorf("%s: got %+v (%s), %v", test.name, got, writeRealms(got), err)
		}
		again, err := ParseRealms(writeRealms(got))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s, written and read: got %+v, %v", test.name, again, err)
		}
	}
	for name, text := range map[string]string{
		"Cyrillic letters": "СORP.EXAMPLE", "a control character": "CORP\x07.EXAMPLE", "a new line": "CORP\n.EXAMPLE", "a space": "CORP EXAMPLE", "an empty label": "CORP..EXAMPLE",
		"a dot in front": ".CORP", "a wildcard": "*.EXAMPLE", "no realm": "=CORP", "twice": "CORP,CORP", "twice in another case": "CORP,corp", "empty domain": "CORP=",
		"a domain with a dot": "CORP=A.B", "an empty suffix": "CORP;", "a suffix of one dot": "CORP;.", "a suffix with an at": "CORP;a@b", "a hyphen in front": "-CORP",
		"a long label": strings.Repeat("a", 64), "a long name": strings.Repeat("a.", 200) + "a", "too many": manyRealms(101), "an underscore": "CORP_X",
	} {
		if got, err := ParseRealms(text); catalog.CodeOf(err) != catalog.TrustedRealmName {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func manyRealms(n int) string {
	var list []string
	for i := range n {
		list = append(list, "R"+strings.Repeat("X", i%50)+string(rune('A'+i%26))+string(rune('A'+i/26)))
	}
	return strings.Join(list, ",")
}

func FuzzParseRealms(f *testing.F) {
	for _, seed := range []string{"", "CORP.EXAMPLE", "CORP=X;a.b;c,D", "СORP", ";;;=", "A,B=C;d"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		realms, err := ParseRealms(text)
		if err != nil {
			return
		}
		written := writeRealms(realms)
		again, err := ParseRealms(written)
		if err != nil || !reflect.DeepEqual(again, realms) {
			t.Errorf("%q was read as %+v, written as %q and read as %+v, %v", text, realms, written, again, err)
		}
		for _, r := range realms {
			if strings.ContainsFunc(r.Name+r.Domain+strings.Join(r.Suffixes, ""), func(c rune) bool { return c > 126 || c < 33 }) || len(r.Suffixes) == 0 {
				t.Errorf("%q gives %+v", text, r)
			}
		}
	})
}

func TestCanonicalSettings(t *testing.T) {
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name, value, want string
		code              catalog.Code
	}{
		{"approval.mode", "manual", "manual", ""},
		{"approval.mode", "trusted-domains", "trusted-domains", ""},
		{"approval.mode", "everyone:8h", "everyone:2026-11-22T18:00:00Z", ""},
		{"approval.mode", "everyone:2026-11-22T20:00:00+01:00", "everyone:2026-11-22T19:00:00Z", ""},
		{"approval.mode", "everyone", "", catalog.EveryoneWithoutEnd},
		{"approval.mode", "everyone:", "", catalog.EveryoneWithoutEnd},
		{"approval.mode", "everyone:soon", "", catalog.EveryoneWithoutEnd},
		{"approval.mode", "everyone:-1h", "", catalog.EveryoneWithoutEnd},
		{"approval.mode", "everyone:0s", "", catalog.EveryoneWithoutEnd},
		{"approval.mode", "everyone:2020-01-01T00:00:00Z", "", catalog.EveryoneWithoutEnd},
		{"approval.mode", "manual:8h", "", catalog.InvalidArgument},
		{"approval.mode", "", "", catalog.InvalidArgument},
		{"conflict.resolution", "manual", "manual", ""},
		{"conflict.resolution", "merge", "", catalog.InvalidArgument},
		{"conflict.shared-hardware-ids", " b, a,,b", "a,b", ""},
		{"conflict.shared-hardware-ids", "", "", ""},
		{"conflict.shared-hardware-ids", "a\u202e", "", catalog.InvalidArgument},
		{"approval.trusted-realms", "corp=corp", "corp", ""},
		{"registration.legacy-keys", "1", "true", ""},
	} {
		kind, _ := settingNamed(test.name)
		got, err := kind.canonical(test.value, now)
		if got != test.want || catalog.CodeOf(err) != test.code {
			t.Errorf("%s %q: got %q, %v; want %q, %s", test.name, test.value, got, err, test.want, test.code)
			continue
		}
		var settings Settings
		if err == nil {
			if err := kind.take(&settings, got); err != nil || settings.Value(test.name) != got {
				t.Errorf("%s %q is kept as %q, and comes back as %q, %v", test.name, test.value, got, settings.Value(test.name), err)
			}
		}
	}
}

// TestSettingsComeBack: what a setting is without a word of anyone can be set by the same word, and nothing else changes by it.
func TestSettingsComeBack(t *testing.T) {
	var usual Settings
	for _, kind := range settingKinds() {
		if err := kind.take(&usual, ""); err != nil {
			t.Errorf("%s: %v", kind.Name, err)
		}
	}
	for _, kind := range settingKinds() {
		word := usual.Value(kind.Name)
		if kind.Name == settingClock {
			word = clockNow
		}
		kept, err := kind.canonical(word, time.Now())
		again := usual
		if err := errors.Join(err, kind.take(&again, kept)); err != nil {
			t.Errorf("%s %q: %v", kind.Name, word, err)
		}
		if again.ClockAccepted = ""; !reflect.DeepEqual(again, usual) {
			t.Errorf("%s %q: got %+v, want %+v", kind.Name, word, again, usual)
		}
	}
	if _, ok := settingNamed("no.such"); ok || usual.Value("no.such") != "" {
		t.Error("a setting that is none")
	}
}

func TestSharedHardware(t *testing.T) {
	settings := Settings{SharedHardware: []string{"2:AA", "00:15:5D:01:02:03", "{03000200-0400-0500-0006-000700080009}"}}
	for _, test := range []struct {
		name   string
		record Record
		want   bool
	}{
		{"a listed hardware id", Record{HardwareID1: "2:aa"}, true},
		{"another hardware id", Record{HardwareID1: "2:AB"}, false},
		{"none", Record{}, false},
		{"a listed SMBIOS id, written otherwise", Record{HardwareID1: "2:AB", SMBIOSID: "03000200040005000006000700080009"}, true},
		{"a listed MAC address does not hide the hardware id", Record{HardwareID1: "2:AB", MACAddress: "00-15-5D-01-02-03"}, false},
	} {
		if got := settings.sharedHardware(test.record); got != test.want {
			t.Errorf("%s: got %t, want %t", test.name, got, test.want)
		}
	}
	a := Record{HardwareID1: "2:AB", MACAddress: "00-15-5d-01-02-03", NetbiosName: "wk1"}
	b := Record{HardwareID1: "2:ab", MACAddress: "00:15:5D:01:02:03", NetbiosName: "WK1"}
	if got, want := settings.likeness(Device{Record: a}, Device{Record: b}), "hardware id, NetBIOS name"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
