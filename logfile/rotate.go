package logfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// rotating is a file that is renamed from .log to .lo_ when the next line would make
// it larger than its limit. It opens at the first write. Not safe for concurrent use.
type rotating struct {
	path   string
	limit  int64
	header func() []byte // written at the beginning of each file, may be nil
	file   *os.File
	size   int64
}

// older returns the name of the older generation.
func older(path string) string {
	extension := filepath.Ext(path)
	if len(extension) < 2 {
		return path + ".lo_"
	}
	return strings.TrimSuffix(path, extension) + extension[:len(extension)-1] + "_"
}

func (f *rotating) Write(line []byte) (int, error) {
	if err := f.open(); err != nil {
		return 0, err
	}
	if f.size > 0 && f.size+int64(len(line)) > f.limit {
		if err := f.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := f.file.Write(line)
	f.size += int64(n)
	return n, err
}

func (f *rotating) open() error {
	if f.file != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o750); err != nil {
		return err
	}
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return errors.Join(err, file.Close())
	}
	f.file, f.size = file, info.Size()
	if f.header == nil {
		return nil
	}
	n, err := file.Write(f.header())
	if err != nil {
		return errors.Join(err, f.close())
	}
	if f.size == 0 {
		return nil // a new file with nothing but its header is not yet worth rotating
	}
	f.size += int64(n)
	return nil
}

// rotate closes the file before the rename, because Windows refuses to rename an open
// one. When the rename is not possible the file grows on, so that no line is lost.
func (f *rotating) rotate() error {
	if err := f.close(); err != nil {
		return err
	}
	renamed := os.Rename(f.path, older(f.path))
	if err := f.open(); err != nil {
		return err
	}
	if renamed != nil {
		f.size = 0 // try again a whole file later
	}
	return nil
}

func (f *rotating) close() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}
