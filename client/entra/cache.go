package entra

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/cache"

	"postern/client"
	"postern/keyfile"
)

const (
	labelTokens = "entra tokens"
	maxEntries  = 16
	maxCache    = 1 << 20
)

// subject says what a cached token is for.
type subject struct {
	Kind      string `json:"kind"`
	Tenant    string `json:"tenant"`
	Authority string `json:"authority"`
	ClientApp string `json:"client_app"`
	Resource  string `json:"resource"`
	Device    string `json:"device,omitempty"`
}

// entry is a cached token.
type entry struct {
	subject
	Token   string    `json:"token"`
	Account string    `json:"account,omitempty"`
	Expires time.Time `json:"expires"`
	Renew   time.Time `json:"renew"`             // when to ask for the next one
	Refresh string    `json:"refresh,omitempty"` // of an openid provider
}

func (e entry) lasts(now time.Time) bool { return e.Token != "" && now.Before(e.Expires) }

func (e entry) result() Token {
	return Token{Raw: client.Secret(e.Token), Kind: e.Kind, Account: e.Account, Expires: e.Expires}
}

// content is what the sealed file holds.
type content struct {
	Entries []entry         `json:"entries,omitempty"`
	Library json.RawMessage `json:"library,omitempty"` // what Microsoft's library remembers of accounts
}

// store is the cache in memory and in its sealed file. It is Microsoft's library's cache
// too.
type store struct {
	key  *keyfile.Key
	path string

	mu      sync.Mutex
	content content
}

// load reads the file again: another process may have renewed. A file that cannot be
// opened is as good as none; the error says why, once the content is dropped.
func (s *store) load() error {
	if s.key == nil || s.path == "" {
		return nil
	}
	plain, err := s.key.ReadSealed(s.path, labelTokens)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var read content
	if err == nil && len(plain) > maxCache {
		err = fmt.Errorf("%s holds more than %d bytes", s.path, maxCache)
	}
	if err == nil {
		if json.Unmarshal(plain, &read) != nil || len(read.Entries) > maxEntries {
			err = fmt.Errorf("%s holds something else", s.path) // not the decoder's words, which may quote
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content = read
	return err
}

func (s *store) find(of subject) entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.content.Entries {
		if e.subject == of {
			return e
		}
	}
	return entry{subject: of}
}

// put replaces the entry of the same subject and writes the file.
func (s *store) put(e entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := slices.DeleteFunc(s.content.Entries, func(old entry) bool { return old.subject == e.subject })
	s.content.Entries = append(kept[max(0, len(kept)-maxEntries+1):], e)
	return s.write()
}

// write is called with mu held.
func (s *store) write() error {
	if s.key == nil || s.path == "" {
		return nil
	}
	plain, err := json.Marshal(s.content)
	if err != nil {
		return errors.New("the cached tokens cannot be encoded")
	}
	return s.key.WriteSealed(s.path, labelTokens, plain)
}

// Replace gives Microsoft's library what it remembered.
func (s *store) Replace(_ context.Context, into cache.Unmarshaler, _ cache.ReplaceHints) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.content.Library) == 0 {
		return nil
	}
	return into.Unmarshal(s.content.Library)
}

// Export keeps what Microsoft's library wants remembered, without the access tokens: they
// are entries of ours, and a renewal is to ask the provider.
func (s *store) Export(_ context.Context, from cache.Marshaler, _ cache.ExportHints) error {
	raw, err := from.Marshal()
	if err != nil {
		return err
	}
	parts := map[string]json.RawMessage{}
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&parts); err != nil {
		return errors.New("the library's cache is not what it was")
	}
	delete(parts, "AccessToken")
	if raw, err = json.Marshal(parts); err != nil || len(raw) > maxCache/2 {
		return errors.New("the library's cache cannot be kept")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.content.Library = raw
	return s.write()
}
