package authority

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// OpenSSL is one authority as OpenSSL's programs use it: its certificate, key and index of issued certificates in a folder.
type OpenSSL struct {
	folder  string
	program string
}

// Issued is one line of the index.
type Issued struct {
	Certificate *x509.Certificate
	RevokedAt   time.Time // zero: good
	Reason      string    // keyCompromise, ...; "" for none
}

// ErrNoOpenSSL says that the program is not installed.
var ErrNoOpenSSL = errors.New("openssl is not installed")

// NewOpenSSL writes an authority and what it issued into a folder of the caller's. It returns [ErrNoOpenSSL] where there is no
// such program.
func NewOpenSSL(folder string, a *Authority, issued ...Issued) (*OpenSSL, error) {
	program, err := exec.LookPath("openssl")
	if err != nil {
		return nil, ErrNoOpenSSL
	}
	o := &OpenSSL{folder: folder, program: program}
	key, err := x509.MarshalPKCS8PrivateKey(a.Key)
	if err != nil {
		return nil, err
	}
	files := map[string]string{
		"ca.pem":         string(PEM(a.Certificate)),
		"ca.key":         string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		"index.txt":      index(issued),
		"index.txt.attr": "unique_subject = no\n",
		"crlnumber":      "1000\n",
		"ca.conf": "[ca]\ndefault_ca = this\n[this]\ndatabase = " + o.path("index.txt") + "\ncrlnumber = " + o.path("crlnumber") +
			"\ndefault_md = sha256\ncrl_extensions = list\n[list]\nauthorityKeyIdentifier = keyid\n",
	}
	for name, text := range files {
		if err := os.WriteFile(o.path(name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (o *OpenSSL) path(name string) string { return filepath.Join(o.folder, name) }

// index is the database of "openssl ca".
func index(issued []Issued) string {
	const stamp = "060102150405Z"
	var b strings.Builder
	for _, i := range issued {
		state, revoked := "V", ""
		if !i.RevokedAt.IsZero() {
			state, revoked = "R", i.RevokedAt.UTC().Format(stamp)
			if i.Reason != "" {
				revoked += "," + i.Reason
			}
		}
		serial := strings.ToUpper(hex.EncodeToString(i.Certificate.SerialNumber.Bytes()))
		fmt.Fprintf(&b, "%s\t%s\t%s\t%s\tunknown\t/CN=%s\n", state, i.Certificate.NotAfter.UTC().Format(stamp), revoked, serial, i.Certificate.Subject.CommonName)
	}
	return b.String()
}

// run runs the program and returns what it wrote.
func (o *OpenSSL) run(arguments ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	output, err := exec.CommandContext(ctx, o.program, arguments...).CombinedOutput()
	if err != nil {
		return output, fmt.Errorf("openssl %s: %w: %s", arguments[0], err, output)
	}
	return output, nil
}

// List makes a revocation list in PEM with "openssl ca -gencrl".
func (o *OpenSSL) List() ([]byte, error) {
	if _, err := o.run("ca", "-gencrl", "-config", o.path("ca.conf"), "-cert", o.path("ca.pem"), "-keyfile", o.path("ca.key"),
		"-crldays", "7", "-out", o.path("list.pem")); err != nil {
		return nil, err
	}
	return os.ReadFile(o.path("list.pem"))
}

// Verify asks "openssl verify" about a chain: nil when it says OK.
func (o *OpenSSL) Verify(roots []*x509.Certificate, chain []*x509.Certificate, list []byte, at time.Time, options ...string) error {
	files := map[string][]byte{"roots.pem": PEM(roots...), "between.pem": PEM(chain[1:]...), "leaf.pem": PEM(chain[0])}
	arguments := []string{"verify", "-no-CApath", "-no-CAstore", "-CAfile", o.path("roots.pem"), "-attime", fmt.Sprint(at.Unix())}
	if len(chain) > 1 { // it reads no empty file
		arguments = append(arguments, "-untrusted", o.path("between.pem"))
	}
	if list != nil {
		files["lists.pem"] = list
		arguments = append(arguments, "-crl_check", "-CRLfile", o.path("lists.pem"))
	}
	for name, content := range files {
		if err := os.WriteFile(o.path(name), content, 0o600); err != nil {
			return err
		}
	}
	_, err := o.run(append(append(arguments, options...), o.path("leaf.pem"))...)
	return err
}

// Responder is OpenSSL's OCSP responder, running.
type Responder struct {
	URL     string
	command *exec.Cmd
}

// Respond starts "openssl ocsp" on a free port, with the answers signed by a responder's certificate, or by the authority
// itself when signer is nil.
func (o *OpenSSL) Respond(signer *Certificate) (*Responder, error) {
	certificate, keyFile := o.path("ca.pem"), o.path("ca.key")
	if signer != nil {
		key, err := x509.MarshalPKCS8PrivateKey(signer.Key)
		if err != nil {
			return nil, err
		}
		certificate, keyFile = o.path("responder.pem"), o.path("responder.key")
		if err := errors.Join(os.WriteFile(certificate, PEM(signer.Certificate), 0o600),
			os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600)); err != nil {
			return nil, err
		}
	}
	command := exec.Command(o.program, "ocsp", "-index", o.path("index.txt"), "-CA", o.path("ca.pem"),
		"-rsigner", certificate, "-rkey", keyFile, "-port", "0", "-nmin", "60")
	output, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", o.program, err)
	}
	r := &Responder{command: command}
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		// ACCEPT 0.0.0.0:39215 PID=1234
		if rest, found := strings.CutPrefix(lines.Text(), "ACCEPT "); found {
			address := strings.Fields(rest)[0]
			r.URL = "http://127.0.0.1" + address[strings.LastIndex(address, ":"):]
			return r, nil
		}
	}
	r.Close()
	return nil, errors.New("the OCSP responder did not start")
}

// Close ends the responder.
func (r *Responder) Close() {
	r.command.Process.Kill()
	r.command.Wait()
}
