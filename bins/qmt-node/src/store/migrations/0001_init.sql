-- Ids, keys and signed forms are stored as their bytes; times are Unix seconds; 0 in "expires" is never.
CREATE TABLE scopes (
    scope      BLOB NOT NULL PRIMARY KEY CHECK (length(scope) = 32),
    founder    BLOB NOT NULL CHECK (length(founder) = 32),
    nonce      BLOB NOT NULL CHECK (length(nonce) = 16),
    name       TEXT NOT NULL,
    founded    INTEGER NOT NULL,          -- 1 when this node's key is the founder's
    grant_form BLOB,                      -- our SignedGrant; none for the founder
    delegation BLOB,                      -- a chain given later, such as an admin's
    joined_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE invites (
    invite     BLOB NOT NULL PRIMARY KEY CHECK (length(invite) = 16),
    scope      BLOB NOT NULL,
    token      BLOB NOT NULL,
    name       TEXT,
    created    INTEGER NOT NULL,
    expires    INTEGER NOT NULL,
    max_uses   INTEGER NOT NULL,
    role       TEXT NOT NULL,
    can_invite INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Apart from "invites": an invite that is no longer listed keeps its uses and its end.
CREATE TABLE redemptions (
    seq    INTEGER PRIMARY KEY,
    invite BLOB NOT NULL CHECK (length(invite) = 16),
    holder BLOB NOT NULL CHECK (length(holder) = 32),
    at     INTEGER NOT NULL,
    UNIQUE (invite, holder)
) STRICT;

CREATE TABLE ended_invites (
    invite BLOB NOT NULL PRIMARY KEY CHECK (length(invite) = 16),
    at     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE peers (
    scope   BLOB NOT NULL,
    node    BLOB NOT NULL CHECK (length(node) = 32),
    name    TEXT NOT NULL,
    addr    BLOB NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (scope, node)
) STRICT, WITHOUT ROWID;
CREATE INDEX peers_by_age ON peers (scope, seen_at);

CREATE TABLE revocations (
    seq   INTEGER PRIMARY KEY,
    scope BLOB NOT NULL,
    form  BLOB NOT NULL,                  -- a SignedRevocation
    UNIQUE (scope, form)
) STRICT;

CREATE TABLE kv (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
