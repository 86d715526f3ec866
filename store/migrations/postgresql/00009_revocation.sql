-- +goose Up

-- When a gateway confirmed the epoch it has, and the certificate that it was given last.
ALTER TABLE gateways ADD COLUMN acknowledged_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE gateways ADD COLUMN certified BIGINT NOT NULL DEFAULT 0;
ALTER TABLE gateways ADD COLUMN certificate BYTEA; -- the chain, DER, leaf first

-- Revocations whose subject the store does not know: a restored backup is older than it.
CREATE TABLE kept_revocations (
    kind    TEXT COLLATE "C" NOT NULL,
    id      TEXT COLLATE "C" NOT NULL, -- key thumbprint, token id or pin
    subject TEXT COLLATE "C" NOT NULL, -- what a person calls it
    by_whom TEXT COLLATE "C" NOT NULL,
    why     TEXT COLLATE "C" NOT NULL,
    at      BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);
