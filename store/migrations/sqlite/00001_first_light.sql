-- +goose Up

-- Times are microseconds since 1970 UTC. Columns are never null: what is unknown is empty, 0, or the zero time (year 1).

-- Registered devices: identity, the fields of the stored procedure (protocol.md 3.7), approval with its evidence, block.
CREATE TABLE devices (
    client_id                  TEXT NOT NULL PRIMARY KEY,
    key_thumbprint             TEXT NOT NULL UNIQUE,
    site_code                  TEXT NOT NULL,
    smsid                      TEXT NOT NULL,
    csmsid                     TEXT NOT NULL,
    identity                   TEXT NOT NULL,
    device_id                  TEXT NOT NULL,
    certificate                BLOB NOT NULL,
    thumbprint                 TEXT NOT NULL,
    enc_key                    BLOB NOT NULL,
    enc_is_signing             INTEGER NOT NULL, -- enc_key is the same as certificate and left empty here
    enc_thumbprint             TEXT NOT NULL,
    key_type                   INTEGER NOT NULL,
    public_key                 BLOB NOT NULL,
    valid_from                 INTEGER NOT NULL,
    valid_to                   INTEGER NOT NULL,
    agent_type                 INTEGER NOT NULL,
    smbios_id                  TEXT NOT NULL,
    mac_address                TEXT NOT NULL,
    hardware_id1               TEXT NOT NULL,
    isv_proxy_id               TEXT NOT NULL,
    always_internet            INTEGER NOT NULL,
    internet_enabled           INTEGER NOT NULL,
    force                      INTEGER NOT NULL,
    approval_method            INTEGER NOT NULL,
    resolution_method          INTEGER NOT NULL,
    is_integrated_auth         INTEGER NOT NULL,
    version                    TEXT NOT NULL,
    netbios_name               TEXT NOT NULL,
    fqd_name                   TEXT NOT NULL,
    manual_conflict_resolution INTEGER NOT NULL,
    approval_status            INTEGER NOT NULL,
    approval_level             INTEGER NOT NULL,
    approval_proof             TEXT NOT NULL,
    approval_rule              TEXT NOT NULL,
    approval_evidence          TEXT NOT NULL, -- JSON object
    approval_by                TEXT NOT NULL,
    approval_why               TEXT NOT NULL,
    approval_at                INTEGER NOT NULL,
    blocked                    INTEGER NOT NULL,
    blocked_by                 TEXT NOT NULL,
    blocked_why                TEXT NOT NULL,
    blocked_at                 INTEGER NOT NULL,
    created                    INTEGER NOT NULL,
    updated                    INTEGER NOT NULL,
    last_seen                  INTEGER NOT NULL,
    netbios_folded             TEXT NOT NULL, -- the names in one case, for searching
    fqd_folded                 TEXT NOT NULL
) STRICT;
CREATE INDEX devices_by_age ON devices (created, client_id);
-- No index on the names: each would cost a fifth of the registrations per second, and only people search by name.
CREATE INDEX devices_blocked ON devices (hardware_id1, client_id, key_thumbprint) WHERE blocked;

-- Client ids promised to keys that have not registered yet.
CREATE TABLE reservations (
    key_thumbprint TEXT NOT NULL PRIMARY KEY,
    client_id      TEXT NOT NULL UNIQUE,
    bulk_id        TEXT NOT NULL,
    created        INTEGER NOT NULL,
    expires        INTEGER NOT NULL
) STRICT;
CREATE INDEX reservations_by_expiry ON reservations (expires);

-- Bulk registration tokens, never the token itself, and the first use of each by each key.
CREATE TABLE bulk_tokens (
    id         TEXT NOT NULL PRIMARY KEY,
    label      TEXT NOT NULL,
    max_uses   INTEGER NOT NULL,
    uses       INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    expires    INTEGER NOT NULL,
    blocked    INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    created    INTEGER NOT NULL,
    last_used  INTEGER NOT NULL
) STRICT;
CREATE TABLE token_uses (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    token_id       TEXT NOT NULL REFERENCES bulk_tokens (id),
    key_thumbprint TEXT NOT NULL,
    client_id      TEXT NOT NULL,
    address        TEXT NOT NULL,
    used_at        INTEGER NOT NULL,
    UNIQUE (token_id, key_thumbprint)
) STRICT;
CREATE INDEX token_uses_by_time ON token_uses (token_id, used_at, id);

