package kerberos

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"postern/catalog"
)

const (
	maxKeytab = 1 << 20
	maxKeys   = 4096
	// maxTries bounds how many keys one ticket is tried with.
	maxTries = 64
)

// Keytab holds the keys of a service. It does not change; it is safe for concurrent use.
type Keytab struct {
	path    string
	exposed bool // readable or writable by everyone
	keys    []*key
	// usable keys by realm and type, the newest first, equal keys once
	byType map[realmType][]*key
}

type realmType struct {
	realm string
	kind  int32
}

type key struct {
	Key
	others []string // more names of the account with this very key
	secret secret
	usable bool
}

// called returns a name of the key as the keytab has it, if it is one. Windows compares names of services without case.
func (k *key) called(service string) (name string, ok bool) {
	for _, name := range append([]string{k.Principal}, k.others...) {
		if strings.EqualFold(name, service) {
			return name, true
		}
	}
	return "", false
}

// Key describes one key of a keytab, never the key itself.
type Key struct {
	Principal      string // without realm, e.g. HTTP/mp.a2003.vm.local
	Realm          string
	Version        int
	EncryptionType int
	Written        time.Time
}

// String is for logs and people.
func (k Key) String() string {
	return fmt.Sprintf("%s@%s version %d %s", k.Principal, k.Realm, k.Version, typeName(int32(k.EncryptionType)))
}

// Finding is a weakness of a keytab. The keytab works all the same.
type Finding struct {
	Code   catalog.Code
	Detail string
}

// Audit is what a person should know of a keytab. It holds no key.
type Audit struct {
	Path       string
	Principals []string // with realm, sorted
	Realms     []string // sorted
	Keys       []Key    // by principal, the newest version first
	Findings   []Finding
}

// LoadKeytab reads a keytab file of at most 1 MiB. Its errors have the codes
// KerberosKeytabMissing, KerberosKeytabUnreadable, KerberosKeytabMalformed,
// KerberosKeytabEmpty and KerberosKeytabOnlyWeak. A file that everyone may read is
// loaded; Audit names it.
func LoadKeytab(path string) (*Keytab, error) {
	file, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, catalog.Wrap(catalog.KerberosKeytabMissing, err, "%s is not there", path)
	case err != nil:
		return nil, catalog.Wrap(catalog.KerberosKeytabUnreadable, err, "%s cannot be opened", path)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, catalog.Wrap(catalog.KerberosKeytabUnreadable, err, "%s is not a file", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxKeytab+1))
	if err != nil {
		return nil, catalog.Wrap(catalog.KerberosKeytabUnreadable, err, "%s cannot be read", path)
	}
	k, err := parseKeytab(data, path)
	if err != nil {
		return nil, err
	}
	k.exposed = runtime.GOOS != "windows" && info.Mode().Perm()&0o006 != 0
	return k, nil
}

// ParseKeytab reads the content of a keytab file; its errors are those of LoadKeytab.
func ParseKeytab(data []byte) (*Keytab, error) { return parseKeytab(data, "keytab") }

// parseKeytab reads version 2 of MIT's format, which every program writes today.
func parseKeytab(data []byte, path string) (*Keytab, error) {
	k := &Keytab{path: path, byType: map[realmType][]*key{}}
	malformed := func(what string) error {
		return catalog.Errorf(catalog.KerberosKeytabMalformed, "%s: %s", path, what)
	}
	input := cryptobyte.String(data)
	var magic, version uint8
	switch {
	case len(data) == 0:
		return nil, catalog.Errorf(catalog.KerberosKeytabEmpty, "%s has no bytes", path)
	case len(data) > maxKeytab:
		return nil, malformed("it has more than 1 MiB")
	case !input.ReadUint8(&magic) || !input.ReadUint8(&version) || magic != 5 || version != 2:
		return nil, malformed("it does not begin as a keytab of version 2 does")
	case !k.readRecords(input):
		return nil, malformed("an entry is cut off or has impossible lengths")
	case len(k.keys) == 0:
		return nil, catalog.Errorf(catalog.KerberosKeytabEmpty, "%s has no key", path)
	}
	k.index()
	if !k.usable(true) {
		return nil, catalog.Errorf(catalog.KerberosKeytabOnlyWeak, "%s has keys of the types %s only", path, k.typeNames())
	}
	return k, nil
}

// readRecords reads the entries; a negative length is a hole, a zero the end.
func (k *Keytab) readRecords(input cryptobyte.String) bool {
	for !input.Empty() {
		var size uint32
		if !input.ReadUint32(&size) {
			return false
		}
		length := int64(int32(size))
		if length == 0 {
			return true
		}
		var record cryptobyte.String
		if !input.ReadBytes((*[]byte)(&record), int(max(length, -length))) {
			return false
		}
		if length < 0 {
			continue
		}
		entry, ok := readRecord(record)
		if !ok || len(k.keys) == maxKeys {
			return false
		}
		k.keys = append(k.keys, entry)
	}
	return true
}

