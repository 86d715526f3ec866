package keyfile

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/crypto/scrypt"
)

// DefaultName is the name of the key file when Options.Name is empty.
const DefaultName = "site.key"

const keySize = 32 // AES-256

var (
	// ErrPermissions: the file may be read or written by others than its owner.
	ErrPermissions = errors.New("file is open to others than its owner")
	// ErrMissing: the key file does not exist and was not to be made.
	ErrMissing = errors.New("key file is missing")
	// ErrWrong: the key or passphrase does not fit, the label is another one, or the
	// sealed bytes were changed. The encryption cannot tell these apart.
	ErrWrong = errors.New("key does not fit")
	// ErrPassphrase: the key file is wrapped by a passphrase and none was given.
	ErrPassphrase = errors.New("key file needs a passphrase")
	// ErrMalformed: the file is not a key file or not a sealed value.
	ErrMalformed = errors.New("malformed")
)

// Options say where the key comes from.
type Options struct {
	Name       string // file name in the folder; DefaultName when empty
	Create     bool   // make the file (and folder) when it is missing
	Passphrase []byte // when not empty, a file that is made is wrapped by it; see also Key.PassphraseUnused
	Credential string // path of a systemd credential that holds the key, instead of a file

	Rand io.Reader // crypto/rand when nil
}

// Key is the key that seals others. It is safe for concurrent use.
type Key struct {
	aead       cipher.AEAD
	id         string
	protection string
	unused     bool // a passphrase was given, and the file is not wrapped
	random     io.Reader
}

// Open reads the key of a folder, or makes it when Options.Create says so. Its errors
// wrap ErrMissing, ErrPermissions, ErrPassphrase, ErrWrong or ErrMalformed, and name
// the file.
func Open(dir string, options Options) (*Key, error) {
	if options.Rand == nil {
		options.Rand = rand.Reader
	}
	if options.Credential != "" {
		return openCredential(options)
	}
	path := filepath.Join(dir, cmp.Or(options.Name, DefaultName))
	content, err := readPrivate(path, maxKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if !options.Create {
			return nil, fmt.Errorf("%w: %s", ErrMissing, path)
		}
		return create(path, options)
	}
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	secret, err := decode(content, options.Passphrase)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	key, err := newKey(secret, protection(path, content), options.Rand)
	if err == nil && len(options.Passphrase) > 0 && !wrapped(content) {
		key.unused, key.protection = true, key.protection+" alone: the passphrase is not used, because the file was made without one"
	}
	return key, err
}

// openCredential reads a key that systemd hands over (LoadCredentialEncrypted=). Its
// folder is private to the service, so the mode is not asked.
func openCredential(options Options) (*Key, error) {
	content, err := readAll(options.Credential, maxKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: credential %s", ErrMissing, options.Credential)
	}
	if err != nil {
		return nil, fmt.Errorf("read credential: %w", err)
	}
	secret, err := decode(content, options.Passphrase)
	if err != nil {
		return nil, fmt.Errorf("read credential %s: %w", options.Credential, err)
	}
	return newKey(secret, "a systemd credential ("+filepath.Base(options.Credential)+")", options.Rand)
}

// create makes a key file. Of two processes that make it at once, one wins and the
// other reads what the winner wrote.
func create(path string, options Options) (*Key, error) {
	secret := make([]byte, keySize)
	if _, err := io.ReadFull(options.Rand, secret); err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	content, err := encode(secret, options.Passphrase, options.Rand)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	err = writeNew(path, content)
	if errors.Is(err, fs.ErrExist) {
		options.Create = false
		return Open(filepath.Dir(path), options)
	}
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return newKey(secret, protection(path, content), options.Rand)
}

func newKey(secret []byte, protection string, random io.Reader) (*Key, error) {
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, fmt.Errorf("use key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("use key: %w", err)
	}
	sum := sha256.Sum256(append([]byte("postern key id\x00"), secret...))
	return &Key{aead: aead, id: hex.EncodeToString(sum[:4]), protection: protection, random: random}, nil
}

// Protection says in plain words what protects the key, for a status page.
func (k *Key) Protection() string { return k.protection }

// PassphraseUnused reports whether a passphrase was given although the file was made
// without one: then the passphrase protects nothing.
func (k *Key) PassphraseUnused() bool { return k.unused }

// ID returns eight hex digits that tell keys apart and say nothing about them.
func (k *Key) ID() string { return k.id }

// sealedVersion begins every sealed value.
const sealedVersion = 1

// Seal encrypts plain with AES-256-GCM and a random nonce; label is authenticated and
// must be given again to Open. A key may seal 2^32 values.
func (k *Key) Seal(label string, plain []byte) []byte {
	size := k.aead.NonceSize()
	sealed := make([]byte, 1+size, 1+size+len(plain)+k.aead.Overhead())
	sealed[0] = sealedVersion
	if _, err := io.ReadFull(k.random, sealed[1:]); err != nil {
		panic("keyfile: no randomness: " + err.Error()) // a repeated nonce would betray the key
	}
	return k.aead.Seal(sealed, sealed[1:], plain, []byte(label))
}

