"""Does the same for many projects, side by side in processes, and each failure by itself."""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
from msgspec.structs import replace

from fledge.errors import FledgeError
from fledge.host import children
from fledge.host.children import Died, Event, Returned, Sent, Started
from fledge.host.signals import PartialInterrupt
from fledge.oci.manifest import Platform
from fledge.operations.arguments import ConfigLike
from fledge.operations.relay import Relay, Replay
from fledge.project.config import Config
from fledge.report import Job, Reporter
from fledge.session import Session
from fledge.store.cache import Cache

T = TypeVar("T")

DIED = "If this machine has run out of memory, do it for that project alone."
"""What to do about a process that was killed."""


class Task(msgspec.Struct, Generic[T], frozen=True):
    """Something to do for one project."""

    name: str
    """Names the project in reports."""
    run: Callable[[Session], T]
    """Does it. The result must be picklable."""
    base: Hashable = None
    """What it may have to download. Tasks with equal bases would wait for each other."""
    describe: Callable[[T], str] = lambda result: ""
    """Describes a result in a line of the report."""


class Outcome(msgspec.Struct, Generic[T], frozen=True):
    """The result of one task, or why it has none."""

    name: str
    value: T | None = None
    error: FledgeError | None = None
    """None: it has succeeded."""


def project_name(config: ConfigLike, platform: Platform | None = None) -> str:
    """Return the name of a project in reports: its folder, or its config if that is not named
    fledge.toml, and the platform, unless it is None.
    """
    path = config.path if isinstance(config, Config) else Path(config)
    folder = path.parent if path.name == "fledge.toml" else path
    name = str(path if folder == Path() else folder)
    return f"{name} for {platform}" if platform else name


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def side_by_side(
    tasks: Sequence[Task[T]], session: Session, processes: int = 0
) -> list[Outcome[T]]:
    """Do all tasks, each in a process of its own, and return their outcomes in the same order.

    ``processes`` is how many run at the same time; 0: one for each core. They share the cache
    of ``session``, and its reporter gets a `Job` for each task. Call it while no other thread runs,
    because the processes are forked. Raises `PartialInterrupt` for a `KeyboardInterrupt`, after the
    processes have ended.
    """
    order = _spread(tasks)
    outcomes: dict[int, Outcome[T]] = {}
    functions = [partial(_work, tasks[number], session) for number in order]
    try:
        with closing(children.run(functions, processes or usable_cores())) as events:
            _watch(events, [tasks[number] for number in order], session.reporter, outcomes)
    except KeyboardInterrupt as interrupt:
        raise PartialInterrupt(len(outcomes), len(tasks), *interrupt.args) from interrupt
    return [outcomes[order.index(number)] for number in range(len(tasks))]


def _watch(
    events: Iterable[Event | None],
    tasks: Sequence[Task[T]],
    reporter: Reporter,
    outcomes: dict[int, Outcome[T]],
) -> None:
    """Show what happens in the processes, and fill in the outcomes as they come."""
    with ExitStack() as shown, reporter.batch("plugins", len(tasks), None) as batch:
        opened: dict[int, _Shown] = {}
        for event in events:
            if event is None:
                reporter.tick()
                continue
            number = event.number
            if isinstance(event, Started):
                opened[number] = shown.enter_context(_Shown(reporter, tasks[number].name))
            elif isinstance(event, Sent):
                opened[number].replay.make(event.value)
            else:
                outcomes[number] = _outcome(event, tasks[number].name)
                opened[number].end(outcomes[number], tasks[number].describe)
                batch.finished()


def _outcome(event: Returned | Died, name: str) -> Outcome[Any]:
    if isinstance(event, Died):
        return Outcome(name, error=FledgeError(f"its process died: {event.how}", DIED))
    outcome: Outcome[Any]
    outcome, modules = event.value
    for module in modules:
        import_module(module)
    return outcome


def in_turn(tasks: Iterable[Task[T]], session: Session) -> list[Outcome[T]]:
    """Do all tasks in this process, one after the other, and return their outcomes."""
    outcomes = []
    for task in tasks:
        with _Shown(session.reporter, task.name) as shown:
            outcome = _attempt(task, replace(session, reporter=shown.job.reporter))
            shown.end(outcome, task.describe)
            outcomes.append(outcome)
    return outcomes


class _Shown(AbstractContextManager["_Shown"]):
    """Shows a task as a job of a reporter. One that has not ended is shown as failed."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._context = reporter.job(name)
        self.job: Job = self._context.__enter__()
        self.replay = Replay(self.job.reporter)
        self._is_open = True

    def __exit__(self, *error: object) -> None:
        self._close(FledgeError("it was not finished"))

    def end(self, outcome: Outcome[T], describe: Callable[[T], str]) -> None:
        """Show the outcome."""
        if outcome.value is not None:
            self.job.detail = describe(outcome.value)
        self._close(outcome.error)

    def _close(self, error: FledgeError | None) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self.replay.close()
        self._context.__exit__(type(error) if error else None, error, None)


def _spread(tasks: Sequence[Task[Any]]) -> list[int]:
    """Return an order in which tasks with equal bases are far apart.

    So the first ones download different bases, and the others find theirs in the cache.
    """
    seen: Counter[Hashable] = Counter()
    turns = []
    for task in tasks:
        turns.append(seen[task.base])
        seen[task.base] += 1
    return sorted(range(len(tasks)), key=turns.__getitem__)


def _work(
    task: Task[T], session: Session, send: Callable[[object], None]
) -> tuple[Outcome[T], list[str]]:
    """Do a task in a child process. Connections and locks of the parent are not for the child.

    Also returns the modules that it had to import: the parent imports them, so that the processes
    that it forks later need not.
    """
    before = set(sys.modules)
    cache = Cache(session.cache.root)
    outcome = _attempt(task, replace(session, reporter=Relay(send), cache=cache))
    new = sys.modules.keys() - before
    return outcome, sorted(name for name in new if name.startswith("fledge."))


def _attempt(task: Task[T], session: Session) -> Outcome[T]:
    try:
        return Outcome(task.name, task.run(session))
    except FledgeError as error:
        return Outcome(task.name, error=error)
    except Exception as error:
        for line in traceback.format_exc().splitlines():
            session.reporter.detail(line)
        message = f"internal error: {type(error).__name__}: {error}"
        hint = "Run the command again with -v and report its output."
        return Outcome(task.name, error=FledgeError(message, hint))
