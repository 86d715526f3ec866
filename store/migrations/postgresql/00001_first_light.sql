-- +goose Up

-- Times are microseconds since 1970 UTC. Columns are never null: what is unknown is empty, 0, or the zero time (year 1).

-- Registered devices: identity, the fields of the stored procedure (protocol.md 3.7), approval with its evidence, block.
CREATE TABLE devices (
    client_id                  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    key_thumbprint             TEXT COLLATE "C" NOT NULL UNIQUE,
    site_code                  TEXT COLLATE "C" NOT NULL,
    smsid                      TEXT COLLATE "C" NOT NULL,
    csmsid                     TEXT COLLATE "C" NOT NULL,
    identity                   TEXT COLLATE "C" NOT NULL,
    device_id                  TEXT COLLATE "C" NOT NULL,
    certificate                BYTEA NOT NULL,
    thumbprint                 TEXT COLLATE "C" NOT NULL,
    enc_key                    BYTEA NOT NULL,
    enc_is_signing             BOOLEAN NOT NULL, -- enc_key is the same as certificate and left empty here
    enc_thumbprint             TEXT COLLATE "C" NOT NULL,
    key_type                   BIGINT NOT NULL,
    public_key                 BYTEA NOT NULL,
    valid_from                 BIGINT NOT NULL,
    valid_to                   BIGINT NOT NULL,
    agent_type                 BIGINT NOT NULL,
    smbios_id                  TEXT COLLATE "C" NOT NULL,
    mac_address                TEXT COLLATE "C" NOT NULL,
    hardware_id1               TEXT COLLATE "C" NOT NULL,
    isv_proxy_id               TEXT COLLATE "C" NOT NULL,
    always_internet            BOOLEAN NOT NULL,
    internet_enabled           BOOLEAN NOT NULL,
    force                      BOOLEAN NOT NULL,
    approval_method            BIGINT NOT NULL,
    resolution_method          BIGINT NOT NULL,
    is_integrated_auth         BOOLEAN NOT NULL,
    version                    TEXT COLLATE "C" NOT NULL,
    netbios_name               TEXT COLLATE "C" NOT NULL,
    fqd_name                   TEXT COLLATE "C" NOT NULL,
    manual_conflict_resolution BOOLEAN NOT NULL,
    approval_status            BIGINT NOT NULL,
    approval_level             BIGINT NOT NULL,
    approval_proof             TEXT COLLATE "C" NOT NULL,
    approval_rule              TEXT COLLATE "C" NOT NULL,
    approval_evidence          TEXT COLLATE "C" NOT NULL, -- JSON object
    approval_by                TEXT COLLATE "C" NOT NULL,
    approval_why               TEXT COLLATE "C" NOT NULL,
    approval_at                BIGINT NOT NULL,
    blocked                    BOOLEAN NOT NULL,
    blocked_by                 TEXT COLLATE "C" NOT NULL,
    blocked_why                TEXT COLLATE "C" NOT NULL,
    blocked_at                 BIGINT NOT NULL,
    created                    BIGINT NOT NULL,
    updated                    BIGINT NOT NULL,
    last_seen                  BIGINT NOT NULL,
    netbios_folded             TEXT COLLATE "C" NOT NULL, -- the names in one case, for searching
    fqd_folded                 TEXT COLLATE "C" NOT NULL
);
CREATE INDEX devices_by_age ON devices (created, client_id);
CREATE INDEX devices_by_netbios ON devices (netbios_folded) WHERE netbios_folded <> '';
CREATE INDEX devices_by_fqd ON devices (fqd_folded) WHERE fqd_folded <> '';
CREATE INDEX devices_blocked ON devices (hardware_id1, client_id, key_thumbprint) WHERE blocked;

-- Client ids promised to keys that have not registered yet.
CREATE TABLE reservations (
    key_thumbprint TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    client_id      TEXT COLLATE "C" NOT NULL UNIQUE,
    bulk_id        TEXT COLLATE "C" NOT NULL,
    created        BIGINT NOT NULL,
    expires        BIGINT NOT NULL
);
CREATE INDEX reservations_by_expiry ON reservations (expires);

-- Bulk registration tokens, never the token itself, and the first use of each by each key.
CREATE TABLE bulk_tokens (
    id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    label      TEXT COLLATE "C" NOT NULL,
    max_uses   BIGINT NOT NULL,
    uses       BIGINT NOT NULL,
    not_before BIGINT NOT NULL,
    expires    BIGINT NOT NULL,
    blocked    BOOLEAN NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    created    BIGINT NOT NULL,
    last_used  BIGINT NOT NULL
);
CREATE TABLE token_uses (
    id             BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    token_id       TEXT COLLATE "C" NOT NULL REFERENCES bulk_tokens (id),
    key_thumbprint TEXT COLLATE "C" NOT NULL,
    client_id      TEXT COLLATE "C" NOT NULL,
    address        TEXT COLLATE "C" NOT NULL,
    used_at        BIGINT NOT NULL,
    UNIQUE (token_id, key_thumbprint)
);
CREATE INDEX token_uses_by_time ON token_uses (token_id, used_at, id);

