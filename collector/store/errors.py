"""The few ways in which a store can fail. Driver errors are mapped to these and go no further."""

from __future__ import annotations


class StoreError(Exception):
    """Something is wrong with the database; the text says what, and what to do."""


class StoreUnavailable(StoreError):
    """The database cannot be used at the moment: try again later."""


class StoreConflict(StoreError):
    """Somebody else changed the same rows: roll back, load again and repeat."""


class StoreLocked(StoreConflict):
    """Somebody else has held the same rows for as long as anyone waits: roll back, and repeat."""


class StoreReadOnly(StoreUnavailable):
    """The database answers but takes no writes: read-only or full."""


class StoreRefused(StoreError):
    """The database refuses the data itself: trying the same again does not help."""


class SchemaMismatch(StoreError):
    """The database holds another schema version than this program needs."""


class StoreMisconfigured(StoreError):
    """The database refuses who we are or what we ask; trying again does not help."""
