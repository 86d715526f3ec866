package client

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/proof"
)

// CertificateFile is a certificate of the company for this device, in PEM. The issuing
// authorities may follow it in the same file, and so may the key.
type CertificateFile struct {
	Certificate string `json:"certificate"`
	Key         string `json:"key,omitempty"` // "" when it is in the certificate's file; its owner's alone
}

// CertificateChoice says which certificate of the company is taken (product.md 2.6).
type CertificateChoice struct {
	Use     bool              // /UsePKICert: look into the store
	Files   []CertificateFile // --certificate, --certificate-key: these, and the first valid one of them
	Store   string            // CCMCERTSTORE: a folder of NAME.pem or NAME.crt, each with NAME.key
	Select  string            // CCMCERTSEL: subject:X, subjectstr:X or subjectattr:OID=X
	Issuers []pkix.RDNSequence
	First   bool // CCMFIRSTCERT=1: of several the one that lasts longest
}

func (w CertificateChoice) wanted() bool { return w.Use || len(w.Files) > 0 || w.Store != "" }

// defaultStore is where certificates of this machine are looked for.
const defaultStore = "/etc/postern/certificates"

// Budgets of a store.
const (
	maxStoreFiles  = 64
	maxCertificate = 256 << 10
	maxPKIChain    = 8
)

// companyCertificate is a certificate with its key. It does not change.
type companyCertificate struct {
	file       CertificateFile
	leaf       *x509.Certificate
	chain      tls.Certificate
	key        crypto.Signer
	thumbprint proof.KeyThumbprint
	signing    *rsaKey          // for messages too, when the key is RSA
	signs      *ccm.Certificate // nil when it is not
}