func readRecord(record cryptobyte.String) (*key, bool) {
	var components, kind uint16
	var realm, value cryptobyte.String
	var written, longVersion uint32
	var version uint8
	ok := record.ReadUint16(&components) && components >= 1 && components <= maxComponents && record.ReadUint16LengthPrefixed(&realm)
	if !ok {
		return nil, false
	}
	parts := make([]string, components)
	for i := range parts {
		var part cryptobyte.String
		if !record.ReadUint16LengthPrefixed(&part) {
			return nil, false
		}
		parts[i] = string(part)
	}
	ok = record.Skip(4) && record.ReadUint32(&written) && record.ReadUint8(&version) && record.ReadUint16(&kind) && record.ReadUint16LengthPrefixed(&value)
	if !ok {
		return nil, false
	}
	k := &key{Key: Key{strings.Join(parts, "/"), string(realm), int(version), int(int16(kind)), time.Unix(int64(written), 0).UTC()}}
	if record.ReadUint32(&longVersion) && longVersion != 0 {
		k.Version = int(longVersion)
	}
	k.secret, k.usable = newSecret(int32(int16(kind)), slices.Clone(value))
	k.usable = k.usable && !forbidden(k.Principal)
	return k, true
}

// index sorts the usable keys for candidates. The names of one account share a key,
// which is tried once.
func (k *Keytab) index() {
	for _, entry := range k.keys {
		if !entry.usable {
			continue
		}
		at := realmType{entry.Realm, entry.secret.kind}
		same := func(other *key) bool {
			return other.Version == entry.Version && string(other.secret.value) == string(entry.secret.value)
		}
		if first := slices.IndexFunc(k.byType[at], same); first >= 0 {
			k.byType[at][first].others = append(k.byType[at][first].others, entry.Principal)
			continue
		}
		entry.secret.remember()
		k.byType[at] = append(k.byType[at], entry)
	}
	for _, keys := range k.byType {
		slices.SortStableFunc(keys, func(a, b *key) int { return cmp.Compare(b.Version, a.Version) })
	}
}

// candidates returns the keys to try: those of that version first, then the newest.
func (k *Keytab) candidates(realm string, kind int32, version int) []*key {
	keys := k.byType[realmType{realm, kind}]
	if len(keys) > 1 && keys[0].Version != version {
		keys = slices.Clone(keys)
		slices.SortStableFunc(keys, func(a, b *key) int { return cmp.Compare(misses(a, version), misses(b, version)) })
	}
	return keys[:min(len(keys), maxTries)]
}

func misses(k *key, version int) int {
	if k.Version == version {
		return 0
	}
	return 1
}

func (k *Keytab) hasRealm(realm string) bool {
	return slices.ContainsFunc(k.keys, func(entry *key) bool { return entry.usable && entry.Realm == realm })
}

// usable says whether there is a key that an acceptor may use.
func (k *Keytab) usable(rc4 bool) bool {
	return slices.ContainsFunc(k.keys, func(entry *key) bool { return entry.usable && allowed(entry.secret.kind, rc4) })
}

// String names the file only; keys are never printed.
func (k *Keytab) String() string { return "keytab " + k.path }

// GoString is String, so that no way of printing shows keys.
func (k *Keytab) GoString() string { return k.String() }

func (k *Keytab) typeNames() string {
	names := map[string]bool{}
	for _, entry := range k.keys {
		names[typeName(int32(entry.EncryptionType))] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), ", ")
}

// summary says in one line what realms and types there are, for the error of a ticket
// that finds no key.
func (k *Keytab) summary() string {
	return fmt.Sprintf("the realms %s and the types %s", strings.Join(k.Realms(), ", "), k.typeNames())
}

// Realms returns the realms of the keys, sorted.
func (k *Keytab) Realms() []string {
	names := map[string]bool{}
	for _, entry := range k.keys {
		names[entry.Realm] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// Audit returns what a person should know: whose keys there are, how old and how strong.
func (k *Keytab) Audit() Audit {
	a := Audit{Path: k.path, Realms: k.Realms()}
	principals, weak, kdc := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, entry := range k.keys {
		principal := entry.Principal + "@" + entry.Realm
		principals[principal] = true
		a.Keys = append(a.Keys, entry.Key)
		if !encryptions[int32(entry.EncryptionType)].aes {
			weak[principal+" "+typeName(int32(entry.EncryptionType))] = true
		}
		if forbidden(entry.Principal) {
			kdc[principal] = true
		}
	}
	a.Principals = slices.Sorted(maps.Keys(principals))
	slices.SortStableFunc(a.Keys, func(x, y Key) int {
		return cmp.Or(strings.Compare(x.Principal, y.Principal), strings.Compare(x.Realm, y.Realm), cmp.Compare(y.Version, x.Version), cmp.Compare(y.EncryptionType, x.EncryptionType))
	})
	if k.exposed {
		a.Findings = append(a.Findings, Finding{catalog.KerberosKeytabExposed, k.path + " can be read or written by every user of this machine"})
	}
	a.add(catalog.KerberosKeytabForbidden, kdc, "keys of the KDC itself, never used: ")
	a.add(catalog.KerberosKeytabWeakKeys, weak, "weak keys: ")
	return a
}

func (a *Audit) add(code catalog.Code, names map[string]bool, what string) {
	if len(names) > 0 {
		a.Findings = append(a.Findings, Finding{code, what + strings.Join(slices.Sorted(maps.Keys(names)), ", ")})
	}
}
