package keyfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Budgets for what is read, in bytes.
const (
	maxKeyFile    = 4 << 10
	maxSealedFile = 16 << 20
)

// WriteFile writes content to path with mode 0600: to a temporary file in the same
// folder, synced, renamed, folder synced. After a crash either the old content or the
// new one is there.
func WriteFile(path string, content []byte) error {
	temporary, err := writeTemporary(path, content)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(temporary))
	}
	return syncFolder(filepath.Dir(path))
}

// writeNew is WriteFile for a file that must not exist yet; otherwise the error wraps
// fs.ErrExist.
func writeNew(path string, content []byte) error {
	temporary, err := writeTemporary(path, content)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(temporary)
	err = os.Link(temporary, path)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		err = claim(temporary, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncFolder(filepath.Dir(path))
}

// claim puts a file at a path where none is yet, on a file system without hard links
// (FAT, some network shares): it takes the name with an empty file, which only one caller
// can do, and then puts its own in the place. Whoever reads in between finds the empty one.
func claim(temporary, path string) error {
	taken, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = taken.Close()
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func writeTemporary(path string, content []byte) (string, error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // CreateTemp makes it 0600
	if err != nil {
		return "", err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return "", errors.Join(err, os.Remove(file.Name()))
	}
	return file.Name(), nil
}

// syncFolder makes a rename durable. Windows has no such call and needs none.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	folder, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// readPrivate reads a file that must be its owner's alone. The mode is asked of the
// open file, so that it cannot be exchanged in between.
func readPrivate(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%s has mode %04o: %w", path, mode, ErrPermissions)
	}
	return readLimited(file, limit)
}

func readAll(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readLimited(file, limit)
}

func readLimited(file *os.File, limit int64) ([]byte, error) {
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes: %w", file.Name(), limit, ErrMalformed)
	}
	return content, nil
}