// chosen is what is kept of a certificate in use: no secret.
type chosen struct {
	CertificateFile
	Subject  string    `json:"subject,omitempty"`
	Issuer   string    `json:"issuer,omitempty"`
	Sum      string    `json:"sha256,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
}

// String says it in words.
func (c chosen) String() string {
	if c.Certificate == "" {
		return ""
	}
	return fmt.Sprintf("%s, issued by %s, until %s", c.Subject, c.Issuer, stamp(c.NotAfter))
}

func (c *companyCertificate) chosen() chosen {
	sum := sha256.Sum256(c.leaf.Raw)
	return chosen{c.file, clean(c.leaf.Subject.String(), 200), clean(c.leaf.Issuer.String(), 200), hex.EncodeToString(sum[:]), c.leaf.NotAfter.UTC()}
}

// readCompanyCertificate reads a certificate with its key and judges what does not depend
// on the selection: the two belong together, it is valid today, for clients, and its key
// can sign for us. Errors have the code ClientCertificateUnusable.
func readCompanyCertificate(file CertificateFile, now time.Time) (*companyCertificate, error) {
	c := &companyCertificate{file: file}
	unusable := func(format string, arguments ...any) (*companyCertificate, error) {
		return nil, catalog.Errorf(catalog.ClientCertificateUnusable, "%s: %s", file.Certificate, fmt.Sprintf(format, arguments...))
	}
	content, err := readCertificateFile(file.Certificate, file.Key == "")
	if err != nil {
		return unusable("%v", err)
	}
	if err := c.readChain(content); err != nil {
		return unusable("%v", err)
	}
	if file.Key != "" {
		if content, err = readCertificateFile(file.Key, true); err != nil {
			return unusable("the key %s: %v", file.Key, err)
		}
	}
	if c.key = findKey(content); c.key == nil {
		return unusable("there is no private key in PEM that is not encrypted")
	}
	if public, ok := c.leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(c.key.Public()) {
		return unusable("the key is another certificate's")
	}
	c.chain.PrivateKey, c.chain.Leaf = c.key, c.leaf
	if why := unfit(c.leaf, c.key, now); why != "" {
		return unusable("%s", why)
	}
	if c.thumbprint, err = proof.Thumbprint(c.key.Public()); err != nil {
		return unusable("the key cannot be used")
	}
	if key, ok := c.key.(*rsaKey); ok {
		if c.signs, err = ccm.ParseCertificate(c.leaf.Raw); err == nil {
			c.signing = key
		}
	}
	return c, nil
}

func readCertificateFile(path string, private bool) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, errors.Unwrap(err)
	case !info.Mode().IsRegular() || info.Size() > maxCertificate:
		return nil, fmt.Errorf("it is no file of at most %d bytes", maxCertificate)
	case private && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("it holds a key and has the mode %04o; it is to be its owner's alone", info.Mode().Perm())
	}
	return os.ReadFile(path)
}

func (c *companyCertificate) readChain(content []byte) error {
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return errors.New("a certificate in it cannot be read")
		}
		if c.leaf == nil {
			c.leaf = certificate
		} else if bytes.Equal(certificate.RawIssuer, certificate.RawSubject) {
			continue // a root is not shown
		}
		if c.chain.Certificate = append(c.chain.Certificate, block.Bytes); len(c.chain.Certificate) > maxPKIChain {
			return fmt.Errorf("it holds more than %d certificates", maxPKIChain)
		}
	}
	if c.leaf == nil {
		return errors.New("it holds no certificate in PEM")
	}
	return nil
}

// findKey returns the first private key, or nil. Nothing of the file is shown.
func findKey(content []byte) crypto.Signer {
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue
		}
		if signer, ok := key.(crypto.Signer); ok && err == nil {
			return signer
		}
		return nil
	}
	return nil
}

// unfit says why a certificate is none for a client, or "".
func unfit(leaf *x509.Certificate, key crypto.Signer, now time.Time) string {
	switch {
	case now.Before(leaf.NotBefore):
		return "it begins at " + stamp(leaf.NotBefore) + "; this device's clock says " + stamp(now)
	case now.After(leaf.NotAfter):
		return "it expired at " + stamp(leaf.NotAfter)
	case leaf.IsCA:
		return "it is the certificate of an authority"
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny):
		return "it is not for client authentication (1.3.6.1.5.5.7.3.2)"
	case leaf.SignatureAlgorithm == x509.SHA1WithRSA || leaf.SignatureAlgorithm == x509.ECDSAWithSHA1 || leaf.SignatureAlgorithm == x509.MD5WithRSA:
		return "it is signed with " + leaf.SignatureAlgorithm.String()
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < keyBits {
			return fmt.Sprintf("its key has %d bits; wanted are %d", k.N.BitLen(), keyBits)
		}
		return ""
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P256() {
			return ""
		}
	}
	return "its key is neither RSA nor on P-256"
}

// pick selects the certificate to use: nil when none is wanted or none is left, with why
// each was left out. Several are an error unless one may be taken: ClientCertificateSeveral.
func (w CertificateChoice) pick(name string, now time.Time) (*companyCertificate, []string, error) {
	files, err := w.candidates()
	if err != nil {
		return nil, []string{err.Error()}, nil
	}
	var fit []*companyCertificate
	var left []string
	for _, file := range files {
		c, err := readCompanyCertificate(file, now)
		if err == nil {
			err = w.selects(c, name)
		}
		if err != nil {
			left = append(left, plain(err))
			continue
		}
		fit = append(fit, c)
	}
	switch {
	case len(fit) == 0:
		return nil, left, nil
	case len(w.Files) > 0 || len(fit) == 1:
		return fit[0], left, nil
	case !w.First:
		return nil, left, catalog.Errorf(catalog.ClientCertificateSeveral, "%s and %s, for example", fit[0].file.Certificate, fit[1].file.Certificate)
	}
	return slices.MaxFunc(fit, func(a, b *companyCertificate) int { return a.leaf.NotAfter.Compare(b.leaf.NotAfter) }), left, nil
}

// candidates are the files that were named, or those of the store.
func (w CertificateChoice) candidates() ([]CertificateFile, error) {
	if len(w.Files) > 0 {
		return w.Files, nil
	}
	store := cmp.Or(w.Store, defaultStore)
	entries, err := os.ReadDir(store)
	if err != nil {
		return nil, fmt.Errorf("the store %s: %w", store, errors.Unwrap(err))
	}
	var files []CertificateFile
	for _, entry := range entries {
		extension := strings.ToLower(filepath.Ext(entry.Name()))
		if entry.IsDir() || !slices.Contains([]string{".pem", ".crt", ".cer"}, extension) {
			continue
		}
		if len(files) == maxStoreFiles {
			return nil, fmt.Errorf("the store %s holds more than %d certificates", store, maxStoreFiles)
		}
		path := filepath.Join(store, entry.Name())
		file := CertificateFile{Certificate: path}
		if key := strings.TrimSuffix(path, filepath.Ext(path)) + ".key"; exists(key) {
			file.Key = key
		}
		files = append(files, file)
	}
	return files, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// selects applies issuers and subject. A certificate from the store must hold the
// computer's name unless another criterion is given; one that a person named need not.
func (w CertificateChoice) selects(c *companyCertificate, name string) error {
	out := func(format string, arguments ...any) error {
		return catalog.Errorf(catalog.ClientCertificateUnusable, "%s: %s", c.file.Certificate, fmt.Sprintf(format, arguments...))
	}
	if len(w.Issuers) > 0 && !w.issued(c) {
		return out("its issuer %s is not among CCMCERTISSUERS", clean(c.leaf.Issuer.String(), 200))
	}
	if w.Select != "" {
		if !subjectFits(c.leaf, w.Select) {
			return out("it does not fit CCMCERTSEL")
		}
		return nil
	}
	if len(w.Files) == 0 && !holdsName(c.leaf, name) {
		return out("neither its subject nor its first alternative name holds %s", name)
	}
	return nil
}

// issued reports whether one of the chain's issuers is listed.
func (w CertificateChoice) issued(c *companyCertificate) bool {
	for _, der := range c.chain.Certificate {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return false
		}
		for _, wanted := range w.Issuers {
			if sameName(wanted, certificate.RawIssuer) {
				return true
			}
		}
	}
	return false
}

// sameName compares a name with one in a certificate by attributes, whatever their order
// and case.
func sameName(wanted pkix.RDNSequence, raw []byte) bool {
	var have pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &have); err != nil || len(rest) > 0 {
		return false
	}
	return slices.Equal(attributes(wanted), attributes(have))
}

func attributes(name pkix.RDNSequence) []string {
	var list []string
	for _, rdn := range name {
		for _, part := range rdn {
			list = append(list, part.Type.String()+"="+strings.ToLower(fmt.Sprint(part.Value)))
		}
	}
	slices.Sort(list)
	return list
}

// subjectTexts are the subject and the first alternative name: only that one counts
// (product.md 2.6).
func subjectTexts(leaf *x509.Certificate) []string {
	texts := []string{leaf.Subject.CommonName}
	if len(leaf.DNSNames) > 0 {
		texts = append(texts, leaf.DNSNames[0])
	}
	return texts
}

func holdsName(leaf *x509.Certificate, name string) bool {
	short, _, _ := strings.Cut(name, ".")
	return slices.ContainsFunc(subjectTexts(leaf), func(text string) bool {
		first, _, _ := strings.Cut(text, ".")
		return strings.EqualFold(text, name) || strings.EqualFold(first, short) && (text == first || short == name)
	})
}

// subjectFits applies CCMCERTSEL; its form was checked when it was read.
func subjectFits(leaf *x509.Certificate, criterion string) bool {
	kind, value, _ := strings.Cut(criterion, ":")
	value = strings.TrimSpace(value)
	switch strings.ToLower(kind) {
	case "subject":
		return strings.EqualFold(leaf.Subject.String(), value) || slices.ContainsFunc(subjectTexts(leaf), func(text string) bool { return strings.EqualFold(text, value) })
	case "subjectstr":
		texts := append(subjectTexts(leaf), leaf.Subject.String())
		return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(strings.ToLower(text), strings.ToLower(value)) })
	}
	attribute, wanted, _ := strings.Cut(value, "=")
	oid := cmp.Or(attributeNames()[strings.ToUpper(strings.TrimSpace(attribute))], strings.TrimSpace(attribute))
	for _, part := range leaf.Subject.Names {
		if part.Type.String() == oid && strings.EqualFold(fmt.Sprint(part.Value), strings.TrimSpace(wanted)) {
			return true
		}
	}
	return false
}

// attributeNames are the short names of attributes in names (RFC 4514 and what Windows
// writes).
func attributeNames() map[string]string {
	return map[string]string{
		"CN": "2.5.4.3", "OU": "2.5.4.11", "O": "2.5.4.10", "L": "2.5.4.7", "ST": "2.5.4.8", "S": "2.5.4.8", "C": "2.5.4.6",
		"DC": "0.9.2342.19200300.100.1.25", "SERIALNUMBER": "2.5.4.5", "E": "1.2.840.113549.1.9.1",
	}
}

// checkCriterion refuses what subjectFits does not know.
func checkCriterion(text string) error {
	kind, value, found := strings.Cut(text, ":")
	kind = strings.ToLower(kind)
	attribute := kind == "subjectattr" && strings.Contains(value, "=")
	if !found || strings.TrimSpace(value) == "" || kind != "subject" && kind != "subjectstr" && !attribute {
		return catalog.Errorf(catalog.ClientCommandValue, "subject:NAME, subjectstr:PART or subjectattr:OU=VALUE")
	}
	return nil
}

// parseIssuers reads CCMCERTISSUERS: names with bars between, attributes with semicolons
// or commas, such as "CN=Contoso Root CA; O=Contoso | CN=Litware Root".
func parseIssuers(text string) ([]pkix.RDNSequence, error) {
	var list []pkix.RDNSequence
	for name := range strings.SplitSeq(text, "|") {
		var sequence pkix.RDNSequence
		for part := range strings.FieldsFuncSeq(name, func(r rune) bool { return r == ';' || r == ',' }) {
			attribute, value, found := strings.Cut(part, "=")
			oid := parseOID(cmp.Or(attributeNames()[strings.ToUpper(strings.TrimSpace(attribute))], strings.TrimSpace(attribute)))
			if !found || oid == nil || strings.TrimSpace(value) == "" {
				return nil, catalog.Errorf(catalog.ClientCommandValue, "issuers are written CN=NAME; O=NAME | CN=OTHER")
			}
			sequence = append(sequence, pkix.RelativeDistinguishedNameSET{{Type: oid, Value: strings.Trim(strings.TrimSpace(value), `"`)}})
		}
		if len(sequence) > 0 {
			list = append(list, sequence)
		}
	}
	if len(list) == 0 || len(list) > 32 {
		return nil, catalog.Errorf(catalog.ClientCommandValue, "1 to 32 issuers, with | between")
	}
	return list, nil
}

