package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"

	"postern/catalog"
)

//go:embed migrations
var migrations embed.FS

// newMigrator returns the migrations of one database.
func newMigrator(dialect goose.Dialect, db *sql.DB, files fs.FS, folder string, options ...goose.ProviderOption) (*goose.Provider, error) {
	files, err := fs.Sub(files, "migrations/"+folder)
	if err != nil {
		return nil, fmt.Errorf("open migrations: %w", err)
	}
	options = append(options, goose.WithDisableGlobalRegistry(true), goose.WithTableName("schema_version"))
	provider, err := goose.NewProvider(dialect, db, files, options...)
	if err != nil {
		return nil, fmt.Errorf("open migrations: %w", err)
	}
	return provider, nil
}

// newest is the version that this binary knows.
func newest(p *goose.Provider) int64 {
	var version int64
	for _, source := range p.ListSources() {
		version = max(version, source.Version)
	}
	return version
}

// judge refuses a schema that is not the one this binary knows, and changes nothing.
func judge(ctx context.Context, p *goose.Provider) error {
	version, err := p.GetDBVersion(ctx)
	if err != nil {
		return catalog.Wrap(catalog.StoreMigration, err, "the schema version of the database cannot be read")
	}
	switch known := newest(p); {
	case version > known:
		return newerSchema(version, known)
	case version < known:
		return catalog.Errorf(catalog.StoreOlderSchema, "the database has schema version %d; this binary brings it to %d when the management point starts", version, known)
	}
	return nil
}

func newerSchema(version, known int64) error {
	return catalog.Errorf(catalog.StoreNewerSchema, "the database has schema version %d; this binary knows versions up to %d", version, known)
}

// migrate brings the schema forward. before is called with the present version when there is something to do.
func migrate(ctx context.Context, p *goose.Provider, before func(version int64) error) error {
	version, err := p.GetDBVersion(ctx)
	if err != nil {
		return catalog.Wrap(catalog.StoreMigration, err, "the schema version of the database cannot be read")
	}
	known := newest(p)
	switch {
	case version > known:
		return newerSchema(version, known)
	case version == known:
		return nil
	}
	if err := before(version); err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		var partial *goose.PartialError
		if errors.As(err, &partial) && partial.Failed != nil {
			return catalog.Wrap(catalog.StoreMigration, err, "the step from schema version %d to %d was undone", version, partial.Failed.Source.Version)
		}
		return catalog.Wrap(catalog.StoreMigration, err, "the schema stays at version %d", version)
	}
	return nil
}
