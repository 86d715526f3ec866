-- +goose Up

-- Where a bulk registration token may be used, and by computers of which names.
ALTER TABLE bulk_tokens ADD COLUMN networks TEXT NOT NULL DEFAULT ''; -- JSON list of prefixes, empty for anywhere
ALTER TABLE bulk_tokens ADD COLUMN name_pattern TEXT NOT NULL DEFAULT ''; -- empty for any name