-- Policy documents and whom they target.
CREATE TABLE policies (
    id           TEXT NOT NULL,
    version      TEXT NOT NULL,
    version_rank INTEGER NOT NULL,
    category     TEXT NOT NULL,
    type         TEXT NOT NULL,
    flags        INTEGER NOT NULL,
    level        INTEGER NOT NULL,
    body         BLOB NOT NULL,
    sealed       INTEGER NOT NULL,
    hash         TEXT NOT NULL,
    everyone     INTEGER NOT NULL,
    created      INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    PRIMARY KEY (id, version)
) STRICT;
CREATE TABLE policy_targets (
    policy_id TEXT NOT NULL,
    version   TEXT NOT NULL,
    client_id TEXT NOT NULL,
    PRIMARY KEY (policy_id, version, client_id)
) STRICT;
CREATE INDEX policy_targets_by_client ON policy_targets (client_id);

-- The site's keys; private_key is sealed with the key file.
CREATE TABLE signing_keys (
    id          TEXT NOT NULL PRIMARY KEY,
    purpose     TEXT NOT NULL,
    algorithm   TEXT NOT NULL,
    certificate BLOB NOT NULL,
    public_key  BLOB NOT NULL,
    private_key BLOB NOT NULL,
    state       TEXT NOT NULL,
    not_before  INTEGER NOT NULL,
    not_after   INTEGER NOT NULL,
    created     INTEGER NOT NULL
) STRICT;

-- The other roles.
CREATE TABLE management_points (
    role_id      INTEGER NOT NULL PRIMARY KEY,
    name         TEXT NOT NULL,
    fqdn         TEXT NOT NULL,
    internal_url TEXT NOT NULL,
    plain_http   INTEGER NOT NULL,
    names        TEXT NOT NULL, -- JSON array
    created      INTEGER NOT NULL
) STRICT;
CREATE TABLE gateways (
    name         TEXT NOT NULL PRIMARY KEY,
    url          TEXT NOT NULL,
    pin          TEXT NOT NULL,
    acknowledged INTEGER NOT NULL,
    heard        INTEGER NOT NULL,
    created      INTEGER NOT NULL,
    created_by   TEXT NOT NULL
) STRICT;
CREATE TABLE connectors (
    pin     TEXT NOT NULL PRIMARY KEY,
    name    TEXT NOT NULL,
    serial  TEXT NOT NULL,
    expires INTEGER NOT NULL,
    blocked INTEGER NOT NULL,
    created INTEGER NOT NULL
) STRICT;
CREATE TABLE invitations (
    code_hash  TEXT NOT NULL PRIMARY KEY,
    name       TEXT NOT NULL,
    expires    INTEGER NOT NULL,
    used       INTEGER NOT NULL,
    created_by TEXT NOT NULL
) STRICT;

-- Settings and the epoch of the site state.
CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
CREATE TABLE site_state (
    id    INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL
) STRICT;
INSERT INTO site_state (id, epoch) VALUES (1, 0);

-- What happened, above all every refusal.
CREATE TABLE events (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    happened_at INTEGER NOT NULL,
    code        TEXT NOT NULL,
    kind        TEXT NOT NULL,
    subject     TEXT NOT NULL,
    address     TEXT NOT NULL,
    trace_id    TEXT NOT NULL,
    detail      TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_time ON events (happened_at, id);
CREATE INDEX events_by_subject ON events (subject, happened_at, id);

-- Every change of trust, hash-chained. Entries are added and never changed.
CREATE TABLE trust_log (
    sequence   INTEGER NOT NULL PRIMARY KEY,
    entered_at INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    action     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    detail     TEXT NOT NULL, -- JSON object
    previous   TEXT NOT NULL,
    hash       TEXT NOT NULL
) STRICT;

-- +goose StatementBegin
CREATE TRIGGER trust_log_no_update BEFORE UPDATE ON trust_log
BEGIN
    SELECT RAISE(ABORT, 'the trust log is append-only');
END;
-- +goose StatementEnd
-- +goose StatementBegin
CREATE TRIGGER trust_log_no_delete BEFORE DELETE ON trust_log
BEGIN
    SELECT RAISE(ABORT, 'the trust log is append-only');
END;
-- +goose StatementEnd
