package kerberos

import (
	"cmp"
	"context"
	"crypto/subtle"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"postern/catalog"
	"postern/diag"
)

// maxFile bounds what is read of a keytab, a credential cache or a krb5.conf.
const maxFile = 1 << 20

// key is one line of a keytab.
type key struct {
	name    types.PrincipalName
	realm   string
	version int
	key     types.EncryptionKey
}

func (k key) principal() string { return k.name.PrincipalNameString() + "@" + k.realm }

// service splits HTTP/host into its two parts; "" for other names.
func (k key) service() (service, host string) {
	if len(k.name.NameString) != 2 {
		return "", ""
	}
	return k.name.NameString[0], k.name.NameString[1]
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return content, err
}

func loadKeytab(path string) ([]key, error) {
	content, err := readFile(path)
	if err != nil {
		return nil, catalog.Wrap(catalog.CheckKeytabUnreadable, err, "%s", path)
	}
	keys, err := parseKeytab(content)
	if err != nil {
		return nil, catalog.Wrap(catalog.CheckKeytabUnreadable, err, "%s", path)
	}
	return keys, nil
}

// parseKeytab reads a keytab. What is wrong in it is said without its bytes: they are
// keys.
func parseKeytab(content []byte) (keys []key, err error) {
	defer guard(&err)
	parsed := keytab.New()
	if err := parsed.Unmarshal(content); err != nil {
		return nil, fmt.Errorf("it is not in the form of a keytab")
	}
	for _, e := range parsed.Entries {
		name := types.PrincipalName{NameType: e.Principal.NameType, NameString: e.Principal.Components}
		if len(name.NameString) == 0 || len(e.Key.KeyValue) == 0 {
			continue
		}
		keys = append(keys, key{name: name, realm: e.Principal.Realm, version: int(e.KVNO), key: e.Key})
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("there is no key in it")
	}
	return keys, nil
}

// loadConfig reads a krb5.conf. Files that it includes are not followed.
func loadConfig(path string) (parsed *config.Config, err error) {
	content, err := readFile(path)
	if err != nil {
		return nil, catalog.Wrap(catalog.CheckConfigurationUnreadable, err, "%s", path)
	}
	parsed, err = parseConfig(string(content))
	if err != nil {
		return nil, catalog.Wrap(catalog.CheckConfigurationUnreadable, err, "%s", path)
	}
	return parsed, nil
}

func parseConfig(text string) (parsed *config.Config, err error) {
	defer guard(&err)
	parsed, err = config.NewFromString(text)
	if err != nil && parsed != nil && strings.Contains(fmt.Sprintf("%T", err), "UnsupportedDirective") {
		err = nil // a line that the library has no use for
	}
	return parsed, err
}

// guard turns a panic of the library on malformed input into an error.
func guard(err *error) {
	if recovered := recover(); recovered != nil {
		*err = fmt.Errorf("it cannot be read: %v", recovered)
	}
}

func sameName(a, b types.PrincipalName) bool {
	return strings.EqualFold(a.PrincipalNameString(), b.PrincipalNameString())
}

func keysOf(keys []key, name types.PrincipalName, realm string) []key {
	var own []key
	for _, k := range keys {
		if sameName(k.name, name) && strings.EqualFold(k.realm, realm) {
			own = append(own, k)
		}
	}
	slices.SortStableFunc(own, func(a, b key) int { return cmp.Compare(b.version, a.version) })
	return own
}

// describeKeys lists principals with versions and types, one line for each principal.
func describeKeys(keys []key) string {
	var order []string
	types := map[string][]string{}
	for _, k := range keys {
		id := fmt.Sprintf("%s version %d", k.principal(), k.version)
		if _, seen := types[id]; !seen {
			order = append(order, id)
		}
		if word := EncryptionName(k.key.KeyType); !slices.Contains(types[id], word) {
			types[id] = append(types[id], word)
		}
	}
	for i, id := range order {
		order[i] = id + ": " + strings.Join(types[id], ", ")
	}
	return strings.Join(order, "\n")
}

// encryptionNames are MIT's names of the encryption types that are met.
var encryptionNames = map[int32]string{
	1: "des-cbc-crc", 3: "des-cbc-md5", 16: "des3-cbc-sha1", 17: "aes128-cts-hmac-sha1-96", 18: "aes256-cts-hmac-sha1-96",
	19: "aes128-cts-hmac-sha256-128", 20: "aes256-cts-hmac-sha384-192", 23: "arcfour-hmac (RC4)", 24: "arcfour-hmac-exp (RC4)",
	25: "camellia128-cts-cmac", 26: "camellia256-cts-cmac",
}

// EncryptionName returns the name of an encryption type (RFC 3961 and its registry).
func EncryptionName(number int32) string {
	return cmp.Or(encryptionNames[number], fmt.Sprintf("encryption type %d", number))
}

