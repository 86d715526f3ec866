package explain

import (
	"archive/zip"
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Limits bound what one run reads and keeps.
type Limits struct {
	Files     int   // files read
	Members   int   // entries of one archive
	Directory int64 // bytes of the list of entries of one archive
	FileBytes int64 // of one file, after unpacking
	Bytes     int64 // of all files
	Line      int   // bytes of one line; the rest of a longer one is not looked at
	Lines     int   // of one file
	ZipRatio  int64 // unpacked bytes for each packed byte, beyond the first MiB of a file and the first 64 MiB of an archive
	Kept      int   // unanswered requests and other particulars kept of one file
	Memory    int64 // bytes kept of all files, about
}

// DefaultLimits are enough for a site's logs and keep the memory bounded.
func DefaultLimits() Limits {
	return Limits{Files: 100_000, Members: 100_000, Directory: 16 << 20, FileBytes: 16 << 30, Bytes: 64 << 30, Line: 64 << 10, Lines: 200_000_000,
		ZipRatio: 250, Kept: 20_000, Memory: 1 << 30}
}

// Standard input has this path, and this name in the report.
const (
	StdinPath = "-"
	stdinName = "(standard input)"
)

// source is one file that may be a log.
type source struct {
	name  string // as the report shows it
	named bool   // a person gave it by name, so that a report is owed
	state string // changes when the file does; "" when that is not known
	open  func() (io.ReadCloser, error)
}

// collector gathers the sources behind the paths.
type collector struct {
	limits  Limits
	stdin   io.Reader
	sources []source
	seen    map[string]bool
	notes   []string // what could not be read, and why
	unnoted int      // what could not be read and is only counted
	full    bool
}

// collect follows paths: files, folders, patterns, archives and "-". What cannot be read is a note, not an error.
func (c *collector) collect(ctx context.Context, paths []string) error {
	c.seen = map[string]bool{}
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return err
		}
		c.path(ctx, path)
	}
	slices.SortFunc(c.sources, func(a, b source) int { return cmp.Compare(a.name, b.name) })
	if len(c.sources) > c.limits.Files {
		c.sources = c.sources[:c.limits.Files]
		c.note("only the first %d files were read; that is the limit", c.limits.Files)
	}
	return ctx.Err()
}

// mostNotes is how many of the files that cannot be read are named.
const mostNotes = 100

func (c *collector) note(format string, arguments ...any) {
	if len(c.notes) >= mostNotes {
		c.unnoted++
		return
	}
	c.notes = append(c.notes, fmt.Sprintf(format, arguments...))
}

// said is what could not be read, in so many sentences as a person reads.
func (c *collector) said() []string {
	if c.unnoted == 0 {
		return c.notes
	}
	return append(slices.Clone(c.notes), fmt.Sprintf("%d more could not be read, or not whole", c.unnoted))
}

func (c *collector) path(ctx context.Context, path string) {
	if path == StdinPath {
		c.add(source{name: stdinName, named: true, open: func() (io.ReadCloser, error) { return io.NopCloser(c.stdin), nil }})
		return
	}
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		c.folder(ctx, path)
		return
	case err == nil:
		c.file(path, true)
		return
	}
	matches, globError := filepath.Glob(path)
	if globError != nil || len(matches) == 0 {
		c.note("%s cannot be read: %v", path, reason(err))
		return
	}
	for _, match := range matches {
		if info, err := os.Stat(match); err == nil && info.IsDir() {
			c.folder(ctx, match)
			continue
		}
		c.file(match, true)
	}
}

func (c *collector) folder(ctx context.Context, root string) {
	if info, err := os.Lstat(root); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		root += string(filepath.Separator) // a person named the link: what it leads to is meant
	}
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil || c.full:
			return fs.SkipAll
		case err != nil:
			c.note("%s cannot be read: %v", path, reason(err))
			return nil
		case entry.Type().IsRegular(): // links, pipes and devices of a folder are not followed
			c.file(path, false)
		}
		return nil
	})
}

