"""The way of a report into the database: admitted on one event loop, written by a few threads."""
