package role

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"postern/catalog"
	"postern/site"
)

// revocationsName is where a management point keeps what was revoked, in its state folder: one line each, chained by hashes and sealed with the site's key
// file. It outlives a store that is replaced by an older copy (C119).
const revocationsName = "revocations.log"

// RevocationsFile is where the management point with this configuration keeps what was revoked.
func RevocationsFile(c Config) string { return filepath.Join(c.State, revocationsName) }

// The budgets of the file.
const (
	maxRevocations    = 256 << 20 // bytes
	maxRevocationLine = 16 << 10
)

// revocationLine is one line of the file.
type revocationLine struct {
	site.KeptRevocation
	Number   uint64 `json:"n"`
	Previous string `json:"previous"` // hash of the line before, "" in the first
	Sum      string `json:"hash,omitempty"`
	Seal     []byte `json:"seal,omitempty"` // says that the site's key file was there
}

// sum is SHA-256 over the line without sum and seal.
func (l revocationLine) sum() (string, error) {
	l.Sum, l.Seal = "", nil
	content, err := json.Marshal(l)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:]), nil
}

func (l revocationLine) label() string { return revocationsName + ":" + l.Sum }

// revocationLog is the file. It implements [site.RevocationLog].
type revocationLog struct {
	path, name string
	patience   time.Duration // with another process that has the file; it needs milliseconds
	sealer     site.Sealer
	now        func() time.Time
	log        *slog.Logger

	mu     sync.Mutex
	size   int64 // of the file when it was last read or written
	open   bool  // its last line has no end
	ends   map[string]bool
	newest revocationLine
	by     map[string]site.KeptRevocation // by kind and id
	kept   []site.KeptRevocation          // the same in order; nil until it is asked for
}

// openRevocations reads the file. One that is damaged is set aside, and what its good lines say is written to a new one.
func openRevocations(c Config, sealer site.Sealer, now func() time.Time, log *slog.Logger) (*revocationLog, error) {
	if now == nil {
		now = time.Now
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &revocationLog{path: RevocationsFile(c), name: c.Name, patience: lockPatience, sealer: sealer, now: now, log: log}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return nil, catalog.Wrap(catalog.FolderNotWritable, err, "the state folder %s cannot be made", c.State)
	}
	unlock, err := r.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return r, r.load()
}

const (
	lockPatience = 10 * time.Second
	lockRetry    = 5 * time.Millisecond
)

// lock keeps other processes out: a command may act while another does. One that hangs with the file in its hand stops nobody for ever.
func (r *revocationLog) lock() (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), r.patience)
	defer cancel()
	lock := flock.New(r.path + ".lock")
	if _, err := lock.TryLockContext(ctx, lockRetry); err != nil {
		return nil, catalog.Wrap(catalog.RevocationLogWrite, err, "%s cannot be locked", r.path)
	}
	return func() { lock.Unlock() }, nil
}

func (r *revocationLog) reset() {
	r.size, r.open, r.ends, r.newest, r.by = 0, false, map[string]bool{"": true}, revocationLine{}, map[string]site.KeptRevocation{}
	r.kept = nil
}

