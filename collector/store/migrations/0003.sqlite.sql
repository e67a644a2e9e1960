-- Machines reached over SSH: how, whether they may be trusted, who polls them, and what was found out.

-- polled: the host has no agent, and SSH is how its reports come. Otherwise SSH is only asked when its agent
-- is silent. settings is a JSON object of what differs from the groups' and the configuration.
CREATE TABLE IF NOT EXISTS ssh_host (
  host INTEGER NOT NULL PRIMARY KEY,
  polled INTEGER NOT NULL,
  settings TEXT NOT NULL,
  CONSTRAINT ssh_host_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;

CREATE TABLE IF NOT EXISTS ssh_group (
  name TEXT NOT NULL PRIMARY KEY,
  settings TEXT NOT NULL
) STRICT;

-- Host keys to trust, each a line of known_hosts (man 8 sshd). hash is the SHA-256 of the line.
CREATE TABLE IF NOT EXISTS ssh_known_host (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  hash BLOB NOT NULL,
  line TEXT NOT NULL,
  added_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS ssh_known_host_by_hash ON ssh_known_host (hash);

-- Each host falls into one share by its number. Whoever holds a share until `until` polls its hosts, and
-- nobody else does. run tells two lives of one collector apart.
CREATE TABLE IF NOT EXISTS ssh_share (
  share INTEGER NOT NULL PRIMARY KEY,
  collector TEXT NOT NULL,
  run TEXT NOT NULL,
  until INTEGER NOT NULL
) STRICT;

-- The collectors that poll, kept alive by their heartbeat.
CREATE TABLE IF NOT EXISTS ssh_poller (
  run TEXT NOT NULL PRIMARY KEY,
  collector TEXT NOT NULL,
  seen_at INTEGER NOT NULL
) STRICT;

-- Why a host is silent. heard_at is which silence it is about: when the host had been heard last. health_at is
-- when its checks were judged last by what SSH said (0: never).
CREATE TABLE IF NOT EXISTS diagnosis (
  host INTEGER NOT NULL PRIMARY KEY,
  kind TEXT NOT NULL,
  evidence TEXT NOT NULL,
  heard_at INTEGER NOT NULL,
  since INTEGER NOT NULL,
  probed_at INTEGER NOT NULL,
  health_at INTEGER NOT NULL,
  CONSTRAINT diagnosis_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;
