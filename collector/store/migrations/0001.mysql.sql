-- Times are milliseconds since the Unix epoch by the collector's clock, durations milliseconds.
-- Names of checks and facts are VARBINARY: compared byte by byte, in any collation.

CREATE TABLE IF NOT EXISTS host (
  id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  host_id CHAR(36) CHARACTER SET ascii NOT NULL,
  hostname VARCHAR(255) NOT NULL,
  machine_id VARCHAR(255) NOT NULL,
  boot_id VARCHAR(255) NOT NULL,
  agent_version VARCHAR(255) NOT NULL,
  address VARCHAR(255) NOT NULL,
  interval_ms BIGINT NOT NULL,
  ttl_ms BIGINT NOT NULL,
  facts_hash BINARY(16) NULL,
  added_at BIGINT NOT NULL,
  UNIQUE KEY host_by_host_id (host_id),
  KEY host_by_hostname (hostname)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS host_group (
  host INT UNSIGNED NOT NULL,
  name VARBINARY(1020) NOT NULL,
  PRIMARY KEY (host, name),
  KEY host_group_by_name (name),
  CONSTRAINT host_group_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- One narrow row per host, written with every report. version counts its writes: who read another
-- version than is stored now has to read again.
CREATE TABLE IF NOT EXISTS host_seen (
  host INT UNSIGNED NOT NULL PRIMARY KEY,
  version BIGINT NOT NULL DEFAULT 0,
  epoch BIGINT NOT NULL DEFAULT 0,
  seq BIGINT NOT NULL DEFAULT 0,
  received_at BIGINT NOT NULL DEFAULT 0,
  measured_at BIGINT NOT NULL DEFAULT 0,
  silence TINYINT NOT NULL DEFAULT 0,
  CONSTRAINT host_seen_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB;

-- A layout is shared by every host whose series are the same. content is its canonical JSON.
CREATE TABLE IF NOT EXISTS layout (
  id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  hash BINARY(16) NOT NULL,
  content MEDIUMBLOB NOT NULL,
  UNIQUE KEY layout_by_hash (hash)
) ENGINE=InnoDB;

-- The latest report: its values as little-endian doubles in the layout's order, and the results
-- of checks that had a state of their own as JSON [[check index, state, message], ...].
CREATE TABLE IF NOT EXISTS host_latest (
  host INT UNSIGNED NOT NULL PRIMARY KEY,
  layout INT UNSIGNED NULL,
  series MEDIUMBLOB NULL,
  results MEDIUMBLOB NULL,
  KEY host_latest_by_layout (layout),
  CONSTRAINT host_latest_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE,
  CONSTRAINT host_latest_in_layout FOREIGN KEY (layout) REFERENCES layout (id)
) ENGINE=InnoDB;

-- Written only when a check's status differs.
CREATE TABLE IF NOT EXISTS check_state (
  host INT UNSIGNED NOT NULL,
  name VARBINARY(1020) NOT NULL,
  instance VARBINARY(1020) NOT NULL,
  state TINYINT NOT NULL,
  since BIGINT NOT NULL,
  message TEXT NOT NULL,
  pending TINYINT NOT NULL DEFAULT 0,
  pending_count INT NOT NULL DEFAULT 0,
  occurrences INT NOT NULL DEFAULT 1,
  PRIMARY KEY (host, name, instance),
  KEY check_state_by_state (state, host),
  CONSTRAINT check_state_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS host_fact (
  host INT UNSIGNED NOT NULL,
  name VARBINARY(1020) NOT NULL,
  content TEXT NOT NULL,
  PRIMARY KEY (host, name),
  CONSTRAINT host_fact_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- Appended only, on change. host is NULL for events about the fleet; hostname is the name at that
-- moment, so that the event outlives the host.
CREATE TABLE IF NOT EXISTS event (
  id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  at BIGINT NOT NULL,
  host INT UNSIGNED NULL,
  hostname VARCHAR(255) NOT NULL,
  kind VARCHAR(32) CHARACTER SET ascii NOT NULL,
  subject VARBINARY(1020) NOT NULL,
  instance VARBINARY(1020) NOT NULL,
  old_value TEXT NOT NULL,
  new_value TEXT NOT NULL,
  message TEXT NOT NULL,
  measured_at BIGINT NOT NULL,
  KEY event_by_time (at),
  KEY event_by_host (host, at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- One row per collector, kept alive by its heartbeat. database_at is the database's clock at that
-- moment, so that a reader elsewhere can tell the collector's time.
CREATE TABLE IF NOT EXISTS collector (
  name VARCHAR(255) CHARACTER SET ascii NOT NULL PRIMARY KEY,
  address VARCHAR(255) NOT NULL,
  version VARCHAR(64) NOT NULL,
  pool_size INT NOT NULL,
  listening_since BIGINT NOT NULL,
  heartbeat_at BIGINT NOT NULL,
  database_at BIGINT NOT NULL,
  stopped_at BIGINT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS setting (
  name VARCHAR(64) CHARACTER SET ascii NOT NULL PRIMARY KEY,
  content TEXT NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
