-- The invite by which a scope was joined: it names the relay that carries the scope, and a throw-away key redeems it again
-- after a restart. None for a founder.
ALTER TABLE scopes ADD COLUMN invite BLOB;