-- Policy documents and whom they target.
CREATE TABLE policies (
    id           TEXT COLLATE "C" NOT NULL,
    version      TEXT COLLATE "C" NOT NULL,
    version_rank BIGINT NOT NULL,
    category     TEXT COLLATE "C" NOT NULL,
    type         TEXT COLLATE "C" NOT NULL,
    flags        BIGINT NOT NULL,
    level        BIGINT NOT NULL,
    body         BYTEA NOT NULL,
    sealed       BOOLEAN NOT NULL,
    hash         TEXT COLLATE "C" NOT NULL,
    everyone     BOOLEAN NOT NULL,
    created      BIGINT NOT NULL,
    created_by   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (id, version)
);
CREATE TABLE policy_targets (
    policy_id TEXT COLLATE "C" NOT NULL,
    version   TEXT COLLATE "C" NOT NULL,
    client_id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (policy_id, version, client_id)
);
CREATE INDEX policy_targets_by_client ON policy_targets (client_id);

-- The site's keys; private_key is sealed with the key file.
CREATE TABLE signing_keys (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    purpose     TEXT COLLATE "C" NOT NULL,
    algorithm   TEXT COLLATE "C" NOT NULL,
    certificate BYTEA NOT NULL,
    public_key  BYTEA NOT NULL,
    private_key BYTEA NOT NULL,
    state       TEXT COLLATE "C" NOT NULL,
    not_before  BIGINT NOT NULL,
    not_after   BIGINT NOT NULL,
    created     BIGINT NOT NULL
);

-- The other roles.
CREATE TABLE management_points (
    role_id      BIGINT NOT NULL PRIMARY KEY,
    name         TEXT COLLATE "C" NOT NULL,
    fqdn         TEXT COLLATE "C" NOT NULL,
    internal_url TEXT COLLATE "C" NOT NULL,
    plain_http   BOOLEAN NOT NULL,
    names        TEXT COLLATE "C" NOT NULL, -- JSON array
    created      BIGINT NOT NULL
);
CREATE TABLE gateways (
    name         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    url          TEXT COLLATE "C" NOT NULL,
    pin          TEXT COLLATE "C" NOT NULL,
    acknowledged BIGINT NOT NULL,
    heard        BIGINT NOT NULL,
    created      BIGINT NOT NULL,
    created_by   TEXT COLLATE "C" NOT NULL
);
CREATE TABLE connectors (
    pin     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name    TEXT COLLATE "C" NOT NULL,
    serial  TEXT COLLATE "C" NOT NULL,
    expires BIGINT NOT NULL,
    blocked BOOLEAN NOT NULL,
    created BIGINT NOT NULL
);
CREATE TABLE invitations (
    code_hash  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    name       TEXT COLLATE "C" NOT NULL,
    expires    BIGINT NOT NULL,
    used       BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL
);

-- Settings and the epoch of the site state.
CREATE TABLE settings (
    name  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value TEXT COLLATE "C" NOT NULL
);
CREATE TABLE site_state (
    id    BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    epoch BIGINT NOT NULL
);
INSERT INTO site_state (id, epoch) VALUES (1, 0);

-- What happened, above all every refusal.
CREATE TABLE events (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    happened_at BIGINT NOT NULL,
    code        TEXT COLLATE "C" NOT NULL,
    kind        TEXT COLLATE "C" NOT NULL,
    subject     TEXT COLLATE "C" NOT NULL,
    address     TEXT COLLATE "C" NOT NULL,
    trace_id    TEXT COLLATE "C" NOT NULL,
    detail      TEXT COLLATE "C" NOT NULL
);
CREATE INDEX events_by_time ON events (happened_at, id);
CREATE INDEX events_by_subject ON events (subject, happened_at, id);

-- Every change of trust, hash-chained. Entries are added and never changed.
CREATE TABLE trust_log (
    sequence   BIGINT NOT NULL PRIMARY KEY,
    entered_at BIGINT NOT NULL,
    actor      TEXT COLLATE "C" NOT NULL,
    action     TEXT COLLATE "C" NOT NULL,
    subject    TEXT COLLATE "C" NOT NULL,
    detail     TEXT COLLATE "C" NOT NULL, -- JSON object
    previous   TEXT COLLATE "C" NOT NULL,
    hash       TEXT COLLATE "C" NOT NULL
);

-- +goose StatementBegin
CREATE FUNCTION trust_log_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the trust log is append-only';
END;
$$;
-- +goose StatementEnd
CREATE TRIGGER trust_log_no_change BEFORE UPDATE OR DELETE ON trust_log
    FOR EACH ROW EXECUTE FUNCTION trust_log_append_only();
CREATE TRIGGER trust_log_no_truncate BEFORE TRUNCATE ON trust_log
    FOR EACH STATEMENT EXECUTE FUNCTION trust_log_append_only();

-- Ids that must not be seen twice (replay memory of all nodes), until they expire.
CREATE TABLE remembered (
    id    TEXT COLLATE "C" NOT NULL PRIMARY KEY, -- hash of the id
    until BIGINT NOT NULL
);
CREATE INDEX remembered_by_time ON remembered (until);
