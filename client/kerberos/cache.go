package kerberos

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/types"
)

// credentialCache is what is used of MIT's credential cache in a file, versions 3 and 4
// (MIT, Credential cache file format).
type credentialCache struct {
	client cacheName
	held   []cached
}

type cacheName struct {
	components []string
	realm      string
}

func (n cacheName) name() string { return strings.Join(n.components, "/") }

func (n cacheName) principalName() types.PrincipalName {
	return types.PrincipalName{NameType: nametype.KRB_NT_PRINCIPAL, NameString: slices.Clone(n.components)}
}

// cached is one credential of a cache.
type cached struct {
	server  cacheName
	keyType int32
	key     []byte
	end     time.Time
	ticket  []byte
}

// granting returns the ticket-granting ticket of the client's own realm that lasts longest.
func (c credentialCache) granting() (*ticket, error) {
	var best *ticket
	for _, held := range c.held {
		if held.server.name() != "krbtgt/"+c.client.realm || held.server.realm != c.client.realm {
			continue
		}
		t := &ticket{key: types.EncryptionKey{KeyType: held.keyType, KeyValue: held.key}, end: held.end}
		if err := guarded(func() error { return t.Unmarshal(held.ticket) }); err != nil {
			return nil, errors.New("its ticket-granting ticket is malformed")
		}
		if best == nil || t.end.After(best.end) {
			best = t
		}
	}
	if best == nil {
		return nil, errors.New("it holds no ticket-granting ticket")
	}
	return best, nil
}

// maxItems bounds every count in a cache.
const maxItems = 4096

func parseCache(content []byte) (credentialCache, error) {
	r := &cacheReader{rest: content}
	switch version := r.uint16(); version {
	case 0x0503:
	case 0x0504:
		r.bytes(int(r.uint16())) // header fields
	default:
		return credentialCache{}, errors.New("it is not a credential cache of version 3 or 4")
	}
	c := credentialCache{client: r.principal()}
	for len(r.rest) > 0 && !r.bad {
		if len(c.held) == maxItems {
			r.bad = true
			break
		}
		c.held = append(c.held, r.credential())
	}
	if r.bad || len(c.client.components) == 0 || c.client.realm == "" {
		return credentialCache{}, errors.New("it is cut short or malformed")
	}
	return c, nil
}

// cacheReader reads numbers and counted bytes; what does not fit makes it bad, and
// everything that follows empty.
type cacheReader struct {
	rest []byte
	bad  bool
}

func (r *cacheReader) bytes(n int) []byte {
	if r.bad || n < 0 || n > len(r.rest) {
		r.bad = true
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *cacheReader) uint16() uint16 {
	if b := r.bytes(2); len(b) == 2 {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *cacheReader) uint32() uint32 {
	if b := r.bytes(4); len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// counted reads bytes that follow their number.
func (r *cacheReader) counted() []byte {
	n := r.uint32()
	if n > maxFile {
		r.bad = true
		return nil
	}
	return r.bytes(int(n))
}

func (r *cacheReader) count() int {
	n := r.uint32()
	if n > maxItems {
		r.bad = true
		return 0
	}
	return int(n)
}

func (r *cacheReader) principal() cacheName {
	r.uint32() // name type
	n := r.count()
	p := cacheName{realm: string(r.counted())}
	for range n {
		if r.bad {
			return cacheName{}
		}
		p.components = append(p.components, string(r.counted()))
	}
	return p
}

func (r *cacheReader) credential() cached {
	r.principal() // client
	c := cached{server: r.principal(), keyType: int32(r.uint16()), key: r.counted()}
	r.bytes(8) // authentication and start time
	c.end = time.Unix(int64(r.uint32()), 0)
	r.bytes(4 + 1 + 4)                          // renewable until, whether it is a session key, flags
	for range []string{"addresses", "rights"} { // each a list of typed, counted bytes
		for range r.count() {
			if r.bad {
				return cached{}
			}
			r.uint16()
			r.counted()
		}
	}
	c.ticket = r.counted()
	r.counted() // second ticket
	return c
}
