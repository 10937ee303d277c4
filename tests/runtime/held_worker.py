"""A worker whose orders wait until a test lets them be done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class HeldWorker:
    """``raftkv.ports.Worker`` without a thread.

    Attributes:
        orders: What was submitted and is not done yet, oldest first; None does everything at once.
    """

    def __init__(self) -> None:
        self.orders: list[Callable[[], None]] | None = []

    def submit(self, work: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        """Queue an order."""

        def order() -> None:
            try:
                result = work()
            except OSError as error:
                failed(error)
            else:
                done(result)

        if self.orders is None:
            order()
        else:
            self.orders.append(order)

    def work(self) -> None:
        """Do the oldest order."""
        assert self.orders
        self.orders.pop(0)()
