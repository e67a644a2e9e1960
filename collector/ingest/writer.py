"""The writer threads: take what waits, commit it in one transaction, answer."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from collector.ingest.batch import Answer, BatchWriter
from collector.ingest.inbox import Inbox
from collector.ingest.items import Item, Rejudgement, Submitted
from collector.store.errors import (
    SchemaMismatch,
    StoreConflict,
    StoreError,
    StoreLocked,
    StoreMisconfigured,
    StoreUnavailable,
)

_RETRY_CAP = 2.0  # seconds: how long after its cause ends a fault may last at most
_CONFLICTS = 20  # repetitions of a batch in conflict before its items are tried one by one

log = structlog.get_logger()

Outcome = Answer | Exception
_Answered = tuple[Submitted, Outcome]


class Writer(threading.Thread):
    """One writer: its own inbox, its own batches, one connection at a time.

    `on_outcome(error)` hears None after each commit, and what is wrong while there is none.
    `on_answered[loop](weight)` is called in the event loop that waits for the items' answers, whether or not
    somebody still wants those.
    """

    def __init__(
        self,
        number: int,
        batches: BatchWriter,
        on_outcome: Callable[[StoreError | None], None],
        on_answered: Mapping[asyncio.AbstractEventLoop, Callable[[int], None]],
        *,
        batch_reports: int,
        linger: float,
    ):
        super().__init__(name=f"writer-{number}", daemon=True)
        self.inbox = Inbox()
        self._batches = batches
        self._on_outcome = on_outcome
        self._on_answered = on_answered
        self._batch_reports = batch_reports
        self._linger = linger
        self._abandon = threading.Event()

    def run(self) -> None:
        """Until the inbox is closed and empty."""
        while (items := self.inbox.take(self._batch_reports, self._linger)) is not None:
            self._answer(items, self._commit(items))

    def abandon(self) -> None:
        """Stop repeating a batch that cannot be committed; its reports stay with their agents."""
        self._abandon.set()

    def _commit(self, items: Sequence[Item]) -> Sequence[Outcome]:
        attempt = 0
        while True:
            try:
                answers = self._batches.apply(items)
            except (StoreUnavailable, StoreLocked, SchemaMismatch, StoreMisconfigured) as error:
                self._batches.forget(items)
                self._on_outcome(error)
                if self._abandon.is_set():
                    return [error] * len(items)
            except StoreConflict as conflict:
                self._batches.forget(items)
                if attempt >= _CONFLICTS:
                    return self._one_by_one(items, conflict)
            except Exception as error:  # noqa: BLE001 - whatever one host's data does, the others go on
                self._batches.forget(items)
                return self._one_by_one(items, error)
            else:
                self._on_outcome(None)
                return answers
            attempt += 1
            delay = min(_RETRY_CAP, 0.02 * 2 ** min(attempt, 10))
            self._abandon.wait(random.uniform(0, delay))  # noqa: S311 - spreads retries, hides nothing

    def _one_by_one(self, items: Sequence[Item], error: Exception) -> Sequence[Outcome]:
        if len(items) == 1:
            # If the database has given a reason that we know, something is wrong with this item alone.
            self._on_outcome(error if type(error) is StoreError else None)
            log.error(
                "cannot store what a host sent", item=_describe(items[0]), error=str(error), exc_info=error
            )
            return [error]
        return [outcome for item in items for outcome in self._commit([item])]

    def _answer(self, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
        """Hand the outcomes to whoever waits, with one call into each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Answered]] = {}
        for item, outcome in zip(items, outcomes, strict=True):
            if not isinstance(item, Rejudgement):
                by_loop.setdefault(item.done.get_loop(), []).append((item, outcome))
        for loop, answered in by_loop.items():
            with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                loop.call_soon_threadsafe(self._resolve, answered, self._on_answered[loop])

    @staticmethod
    def _resolve(answered: Sequence[_Answered], on_answered: Callable[[int], None]) -> None:
        _resolve(answered)
        on_answered(sum(item.weight for item, _ in answered))


def _resolve(answered: Sequence[_Answered]) -> None:
    for item, outcome in answered:
        done: asyncio.Future[Any] = item.done
        if done.done():  # the stream ended meanwhile
            continue
        if isinstance(outcome, Exception):
            done.set_exception(outcome)
        else:
            done.set_result(outcome)


def _describe(item: Item) -> str:
    if isinstance(item, Rejudgement):
        return f"{len(item.hosts)} hosts judged by new rules"
    return getattr(item, "hostname", None) or f"Hello of {item.record.hostname}"  # type: ignore[union-attr]
