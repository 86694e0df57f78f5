"""What the two command lines share: progress, and faults without a traceback."""

import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from onnxq.errors import OnnxqError
from onnxq.progress import Progress

__all__ = ["progress_on", "run"]

T = TypeVar("T")
INTERRUPTED = 2


def progress_on(console: Console) -> Progress:
    """A bar on a terminal, else a line for every item."""

    def show(items: Iterable[T], what: str, total: int) -> Iterable[T]:
        if console.is_terminal:
            yield from track(items, what, total, console=console)
            return
        for number, item in enumerate(items, 1):
            console.print(f"{what}: {number} of {total}", soft_wrap=True)
            yield item

    return show


def run(main: Callable[[], None]) -> None:
    """Call ``main``; end with the exit code of its fault, which goes to standard error."""
    try:
        main()
    except OnnxqError as fault:
        sys.exit(_say(str(fault), fault.exit_code))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the same command goes on from here", INTERRUPTED))


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code
