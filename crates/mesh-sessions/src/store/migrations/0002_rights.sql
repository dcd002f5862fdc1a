-- A prompt is known by its id and the node whose it is. In a fork it counts as seen when its turn had begun before the cut.
CREATE TABLE prompts_of_nodes (
    session INTEGER NOT NULL,
    prompt  TEXT NOT NULL,
    node    TEXT NOT NULL,
    number  INTEGER NOT NULL,
    started INTEGER,                      -- the event with which its turn began
    PRIMARY KEY (session, prompt, node)
) WITHOUT ROWID;
INSERT INTO prompts_of_nodes (session, prompt, node, number)
    SELECT p.session, p.prompt, json_extract(e.body, '$.by.node'), p.number
    FROM prompts p JOIN events e ON e.place = (p.session << 35) + p.number;
DROP TABLE prompts;
ALTER TABLE prompts_of_nodes RENAME TO prompts;
UPDATE prompts SET started = began.number FROM (
    SELECT place >> 35 AS session, place & 34359738367 AS number, json_extract(body, '$.prompt') AS prompt
    FROM events WHERE body LIKE '{"kind":"turn_started"%'
) AS began WHERE began.session = prompts.session AND began.prompt = prompts.prompt;

-- With whom a session is shared by now: with a node, or with a role in a scope.
CREATE TABLE shares (
    session INTEGER NOT NULL,
    node    TEXT,
    scope   TEXT,
    role    TEXT,
    level   INTEGER NOT NULL              -- 1: watch, 2: prompt, 3: own
);
CREATE INDEX shares_session ON shares (session);
INSERT INTO shares (session, node, scope, role, level)
    SELECT e.place >> 35, json_extract(j.value, '$.with.node'), json_extract(j.value, '$.with.role[0]'),
        json_extract(j.value, '$.with.role[1]'),
        CASE json_extract(j.value, '$.right') WHEN 'own' THEN 3 WHEN 'prompt' THEN 2 ELSE 1 END
    FROM (
        SELECT max(place) AS place FROM events WHERE body LIKE '{"kind":"shared"%' OR body LIKE '{"kind":"forked"%' GROUP BY place >> 35
    ) AS newest JOIN events e ON e.place = newest.place, json_each(e.body, '$.shares') j;

-- The first event of the session that names the content; 0 when it was written before this was kept.
ALTER TABLE blob_uses ADD COLUMN first INTEGER NOT NULL DEFAULT 0;