// file adds a file, or what is in it when it is packed.
func (c *collector) file(path string, named bool) {
	path = filepath.Clean(path)
	name := filepath.ToSlash(path)
	switch form := packing(path); {
	case form == zipMagic:
		c.archive(path)
	case form == gzipMagic && !tarName(path):
		c.add(source{name: name, named: named, state: stateOf(path), open: func() (io.ReadCloser, error) { return c.gunzip(path) }})
	case form == gzipMagic || isArchive(path) && !named:
		c.note("%s was not read: only zip archives and single gzip files are opened; unpack it and give the folder", name)
	default:
		c.add(source{name: name, named: named, state: stateOf(path), open: func() (io.ReadCloser, error) { return os.Open(path) }})
	}
}

// stateOf is what of a file changes when it is written to.
func stateOf(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d %d", info.Size(), info.ModTime().UnixNano())
}

func (c *collector) add(s source) {
	if c.seen[s.name] || c.full {
		return
	}
	c.seen[s.name] = true
	c.sources = append(c.sources, s)
	c.full = len(c.sources) >= 4*c.limits.Files // what is over is cut after sorting, so that the order of the paths does not matter
}

// The first bytes of the two packed forms that are opened.
const (
	zipMagic  = "PK\x03\x04"
	gzipMagic = "\x1f\x8b\x08"
)

// packing returns with which of them a regular file begins, or "".
func packing(path string) string {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	var head [len(zipMagic)]byte
	n, _ := io.ReadFull(file, head[:])
	for _, magic := range []string{zipMagic, gzipMagic} {
		if strings.HasPrefix(string(head[:n]), magic) {
			return magic
		}
	}
	return ""
}

// tarName tells a packed folder by its name; one that hides is found not to be text.
func tarName(path string) bool {
	low := strings.ToLower(path)
	return strings.HasSuffix(low, ".tgz") || strings.HasSuffix(low, ".tar.gz")
}

