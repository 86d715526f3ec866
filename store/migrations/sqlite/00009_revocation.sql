-- +goose Up

-- When a gateway confirmed the epoch it has, and the certificate that it was given last.
ALTER TABLE gateways ADD COLUMN acknowledged_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE gateways ADD COLUMN certified INTEGER NOT NULL DEFAULT 0;
ALTER TABLE gateways ADD COLUMN certificate BLOB; -- the chain, DER, leaf first

-- Revocations whose subject the store does not know: a restored backup is older than it.
CREATE TABLE kept_revocations (
    kind    TEXT NOT NULL,
    id      TEXT NOT NULL, -- key thumbprint, token id or pin
    subject TEXT NOT NULL, -- what a person calls it
    by_whom TEXT NOT NULL,
    why     TEXT NOT NULL,
    at      INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;
