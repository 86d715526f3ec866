package kerberos

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
	"golang.org/x/crypto/cryptobyte"

	"postern/catalog"
)

// cache is a credential cache: whose it is, and the tickets in it.
type cache struct {
	client  types.PrincipalName
	realm   string
	tickets []*ticket
}

// errCache says that a file is not a credential cache of form 3 or 4, the ones that
// kinit has written for twenty years.
var errCache = errors.New("it is not in the form of a credential cache (versions 3 and 4 are read)")

// maxTickets bounds the entries of a cache.
const maxTickets = 4096

// readCache reads a credential cache file (MIT ccache format).
func readCache(content []byte) (*cache, error) {
	if len(content) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	in := cryptobyte.String(content)
	var five, version uint8
	if !in.ReadUint8(&five) || !in.ReadUint8(&version) || five != 5 || version != 3 && version != 4 {
		return nil, errCache
	}
	var header cryptobyte.String
	if version == 4 && !in.ReadUint16LengthPrefixed(&header) {
		return nil, errCache
	}
	c := &cache{}
	if !readPrincipal(&in, &c.client, &c.realm) {
		return nil, errCache
	}
	for !in.Empty() && len(c.tickets) < maxTickets {
		entry, ok := readEntry(&in, version)
		if !ok {
			return nil, errCache
		}
		if entry != nil {
			c.tickets = append(c.tickets, entry)
		}
	}
	return c, nil
}

func readPrincipal(in *cryptobyte.String, name *types.PrincipalName, realm *string) bool {
	var kind, components uint32
	var bytes []byte
	if !in.ReadUint32(&kind) || !in.ReadUint32(&components) || components > 16 || !readBlob(in, &bytes) {
		return false
	}
	*realm = string(bytes)
	name.NameType = int32(kind)
	for range components {
		if !readBlob(in, &bytes) {
			return false
		}
		name.NameString = append(name.NameString, string(bytes))
	}
	return components > 0
}

func readBlob(in *cryptobyte.String, out *[]byte) bool {
	var n uint32
	return in.ReadUint32(&n) && n <= maxFile && in.ReadBytes(out, int(n))
}

// readEntry reads one credential; nil for an entry that is the cache's own note.
func readEntry(in *cryptobyte.String, version uint8) (*ticket, bool) {
	t := &ticket{}
	var realm string
	var kind uint16
	var times [4]uint32
	var skip []byte
	ok := readPrincipal(in, &t.client, &t.realm) && readPrincipal(in, &t.name, &realm) && in.ReadUint16(&kind)
	if ok && version == 3 {
		ok = in.ReadUint16(&kind)
	}
	ok = ok && readBlob(in, &t.key.KeyValue)
	for i := range times {
		ok = ok && in.ReadUint32(&times[i])
	}
	var raw []byte
	ok = ok && in.Skip(1+4) && skipPairs(in) && skipPairs(in) && readBlob(in, &raw) && readBlob(in, &skip)
	if !ok {
		return nil, false
	}
	if strings.HasPrefix(realm, "X-CACHECONF") {
		return nil, true
	}
	if err := unmarshalTicket(raw, &t.ticket); err != nil {
		return nil, true
	}
	t.key.KeyType, t.ends = int32(kind), time.Unix(int64(times[2]), 0).UTC()
	return t, true
}

// skipPairs passes over addresses and authorization data, which have one form.
func skipPairs(in *cryptobyte.String) bool {
	var n uint32
	if !in.ReadUint32(&n) || n > 1024 {
		return false
	}
	var skip []byte
	for range n {
		if !in.Skip(2) || !readBlob(in, &skip) {
			return false
		}
	}
	return true
}

func unmarshalTicket(raw []byte, into *messages.Ticket) (err error) {
	defer guard(&err)
	if err := into.Unmarshal(raw); err != nil {
		return err
	}
	if len(into.SName.NameString) == 0 {
		return errors.New("a ticket for nobody")
	}
	return nil
}

// cachedLogin returns the cache's ticket-granting ticket.
func (r *run) cachedLogin() (*ticket, error) {
	want := types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: []string{"krbtgt", r.cache.realm}}
	for _, t := range r.cache.tickets {
		if !sameName(t.name, want) || t.ticket.Realm != r.cache.realm {
			continue
		}
		if !t.ends.After(r.now()) {
			return nil, catalog.Errorf(catalog.CheckNoCredential, "the ticket in %s ended %s", r.Cache, t.ends.Format("2006-01-02 15:04:05Z"))
		}
		return t, nil
	}
	return nil, catalog.Errorf(catalog.CheckNoCredential, "%s holds no %s@%s", r.Cache, want.PrincipalNameString(), r.cache.realm)
}
