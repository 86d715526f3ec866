package keyfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func open(t testing.TB, dir string, options Options) *Key {
	t.Helper()
	key, err := Open(dir, options)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestAKeyOpensWhatItSealed(t *testing.T) {
	dir := t.TempDir()
	key := open(t, dir, Options{Create: true})
	again := open(t, dir, Options{})
	if key.ID() != again.ID() {
		t.Errorf("got key %s, then %s", key.ID(), again.ID())
	}
	rapid.Check(t, func(t *rapid.T) {
		label, plain := rapid.String().Draw(t, "label"), rapid.SliceOf(rapid.Byte()).Draw(t, "plain")
		sealed := key.Seal(label, plain)
		got, err := again.Open(label, sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("got %x, %v, want %x", got, err, plain)
		}
		if bytes.Equal(sealed, key.Seal(label, plain)) {
			t.Fatal("two seals of one text are equal")
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	key := open(t, t.TempDir(), Options{Create: true})
	other := open(t, t.TempDir(), Options{Create: true})
	sealed := key.Seal("site root", []byte("secret"))
	tests := []struct {
		name   string
		key    *Key
		label  string
		sealed []byte
		want   error
	}{
		{"another label", key, "site signing", sealed, ErrWrong},
		{"another key", other, "site root", sealed, ErrWrong},
		{"nothing", key, "site root", nil, ErrMalformed},
		{"a part", key, "site root", sealed[:20], ErrMalformed},
		{"one byte less", key, "site root", sealed[:len(sealed)-1], ErrWrong},
		{"another version", key, "site root", append([]byte{9}, sealed[1:]...), ErrMalformed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got, err := test.key.Open(test.label, test.sealed); !errors.Is(err, test.want) || got != nil {
				t.Errorf("got %q, %v, want %v", got, err, test.want)
			}
		})
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if _, err := key.Open("site root", changed); err == nil {
			t.Errorf("opened with byte %d changed", i)
		}
	}
}

func TestKeyFilesThatAreNotUsed(t *testing.T) {
	tests := []struct {
		name    string
		content string
		mode    fs.FileMode
		want    error
	}{
		{"readable by the group", plainKind + " " + strings.Repeat("A", 43) + "=\n", 0o640, ErrPermissions},
		{"readable by everybody", plainKind + " " + strings.Repeat("A", 43) + "=\n", 0o604, ErrPermissions},
		{"empty", "", 0o600, ErrMalformed},
		{"other text", "hello\n", 0o600, ErrMalformed},
		{"key too short", plainKind + " QUJD\n", 0o600, ErrMalformed},
		{"not base64", plainKind + " ####\n", 0o600, ErrMalformed},
		{"too long", strings.Repeat("x", maxKeyFile+1), 0o600, ErrMalformed},
		{"wrapped, no passphrase", wrappedKind + " 15 AAAA AAAA\n", 0o600, ErrPassphrase},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.want == ErrPermissions && runtime.GOOS == "windows" {
				t.Skip("Windows has no such modes")
			}
			dir := t.TempDir()
			path := filepath.Join(dir, DefaultName)
			if err := os.WriteFile(path, []byte(test.content), test.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			key, err := Open(dir, Options{Create: true})
			if key != nil || !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if got, _ := os.ReadFile(path); string(got) != test.content {
				t.Error("the file was overwritten")
			}
		})
	}
}

func TestAMissingKeyIsMadeOnlyOnRequest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want %v", err, ErrMissing)
	}
	key := open(t, dir, Options{Create: true, Name: "other.key"})
	info, err := os.Stat(filepath.Join(dir, "other.key"))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 && runtime.GOOS != "windows" {
		t.Errorf("got mode %v", got)
	}
	if want := "the owner-only file " + filepath.Join(dir, "other.key"); key.Protection() != want && runtime.GOOS != "windows" {
		t.Errorf("got %q, want %q", key.Protection(), want)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("got %d files, want the key alone", len(entries))
	}
}

func TestOneKeyIsMadeByManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	ids := make([]string, 8)
	var group sync.WaitGroup
	for i := range ids {
		group.Go(func() { ids[i] = open(t, dir, Options{Create: true}).ID() })
	}
	group.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("got different keys: %v", ids)
		}
	}
}

// Without hard links, too, one of many has its file in the place, whole.
func TestOneOfManyClaimsAPath(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "site.key")
	errs := make([]error, 8)
	var group sync.WaitGroup
	for i := range errs {
		group.Go(func() {
			temporary, err := writeTemporary(path, []byte{byte('0' + i)})
			if err != nil {
				t.Error(err)
				return
			}
			defer os.Remove(temporary)
			errs[i] = claim(temporary, path)
		})
	}
	group.Wait()
	winner := slices.Index(errs, nil)
	if got, err := os.ReadFile(path); winner < 0 || err != nil || string(got) != string(rune('0'+winner)) {
		t.Fatalf("got %q, %v; winner %d of %v", got, err, winner, errs)
	}
	for i, err := range errs {
		if i != winner && !errors.Is(err, fs.ErrExist) {
			t.Errorf("%d: got %v, want %v", i, err, fs.ErrExist)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("got %d files, want the key alone", len(entries))
	}
	if err := claim(filepath.Join(dir, "nothing"), filepath.Join(dir, "other.key")); err == nil {
		t.Error("nothing was put in the place, and no error came")
	}
	if _, err := os.Stat(filepath.Join(dir, "other.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the name stays taken: %v", err)
	}
}

