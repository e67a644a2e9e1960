-- Who a host is beyond its hostname, and who may speak for it.
-- own_name is what the machine calls itself where an admin calls it something else; empty: the same.

ALTER TABLE host ADD COLUMN hardware_id VARCHAR(255) NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN instance VARCHAR(255) NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN collector VARCHAR(255) CHARACTER SET ascii NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN own_name VARCHAR(255) NOT NULL DEFAULT '';

-- Groups that the collector gave, beside those that the agent names; host_group has both.
CREATE TABLE IF NOT EXISTS assigned_group (
  host INT UNSIGNED NOT NULL,
  name VARBINARY(1020) NOT NULL,
  PRIMARY KEY (host, name),
  CONSTRAINT assigned_group_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- Every certificate that is accepted, and until when its revocation is worth remembering. fingerprint and
-- issuer are the SHA-256 of a certificate's DER form. What is not in here is refused, whoever signed it.
CREATE TABLE IF NOT EXISTS certificate (
  fingerprint BINARY(32) NOT NULL PRIMARY KEY,
  host INT UNSIGNED NOT NULL,
  issuer BINARY(32) NOT NULL,
  issued_at BIGINT NOT NULL,
  not_after BIGINT NOT NULL,
  revoked_at BIGINT NULL,
  KEY certificate_by_host (host, issued_at),
  KEY certificate_by_revocation (revoked_at),
  KEY certificate_by_issuer (issuer, not_after),
  CONSTRAINT certificate_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB;

-- A token that trades for a certificate, by the SHA-256 of its text. hostname is the only machine that may
-- use it; empty: any. host is the record that it takes over, if there is one already. group_names is a JSON
-- array. Kept for a while after its end, so that a refusal can say why.
CREATE TABLE IF NOT EXISTS enrolment_token (
  id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  hash BINARY(32) NOT NULL,
  hostname VARCHAR(255) NOT NULL,
  host INT UNSIGNED NULL,
  group_names TEXT NOT NULL,
  uses INT NOT NULL,
  uses_left INT NOT NULL,
  created_at BIGINT NOT NULL,
  expires_at BIGINT NOT NULL,
  UNIQUE KEY enrolment_token_by_hash (hash),
  KEY enrolment_token_by_end (expires_at),
  CONSTRAINT enrolment_token_for_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- Machines that say Hello as a host that is alive elsewhere. place is a hash of what tells one from
-- the other. Gone when nobody has tried for a while.
CREATE TABLE IF NOT EXISTS conflict (
  host INT UNSIGNED NOT NULL,
  place BINARY(16) NOT NULL,
  hostname VARCHAR(255) NOT NULL,
  address VARCHAR(255) NOT NULL,
  machine_id VARCHAR(255) NOT NULL,
  hardware_id VARCHAR(255) NOT NULL,
  boot_id VARCHAR(255) NOT NULL,
  instance VARCHAR(255) NOT NULL,
  first_at BIGINT NOT NULL,
  last_at BIGINT NOT NULL,
  PRIMARY KEY (host, place),
  KEY conflict_by_time (last_at),
  CONSTRAINT conflict_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