// load reads the file anew.
func (r *revocationLog) load() error {
	r.reset()
	file, err := os.Open(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return catalog.Wrap(catalog.RevocationLogDamaged, err, "%s cannot be read", r.path)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.Size() > maxRevocations {
		return catalog.Errorf(catalog.RevocationLogDamaged, "%s has %d bytes; at most %d are read", r.path, info.Size(), maxRevocations)
	}
	good, authentic, damage, err := r.read(file)
	switch {
	case err != nil:
		return catalog.Wrap(catalog.RevocationLogDamaged, err, "%s cannot be read", r.path)
	case damage == "":
		r.size = good
		if good < info.Size() { // a crash cut the last line off before it was answered
			r.log.Warn("the last line of the revocations was cut off by a crash", "file", r.path, "bytes", info.Size()-good)
			return os.Truncate(r.path, good)
		}
		return nil
	}
	return r.repair(damage, authentic)
}

// read takes the lines of the file in. good is how many bytes hold; authentic are all lines whose seal holds, also behind the damage.
func (r *revocationLog) read(file io.Reader) (good int64, authentic []site.KeptRevocation, damage string, err error) {
	lines := bufio.NewReaderSize(file, maxRevocationLine)
	for {
		raw, err := lines.ReadSlice('\n')
		whole := err == nil
		switch {
		case errors.Is(err, io.EOF) && len(raw) == 0:
			return good, authentic, damage, nil
		case errors.Is(err, bufio.ErrBufferFull):
			damage = cmp.Or(damage, fmt.Sprintf("line %d is longer than %d bytes", r.newest.Number+1, maxRevocationLine))
			if err := skipLine(lines); err != nil {
				return good, authentic, damage, nil
			}
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return good, authentic, damage, err
		}
		line, fault := r.judge(raw)
		if fault != "" && !whole { // a crash cut it off
			return good, authentic, damage, nil
		}
		if fault == "" {
			authentic = append(authentic, line.KeptRevocation)
			fault = follows(r.newest, line)
		}
		switch {
		case fault != "":
			damage = cmp.Or(damage, fmt.Sprintf("after line %d: %s", r.newest.Number, fault))
		case damage == "":
			r.take(line)
			good += int64(len(raw))
		}
		if !whole {
			r.open = true
			return good, authentic, damage, nil
		}
	}
}

func skipLine(lines *bufio.Reader) error {
	for {
		if _, err := lines.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// judge reads one line and says what is wrong with it.
func (r *revocationLog) judge(raw []byte) (line revocationLine, fault string) {
	if json.Unmarshal(bytes.TrimSpace(raw), &line) != nil || line.Number == 0 {
		return line, "the line is not a revocation"
	}
	sum, err := line.sum()
	if err != nil || sum != line.Sum {
		return line, "its hash does not fit its content"
	}
	if _, err := r.sealer.Open(line.label(), line.Seal); err != nil {
		return line, "its seal is not of the site's key file"
	}
	return line, ""
}

func follows(before, line revocationLine) string {
	switch {
	case line.Number != before.Number+1:
		return fmt.Sprintf("line %d follows line %d", line.Number, before.Number)
	case line.Previous != before.Sum:
		return fmt.Sprintf("line %d does not continue line %d", line.Number, before.Number)
	}
	return ""
}

func (r *revocationLog) take(line revocationLine) {
	r.newest = line
	r.ends[endOf(line)] = true
	r.by[string(line.Kind)+" "+line.ID], r.kept = line.KeptRevocation, nil
}

func endOf(line revocationLine) string {
	if line.Number == 0 {
		return ""
	}
	return strconv.FormatUint(line.Number, 10) + " " + line.Sum
}

// repair sets the damaged file aside and writes what is authentic to a new one.
func (r *revocationLog) repair(damage string, authentic []site.KeptRevocation) error {
	aside := fmt.Sprintf("%s.damaged-%s", r.path, r.now().UTC().Format("20060102T150405.000Z"))
	if err := os.Rename(r.path, aside); err != nil {
		return catalog.Wrap(catalog.RevocationLogDamaged, err, "%s: %s; it cannot be set aside", r.path, damage)
	}
	r.log.Error("revocations", "code", string(catalog.RevocationLogDamaged), "damage", damage, "set_aside", aside, "lines", len(authentic))
	r.reset()
	return r.write(authentic)
}

// Kept implements [site.RevocationLog].
func (r *revocationLog) Kept() []site.KeptRevocation {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept == nil { // every refresh of the site asks, and there may be tens of thousands
		all := make([]site.KeptRevocation, 0, len(r.by))
		for _, key := range slices.Sorted(maps.Keys(r.by)) {
			all = append(all, r.by[key])
		}
		r.kept = all
	}
	return r.kept
}

// Newest implements [site.RevocationLog].
func (r *revocationLog) Newest() site.KeptRevocation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.newest.KeptRevocation
}

// Anchor implements [site.RevocationLog].
func (r *revocationLog) Anchor() (name, end string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.name, endOf(r.newest)
}

// Has implements [site.RevocationLog].
func (r *revocationLog) Has(end string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ends[end]
}

// Append implements [site.RevocationLog]. What another process wrote meanwhile is read first.
func (r *revocationLog) Append(lines []site.KeptRevocation) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	unlock, err := r.lock()
	if err != nil {
		return err
	}
	defer unlock()
	info, err := os.Stat(r.path)
	switch {
	case err == nil && info.Size() == r.size:
	case errors.Is(err, fs.ErrNotExist) && r.size == 0:
	case errors.Is(err, fs.ErrNotExist): // somebody took it away: what it said is still known here
		r.log.Error("revocations", "code", string(catalog.RevocationLogCut), "file", r.path, "error", "the file was taken away")
		before := slices.Collect(maps.Values(r.by))
		r.reset()
		lines = append(before, lines...)
	case err != nil:
		return catalog.Wrap(catalog.RevocationLogWrite, err, "%s cannot be looked at", r.path)
	default:
		if err := r.load(); err != nil {
			return err
		}
	}
	return r.write(lines)
}

// write adds lines and returns when the disk has them. When it fails, what was half written is taken back.
func (r *revocationLog) write(lines []site.KeptRevocation) error {
	if len(lines) == 0 {
		return nil
	}
	before := r.newest
	var content bytes.Buffer
	if r.open {
		content.WriteByte('\n')
	}
	made := make([]revocationLine, 0, len(lines))
	for _, l := range lines {
		line := revocationLine{KeptRevocation: l, Number: before.Number + 1, Previous: before.Sum}
		sum, err := line.sum()
		if err != nil {
			return err
		}
		line.Sum = sum
		line.Seal = r.sealer.Seal(line.label(), nil)
		encoded, err := json.Marshal(line)
		if err != nil {
			return err
		}
		content.Write(append(encoded, '\n'))
		made, before = append(made, line), line
	}
	if err := r.put(content.Bytes()); err != nil {
		return catalog.Wrap(catalog.RevocationLogWrite, err, "%d revocations are in force, and %s does not have them", len(lines), r.path)
	}
	for _, line := range made {
		r.take(line)
	}
	r.size += int64(content.Len())
	r.open = false
	return nil
}

func (r *revocationLog) put(content []byte) (err error) {
	file, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			file.Truncate(r.size)
		}
		err = errors.Join(err, file.Close())
	}()
	if _, err := file.Write(content); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if r.size > 0 {
		return nil
	}
	folder, err := os.Open(filepath.Dir(r.path)) // so that the new name is on the disk too
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := folder.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !strings.Contains(err.Error(), "handle is invalid") {
		return err
	}
	return nil
}

// revocationsHealth adds what is wrong with the revocations that are kept.
func revocationsHealth(h *Health, c Config, s *site.Site) {
	for _, err := range s.RevocationProblems() {
		h.problem("revocations: %s: %s", catalog.CodeOf(err), catalog.Public(err))
	}
	aside, err := filepath.Glob(RevocationsFile(c) + ".damaged-*")
	if err == nil && len(aside) > 0 {
		h.problem("revocations: %s", catalog.Public(catalog.Errorf(catalog.RevocationLogDamaged, "set aside: %s", filepath.Base(aside[len(aside)-1]))))
	}
	if again := s.AppliedAgain(); len(again) > 0 {
		h.Detail["revocations_applied_again"] = again
	}
}