func TestPassphrase(t *testing.T) {
	dir := t.TempDir()
	key := open(t, dir, Options{Create: true, Passphrase: []byte("correct horse")})
	if !strings.HasPrefix(key.Protection(), "a passphrase and ") {
		t.Errorf("got %q", key.Protection())
	}
	if got := open(t, dir, Options{Passphrase: []byte("correct horse")}); got.ID() != key.ID() {
		t.Error("the passphrase gave another key")
	}
	if _, err := Open(dir, Options{Passphrase: []byte("wrong")}); !errors.Is(err, ErrWrong) {
		t.Errorf("got %v, want %v", err, ErrWrong)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrPassphrase) {
		t.Errorf("got %v, want %v", err, ErrPassphrase)
	}
}

func TestPassphraseOfAFileMadeWithoutOne(t *testing.T) {
	dir := t.TempDir()
	key := open(t, dir, Options{Create: true})
	if key.PassphraseUnused() {
		t.Error("unused, and none was given")
	}
	key = open(t, dir, Options{Passphrase: []byte("correct horse")})
	if !key.PassphraseUnused() || !strings.Contains(key.Protection(), "the passphrase is not used") {
		t.Errorf("a passphrase that protects nothing is not told: %q", key.Protection())
	}
	key = open(t, t.TempDir(), Options{Create: true, Passphrase: []byte("correct horse")})
	if key.PassphraseUnused() {
		t.Errorf("the passphrase wraps the file: %q", key.Protection())
	}
}

func TestCostOfAPassphraseIsBounded(t *testing.T) {
	for _, logN := range []string{"-1", "0", "9", "21", "63", "x"} {
		content := wrappedKind + " " + logN + " AAAAAAAAAAAAAAAAAAAAAA== AAAA\n"
		if _, err := decode([]byte(content), []byte("p")); !errors.Is(err, ErrMalformed) {
			t.Errorf("cost %s: got %v, want %v", logN, err, ErrMalformed)
		}
	}
}

func TestCredential(t *testing.T) {
	dir := t.TempDir()
	original := open(t, dir, Options{Create: true})
	credential := filepath.Join(t.TempDir(), "postern-key")
	file, err := os.ReadFile(filepath.Join(dir, DefaultName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(credential, file, 0o440); err != nil { // systemd's own mode
		t.Fatal(err)
	}
	key := open(t, dir, Options{Credential: credential})
	if key.ID() != original.ID() || key.Protection() != "a systemd credential (postern-key)" {
		t.Errorf("got key %s by %s", key.ID(), key.Protection())
	}
	if _, err := Open(dir, Options{Credential: credential + "x", Create: true}); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v, want %v", err, ErrMissing)
	}
	if err := os.WriteFile(credential+"raw", bytes.Repeat([]byte{7}, 32), 0o400); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{Credential: credential + "raw"})
}

func TestSealedFiles(t *testing.T) {
	dir := t.TempDir()
	key := open(t, dir, Options{Create: true})
	path := filepath.Join(dir, "gateway-tls.sealed")
	for _, data := range []string{"first", "second"} {
		if err := key.WriteSealed(path, "gateway tls", []byte(data)); err != nil {
			t.Fatal(err)
		}
		got, err := key.ReadSealed(path, "gateway tls")
		if err != nil || string(got) != data {
			t.Errorf("got %q, %v, want %q", got, err, data)
		}
	}
	if raw, _ := os.ReadFile(path); bytes.Contains(raw, []byte("second")) {
		t.Error("the file holds the plain text")
	}
	if _, err := key.ReadSealed(path, "other"); !errors.Is(err, ErrWrong) {
		t.Errorf("got %v, want %v", err, ErrWrong)
	}
	if _, err := key.ReadSealed(path+"x", "other"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
	if err := key.WriteSealed(filepath.Join(dir, "absent", "x"), "l", nil); err == nil {
		t.Error("wrote into a folder that does not exist")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("got %d files, want key and sealed file alone", len(entries))
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := key.ReadSealed(path, "gateway tls"); !errors.Is(err, ErrPermissions) {
		t.Errorf("got %v, want %v", err, ErrPermissions)
	}
}

func TestErrorsHoldNoSecret(t *testing.T) {
	dir := t.TempDir()
	secret := strings.Repeat("S", 42)
	if err := os.WriteFile(filepath.Join(dir, DefaultName), []byte(plainKind+" "+secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, Options{})
	if err == nil || strings.Contains(err.Error(), secret[:8]) {
		t.Errorf("got %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(plainKind + " " + strings.Repeat("A", 43) + "=\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		secret, err := decode(content, nil)
		if (err == nil) != (len(secret) == keySize) {
			t.Errorf("got %d bytes and %v", len(secret), err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	key, err := newKey(make([]byte, keySize), "", strings.NewReader(strings.Repeat("n", 64)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("label", key.Seal("label", []byte("plain")))
	f.Fuzz(func(t *testing.T, label string, sealed []byte) {
		if plain, err := key.Open(label, sealed); err != nil && plain != nil {
			t.Error("an error came with a text")
		}
	})
}
