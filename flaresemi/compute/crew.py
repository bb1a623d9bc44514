"""The processes of a launch of which the first decides, and the others do with it what takes long."""

from collections.abc import Callable
from typing import Any, Literal

import torch.distributed as dist

from flaresemi.compute.distributed import PATIENCE, Ranks
from flaresemi.errors import FlaresemiError

#: How the work of a launch ends: all is done, it was asked to stop, or the first process tells of an error.
End = Literal["done", "stopped", "failed"]


class Crew:
    """The first process goes through its work as if it were alone, and calls the others where a piece can be shared.

    A piece is a function at the top of a module. It gets what every process has of its own (its device, say), and what
    the first one sends: all of it must be fit to be pickled.

    Args:
        ranks: Of the launch, joined; alone, nothing is shared.
    """

    def __init__(self, ranks: Ranks = Ranks()) -> None:  # noqa: B008 (frozen)
        self.ranks = ranks
        self._is_broken = False
        # A group of its own, on the CPU: those of training have a time limit.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if ranks.world_size > 1 else None

    def together(self, own: object, work: Callable[..., Any], *sent: object, in_step: bool = False) -> list[Any]:
        """In the first process: has every process do the same piece of work.

        Args:
            own: What this process has of its own.
            work: Gets `own`, then what is sent.
            in_step: The processes wait for each other within it: one that fails breaks it for all.

        Returns:
            What it gave, by rank.

        Raises:
            FlaresemiError: of the first process that failed, when all have come to the end.
        """
        if self._group is None:
            return [work(own, *sent)]
        dist.broadcast_object_list([(work, sent, in_step)], src=0, group=self._group)
        return self._outcomes(own, work, sent, in_step)

    def follow(self, own: object) -> End:
        """In the others: does what the first process calls for until it says how its work ends."""
        while True:
            order: list[Any] = [None]
            dist.broadcast_object_list(order, src=0, group=self._group)
            if isinstance(order[0], str):
                return order[0]  # type: ignore[return-value] # sent by `dismiss`
            work, sent, in_step = order[0]
            self._outcomes(own, work, sent, in_step)

    def dismiss(self, end: End) -> None:
        """In the first process: lets the others go, unless they have gone with what broke."""
        if self._group is not None and not self._is_broken:
            dist.broadcast_object_list([end], src=0, group=self._group)

    def _outcomes(self, own: object, work: Callable[..., Any], sent: tuple[Any, ...], in_step: bool) -> list[Any]:
        """The values of all processes in the first one; nothing in the others."""
        value, error = None, None
        self._is_broken = True
        try:
            value = work(own, *sent)
        except FlaresemiError as problem:
            if in_step:
                raise
            error = problem
        found: list[Any] | None = [None] * self.ranks.world_size if self.ranks.is_main else None
        dist.gather_object((value, error), found, dst=0, group=self._group)
        self._is_broken = False
        if found is None:
            return []
        if errors := [error for _, error in found if error is not None]:
            raise errors[0]
        return [value for value, _ in found]
