package role

import (
	"crypto/tls"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
)

// maxCompany bounds the certificates of a folder.
const maxCompany = 64

// companyCertificates reads the machine's certificates of the company, each time anew: a renewed one is taken at the next connection. A pair that
// cannot be read is named in the log and left out.
func companyCertificates(folder string, log *slog.Logger) func() []tls.Certificate {
	return func() (all []tls.Certificate) {
		files, err := filepath.Glob(filepath.Join(folder, "*.pem"))
		if err != nil || len(files) == 0 {
			log.Warn("no company certificates", "folder", folder, "error", err)
			return nil
		}
		slices.Sort(files)
		for _, file := range files[:min(len(files), maxCompany)] {
			pair, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, ".pem")+".key")
			if err != nil {
				log.Warn("a company certificate is left out", "file", file, "error", err)
				continue
			}
			all = append(all, pair)
		}
		return all
	}
}
