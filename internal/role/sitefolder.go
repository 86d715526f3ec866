package role

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postern/catalog"
	"postern/ccm"
	"postern/keyfile"
	"postern/site"
	"postern/store"
)

// Protection says what opens the keys at rest, beside the key file itself (design decision 17).
type Protection struct {
	Passphrase []byte
	Credential string // path of a systemd credential
}

// ProtectionFromEnvironment reads POSTERN_PASSPHRASE_FILE and $CREDENTIALS_DIRECTORY/site.key. A passphrase itself is never taken from
// the environment or a command line, where other processes can read it.
func ProtectionFromEnvironment() (Protection, error) {
	var p Protection
	if path := os.Getenv("POSTERN_PASSPHRASE_FILE"); path != "" {
		content, err := os.ReadFile(path)
		if err != nil {
			return p, catalog.Wrap(catalog.KeyFileMissing, err, "POSTERN_PASSPHRASE_FILE names %s, which cannot be read", path)
		}
		p.Passphrase = []byte(strings.TrimRight(string(content), "\r\n"))
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		if path := filepath.Join(dir, keyfile.DefaultName); exists(path) {
			p.Credential = path
		}
	}
	return p, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// openKey opens (or makes) a key file and gives its errors catalogue codes.
func openKey(path string, create bool, p Protection) (*keyfile.Key, error) {
	key, err := keyfile.Open(filepath.Dir(path), keyfile.Options{Name: filepath.Base(path), Create: create, Passphrase: p.Passphrase, Credential: p.Credential})
	codes := []struct {
		is   error
		code catalog.Code
	}{
		{keyfile.ErrMissing, catalog.KeyFileMissing}, {keyfile.ErrPermissions, catalog.KeyFilePermissions},
		{keyfile.ErrPassphrase, catalog.KeyFileWrong}, {keyfile.ErrWrong, catalog.KeyFileWrong}, {keyfile.ErrMalformed, catalog.KeyFileWrong},
	}
	for _, c := range codes {
		if errors.Is(err, c.is) {
			return nil, catalog.Wrap(c.code, err, "key file %s: %s", path, c.is)
		}
	}
	return key, err
}

// NewSite describes the site that [InitSite] makes.
type NewSite struct {
	Dir   string
	Code  string
	Name  string // host name of the management point; localhost when empty
	HTTPS string // where the management point will listen
	HTTP  string // plain HTTP (mixed mode), off when empty
	Store string // site.db in Dir when empty
	Actor string
}

// MadeSite is what a person needs to go on.
type MadeSite struct {
	SiteCode string `json:"site_code"`
	SiteRoot string `json:"site_root"`
	Config   string `json:"config"`
	KeyFile  string `json:"key_file"`
}

// InitSite makes a site in a new folder: key file, store, site root, and the management point's configuration. A folder that holds
// a site is refused and left as it is.
func InitSite(ctx context.Context, ask NewSite, protection Protection, now func() time.Time) (MadeSite, error) {
	code, err := ccm.ParseSiteCode(ask.Code)
	if err != nil {
		return MadeSite{}, err
	}
	config := Config{
		Role: ManagementPoint, Name: cmp.Or(ask.Name, "localhost"), Store: cmp.Or(ask.Store, "site.db"), SiteKey: keyfile.DefaultName,
		Listen: Listen{HTTPS: cmp.Or(ask.HTTPS, "127.0.0.1:8444"), HTTP: ask.HTTP}, State: "mp", Logs: "mp/logs",
	}
	if config.Name == "localhost" {
		config.Names = []string{"127.0.0.1"}
	}
	if problem := config.problem(); problem != "" {
		return MadeSite{}, catalog.Errorf(catalog.InvalidArgument, "%s", problem)
	}
	if err := os.MkdirAll(ask.Dir, 0o700); err != nil {
		return MadeSite{}, catalog.Wrap(catalog.FolderNotWritable, err, "the folder %s cannot be made", ask.Dir)
	}
	path := filepath.Join(ask.Dir, "mp.yaml")
	if exists(path) {
		return MadeSite{}, catalog.Errorf(catalog.AlreadyExists, "%s exists already; choose another folder for the new site", path)
	}
	resolved := config
	resolved.path = path
	if resolved.path, err = filepath.Abs(path); err != nil {
		return MadeSite{}, err
	}
	resolved.fill()
	opened, err := openParts(ctx, resolved, true, protection, now, nil)
	if err != nil {
		return MadeSite{}, err
	}
	defer opened.Close()
	s, err := site.Init(ctx, opened.config, site.InitOptions{SiteCode: code, By: ask.Actor})
	if err != nil {
		return MadeSite{}, err
	}
	comment := "# Management point of site " + string(code) + ". docs/configuration.md lists every setting.\n"
	if err := config.write(path, comment); err != nil {
		return MadeSite{}, err
	}
	return MadeSite{SiteCode: string(code), SiteRoot: s.RootPin(), Config: path, KeyFile: resolved.SiteKey}, nil
}

// OpenedSite is a site with its store, for a role or for a command.
type OpenedSite struct {
	Site       *site.Site
	Protection string // what protects the keys, in plain words

	config site.Config
	store  interface {
		site.Store
		Backup(ctx context.Context, path string) error
	}
}

// OpenSite opens the site of a management point's configuration: key file, store, migrations.
func OpenSite(ctx context.Context, c Config, protection Protection, now func() time.Time, log *slog.Logger) (*OpenedSite, error) {
	if c.Role != ManagementPoint {
		return nil, catalog.Errorf(catalog.ConfigInvalid, "%s is the configuration of a %s; this command needs the management point's", c.path, c.Role)
	}
	opened, err := openParts(ctx, c, false, protection, now, log)
	if err != nil {
		return nil, err
	}
	return opened.open(ctx)
}

// LookAtSite opens the site of a management point's configuration for a check, which changes nothing of it: the store stays as it is, and the revocations that
// are kept beside it are not compared with it. A store of another version is refused, with the codes of store.Options.ReadOnly.
func LookAtSite(ctx context.Context, c Config, protection Protection) (*OpenedSite, error) {
	opened, err := openStore(ctx, c, false, protection, store.Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	return opened.open(ctx)
}

// open opens the site of what is open; where that fails, nothing stays open.
func (o *OpenedSite) open(ctx context.Context) (_ *OpenedSite, err error) {
	if o.Site, err = site.Open(ctx, o.config); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

func openParts(ctx context.Context, c Config, create bool, protection Protection, now func() time.Time, log *slog.Logger) (*OpenedSite, error) {
	opened, err := openStore(ctx, c, create, protection, store.Options{})
	if err != nil {
		return nil, err
	}
	revoked, err := openRevocations(c, opened.config.Sealer, now, log)
	if err != nil {
		opened.Close()
		return nil, err
	}
	opened.config.Now, opened.config.Log, opened.config.Revocations = now, log, revoked
	return opened, nil
}

// openStore opens the key file and the store.
func openStore(ctx context.Context, c Config, create bool, protection Protection, options store.Options) (*OpenedSite, error) {
	key, err := openKey(c.SiteKey, create, protection)
	if err != nil {
		return nil, err
	}
	address, err := storeAddress(c.Store)
	if err != nil {
		return nil, err
	}
	if !create && !strings.Contains(address, "://") && !exists(address) {
		return nil, catalog.Errorf(catalog.SiteNotInitialised, "there is no store at %s", address)
	}
	kept, err := store.Open(ctx, address, options)
	if err != nil {
		return nil, err
	}
	return &OpenedSite{Protection: key.Protection(), config: site.Config{Store: kept, Sealer: key}, store: kept}, nil
}

// storeAddress reads the address from a file when it begins with @, so that a database password need not stand in the configuration.
func storeAddress(address string) (string, error) {
	path, indirect := strings.CutPrefix(address, "@")
	if !indirect {
		return address, nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "", catalog.Wrap(catalog.ConfigInvalid, err, "store names the file %s, which cannot be read", path)
	}
	return strings.TrimSpace(string(content)), nil
}

// SharedStore reports whether a configuration's store is one that several management points may use at a time: PostgreSQL.
func SharedStore(c Config) bool {
	return strings.Contains(c.Store, "://") || strings.HasPrefix(c.Store, "@")
}

// Backup writes a copy of the store to path. Keys in it stay sealed with the site's key file, which is not part of it.
func (o *OpenedSite) Backup(ctx context.Context, path string) error { return o.store.Backup(ctx, path) }

// Close closes the store.
func (o *OpenedSite) Close() error {
	if o.store == nil {
		return nil
	}
	return o.store.Close()
}

// Restore puts a backup in the place of a management point's store. The store that is there is kept beside it. The role must not be running.
func Restore(c Config, backup string, now time.Time) (kept string, err error) {
	if Knock(c) != nil {
		return "", catalog.Errorf(catalog.StateInUse, "the management point is running; stop it, restore, and start it again")
	}
	if SharedStore(c) {
		return "", catalog.Errorf(catalog.BackupFailed, "the store is PostgreSQL; restore it with pg_restore")
	}
	content, err := os.ReadFile(backup)
	if err != nil {
		return "", catalog.Wrap(catalog.BackupFailed, err, "the backup %s cannot be read", backup)
	}
	if !strings.HasPrefix(string(content), "SQLite format 3\x00") {
		return "", catalog.Errorf(catalog.BackupFailed, "%s is no backup of a store", backup)
	}
	if exists(c.Store) {
		kept = fmt.Sprintf("%s.before-restore-%s", c.Store, now.UTC().Format("20060102T150405Z"))
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if err := os.Rename(c.Store+suffix, kept+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
				return "", catalog.Wrap(catalog.BackupFailed, err, "the present store cannot be moved aside")
			}
		}
	}
	if err := keyfile.WriteFile(c.Store, content); err != nil {
		return kept, catalog.Wrap(catalog.BackupFailed, err, "the backup cannot be put in place; the store before it is %s", kept)
	}
	return kept, nil
}
