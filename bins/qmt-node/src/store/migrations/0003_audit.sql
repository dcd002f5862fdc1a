-- The audit trail. Each row's hash covers the row and the hash of the row before it. "subject" is a node (32 bytes) or an
-- invite (16 bytes), "actor" the node that did it or whose signature says so, empty when that is not known.
CREATE TABLE audit (
    number       INTEGER PRIMARY KEY,     -- 1, 2, 3, ... without gaps
    at           INTEGER NOT NULL,
    kind         TEXT NOT NULL,
    scope        BLOB NOT NULL CHECK (length(scope) = 32),
    scope_name   TEXT NOT NULL,
    subject      BLOB NOT NULL CHECK (length(subject) IN (16, 32)),
    subject_name TEXT NOT NULL,
    actor        BLOB NOT NULL CHECK (length(actor) IN (0, 32)),
    actor_name   TEXT NOT NULL,
    details      TEXT NOT NULL,           -- a JSON object
    previous     BLOB NOT NULL CHECK (length(previous) = 32),
    hash         BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE INDEX audit_by_subject ON audit (scope, subject, number);

-- Where the trail begins and ends: the last row that was pruned, and the last row written.
CREATE TABLE audit_ends (
    side   TEXT NOT NULL PRIMARY KEY CHECK (side IN ('pruned', 'last')),
    number INTEGER NOT NULL,
    hash   BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT, WITHOUT ROWID;
INSERT INTO audit_ends (side, number, hash) VALUES ('pruned', 0, zeroblob(32)), ('last', 0, zeroblob(32));
