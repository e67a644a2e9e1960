"""Where statuses, values and events are kept. SQL and database drivers stop here."""
