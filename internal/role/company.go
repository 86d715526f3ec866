package role

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
)

// maxCompany bounds the certificates of a folder.
const maxCompany = 64

// companyCertificates reads the machine's certificates of the company, each time anew: a renewed one is taken at the next connection. One without a
// key file comes without a key, for the connector to count and reject by the documents' words (S4). What cannot be read is named in the log and left
// out.
func companyCertificates(folder string, log *slog.Logger) func() []tls.Certificate {
	return func() (all []tls.Certificate) {
		files, err := filepath.Glob(filepath.Join(folder, "*.pem"))
		if err != nil || len(files) == 0 {
			log.Warn("no company certificates", "folder", folder, "error", err)
			return nil
		}
		slices.Sort(files)
		for _, file := range files[:min(len(files), maxCompany)] {
			pair, err := companyCertificate(file)
			if err != nil {
				log.Warn("a company certificate is left out", "file", file, "error", err)
				continue
			}
			all = append(all, pair)
		}
		return all
	}
}

func companyCertificate(file string) (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, ".pem")+".key")
	if !errors.Is(err, fs.ErrNotExist) {
		return pair, err
	}
	content, err := readBounded(file)
	if err != nil {
		return tls.Certificate{}, err
	}
	bare := tls.Certificate{}
	for block, rest := pem.Decode(content); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			bare.Certificate = append(bare.Certificate, block.Bytes)
		}
	}
	if len(bare.Certificate) == 0 {
		return tls.Certificate{}, errors.New("it holds no certificate in PEM form")
	}
	bare.Leaf, err = x509.ParseCertificate(bare.Certificate[0])
	return bare, err
}
