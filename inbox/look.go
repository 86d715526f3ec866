package inbox

import (
	"bufio"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Look calls each for the records in the inbox folder, oldest first, without opening the inbox: it changes nothing, and may run beside the process that
// holds it. What was applied already may still be there. Damaged records are passed over. A folder that does not exist holds none.
func Look(dir string, each func(Record)) error {
	entries, err := os.ReadDir(dir) // sorted by name, and names by age
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), suffix) {
			err = cmp.Or(err, lookInto(filepath.Join(dir, entry.Name()), each))
		}
	}
	return err
}

func lookInto(path string, each func(Record)) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // applied and removed meanwhile
	}
	if err != nil {
		return err
	}
	defer file.Close()
	for in := bufio.NewReaderSize(file, 1<<16); ; {
		switch record, size, err := readFrame(in); {
		case err == nil:
			each(record)
		case err == errDamaged && size > 0:
		case err == io.EOF, err == errDamaged:
			return nil
		default:
			return err
		}
	}
}
