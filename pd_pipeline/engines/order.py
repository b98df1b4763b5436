"""Pieces of work side by side: each starts as soon as those that it reads are done."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from pd_pipeline.stage import Key

Piece = tuple[str, Key]
R = TypeVar("R")


def side_by_side(
    pieces: Sequence[Piece],
    needs: Callable[[str, Key], Iterable[Piece]],
    work: Callable[[str, Key], R],
    at_once: int,
    stop: Callable[[], object],
) -> Iterator[R]:
    """Call `work` for each of `pieces`, upstream first, in up to `at_once` threads; yields what it returns, as it does.

    A piece waits for those of `pieces` that it `needs`. After an error no other piece is started; those that run end
    first, so that what they made is recorded, and then the first error is raised. If this thread is interrupted, or
    the caller wants no more, `stop` is called, which should make the running ones end early.
    """
    known = set(pieces)
    missing = {piece: {need for need in needs(*piece) if need in known} for piece in pieces}
    readers = defaultdict[Piece, list[Piece]](list)
    for piece, wanted in missing.items():
        for need in wanted:
            readers[need].append(piece)
    ready = deque(piece for piece in pieces if not missing[piece])
    running: dict[Future[R], Piece] = {}
    failed: list[BaseException] = []
    with ThreadPoolExecutor(at_once) as threads:
        try:
            while running or (ready and not failed):
                while ready and not failed and len(running) < at_once:
                    piece = ready.popleft()
                    running[threads.submit(work, *piece)] = piece
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    piece = running.pop(future)
                    if (error := future.exception()) is not None:
                        failed.append(error)
                        continue
                    for reader in readers[piece]:
                        missing[reader].remove(piece)
                        if not missing[reader]:
                            ready.append(reader)
                    yield future.result()
        except BaseException:
            stop()
            raise
    if failed:
        raise failed[0]
