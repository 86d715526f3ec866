-- +goose Up

-- What a device's key has proved, the conflict that holds it, and the record that replaced it.
ALTER TABLE devices ADD COLUMN proved TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN conflict_id TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN obsolete_by TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN obsolete_why TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN obsolete_at INTEGER NOT NULL DEFAULT -62135596800000000; -- the zero time
-- The last characters of an id are as good as all of it, and a third of the size: every registration writes to this index.
CREATE INDEX devices_by_hardware ON devices (substr(hardware_id1, -8), created) WHERE hardware_id1 <> '' AND obsolete_by = '';
CREATE INDEX devices_obsolete ON devices (last_seen, client_id) WHERE obsolete_by <> '';

-- Keys that a device had before it got another: they are refused for ever.
CREATE TABLE former_keys (
    key_thumbprint TEXT NOT NULL PRIMARY KEY,
    client_id      TEXT NOT NULL,
    since          INTEGER NOT NULL
) STRICT;

-- Two records that may be one computer, or one key on two computers.
CREATE TABLE conflicts (
    id       TEXT NOT NULL PRIMARY KEY,
    kind     TEXT NOT NULL,
    newcomer TEXT NOT NULL,
    existing TEXT NOT NULL,
    hardware TEXT NOT NULL,
    hint     INTEGER NOT NULL,
    evidence TEXT NOT NULL, -- JSON object
    state    TEXT NOT NULL,
    rule     TEXT NOT NULL,
    actor    TEXT NOT NULL,
    why      TEXT NOT NULL,
    created  INTEGER NOT NULL,
    decided  INTEGER NOT NULL
) STRICT;
CREATE INDEX conflicts_by_age ON conflicts (created, id);
CREATE INDEX conflicts_by_newcomer ON conflicts (newcomer, existing);
CREATE INDEX conflicts_by_existing ON conflicts (existing);
CREATE INDEX conflicts_waiting ON conflicts (created, id) WHERE state = 'waiting';

-- Ids that must not be seen twice, noted by changes, until they expire. The rest of this memory is not kept on disk.
CREATE TABLE remembered (
    id    TEXT NOT NULL PRIMARY KEY, -- hash of the id
    until INTEGER NOT NULL
) STRICT;
CREATE INDEX remembered_by_time ON remembered (until);