// gunzip opens a file that is packed by itself, as logs are that were put aside.
func (c *collector) gunzip(path string) (io.ReadCloser, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	size := int64(0)
	if info, err := file.Stat(); err == nil {
		size = info.Size()
	}
	in, err := gzip.NewReader(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	return &bounded{in: in, close: file.Close, left: c.allowed(size)}, nil
}

// allowed is how many bytes so many packed ones may become.
func (c *collector) allowed(packed int64) int64 { return 1<<20 + min(packed, 1<<40)*c.limits.ZipRatio }

// archive adds the members of a zip archive. Their names are only shown: nothing is ever written. An archive inside an archive
// is not opened, and that is said.
func (c *collector) archive(path string) {
	packed := &packedFile{path: path, room: c.limits.Directory}
	members, err := packed.directory()
	if err != nil {
		c.note("%s is not a zip archive that can be read: %v", path, reason(err))
		return
	}
	packed.left = 64<<20 + min(packed.size, 1<<40)*c.limits.ZipRatio
	state := stateOf(path)
	for i, member := range members {
		name := filepath.ToSlash(path) + "!" + member.Name
		switch {
		case c.full:
			return
		case i >= c.limits.Members:
			c.note("%s: %d of its %d entries were not read; %d is the limit", path, len(members)-i, len(members), c.limits.Members)
			return
		case member.FileInfo().IsDir():
		case !member.Mode().IsRegular():
			c.note("%s was not read: it is no file", name)
		case member.Flags&1 != 0:
			c.note("%s was not read: it is encrypted", name)
		case isArchive(member.Name):
			c.note("%s was not read: archives inside archives are not opened; unpack it and give it by itself", name)
		default:
			c.add(source{name: name, state: state, open: func() (io.ReadCloser, error) { return c.unpack(packed, member) }})
		}
	}
}

// packedFile is an archive, open only while something of it is read: a process may not have as many files open as a folder
// may have archives.
type packedFile struct {
	path string
	size int64
	file *os.File
	room int64 // bytes of its directory that may still be read; the reading of members has bounds of its own
	left int64 // bytes that its members may still become
	list bool  // the directory is being read
}

// directory reads the list of members. What the archive says of its length is not believed: the bytes that are read count.
func (p *packedFile) directory() ([]*zip.File, error) {
	info, err := os.Stat(p.path)
	if err != nil {
		return nil, err
	}
	p.size, p.list = info.Size(), true
	defer p.close()
	reader, err := zip.NewReader(p, p.size)
	if err != nil {
		return nil, err
	}
	p.list = false
	return reader.File, nil
}

var errDirectory = errors.New("its list of files is too long; unpack it and give the folder")

func (p *packedFile) ReadAt(b []byte, at int64) (int, error) {
	if p.file == nil {
		file, err := os.Open(p.path)
		if err != nil {
			return 0, err
		}
		p.file = file
	}
	if p.list {
		if p.room -= int64(len(b)); p.room < 0 {
			return 0, errDirectory
		}
	}
	return p.file.ReadAt(b, at)
}

func (p *packedFile) close() error {
	if p.file == nil {
		return nil
	}
	file := p.file
	p.file = nil
	return file.Close()
}

// isArchive tells an archive by its name; one that hides is found not to be text.
func isArchive(name string) bool {
	return slices.Contains(archiveEndings, strings.ToLower(filepath.Ext(name)))
}

var archiveEndings = []string{".zip", ".7z", ".gz", ".tgz", ".tar", ".cab", ".rar", ".xz", ".bz2", ".zst"}

// errBomb ends the reading of a member that unpacks to far more than it is.
var errBomb = errors.New("unpacks to far more than a log would")

func (c *collector) unpack(packed *packedFile, member *zip.File) (io.ReadCloser, error) {
	in, err := member.Open()
	if err != nil {
		return nil, errors.Join(err, packed.close())
	}
	size := int64(min(member.CompressedSize64, uint64(packed.size)))
	return &bounded{in: in, close: func() error { return errors.Join(in.Close(), packed.close()) }, left: c.allowed(size), shared: &packed.left}, nil
}

// bounded ends a reading that unpacks to more than is allowed, by itself or together with the other members of its archive.
type bounded struct {
	in     io.Reader
	close  func() error
	left   int64
	shared *int64 // nil when there are no others
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.in.Read(p)
	b.left -= int64(n)
	if b.shared != nil {
		*b.shared -= int64(n)
	}
	if b.left < 0 || b.shared != nil && *b.shared < 0 {
		return 0, errBomb
	}
	return n, err
}

func (b *bounded) Close() error { return b.close() }

// reason is why a file cannot be opened, without its name.
func reason(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// text returns a reader of UTF-8, whatever of the known encodings the file has, and false for a file that holds no text.
func text(in *bufio.Reader) (io.Reader, bool) {
	head, _ := in.Peek(4 << 10)
	encoding, isText := sniff(head)
	if !isText {
		return nil, false
	}
	if encoding == nil {
		return in, true
	}
	return encoding.NewDecoder().Reader(in), true
}

// sniff tells the encoding by a byte order mark, or by where the zero bytes are; nil is UTF-8 or near it.
func sniff(head []byte) (decoder, bool) {
	for _, mark := range marksOfOrder {
		if bytes.HasPrefix(head, mark.bytes) {
			return mark.encoding, true
		}
	}
	if bytes.HasPrefix(head, []byte(zipMagic)) || bytes.HasPrefix(head, []byte(gzipMagic)) || len(head) > tarAt && bytes.HasPrefix(head[tarAt:], []byte("ustar")) {
		return nil, false
	}
	head = withoutGaps(head)
	var zeros [2]int
	other := 0
	for i, b := range head {
		switch {
		case b == 0:
			zeros[i%2]++
		case b < ' ' && b != '\t' && b != '\n' && b != '\r' && b != '\f' && b != 0x1b:
			other++
		}
	}
	half := len(head) / 2
	switch {
	case half >= 4 && zeros[1]*10 > half*6 && zeros[0]*10 < half*2:
		return littleEndian, true
	case half >= 4 && zeros[0]*10 > half*6 && zeros[1]*10 < half*2:
		return bigEndian, true
	}
	if other == 0 && len(head) < len(gap) { // next to nothing: what follows will tell
		return nil, true
	}
	return nil, (zeros[0]+zeros[1]+other)*10 <= len(head)*3
}

// tarAt is where a folder that tar packed says so.
const tarAt = 257

// gap is a run of zero bytes as a crash leaves it in a log.
var gap = make([]byte, 64)

// withoutGaps leaves out what a crash left; an empty file stays empty and is a log without lines.
func withoutGaps(head []byte) []byte {
	if len(head) == 0 {
		return []byte{'\n'}
	}
	head = bytes.TrimRight(head, "\x00")
	if !bytes.Contains(head, gap) {
		return head
	}
	var rest []byte
	for _, part := range bytes.Split(head, gap) {
		rest = append(rest, bytes.Trim(part, "\x00")...)
	}
	return rest
}
