-- What hosts are beyond their groups: labels, as an inventory has them.

CREATE TABLE IF NOT EXISTS host_label (
  host INTEGER NOT NULL,
  name TEXT NOT NULL,
  content TEXT NOT NULL,
  PRIMARY KEY (host, name),
  CONSTRAINT host_label_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) STRICT;
CREATE INDEX IF NOT EXISTS host_label_by_name ON host_label (name, content);

-- named: the agent names the group, too, so that the host stays in it when it is assigned no more.
ALTER TABLE assigned_group ADD COLUMN named INTEGER NOT NULL DEFAULT 0;
