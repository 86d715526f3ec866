package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

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
		{keyfile.ErrMissing, catalog.ClientKeysUnreadable}, {keyfile.ErrPermissions, catalog.ClientFolderOpen},
		{keyfile.ErrPassphrase, catalog.ClientKeysUnreadable}, {keyfile.ErrWrong, catalog.ClientKeysUnreadable}, {keyfile.ErrMalformed, catalog.ClientKeysUnreadable},
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
	recovered, err := a.loadFiles()
	if recovered != nil { // told without a.mu: whoever listens may ask the agent something
		a.log.Warn("the state file was damaged or missing and its copy is used", "code", string(catalog.CodeOf(recovered)), "error", recovered)
		a.config.Say(catalog.Public(recovered) + " [" + string(catalog.CodeOf(recovered)) + "]")
	}
	return err
}

// loadFiles reads all files in one go, so that no change of this process falls between. recovered says that the state had to be taken from its copy.
func (a *Agent) loadFiles() (recovered, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	record, recovered, err := a.readState()
	if err != nil {
		return nil, err
	}
	keys, err := a.readIdentity(fileKeys, labelKeys)
	if err != nil {
		return recovered, err
	}
	if keys == nil && record.State != "" && record.State != StateNew {
		return recovered, catalog.Errorf(catalog.ClientKeysUnreadable, "the device was enrolled and %s is missing", a.path(fileKeys))
	}
	next, err := a.readIdentity(fileNext, labelNext) // one that cannot be read is an error: it may hold the key by which the site knows the device
	if err != nil {
		return recovered, err
	}
	var tokens tokenCache
	if err := a.readSealed(fileTokens, labelTokens, &tokens); err != nil {
		a.tokensDropped(catalog.Wrap(catalog.ClientTokensDropped, err, "%s cannot be opened", fileTokens))
		tokens = tokenCache{}
	}
	if a.keys == nil || keys == nil || !a.keys.same(keys) {
		a.keys = keys
	}
	a.next = next
	a.record, a.tokens = record.keyed(a.keys, next), tokens
	a.loadCompany()
	a.dropForeign()
	return recovered, nil
}

// keyed is the record of a device whose keys were changed and that was stopped at the very end, before the record said so.
func (r record) keyed(keys, next *identity) record {
	if keys != nil && next != nil && keys.thumbprint == next.thumbprint && r.Key != "" {
		r.Key = next.thumbprint
	}
	return r
}

// dropForeign drops cached tokens of another device: they are bound to a key that is not here. It runs with a.mu held.
func (a *Agent) dropForeign() {
	bound := a.tokens.Key
	if bound == "" || a.keys == nil || bound == a.keys.thumbprint || a.company != nil && bound == a.company.thumbprint {
		return
	}
	a.tokensDropped(catalog.Errorf(catalog.ClientTokensDropped, "they are bound to the key %s, and this device has %s", clean(string(bound), 64), a.keys.thumbprint))
	a.tokens = tokenCache{}
}

// tokensDropped has no line in the documents.
func (a *Agent) tokensDropped(why error) {
	a.logs.identity.Warningf("%s", plain(why))
	a.log.Warn("the cached tokens are dropped", "code", string(catalog.CodeOf(why)), "error", why)
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

// save changes the record, on disk first. What is changed is what the folder says at that moment: a request that needed no turn of its own, here or in another
// process, may have noted something since it was read.
func (a *Agent) save(change func(*record)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	done, err := a.writing()
	if err != nil {
		return err
	}
	defer done()
	before := a.record
	if said, err := a.readFile(fileState); err == nil {
		before = said.keyed(a.keys, a.next)
	}
	next := before.clone()
	change(&next)
	if next.State != before.State || next.Since.IsZero() {
		next.Since = a.config.Now().UTC()
	}
	content, err := a.writeRecord(fileState, next)
	if err != nil {
		return err
	}
	a.record = next
	return a.keepCopy(before, next, content)
}

// writing takes the turn to change state.json, among processes. It is for one change, so that it is short where [Agent.exclusive] may be long; a.mu is held.
func (a *Agent) writing() (done func(), err error) {
	waiting, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	if locked, err := a.writes.TryLockContext(waiting, 5*time.Millisecond); !locked {
		return nil, a.notLocked(err)
	}
	return func() { a.writes.Unlock() }, nil
}

func (a *Agent) writeRecord(name string, r record) (content []byte, err error) {
	if content, err = json.MarshalIndent(r, "", "  "); err != nil {
		return nil, err
	}
	content = append(content, '\n')
	if err := keyfile.WriteFile(a.path(name), content); err != nil {
		return nil, notWritten(err, name)
	}
	return content, nil
}

// notWritten is the error of a file that could not be replaced; the old one is there as it was.
func notWritten(err error, name string) error {
	return catalog.Wrap(catalog.ClientStateNotWritten, err, "%s: %s", name, reason(err))
}

// reason is what the system says, without the names of temporary files around it.
func reason(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err.Error()
	}
	if link, ok := errors.AsType[*os.LinkError](err); ok {
		return link.Err.Error()
	}
	return "it cannot be written"
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
		return notWritten(err, name)
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
