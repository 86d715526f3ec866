package kerberos

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
)

// maxFile bounds a keytab, a credential cache and a configuration.
const maxFile = 1 << 20

// credential is who the machine is and, with a keytab, its keys.
type credential struct {
	name   types.PrincipalName
	realm  string
	keytab *keytab.Keytab // nil with a credential cache
	types  []int32        // encryption types of the keys, as the keytab has them
}

func (c *credential) principal() string { return c.name.PrincipalNameString() + "@" + c.realm }

// library is the credential as the library's checks want it.
func (c *credential) library() *credentials.Credentials {
	return credentials.NewFromPrincipalName(c.name, c.realm).WithKeytab(c.keytab)
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("more than %d bytes", maxFile)
	}
	return content, err
}

// readConfig reads krb5.conf. A realm that it does not name may still be found in DNS.
func readConfig(path string) (*config.Config, error) {
	content, err := readFile(path)
	if err != nil {
		return nil, catalog.Wrap(catalog.ClientKerberosConfig, err, "%s cannot be read", path)
	}
	var c *config.Config
	err = guarded(func() (err error) {
		c, err = config.NewFromString(string(content))
		return err
	})
	var unsupported config.UnsupportedDirective
	if err != nil && !errors.As(err, &unsupported) || c == nil {
		return nil, catalog.Wrap(catalog.ClientKerberosConfig, err, "%s cannot be understood", path)
	}
	c.LibDefaults.NoAddresses = true // a ticket that is bound to addresses is useless behind address translation
	c.LibDefaults.DNSLookupKDC = c.LibDefaults.DNSLookupKDC || !says(content, "dns_lookup_kdc")
	return c, nil
}

// says reports whether a krb5.conf sets something. The library takes "no" for what is not
// said, where MIT's default is yes: machines that joined a domain often name no server.
func says(content []byte, setting string) bool {
	for line := range strings.Lines(string(content)) {
		if name, _, found := strings.Cut(line, "="); found && strings.TrimSpace(name) == setting {
			return true
		}
	}
	return false
}

// readKeytab reads the keys of the machine's account.
func readKeytab(path, principal, defaultRealm string) (*credential, error) {
	content, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, catalog.Wrap(catalog.ClientKerberosCredential, err, "there is no keytab %s", path)
	case err != nil:
		return nil, catalog.Wrap(catalog.ClientKerberosCredential, err, "the keytab %s cannot be read", path)
	}
	c, err := parseKeytab(content, principal, defaultRealm)
	if err != nil {
		return nil, catalog.Wrap(catalog.ClientKerberosCredential, err, "the keytab %s: %v", path, err)
	}
	return c, nil
}

func parseKeytab(content []byte, principal, defaultRealm string) (*credential, error) {
	if len(content) < 2 {
		return nil, errors.New("it is empty")
	}
	keys := keytab.New()
	if err := guarded(func() error { return keys.Unmarshal(content) }); err != nil {
		return nil, errors.New("it is not a keytab")
	}
	name, realm, _ := strings.Cut(principal, "@")
	if name != "" && realm == "" {
		realm = defaultRealm
	}
	c := &credential{keytab: keys}
	for _, entry := range keys.Entries {
		its := strings.Join(entry.Principal.Components, "/")
		switch {
		case c.realm != "" && (its != c.name.PrincipalNameString() || entry.Principal.Realm != c.realm):
			continue
		case name == "" && (len(entry.Principal.Components) != 1 || len(its) < 2 || !strings.HasSuffix(its, "$")):
			continue
		case name != "" && (!strings.EqualFold(its, name) || realm != "" && entry.Principal.Realm != realm):
			continue
		case entry.Principal.Realm == "":
			continue
		}
		c.name, c.realm = types.PrincipalName{NameType: nametype.KRB_NT_PRINCIPAL, NameString: slices.Clone(entry.Principal.Components)}, entry.Principal.Realm
		if !slices.Contains(c.types, entry.Key.KeyType) {
			c.types = append(c.types, entry.Key.KeyType)
		}
	}
	switch {
	case c.realm == "" && name == "":
		return nil, errors.New("it has no entry of a computer account, whose name ends in $")
	case c.realm == "":
		return nil, fmt.Errorf("it has no entry for %.128q", principal)
	}
	return c, nil
}

// readCache reads a credential cache with a ticket-granting ticket.
func readCache(path, principal string) (*credential, *ticket, error) {
	content, err := readFile(path)
	if err != nil {
		return nil, nil, catalog.Wrap(catalog.ClientKerberosCredential, err, "the credential cache %s cannot be read", path)
	}
	cache, err := parseCache(content)
	if err != nil {
		return nil, nil, catalog.Wrap(catalog.ClientKerberosCredential, err, "the credential cache %s: %v", path, err)
	}
	name, realm, _ := strings.Cut(principal, "@")
	if name != "" && (!strings.EqualFold(name, cache.client.name()) || realm != "" && realm != cache.client.realm) {
		return nil, nil, catalog.Errorf(catalog.ClientKerberosCredential, "the credential cache %s is of %s@%s, not of %.128s", path, cache.client.name(), cache.client.realm, principal)
	}
	granting, err := cache.granting()
	if err != nil {
		return nil, nil, catalog.Wrap(catalog.ClientKerberosCredential, err, "the credential cache %s: %v", path, err)
	}
	return &credential{name: cache.client.principalName(), realm: cache.client.realm}, granting, nil
}
