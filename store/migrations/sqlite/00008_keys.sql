-- +goose Up

-- The life of a signing key, and by what one site root leads to the next.
ALTER TABLE signing_keys ADD COLUMN changed INTEGER NOT NULL DEFAULT -62135596800000000; -- the zero time
ALTER TABLE signing_keys ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0; -- of the site state that first told of it
ALTER TABLE signing_keys ADD COLUMN why TEXT NOT NULL DEFAULT '';
ALTER TABLE signing_keys ADD COLUMN link TEXT NOT NULL DEFAULT '';
