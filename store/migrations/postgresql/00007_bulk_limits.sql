-- +goose Up

-- Where a bulk registration token may be used, and by computers of which names.
ALTER TABLE bulk_tokens ADD COLUMN networks TEXT COLLATE "C" NOT NULL DEFAULT ''; -- JSON list of prefixes, empty for anywhere
ALTER TABLE bulk_tokens ADD COLUMN name_pattern TEXT COLLATE "C" NOT NULL DEFAULT ''; -- empty for any name
