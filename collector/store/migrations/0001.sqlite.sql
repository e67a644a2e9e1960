-- Times are milliseconds since the Unix epoch by the collector's clock, durations milliseconds.

CREATE TABLE IF NOT EXISTS host (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  host_id TEXT NOT NULL,
  hostname TEXT NOT NULL,
  machine_id TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  agent_version TEXT NOT NULL,
  address TEXT NOT NULL,
  interval_ms INTEGER NOT NULL,
  ttl_ms INTEGER NOT NULL,
  facts_hash BLOB NULL,
  added_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS host_by_host_id ON host (host_id);
CREATE INDEX IF NOT EXISTS host_by_hostname ON host (hostname);

CREATE TABLE IF NOT EXISTS host_group (
  host INTEGER NOT NULL,
  name TEXT NOT NULL,
  PRIMARY KEY (host, name),
  CONSTRAINT host_group_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX IF NOT EXISTS host_group_by_name ON host_group (name);

-- One narrow row per host, written with every report. version counts its writes: who read another
-- version than is stored now has to read again.
CREATE TABLE IF NOT EXISTS host_seen (
  host INTEGER NOT NULL PRIMARY KEY,
  version INTEGER NOT NULL DEFAULT 0,
  epoch INTEGER NOT NULL DEFAULT 0,
  seq INTEGER NOT NULL DEFAULT 0,
  received_at INTEGER NOT NULL DEFAULT 0,
  measured_at INTEGER NOT NULL DEFAULT 0,
  silence INTEGER NOT NULL DEFAULT 0,
  CONSTRAINT host_seen_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;

-- A layout is shared by every host whose series are the same. content is its canonical JSON.
CREATE TABLE IF NOT EXISTS layout (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  hash BLOB NOT NULL,
  content BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS layout_by_hash ON layout (hash);

-- The latest report: its values as little-endian doubles in the layout's order, and the results
-- of checks that had a state of their own as JSON [[check index, state, message], ...].
CREATE TABLE IF NOT EXISTS host_latest (
  host INTEGER NOT NULL PRIMARY KEY,
  layout INTEGER NULL,
  series BLOB NULL,
  results BLOB NULL,
  CONSTRAINT host_latest_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE,
  CONSTRAINT host_latest_in_layout FOREIGN KEY (layout) REFERENCES layout (id)
) STRICT;
CREATE INDEX IF NOT EXISTS host_latest_by_layout ON host_latest (layout);

-- Written only when a check's status differs.
CREATE TABLE IF NOT EXISTS check_state (
  host INTEGER NOT NULL,
  name TEXT NOT NULL,
  instance TEXT NOT NULL,
  state INTEGER NOT NULL,
  since INTEGER NOT NULL,
  message TEXT NOT NULL,
  pending INTEGER NOT NULL DEFAULT 0,
  pending_count INTEGER NOT NULL DEFAULT 0,
  occurrences INTEGER NOT NULL DEFAULT 1,
  PRIMARY KEY (host, name, instance),
  CONSTRAINT check_state_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX IF NOT EXISTS check_state_by_state ON check_state (state, host);

CREATE TABLE IF NOT EXISTS host_fact (
  host INTEGER NOT NULL,
  name TEXT NOT NULL,
  content TEXT NOT NULL,
  PRIMARY KEY (host, name),
  CONSTRAINT host_fact_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;

-- Appended only, on change. host is NULL for events about the fleet; hostname is the name at that
-- moment, so that the event outlives the host.
CREATE TABLE IF NOT EXISTS event (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at INTEGER NOT NULL,
  host INTEGER NULL,
  hostname TEXT NOT NULL,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  instance TEXT NOT NULL,
  old_value TEXT NOT NULL,
  new_value TEXT NOT NULL,
  message TEXT NOT NULL,
  measured_at INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS event_by_time ON event (at);
CREATE INDEX IF NOT EXISTS event_by_host ON event (host, at);

-- One row per collector, kept alive by its heartbeat. database_at is the database's clock at that
-- moment, so that a reader elsewhere can tell the collector's time.
CREATE TABLE IF NOT EXISTS collector (
  name TEXT NOT NULL PRIMARY KEY,
  address TEXT NOT NULL,
  version TEXT NOT NULL,
  pool_size INTEGER NOT NULL,
  listening_since INTEGER NOT NULL,
  heartbeat_at INTEGER NOT NULL,
  database_at INTEGER NOT NULL,
  stopped_at INTEGER NULL
) STRICT;

CREATE TABLE IF NOT EXISTS setting (
  name TEXT NOT NULL PRIMARY KEY,
  content TEXT NOT NULL
) STRICT;
