CREATE TABLE sessions (
    row      INTEGER PRIMARY KEY,
    session  BLOB NOT NULL UNIQUE,
    parent   INTEGER,                     -- row of the parent; null when it is no fork
    cut      INTEGER NOT NULL DEFAULT 0,  -- events up to here are the parent's
    depth    INTEGER NOT NULL DEFAULT 0,  -- forks between it and a session that is none
    agent    TEXT NOT NULL,
    owner    TEXT NOT NULL,               -- a party, as JSON
    name     TEXT,
    labels   TEXT NOT NULL DEFAULT '{}',
    state    TEXT NOT NULL,
    turn     INTEGER,                     -- the open turn
    waiting  INTEGER NOT NULL DEFAULT 0,  -- prompts without a turn
    epoch    INTEGER NOT NULL DEFAULT 1,
    host     BLOB,                        -- who writes the log since it was handed over
    archived INTEGER,                     -- when, in milliseconds since 1970
    hidden   INTEGER NOT NULL DEFAULT 0   -- 1: deleted, and kept while forks need it; 2: an import under way
);
CREATE INDEX sessions_parent ON sessions (parent) WHERE parent IS NOT NULL;
CREATE INDEX sessions_name ON sessions (name) WHERE name IS NOT NULL;
CREATE INDEX sessions_hidden ON sessions (hidden) WHERE hidden > 0;

-- place: the session's row, times 2^35, plus the event's number.
CREATE TABLE events (
    place    INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    body     TEXT NOT NULL,
    checksum BLOB NOT NULL
);

CREATE TABLE snapshots (
    place INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL
);

CREATE TABLE prompts (
    session INTEGER NOT NULL,
    prompt  TEXT NOT NULL,
    number  INTEGER NOT NULL,
    PRIMARY KEY (session, prompt)
) WITHOUT ROWID;

CREATE TABLE blobs (
    row     INTEGER PRIMARY KEY,
    hash    BLOB NOT NULL UNIQUE,
    length  INTEGER NOT NULL,
    touched INTEGER NOT NULL              -- when it was last given to the store, in milliseconds since 1970
);
-- Apart from their rows, so that to touch one does not write it again.
CREATE TABLE blob_bytes (
    row   INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL
);
CREATE TABLE blob_uses (
    hash    BLOB NOT NULL,
    session INTEGER NOT NULL,
    PRIMARY KEY (hash, session)
) WITHOUT ROWID;
CREATE INDEX blob_uses_session ON blob_uses (session);

-- What is said, by the place of its event. Filled later than the log, from to_index.
CREATE VIRTUAL TABLE texts USING fts5 (said, content = '', contentless_delete = 1);
CREATE TABLE to_index (place INTEGER PRIMARY KEY);
