-- 1: handed over, and the new host has not said yet that it has the log.
ALTER TABLE sessions ADD COLUMN undelivered INTEGER NOT NULL DEFAULT 0;
