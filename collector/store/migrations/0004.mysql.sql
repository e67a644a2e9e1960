-- What hosts are beyond their groups: labels, as an inventory has them.

CREATE TABLE IF NOT EXISTS host_label (
  host INT UNSIGNED NOT NULL,
  name VARBINARY(1020) NOT NULL,
  content VARBINARY(1020) NOT NULL,
  PRIMARY KEY (host, name),
  KEY host_label_by_name (name, content),
  CONSTRAINT host_label_of_host FOREIGN KEY (host) REFERENCES host (id) ON DELETE CASCADE
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- named: the agent names the group, too, so that the host stays in it when it is assigned no more.
ALTER TABLE assigned_group ADD COLUMN named TINYINT NOT NULL DEFAULT 0;
