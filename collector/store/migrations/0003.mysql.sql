-- Machines reached over SSH: how, whether they may be trusted, who polls them, and what was found out.

-- polled: the host has no agent, and SSH is how its reports come. Otherwise SSH is only asked when its agent
-- is silent. settings is a JSON object of what differs from the groups' and the configuration.
CREATE TABLE IF NOT EXISTS ssh_host (
  host INT UNSIGNED NOT NULL PRIMARY KEY,
  polled TINYINT NOT NULL,
  settings TEXT NOT NULL,
  CONSTRAINT ssh_host_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS ssh_group (
  name VARBINARY(1020) NOT NULL PRIMARY KEY,
  settings TEXT NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- Host keys to trust, each a line of known_hosts (man 8 sshd). hash is the SHA-256 of the line.
CREATE TABLE IF NOT EXISTS ssh_known_host (
  id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  hash BINARY(32) NOT NULL,
  line TEXT NOT NULL,
  added_at BIGINT NOT NULL,
  UNIQUE KEY ssh_known_host_by_hash (hash)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- Each host falls into one share by its number. Whoever holds a share until `until` polls its hosts, and
-- nobody else does. run tells two lives of one collector apart.
CREATE TABLE IF NOT EXISTS ssh_share (
  share INT UNSIGNED NOT NULL PRIMARY KEY,
  collector VARCHAR(255) CHARACTER SET ascii NOT NULL,
  run CHAR(32) CHARACTER SET ascii NOT NULL,
  until BIGINT NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- The collectors that poll, kept alive by their heartbeat.
CREATE TABLE IF NOT EXISTS ssh_poller (
  run CHAR(32) CHARACTER SET ascii NOT NULL PRIMARY KEY,
  collector VARCHAR(255) CHARACTER SET ascii NOT NULL,
  seen_at BIGINT NOT NULL
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- Why a host is silent. heard_at is which silence it is about: when the host had been heard last. health_at is
-- when its checks were judged last by what SSH said (0: never).
CREATE TABLE IF NOT EXISTS diagnosis (
  host INT UNSIGNED NOT NULL PRIMARY KEY,
  kind VARCHAR(64) CHARACTER SET ascii NOT NULL,
  evidence TEXT NOT NULL,
  heard_at BIGINT NOT NULL,
  since BIGINT NOT NULL,
  probed_at BIGINT NOT NULL,
  health_at BIGINT NOT NULL,
  CONSTRAINT diagnosis_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