func parseOID(text string) asn1.ObjectIdentifier {
	var oid asn1.ObjectIdentifier
	for part := range strings.SplitSeq(text, ".") {
		n := 0
		if part == "" || len(part) > 9 || strings.Trim(part, "0123456789") != "" {
			return nil
		}
		for _, digit := range part {
			n = 10*n + int(digit-'0')
		}
		oid = append(oid, n)
	}
	if len(oid) < 2 {
		return nil
	}
	return oid
}

// certificateInUse returns the company's certificate that this device shows, nil when it
// shows none, and why the one on record cannot be shown.
func (a *Agent) certificateInUse() (*companyCertificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.company, a.companyErr
}

// loadCompany reads the certificate on record. It runs with a.mu held. Whose key has
// changed since is enrolled again: the site knows the device by its key.
func (a *Agent) loadCompany() {
	r := a.record
	a.company, a.companyErr = nil, nil
	if r.Certificate.Certificate == "" {
		return
	}
	c, err := readCompanyCertificate(r.Certificate.CertificateFile, a.config.Now())
	if err == nil && c.signs != nil && r.State.registered() && c.thumbprint != r.Key {
		err = catalog.Errorf(catalog.ClientCertificateUnusable, "%s: its key is not the one that was registered; enrol again", c.file.Certificate)
	}
	if a.company, a.companyErr = c, err; err != nil {
		a.company = nil
	}
}
