package site

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"postern/catalog"
)

// An exported trust log is JSON lines: one entry on each line, and lines that hold a signed checkpoint, of which the last line is one. The detail is text, as it
// was hashed, so that a tool that reads and writes the file does not change it. Exports may be put one after the other.

// exportedEntry is a [TrustEntry] as its line has it.
type exportedEntry struct {
	Sequence uint64 `json:"sequence"`
	At       string `json:"at"` // RFC 3339, UTC, as it was hashed
	Actor    string `json:"actor"`
	Action   string `json:"action"`
	Subject  string `json:"subject"`
	Detail   string `json:"detail"` // a JSON object
	Previous string `json:"previous"`
	Hash     string `json:"hash"`
}

// exportedCheckpoint is the line of a checkpoint.
type exportedCheckpoint struct {
	Checkpoint string `json:"checkpoint"`
}

// WriteTrustExport writes entries, and a signed checkpoint when there is one, as lines of an export.
func WriteTrustExport(w io.Writer, entries []TrustEntry, checkpoint string) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	for _, e := range entries {
		if err := encoder.Encode(exportedEntry{e.Sequence, e.At.UTC().Format(time.RFC3339Nano), e.Actor, e.Action, e.Subject, e.Detail, e.Previous, e.Hash}); err != nil {
			return err
		}
	}
	if checkpoint == "" {
		return nil
	}
	return encoder.Encode(exportedCheckpoint{checkpoint})
}

// maxExportLine is several times what the longest entry needs.
const maxExportLine = 1 << 20

// ReadTrustExport reads an export line by line; a line that is a signed checkpoint and nothing else is one too. It checks the form only:
// entries are for an [Auditor], checkpoints for token.OpenCheckpoint. It ends with the first line that is not understood, code TrustExportMalformed, and with
// the first error of entry and checkpoint.
func ReadTrustExport(r io.Reader, entry func(TrustEntry) error, checkpoint func(raw string) error) error {
	return eachLine(r, catalog.TrustExportMalformed, func(number int, line []byte) error {
		e, raw, err := readExportLine(line)
		switch {
		case err != nil:
			return catalog.Errorf(catalog.TrustExportMalformed, "line %d: %v", number, err)
		case raw != "":
			err = checkpoint(raw)
		default:
			err = entry(e)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		return nil
	})
}

// ReadCheckpoints returns the checkpoints in a file of them, or in an export, not yet verified. A line that is not understood takes none of the others away:
// the error, code CheckpointMalformed, is about the first of them.
func ReadCheckpoints(r io.Reader) (all []string, err error) {
	var first error
	err = eachLine(r, catalog.CheckpointMalformed, func(number int, line []byte) error {
		_, raw, err := readExportLine(line)
		if err != nil && first == nil {
			first = catalog.Errorf(catalog.CheckpointMalformed, "line %d: %v", number, err)
		}
		if raw != "" {
			all = append(all, raw)
		}
		return nil
	})
	return all, cmp.Or(err, first)
}

// eachLine calls read with each line that is not empty, and its number.
func eachLine(r io.Reader, code catalog.Code, read func(number int, line []byte) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxExportLine)
	number := 0
	for lines.Scan() {
		number++
		if line := bytes.TrimSpace(lines.Bytes()); len(line) > 0 {
			if err := read(number, line); err != nil {
				return err
			}
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return catalog.Errorf(code, "line %d has more than %d bytes", number+1, maxExportLine)
	} else if err != nil {
		return err
	}
	return nil
}

// readExportLine reads one line. Every field that an entry has must be there once, and no other: what the hash does not cover is not shown to anyone.
func readExportLine(line []byte) (e TrustEntry, checkpoint string, err error) {
	if bytes.HasPrefix(line, []byte("eyJ")) {
		return e, string(line), nil
	}
	fields, err := flatObject(line)
	if err != nil {
		return e, "", err
	}
	if raw, ok := fields["checkpoint"]; ok && len(fields) == 1 {
		if text, ok := raw.(string); ok && text != "" {
			return e, text, nil
		}
		return e, "", errors.New("the checkpoint is no text")
	}
	for name, to := range map[string]*string{"actor": &e.Actor, "action": &e.Action, "subject": &e.Subject, "detail": &e.Detail, "previous": &e.Previous, "hash": &e.Hash} {
		text, ok := fields[name].(string)
		if !ok {
			return e, "", fmt.Errorf("%s is missing or no text", name)
		}
		*to = text
	}
	at, _ := fields["at"].(string)
	if e.At, err = time.Parse(time.RFC3339Nano, at); err != nil {
		return e, "", errors.New("at is missing or no time")
	}
	sequence, _ := fields["sequence"].(json.Number)
	if e.Sequence, err = strconv.ParseUint(string(sequence), 10, 63); err != nil || e.Sequence == 0 {
		return e, "", errors.New("sequence is missing or no number of an entry")
	}
	e.At = e.At.UTC()
	if len(fields) != 8 {
		return e, "", errors.New("there are fields that an entry does not have")
	}
	return e, "", nil
}

// flatObject reads a JSON object of texts and numbers in which every name stands once.
func flatObject(line []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber()
	if t, err := decoder.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	fields := map[string]any{}
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return nil, errors.New("not JSON")
		}
		value, err := decoder.Token()
		if err != nil {
			return nil, errors.New("not JSON")
		}
		text, _ := name.(string)
		if _, twice := fields[text]; twice {
			return nil, fmt.Errorf("%q stands there twice", shown(text))
		}
		switch value.(type) {
		case string, json.Number:
			fields[text] = value
		default:
			return nil, fmt.Errorf("%q is neither text nor number", shown(text))
		}
		if len(fields) > 8 {
			return nil, errors.New("there are fields that an entry does not have")
		}
	}
	if _, err := decoder.Token(); err != nil {
		return nil, errors.New("the line is cut off")
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("something follows the JSON object")
	}
	return fields, nil
}