// Open returns what was sealed under label, or an error that wraps ErrWrong or
// ErrMalformed.
func (k *Key) Open(label string, sealed []byte) ([]byte, error) {
	size := k.aead.NonceSize()
	if len(sealed) < 1+size+k.aead.Overhead() || sealed[0] != sealedVersion {
		return nil, fmt.Errorf("open %s: sealed value: %w", label, ErrMalformed)
	}
	plain, err := k.aead.Open(nil, sealed[1:1+size], sealed[1+size:], []byte(label))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", label, ErrWrong)
	}
	return plain, nil
}

// WriteSealed seals data and writes it to path, owner-only, so that after a crash
// either the old content or the new one is there.
func (k *Key) WriteSealed(path, label string, data []byte) error {
	return WriteFile(path, k.Seal(label, data))
}

// ReadSealed reads what WriteSealed wrote under the same label. The error wraps
// fs.ErrNotExist when there is no file, ErrPermissions when others may read it, and
// those of Open.
func (k *Key) ReadSealed(path, label string) ([]byte, error) {
	sealed, err := readPrivate(path, maxSealedFile)
	if err != nil {
		return nil, fmt.Errorf("read sealed file: %w", err)
	}
	plain, err := k.Open(label, sealed)
	if err != nil {
		return nil, fmt.Errorf("read sealed file %s: %w", path, err)
	}
	return plain, nil
}

// The key file is one line of text: its kind and the parts in base64. scrypt's cost is
// in the file, so that it can rise with the years.
const (
	plainKind   = "postern-key-1"
	wrappedKind = "postern-key-scrypt-1"
	wrappedName = "postern site key"

	scryptLogN    = 15 // N = 32768, r = 8, p = 1: about 32 MB and a tenth of a second
	scryptMaxLogN = 20
	saltSize      = 16
)

func encode(secret, passphrase []byte, random io.Reader) ([]byte, error) {
	if len(passphrase) == 0 {
		return fmt.Appendf(nil, "%s %s\n", plainKind, base64.StdEncoding.EncodeToString(secret)), nil
	}
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(random, salt); err != nil {
		return nil, err
	}
	wrapper, err := wrappingKey(passphrase, salt, scryptLogN, random)
	if err != nil {
		return nil, err
	}
	sealed := wrapper.Seal(wrappedName, secret)
	return fmt.Appendf(nil, "%s %d %s %s\n", wrappedKind, scryptLogN,
		base64.StdEncoding.EncodeToString(salt), base64.StdEncoding.EncodeToString(sealed)), nil
}

// decode returns the secret of a key file: the lines that encode writes, or 32 bare
// bytes as a credential may hold them.
func decode(content, passphrase []byte) ([]byte, error) {
	if len(content) == keySize {
		return bytes.Clone(content), nil
	}
	fields := strings.Fields(string(content))
	switch {
	case len(fields) == 2 && fields[0] == plainKind:
		return decodePlain(fields[1])
	case len(fields) == 4 && fields[0] == wrappedKind:
		return decodeWrapped(fields[1:], passphrase)
	}
	return nil, fmt.Errorf("key file: %w", ErrMalformed)
}

func decodePlain(field string) ([]byte, error) {
	secret, err := base64.StdEncoding.DecodeString(field)
	if err != nil || len(secret) != keySize {
		return nil, fmt.Errorf("key file: %w", ErrMalformed)
	}
	return secret, nil
}

func decodeWrapped(fields []string, passphrase []byte) ([]byte, error) {
	if len(passphrase) == 0 {
		return nil, ErrPassphrase
	}
	logN, err1 := strconv.Atoi(fields[0])
	salt, err2 := base64.StdEncoding.DecodeString(fields[1])
	sealed, err3 := base64.StdEncoding.DecodeString(fields[2])
	if errors.Join(err1, err2, err3) != nil || logN < 10 || logN > scryptMaxLogN || len(salt) != saltSize {
		return nil, fmt.Errorf("key file: %w", ErrMalformed)
	}
	wrapper, err := wrappingKey(passphrase, salt, logN, nil)
	if err != nil {
		return nil, err
	}
	secret, err := wrapper.Open(wrappedName, sealed)
	if err != nil {
		return nil, err
	}
	if len(secret) != keySize {
		return nil, fmt.Errorf("key file: %w", ErrMalformed)
	}
	return secret, nil
}

func wrappingKey(passphrase, salt []byte, logN int, random io.Reader) (*Key, error) {
	derived, err := scrypt.Key(passphrase, salt, 1<<logN, 8, 1, keySize)
	if err != nil {
		return nil, fmt.Errorf("derive from passphrase: %w", err)
	}
	return newKey(derived, "", random)
}

func wrapped(content []byte) bool { return bytes.HasPrefix(content, []byte(wrappedKind)) }

func protection(path string, content []byte) string {
	file := "the owner-only file " + path
	if runtime.GOOS == "windows" {
		file = "the access rights of the file " + path // nobody here asks what they are
	}
	if wrapped(content) {
		return "a passphrase and " + file
	}
	return file
}
