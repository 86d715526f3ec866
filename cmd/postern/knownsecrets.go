package main

import (
	"bytes"
	"encoding/pem"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"postern/internal/role"
)

// knownSecrets reads the secrets that a role on this machine has, so that a bundle can be searched for them: first those that its configuration names. They go
// nowhere else.
func knownSecrets(config role.Config) (all [][]byte) {
	all = append(all, storeSecrets(config.Store)...)
	for _, path := range secretFiles(config) {
		all = append(all, secretsIn(path)...)
	}
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		all = append(all, storeSecrets(value)...) // HTTPS_PROXY may hold a login too
		if secretName.MatchString(name) && len(value) >= 4 && !slices.Contains([]string{"true", "false", "none", "null"}, value) && !isFile(value) {
			all = append(all, []byte(value))
		}
	}
	return all
}

func isFile(path string) bool {
	_, err := os.Stat(path)
	return filepath.IsAbs(path) && err == nil
}

// secretName is what variables and files with secrets in them are called.
var secretName = regexp.MustCompile(`(?i)pass|secret|token|credential|(?:^|[_.-])(?:key|pwd|auth|authorization|dsn)(?:$|[_.-])|private`)

// secretFiles are the files that the configuration and the environment name, and behind them those in the role's folders whose names say that they hold a secret.
func secretFiles(config role.Config) (paths []string) {
	named := []string{config.SiteKey, config.Kerberos.Keytab, config.TLS.Key, config.Listen.PKI.Key, os.Getenv("POSTERN_PASSPHRASE_FILE")}
	if path, ok := strings.CutPrefix(config.Store, "@"); ok {
		named = append(named, path)
	}
	for _, folder := range []string{os.Getenv("CREDENTIALS_DIRECTORY"), config.ClientCertificates, config.State, filepath.Dir(config.Path())} {
		if folder != "" {
			named = append(named, filesBelow(folder, config.Logs)...)
		}
	}
	for _, path := range named {
		if path != "" && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// Budgets of the search for secrets: a configuration may lie in a folder with a great deal else.
const (
	maxSecretFiles = 1000
	maxWalked      = 50_000
)

// filesBelow are the small files of a folder that may hold a secret; the logs are not among them.
func filesBelow(folder, logs string) (paths []string) {
	deepest := strings.Count(filepath.Clean(folder), string(filepath.Separator)) + bundleDeep
	walked := 0
	_ = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		walked++
		switch {
		case err != nil && entry != nil && !entry.IsDir():
			return nil
		case err != nil:
			return fs.SkipDir
		case entry.IsDir() && (path == logs || strings.Count(path, string(filepath.Separator)) > deepest):
			return fs.SkipDir
		case len(paths) >= maxSecretFiles, walked > maxWalked:
			return fs.SkipAll
		case entry.Type().IsRegular() && mayHoldSecret(entry):
			paths = append(paths, path)
		}
		return nil
	})
	return paths
}

func mayHoldSecret(entry fs.DirEntry) bool {
	switch strings.ToLower(filepath.Ext(entry.Name())) {
	case ".key", ".keytab", ".pem", ".pfx", ".p12", ".token", ".jwt", ".pass":
	default:
		if !secretName.MatchString(entry.Name()) {
			return false
		}
	}
	info, err := entry.Info()
	return err == nil && info.Size() <= bundleSecret
}

// secretsIn returns what is secret in a file: of PEM the private parts, of other text its lines, of other bytes all but what is readable in them, such as
// the names in a keytab.
func secretsIn(path string) (all [][]byte) {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, bundleSecret))
	if err != nil {
		return nil
	}
	if bytes.Contains(content, []byte("-----BEGIN ")) {
		for rest := content; ; {
			block, after := pem.Decode(rest)
			if block == nil {
				return all
			}
			if rest = after; strings.Contains(block.Type, "PRIVATE") {
				all = append(all, block.Bytes, pemBody(block))
			}
		}
	}
	if bytes.ContainsFunc(content, func(r rune) bool { return r < ' ' && !strings.ContainsRune("\r\n\t", r) || r == 0xfffd }) {
		for _, piece := range readable.Split(string(content), -1) {
			all = append(all, []byte(piece))
		}
		return slices.DeleteFunc(all, func(piece []byte) bool { return len(piece) < 8 })
	}
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimSpace(line); len(line) >= 4 {
			all = append(all, []byte(line))
			all = append(all, storeSecrets(line)...)
		}
	}
	return all
}

// pemBody is the base64 of a block, in lines as in the file.
func pemBody(block *pem.Block) []byte {
	body := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})
	_, body, _ = bytes.Cut(body, []byte("\n"))
	body, _, _ = bytes.Cut(body, []byte("-----END"))
	return body
}

// readable is text between bytes.
var readable = regexp.MustCompile(`[A-Za-z0-9./@_$-]{8,}`)

var (
	passwordInWords   = regexp.MustCompile(`(?i)password\s*=\s*(?:'((?:\\.|[^'\\])*)'|([^\s'&]+))`)
	passwordInAddress = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:/{0,3}[^\s/@:]*:(\S+)@`)
)

// storeSecrets is the password in the address of a database or of a proxy, as it stands there and as it is meant.
func storeSecrets(address string) (all [][]byte) {
	for _, found := range slices.Concat(passwordInWords.FindAllStringSubmatch(address, -1), passwordInAddress.FindAllStringSubmatch(address, -1)) {
		written := strings.Join(found[1:], "")
		all = append(all, []byte(written), []byte(unescape.Replace(written)))
		if meant, err := url.PathUnescape(written); err == nil {
			all = append(all, []byte(meant))
		}
	}
	return all
}

// unescape takes the backslashes out of a value in libpq's key words.
var unescape = strings.NewReplacer(`\\`, `\`, `\'`, `'`)
