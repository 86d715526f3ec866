-- +goose Up

-- Onboarded tenants, with the keys of their providers.
CREATE TABLE tenants (
    id           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    issuers      TEXT COLLATE "C" NOT NULL, -- JSON list
    audiences    TEXT COLLATE "C" NOT NULL, -- JSON list
    client_app   TEXT COLLATE "C" NOT NULL,
    resource     TEXT COLLATE "C" NOT NULL,
    disabled     BOOLEAN NOT NULL,
    key_set      BYTEA NOT NULL, -- JWKS, empty when there is none
    keys_fetched BIGINT NOT NULL,
    created      BIGINT NOT NULL,
    created_by   TEXT COLLATE "C" NOT NULL
);

-- The company's authorities for client certificates.
CREATE TABLE authorities (
    fingerprint TEXT COLLATE "C" NOT NULL PRIMARY KEY, -- SHA-256 of the certificate, hex
    certificate BYTEA NOT NULL,
    root        BOOLEAN NOT NULL,
    subject     TEXT COLLATE "C" NOT NULL,
    not_after   BIGINT NOT NULL,
    created     BIGINT NOT NULL,
    created_by  TEXT COLLATE "C" NOT NULL
);
