-- Whose store this is.
CREATE TABLE owner (
    one          INTEGER PRIMARY KEY CHECK (one = 1),
    trust_domain TEXT NOT NULL
) STRICT;

-- The last change: n counts them, mark is random.
CREATE TABLE revision (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    n    INTEGER NOT NULL,
    mark INTEGER NOT NULL
) STRICT;
INSERT INTO revision (one, n, mark) VALUES (1, 0, 0);

-- One row for each change, dense in n; the oldest are pruned.
CREATE TABLE changes (
    n    INTEGER PRIMARY KEY,
    mark INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    key  TEXT NOT NULL
) STRICT;

-- similar: 8 bytes of the parent's hash, then 16 of the hash of SPIFFE ID and selectors. Not unique:
-- an update may make two entries alike. content: spire.api.types.Entry.
CREATE TABLE entries (
    row        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    similar    BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    content    BLOB NOT NULL
) STRICT;
CREATE INDEX entries_similar ON entries (similar);
CREATE INDEX entries_expiring ON entries (expires_at) WHERE expires_at > 0;

-- content: spire.api.types.Bundle.
CREATE TABLE bundles (
    row          INTEGER PRIMARY KEY AUTOINCREMENT,
    trust_domain TEXT NOT NULL UNIQUE,
    content      BLOB NOT NULL
) STRICT;

-- Which entries federate with which trust domains.
CREATE TABLE entry_bundles (
    entry_row    INTEGER NOT NULL REFERENCES entries (row) ON DELETE CASCADE,
    trust_domain TEXT NOT NULL REFERENCES bundles (trust_domain),
    PRIMARY KEY (entry_row, trust_domain)
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_bundles_trust_domain ON entry_bundles (trust_domain);

-- expires_at: of the newest SVID.
CREATE TABLE agents (
    row          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT NOT NULL UNIQUE,
    expires_at   INTEGER NOT NULL,
    can_reattest INTEGER NOT NULL,
    banned       INTEGER NOT NULL,
    content      BLOB NOT NULL
) STRICT;
CREATE INDEX agents_expiring ON agents (expires_at);

CREATE TABLE join_tokens (
    token      TEXT PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE journals (
    key     TEXT PRIMARY KEY,
    content BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE relationships (
    row                 INTEGER PRIMARY KEY AUTOINCREMENT,
    trust_domain        TEXT NOT NULL UNIQUE,
    bundle_endpoint_url TEXT NOT NULL,
    endpoint_spiffe_id  TEXT
) STRICT;