// weak says whether tickets of an encryption type are refused by default (RFC 8429).
func weak(number int32) bool { return number < 17 || number == 23 || number == 24 }

// weakKeys finds keys of weak types: a warning beside strong ones, and a failure when
// there are no others, because then no ticket can be accepted.
func weakKeys(keys []key) []diag.Finding {
	var bad []key
	for _, k := range keys {
		if weak(k.key.KeyType) {
			bad = append(bad, k)
		}
	}
	switch len(bad) {
	case 0:
		return nil
	case len(keys):
		return []diag.Finding{diag.Found(diag.Fail, catalog.CheckWeakKey, "all keys are weak:\n%s", describeKeys(bad))}
	}
	return []diag.Finding{diag.Found(diag.Warn, catalog.CheckWeakKey, "%s", describeKeys(bad))}
}

// checkKeytab looks at the server's keytab.
func (r *run) checkKeytab(context.Context) []diag.Finding {
	findings := slices.Clone(r.tellings)
	if r.Keytab == "" {
		return append(findings, diag.Found(diag.Fail, catalog.CheckKeytabUnreadable, "no keytab was named: give --keytab FILE, or --config with the management point's configuration"))
	}
	if len(r.keys) == 0 {
		return findings // said why
	}
	findings = append(findings, keytabMode(r.Keytab)...)
	findings = append(findings, weakKeys(r.keys)...)
	findings = append(findings, duplicateKeys(r.keys)...)
	return append(findings, diag.Good("the keytab can be read", "%s:\n%s", r.Keytab, describeKeys(r.keys)))
}

func keytabMode(path string) []diag.Finding {
	info, err := os.Stat(path)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	state := diag.Fail
	if info.Mode().Perm()&0o007 == 0 && info.Mode().Perm()&0o020 == 0 {
		state = diag.Warn // a group of the administrator's choosing may read it
	}
	return []diag.Finding{diag.Found(state, catalog.CheckKeytabOpen, "%s has mode %04o", path, info.Mode().Perm())}
}

// duplicateKeys finds two different keys under one name, version and type.
func duplicateKeys(keys []key) []diag.Finding {
	type place struct {
		principal     string
		version, kind int
	}
	seen := map[place]key{}
	for _, k := range keys {
		at := place{k.principal(), k.version, int(k.key.KeyType)}
		other, twice := seen[at]
		if twice && subtle.ConstantTimeCompare(other.key.KeyValue, k.key.KeyValue) == 0 {
			return []diag.Finding{diag.Found(diag.Warn, catalog.CheckKeytabDuplicate, "%s version %d: %s", k.principal(), k.version, EncryptionName(k.key.KeyType))}
		}
		seen[at] = k
	}
	return nil
}

// checkServerKey compares the key that the KDC encrypts tickets with and the keytab's.
func (r *run) checkServerKey(ctx context.Context) []diag.Finding {
	switch {
	case len(r.keys) == 0:
		return []diag.Finding{diag.NotLooked("there is no keytab to compare with")}
	case !r.answered:
		return []diag.Finding{diag.NotLooked("no KDC answered")}
	}
	findings, tgt := r.serverLogin(ctx)
	if tgt == nil {
		return findings
	}
	r.tgt = tgt
	for _, name := range r.serviceNames() {
		findings = append(findings, r.compareServiceKey(ctx, name)...)
	}
	return findings
}

// serverLogin logs in with the credential cache, else as one of the keytab's own names,
// else, since a service account's keytab need not hold the name of the service, as the
// service with whichever key fits.
func (r *run) serverLogin(ctx context.Context) (findings []diag.Finding, tgt *ticket) {
	if r.cache != nil {
		tgt, err := r.cachedLogin()
		if err != nil {
			return []diag.Finding{diag.FromError(diag.Skipped, err, catalog.CheckNoCredential)}, nil
		}
		return nil, tgt
	}
	var firstErr error
	for _, k := range distinctNames(r.keys) {
		own := keysOf(r.keys, k.name, k.realm)
		tgt, facts, err := r.login(ctx, k.name, k.realm, own)
		switch {
		case err == nil:
			r.client, r.realm = k.name, k.realm
			return r.judgeVersion(k, facts), tgt
		case catalog.CodeOf(err) == catalog.CheckAccountKeyWrong:
			return []diag.Finding{stale(k, newest(own), facts.version)}, nil
		}
		firstErr = cmp.Or(firstErr, err)
	}
	if tgt := r.loginAsService(ctx); tgt != nil {
		return nil, tgt
	}
	finding := diag.FromError(diag.Skipped, firstErr, catalog.CheckNoCredential)
	finding.Remedy = append([]string{"Give --ccache FILE after `kinit -c FILE` as any account: the check then asks a ticket for the service and tries the keytab on it."}, finding.Remedy...)
	return []diag.Finding{finding}, nil
}

