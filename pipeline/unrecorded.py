"""The peers' processes without a run: no config is frozen, no folder is made; only a log in the cache stays."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from data.answers.own_grader import check_own
from data.config.sections import Config
from data.console import redirect_output
from data.errors import UserError
from data.run import Run
from peers.engines.protocol import engine_kind
from peers.local import warm
from peers.policy import Policy, resolve_all
from peers.source import CACHE, check_peers
from peers.workers import Pool


@contextmanager
def untouched_peers(config: Config, what: str) -> Iterator[tuple[Pool, dict[str, Policy]]]:
    """The peers' processes for a run that is not on disk, and their untouched policies; `what` names the log.

    Downloads and converts models if necessary. Raises UserError for peers that cannot be used.
    """
    check_peers(config)
    check_own(config.answer_kinds)
    run = Run(what, config)
    with processes(run, what) as workers:
        yield workers, resolve_all(run, 0)


@contextmanager
def processes(run: Run, what: str) -> Iterator[Pool]:
    """The processes of a run's peers, outside any stage; `what` names their log in the cache."""
    warm(run.config, engine=engine_kind(run.config.generate) == "vllm")
    log = CACHE.with_name("logs") / f"{what}.log"
    log.unlink(missing_ok=True)
    with Pool(run) as workers, redirect_output(log):
        workers.log = log
        try:
            yield workers
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException:
            with suppress(OSError), log.open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            raise
