package client

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"postern/catalog"
	"postern/keyfile"
)

// The files of a state folder. state.json holds no secret; the others are sealed under
// state.key, or the credential that stands for it.
const (
	fileKey    = "state.key"
	fileState  = "state.json"
	fileKeys   = "keys.sealed"
	fileTokens = "tokens.sealed"
	folderBody = "policy"

	labelKeys   = "client keys"
	labelTokens = "client tokens"
)

const maxStateFile = 4 << 20

// openFolder makes the folder or checks that it is its owner's alone.
func openFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return catalog.Wrap(catalog.FolderNotWritable, err, "the folder %s cannot be made", dir)
	}
	return private(dir)
}

func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return catalog.Wrap(catalog.FolderNotWritable, err, "%s cannot be used", path)
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return catalog.Errorf(catalog.ClientFolderOpen, "%s has the mode %04o", path, mode)
	}
	return nil
}

// openKey opens the key that seals the others, and makes it in a new folder only: a
// folder with sealed keys whose key file is gone is not to be begun anew by accident.
func openKey(config Config) (*keyfile.Key, error) {
	_, missing := os.Stat(filepath.Join(config.Dir, fileKeys))
	key, err := keyfile.Open(config.Dir, keyfile.Options{
		Name: fileKey, Create: errors.Is(missing, fs.ErrNotExist), Passphrase: config.Passphrase, Credential: config.Credential, Rand: config.Rand,
	})
	if err == nil {
		return key, nil
	}
	codes := []struct {
		is   error
		code catalog.Code
	}{
		{keyfile.ErrMissing, catalog.KeyFileMissing}, {keyfile.ErrPermissions, catalog.KeyFilePermissions},
		{keyfile.ErrPassphrase, catalog.KeyFileWrong}, {keyfile.ErrWrong, catalog.KeyFileWrong}, {keyfile.ErrMalformed, catalog.KeyFileWrong},
	}
	for _, c := range codes {
		if errors.Is(err, c.is) {
			return nil, catalog.Wrap(c.code, err, "the client's key file in %s", config.Dir)
		}
	}
	return nil, catalog.Wrap(catalog.FolderNotWritable, err, "the client's key file in %s", config.Dir)
}

func (a *Agent) path(name ...string) string {
	return filepath.Join(append([]string{a.config.Dir}, name...)...)
}

// load reads the folder into memory.
func (a *Agent) load() error {
	record, err := a.readState()
	if err != nil {
		return err
	}
	keys, err := a.readKeys()
	if err != nil {
		return err
	}
	if keys == nil && record.State != "" && record.State != StateNew {
		return catalog.Errorf(catalog.ClientKeysUnreadable, "the device was enrolled and %s is missing", a.path(fileKeys))
	}
	next, err := a.readNext()
	if err != nil {
		return err
	}
	var tokens tokenCache
	if err := a.readSealed(fileTokens, labelTokens, &tokens); err != nil {
		a.log.Warn("cached tokens cannot be opened and are dropped", "error", err)
		tokens = tokenCache{}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record, a.tokens = record, tokens
	if a.keys == nil || keys == nil || !a.keys.same(keys) {
		a.keys = keys
	}
	a.takeNext(next)
	a.loadCompany()
	a.dropForeign()
	return nil
}

// dropForeign drops cached tokens of another device: they are bound to a key that is not here. It runs with a.mu held.
func (a *Agent) dropForeign() {
	bound := a.tokens.Key
	if bound == "" || a.keys == nil || bound == a.keys.thumbprint || a.company != nil && bound == a.company.thumbprint {
		return
	}
	a.log.Warn("cached tokens belong to another key and are dropped", "key", string(bound))
	a.tokens = tokenCache{}
}

func (a *Agent) readRecord() (record, error) {
	r, err := a.readFile(fileState)
	if errors.Is(err, fs.ErrNotExist) {
		return record{State: StateNew, Since: a.config.Now().UTC()}, nil
	}
	return r, err
}

// readFile reads a record from state.json or its copy.
func (a *Agent) readFile(name string) (record, error) {
	file, err := os.Open(a.path(name))
	if err != nil {
		return record{}, catalog.Wrap(catalog.ClientStateDamaged, err, "%s", a.path(name))
	}
	defer file.Close()
	if err := private(a.path(name)); err != nil {
		return record{}, err
	}
	content, err := io.ReadAll(io.LimitReader(file, maxStateFile+1))
	if err != nil || len(content) > maxStateFile {
		return record{}, catalog.Wrap(catalog.ClientStateDamaged, err, "%s cannot be read to its end", a.path(name))
	}
	var r record
	if err := json.Unmarshal(content, &r); err != nil {
		return record{}, catalog.Wrap(catalog.ClientStateDamaged, err, "%s", a.path(name))
	}
	return r, r.check()
}

// save changes the record, on disk first.
func (a *Agent) save(change func(*record)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.record.clone()
	change(&next)
	if next.State != a.record.State || next.Since.IsZero() {
		next.Since = a.config.Now().UTC()
	}
	content, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return err
	}
	if err := keyfile.WriteFile(a.path(fileState), append(content, '\n')); err != nil {
		return catalog.Wrap(catalog.FolderNotWritable, err, "the state cannot be written")
	}
	before := a.record
	a.record = next
	return a.keepCopy(before, next, append(content, '\n'))
}

// saveTokens changes the token cache, on disk first: "cached encrypted" (S2).
func (a *Agent) saveTokens(change func(*tokenCache)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	next := a.tokens
	change(&next)
	if err := a.writeSealed(fileTokens, labelTokens, next); err != nil {
		return err
	}
	a.tokens = next
	return nil
}

// readSealed fills into from a sealed file; a missing one leaves it as it is.
func (a *Agent) readSealed(name, label string, into any) error {
	content, err := a.key.ReadSealed(a.path(name), label)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(content, into)
}

func (a *Agent) writeSealed(name, label string, value any) error {
	content, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := a.key.WriteSealed(a.path(name), label, content); err != nil {
		return catalog.Wrap(catalog.FolderNotWritable, err, "%s cannot be written", name)
	}
	return nil
}

// current returns a copy of the record.
func (a *Agent) current() record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.record.clone()
}

func (a *Agent) cached() tokenCache {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tokens
}

// identity is by what the site knows the device: its own keys, with the company's
// certificate for signing where that can sign messages.
func (a *Agent) identity() *identity {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.company
	if c == nil || c.signs == nil || a.keys == nil {
		return a.keys
	}
	return &identity{c.signing, a.keys.encryption, c.signs, a.keys.encryptionCert, c.thumbprint}
}

// ownKeys are those that the device has made itself.
func (a *Agent) ownKeys() *identity {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keys
}
