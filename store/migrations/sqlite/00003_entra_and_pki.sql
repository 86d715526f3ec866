-- +goose Up

-- Onboarded tenants, with the keys of their providers.
CREATE TABLE tenants (
    id           TEXT NOT NULL PRIMARY KEY,
    issuers      TEXT NOT NULL, -- JSON list
    audiences    TEXT NOT NULL, -- JSON list
    client_app   TEXT NOT NULL,
    resource     TEXT NOT NULL,
    disabled     INTEGER NOT NULL,
    key_set      BLOB NOT NULL, -- JWKS, empty when there is none
    keys_fetched INTEGER NOT NULL,
    created      INTEGER NOT NULL,
    created_by   TEXT NOT NULL
) STRICT;

-- The company's authorities for client certificates.
CREATE TABLE authorities (
    fingerprint TEXT NOT NULL PRIMARY KEY, -- SHA-256 of the certificate, hex
    certificate BLOB NOT NULL,
    root        INTEGER NOT NULL,
    subject     TEXT NOT NULL,
    not_after   INTEGER NOT NULL,
    created     INTEGER NOT NULL,
    created_by  TEXT NOT NULL
) STRICT;
