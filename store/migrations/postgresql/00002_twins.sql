-- +goose Up

-- What a device's key has proved, the conflict that holds it, and the record that replaced it.
ALTER TABLE devices ADD COLUMN proved TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN conflict_id TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN obsolete_by TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN obsolete_why TEXT COLLATE "C" NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN obsolete_at BIGINT NOT NULL DEFAULT -62135596800000000; -- the zero time
CREATE INDEX devices_by_hardware ON devices (substr(hardware_id1, -8), created) WHERE hardware_id1 <> '' AND obsolete_by = ''; -- here that is the whole id; see the query
CREATE INDEX devices_obsolete ON devices (last_seen, client_id) WHERE obsolete_by <> '';

-- Keys that a device had before it got another: they are refused for ever.
CREATE TABLE former_keys (
    key_thumbprint TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    client_id      TEXT COLLATE "C" NOT NULL,
    since          BIGINT NOT NULL
);

-- Two records that may be one computer, or one key on two computers.
CREATE TABLE conflicts (
    id       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    kind     TEXT COLLATE "C" NOT NULL,
    newcomer TEXT COLLATE "C" NOT NULL,
    existing TEXT COLLATE "C" NOT NULL,
    hardware TEXT COLLATE "C" NOT NULL,
    hint     BOOLEAN NOT NULL,
    evidence TEXT COLLATE "C" NOT NULL, -- JSON object
    state    TEXT COLLATE "C" NOT NULL,
    rule     TEXT COLLATE "C" NOT NULL,
    actor    TEXT COLLATE "C" NOT NULL,
    why      TEXT COLLATE "C" NOT NULL,
    created  BIGINT NOT NULL,
    decided  BIGINT NOT NULL
);
CREATE INDEX conflicts_by_age ON conflicts (created, id);
CREATE INDEX conflicts_by_newcomer ON conflicts (newcomer, existing);
CREATE INDEX conflicts_by_existing ON conflicts (existing);
CREATE INDEX conflicts_waiting ON conflicts (created, id) WHERE state = 'waiting';