func stale(k key, have, current int) diag.Finding {
	if current > 0 {
		return diag.Found(diag.Fail, catalog.CheckKeytabStale, "%s: the KDC has version %d, the keytab %d", k.principal(), current, have)
	}
	return diag.Found(diag.Fail, catalog.CheckKeytabStale, "%s: the KDC does not accept the keytab's key (version %d)", k.principal(), have)
}

func (r *run) loginAsService(ctx context.Context) *ticket {
	for _, name := range r.serviceNames() {
		tgt, _, err := r.login(ctx, name, r.realm, r.keys)
		if err == nil {
			r.client = name
			return tgt
		}
	}
	return nil
}

// judgeVersion says whether the KDC's version of the account's key is the keytab's.
func (r *run) judgeVersion(k key, facts loginFacts) []diag.Finding {
	have := newest(keysOf(r.keys, k.name, k.realm))
	if facts.version == 0 || facts.version == have {
		return []diag.Finding{diag.Good("the KDC accepts the keytab's key", "%s, version %d", k.principal(), have)}
	}
	return []diag.Finding{diag.Found(diag.Warn, catalog.CheckKeytabStale, "%s: the KDC has version %d, the keytab %d; the key itself is the same", k.principal(), facts.version, have)}
}

func newest(keys []key) (version int) {
	for _, k := range keys {
		version = max(version, k.version)
	}
	return version
}

func distinctNames(keys []key) []key {
	var names []key
	first, _ := loginKey(keys)
	for _, k := range append([]key{first}, keys...) {
		if !slices.ContainsFunc(names, func(other key) bool { return sameName(other.name, k.name) && other.realm == k.realm }) {
			names = append(names, k)
		}
	}
	return names[:min(len(names), 8)]
}

// serviceNames are the names to ask tickets for: the one that was given, otherwise
// those of the keytab.
func (r *run) serviceNames() []types.PrincipalName {
	if r.host != "" {
		return []types.PrincipalName{r.serviceName()}
	}
	var names []types.PrincipalName
	for _, k := range distinctNames(r.keys) {
		if service, host := k.service(); strings.EqualFold(service, "HTTP") {
			names = append(names, hostService("HTTP", host))
		}
	}
	return names
}

// compareServiceKey asks a ticket for a name of ours and reads it with the keytab.
func (r *run) compareServiceKey(ctx context.Context, name types.PrincipalName) []diag.Finding {
	got, path, err := r.follow(ctx, r.tgt, name)
	if err != nil {
		return []diag.Finding{r.judgeRefusal(ctx, err, name, path)}
	}
	r.service = got
	return append(weakTicket(got), r.judgeServiceKey(got)...)
}

// judgeServiceKey tries the server's keys on a ticket and remembers the outcome.
func (r *run) judgeServiceKey(got *ticket) []diag.Finding {
	findings := judgeServiceKey(got, r.server)
	reads := !diag.Failed(findings)
	r.accepted = &reads
	return findings
}

// judgeServiceKey says whether a service's keys open a ticket, and when not, why.
func judgeServiceKey(got *ticket, keys []key) []diag.Finding {
	encrypted := got.ticket.EncPart
	words := fmt.Sprintf("%s@%s, version %d, %s", got.ticket.SName.PrincipalNameString(), got.ticket.Realm, encrypted.KVNO, EncryptionName(encrypted.EType))
	for _, k := range keys {
		if k.key.KeyType == encrypted.EType && opens(got.ticket, k.key) {
			return []diag.Finding{diag.Good("the keytab reads a fresh ticket", "%s, with the key of %s version %d", words, k.principal(), k.version)}
		}
	}
	return []diag.Finding{diag.Found(diag.Fail, whyClosed(got.ticket, keys), "%s; the keytab has\n%s", words, describeKeys(keys))}
}

// whyClosed tells the reasons apart as far as versions and types allow.
func whyClosed(t messages.Ticket, keys []key) catalog.Code {
	var sameKind, sameVersion bool
	highest := 0
	for _, k := range keys {
		if !strings.EqualFold(k.realm, t.Realm) || k.key.KeyType != t.EncPart.EType {
			continue
		}
		sameKind = true
		sameVersion = sameVersion || k.version == t.EncPart.KVNO
		highest = max(highest, k.version)
	}
	switch {
	case !sameKind:
		return catalog.CheckKeytabIncomplete
	case !sameVersion && t.EncPart.KVNO > highest:
		return catalog.CheckKeytabStale
	}
	return catalog.CheckKeytabWrongAccount
}

// opens says whether a key decrypts a ticket.
func opens(t messages.Ticket, k types.EncryptionKey) bool {
	_, err := decrypt(t.EncPart, k, keyusage.KDC_REP_TICKET)
	return err == nil
}

// decrypt is the library's, with its panics on malformed input as errors.
func decrypt(data types.EncryptedData, k types.EncryptionKey, usage uint32) (plain []byte, err error) {
	defer guard(&err)
	return crypto.DecryptEncPart(data, k, usage)
}
