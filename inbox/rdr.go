package inbox

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"postern/site"
)

// RDRPath is where registration records go, below the folder inboxes of the site (S0; protocol.md 3.7).
const RDRPath = "auth/ddm.box/regreq"

// maxRDR is the largest number of files kept: they are for reading, and the oldest give way.
const maxRDR = 1000

// RDRFolder is a folder of readable registration records. It is safe for concurrent use.
type RDRFolder struct {
	dir  string
	rand io.Reader

	mu    sync.Mutex
	files []string // oldest first
}

// OpenRDR opens the folder RDRPath below inboxes, and makes it when it does not exist.
func OpenRDR(inboxes string, rand io.Reader) (*RDRFolder, error) {
	f := &RDRFolder{dir: filepath.Join(inboxes, filepath.FromSlash(RDRPath)), rand: rand}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of registration records: %w", err)
	}
	return f, f.list()
}

// list finds the files of earlier runs.
func (f *RDRFolder) list() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return fmt.Errorf("list registration records: %w", err)
	}
	age := make(map[string]int64, len(entries))
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && strings.HasSuffix(entry.Name(), ".RDR") {
			age[entry.Name()] = info.ModTime().UnixNano()
			f.files = append(f.files, entry.Name())
		}
	}
	slices.SortFunc(f.files, func(a, b string) int { return cmp.Or(cmp.Compare(age[a], age[b]), cmp.Compare(a, b)) })
	return nil
}

// Write writes the device's record as a new file and returns its path. The file is a copy for people, written without a sync. Of more than a
// thousand files the oldest are removed.
func (f *RDRFolder) Write(device site.Device) (path string, err error) {
	text, err := rdrText(device)
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	name, err := rdrName(f.rand)
	if err != nil {
		return "", err
	}
	path = filepath.Join(f.dir, name)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", fmt.Errorf("write registration record: %w", err)
	}
	if _, err = file.Write(text); err == nil {
		err = file.Close()
	} else {
		_ = file.Close()
	}
	if err != nil {
		_ = os.Remove(path)
		return "", fmt.Errorf("write registration record: %w", err)
	}
	f.files = append(f.files, name)
	for len(f.files) > maxRDR {
		_ = os.Remove(filepath.Join(f.dir, f.files[0]))
		f.files = f.files[1:]
	}
	return path, nil
}

// WriteRDR writes one record below inboxes. Who writes many opens the folder once, with [OpenRDR].
func WriteRDR(inboxes string, device site.Device, rand io.Reader) (path string, err error) {
	f, err := OpenRDR(inboxes, rand)
	if err != nil {
		return "", err
	}
	return f.Write(device)
}

// rdrText is the record as JSON with one field a line, named as in the stored procedure (protocol.md 3.7).
func rdrText(device site.Device) ([]byte, error) {
	record := struct {
		RecordType     string
		ApprovalStatus int
		site.Record
	}{"REGISTRATION", int(device.Approval.Status), device.Record}
	text, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode registration record: %w", err)
	}
	return append(text, '\n'), nil
}

// rdrName returns eight random upper-case letters or digits and .RDR.
func rdrName(rand io.Reader) (string, error) {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	var name strings.Builder
	for name.Len() < 8 {
		var b [1]byte
		if _, err := io.ReadFull(rand, b[:]); err != nil {
			return "", fmt.Errorf("name registration record: %w", err)
		}
		if int(b[0]) < 7*len(letters) { // the rest would make the first letters likelier
			name.WriteByte(letters[int(b[0])%len(letters)])
		}
	}
	return name.String() + ".RDR", nil
}
