-- +goose Up

-- A device that came back after a long absence by its registered key alone: since when it is in quarantine, and why.
ALTER TABLE devices ADD COLUMN quarantine_at INTEGER NOT NULL DEFAULT -62135596800000000; -- the zero time
ALTER TABLE devices ADD COLUMN quarantine_why TEXT NOT NULL DEFAULT '';
CREATE INDEX devices_quarantined ON devices (quarantine_at, client_id) WHERE quarantine_why <> '';
