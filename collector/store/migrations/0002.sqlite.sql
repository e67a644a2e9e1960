-- Who a host is beyond its hostname, and who may speak for it.
-- own_name is what the machine calls itself where an admin calls it something else; empty: the same.

ALTER TABLE host ADD COLUMN hardware_id TEXT NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN instance TEXT NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN collector TEXT NOT NULL DEFAULT '';
ALTER TABLE host ADD COLUMN own_name TEXT NOT NULL DEFAULT '';

-- Groups that the collector gave, beside those that the agent names; host_group has both.
CREATE TABLE IF NOT EXISTS assigned_group (
  host INTEGER NOT NULL,
  name TEXT NOT NULL,
  PRIMARY KEY (host, name),
  CONSTRAINT assigned_group_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;

-- Every certificate that is accepted, and until when its revocation is worth remembering. fingerprint and
-- issuer are the SHA-256 of a certificate's DER form. What is not in here is refused, whoever signed it.
CREATE TABLE IF NOT EXISTS certificate (
  fingerprint BLOB NOT NULL PRIMARY KEY,
  host INTEGER NOT NULL,
  issuer BLOB NOT NULL,
  issued_at INTEGER NOT NULL,
  not_after INTEGER NOT NULL,
  revoked_at INTEGER NULL,
  CONSTRAINT certificate_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX IF NOT EXISTS certificate_by_host ON certificate (host, issued_at);
CREATE INDEX IF NOT EXISTS certificate_by_revocation ON certificate (revoked_at);
CREATE INDEX IF NOT EXISTS certificate_by_issuer ON certificate (issuer, not_after);

-- A token that trades for a certificate, by the SHA-256 of its text. hostname is the only machine that may
-- use it; empty: any. host is the record that it takes over, if there is one already. group_names is a JSON
-- array. Kept for a while after its end, so that a refusal can say why.
CREATE TABLE IF NOT EXISTS enrolment_token (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  hash BLOB NOT NULL,
  hostname TEXT NOT NULL,
  host INTEGER NULL,
  group_names TEXT NOT NULL,
  uses INTEGER NOT NULL,
  uses_left INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  CONSTRAINT enrolment_token_for_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS enrolment_token_by_hash ON enrolment_token (hash);
CREATE INDEX IF NOT EXISTS enrolment_token_by_end ON enrolment_token (expires_at);

-- Machines that say Hello as a host that is alive elsewhere. place is a hash of what tells one from
-- the other. Gone when nobody has tried for a while.
CREATE TABLE IF NOT EXISTS conflict (
  host INTEGER NOT NULL,
  place BLOB NOT NULL,
  hostname TEXT NOT NULL,
  address TEXT NOT NULL,
  machine_id TEXT NOT NULL,
  hardware_id TEXT NOT NULL,
  boot_id TEXT NOT NULL,
  instance TEXT NOT NULL,
  first_at INTEGER NOT NULL,
  last_at INTEGER NOT NULL,
  PRIMARY KEY (host, place),
  CONSTRAINT conflict_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX IF NOT EXISTS conflict_by_time ON conflict (last_at);
