"""Works on a study until it is done: alone, or beside other machines on the same database."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mlet.atomic import write_text
from mlet.data import PreparedDataset
from mlet.data.prepare import Report
from mlet.errors import RunError, WriteError
from mlet.interrupts import DeferredInterrupt
from mlet.nn.compression import Precision
from mlet.settings import Settings, load_yaml
from mlet.studies.bias_only import bias_only
from mlet.studies.datasets import DatasetConfig, make_ready
from mlet.studies.ledger import Claim, Ledger
from mlet.studies.processes import usable_cores, worker_pool
from mlet.studies.results import StudyResult, collect
from mlet.studies.runs import Outcome, is_lost, run_path, tidy, train_and_score
from mlet.studies.study import Arm, StudyConfig
from mlet.training import RunDirectory

#: Seconds between looks at the database while other machines hold all that is left.
_PATIENCE = 2.0
#: Seconds until Ctrl-C is heard.
_HEARING = 0.1
_WAITING = "waiting for other processes' runs (if one died: Ctrl-C, then --take-over)"
_KILLED = "the process was killed (out of memory?)"


def sweep(
    study: StudyConfig,
    out: Path,
    *,
    storage: str | None = None,
    jobs: int | None = None,
    devices: Sequence[str] = ("cpu",),
    take_over: bool = False,
    report: Report = lambda what, done, total: None,
) -> StudyResult:
    """Tune and train every arm, then say what came of it.

    Called again it continues: finished runs are kept, unfinished ones resume. Several machines may
    work on one study if they share ``out`` (a network folder) and ``storage``.

    Args:
        study: the grid.
        out: directory for data, runs and results.
        storage: URL of the database of trials; a SQLite file in ``out`` by default.
        jobs: runs at once, each in a process of its own; None: one for each core.
        devices: of the runs, in turn: job i works on ``devices[i % len(devices)]``.
        take_over: give back runs that other machines hold: for when one of them died.
        report: told of progress.

    Raises:
        ConfigError, DataError: the study or its data cannot be used.
        RunError: ``out`` holds another study, or the database cannot be opened.
    """
    began = time.perf_counter()
    jobs = jobs or usable_cores()
    keep_config(study, out)
    data = {
        name: make_ready(config, out / "data" / name, report)
        for name, config in study.datasets.items()
    }
    for name, path in data.items():
        check_data(out / "runs" / name, path)
    biases = {
        name: bias_only(
            PreparedDataset(path),
            study.task,
            study.training,
            out / "biases" / f"{name}.json",
            report,
        )
        for name, path in data.items()
    }
    ledger = Ledger(study, storage or f"sqlite:///{(out / 'study.db').resolve()}")
    runner = Runner(study, out, ledger, data, devices, report)
    with ledger.named_failures():
        # Interrupted halfway, a write would keep the database locked: even for ourselves, who have
        # yet to give back what we claimed.
        with DeferredInterrupt() as interrupt:
            for arm in runner.trainings:
                ledger.recover(arm, take_over=take_over)
                runner.forget_lost(arm)
            runner.work(jobs, interrupt)
        seconds = time.perf_counter() - began
        return collect(study, out, ledger, data, seconds=seconds, jobs=jobs, biases=biases)


def keep_config(study: StudyConfig, out: Path) -> None:
    """A study may grow between calls; what was in it may not change."""
    file = out / "study.yaml"
    if file.exists():
        before = _load_kept(file, type(study))
        own = [name for name in type(study).model_fields if name not in StudyConfig.model_fields]
        changed = [
            name
            for name in ("tuning", "training", "resamples", "mlet", *own)
            if getattr(before, name) != getattr(study, name)
        ]
        for kind in ("datasets", "models", "optimizers", "peers"):
            old, new = getattr(before, kind), getattr(study, kind)
            changed += [
                f"{kind}.{name}"
                for name in old
                if name in new and _settled(old[name]) != _settled(new[name])
            ]
        if changed:
            older = before.mlet == {} != study.mlet
            hint = f" (mlet 0.1 had no recipe: sweep {file} --set mlet={{}} goes on with it)"
            raise RunError(
                f"{file}: the study in {out} has other {', '.join(changed)!r} settings; choose "
                f"another --out{hint if older else ''}"
            )
    write_text(file, study.to_yaml())


def _load_kept(file: Path, kind: type[StudyConfig]) -> StudyConfig:
    """The settings of a study as it was begun; those of mlet 0.1 knew nothing of a recipe."""
    return kind.parse({"mlet": {}, **load_yaml(file)}, str(file))


def _settled(part: Settings) -> Settings:
    """A part of a study without what may change: where a prepared data set lies."""
    if isinstance(part, DatasetConfig) and part.prepared is not None:
        return part.model_copy(update={"prepared": Path()})
    return part


def check_data(runs: Path, data: Path) -> None:
    """Refuse to go on with runs of other data than there is now; one stands for all.

    Raises:
        RunError: it is other data; names what differs.
    """
    for schema in runs.rglob("schema.json"):
        RunDirectory(schema.parent).check_data(PreparedDataset(data), same_rows=True)
        return


def _first_done(
    running: Collection[Future[Outcome]], interrupt: DeferredInterrupt
) -> set[Future[Outcome]]:
    """Wait until something is done, but not for ever: others may have done something too."""
    end = time.monotonic() + _PATIENCE
    done: set[Future[Outcome]] = set()
    while not done and time.monotonic() < end:
        if running:
            done, _ = wait(running, timeout=_HEARING, return_when=FIRST_COMPLETED)
        else:
            time.sleep(_HEARING)
        interrupt.raise_if_asked()
    return done


class Runner:
    """Keeps workers busy with claims from the ledger.

    Attributes:
        trainings: the arms that are trained, each once.
        valid_precisions: of all runs on validation.
    """

    valid_precisions: tuple[Precision, ...] = ()

    def __init__(
        self,
        study: StudyConfig,
        out: Path,
        ledger: Ledger,
        data: dict[str, Path],
        devices: Sequence[str],
        report: Report,
    ) -> None:
        self._study, self._out, self._ledger, self._data = study, out, ledger, data
        self._devices, self._report = devices, report
        self.trainings = list(dict.fromkeys(map(study.trained, study.arms())))
        self._open: list[Arm] = []
        self._total = len(self.trainings) * (study.tuning.trials + study.seeds)
        self._finished: dict[str, int] = {}

    def forget_lost(self, arm: Arm) -> None:
        """Let final runs be trained again that somebody has removed, or their model and scores."""
        for trial in self._ledger.finals(arm):
            path = run_path(self._out, arm.name, trial.params, trial.user_attrs["seed"])
            if is_lost(path, self._study.precisions(arm)):
                if RunDirectory(path).finished:  # without a model, it would be left as it is
                    shutil.rmtree(path)
                self._ledger.forget(arm, trial.number)

    def work(self, jobs: int, interrupt: DeferredInterrupt) -> None:
        """Until every arm is done."""
        self._open = list(self.trainings)
        for arm in list(self._open):
            if self._ledger.done(arm):
                self._close(arm)
        if not self._open:
            return  # without starting a worker
        running: dict[Future[Outcome], tuple[Claim, int]] = {}
        pool = worker_pool(jobs)
        try:
            while True:
                self._show()
                for slot in sorted(set(range(jobs)) - {slot for _, slot in running.values()}):
                    claim = self._next_claim()
                    if claim is None:
                        break
                    running[self._submit(pool, claim, slot)] = (claim, slot)
                if not running:
                    if not self._open:
                        return
                    self._report(_WAITING, 0, None)
                done = _first_done(running, interrupt)
                broken = any(isinstance(future.exception(), BrokenProcessPool) for future in done)
                if broken:
                    pool.shutdown()  # nobody trains a run any more when it may be claimed again
                for future in done:
                    self._settle(running.pop(future)[0], future)
                if broken:
                    # All that was running is lost, whichever process was killed.
                    for claim, _ in running.values():
                        self._ledger.lose(claim, _KILLED)
                    running.clear()
                    pool = worker_pool(jobs)
        except BaseException:
            # A pool waits for what it runs, which may take hours; what is lost is resumed anyway.
            for process in list((pool._processes or {}).values()):
                process.terminate()
                process.join()
            for claim, _ in running.values():
                self._ledger.give_back(claim)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _next_claim(self) -> Claim | None:
        for arm in list(self._open):
            if self._ledger.done(arm):
                self._close(arm)
                continue
            claim = self._ledger.claim(arm)
            if claim is not None:
                return claim
        return None

    def _close(self, arm: Arm) -> None:
        self._open.remove(arm)
        self._finished[arm.name] = self._study.tuning.trials + self._study.seeds
        finals = self._ledger.finals(arm)
        kept = {
            run_path(self._out, arm.name, trial.params, trial.user_attrs["seed"])
            for trial in finals
        }
        tidy(self._out, arm.name, kept)

    def _submit(self, pool: ProcessPoolExecutor, claim: Claim, slot: int) -> Future[Outcome]:
        config = self._study.run(
            claim.arm, claim.setting, claim.seed, self._data[claim.arm.dataset]
        )
        try:
            return pool.submit(
                train_and_score,
                config,
                run_path(self._out, claim.arm.name, claim.setting, claim.seed),
                precisions=self._study.precisions(claim.arm) if claim.final else (),
                resamples=self._study.resamples,
                valid_precisions=self.valid_precisions,
                device=self._devices[slot % len(self._devices)],
                halving=claim.halving,
                wide=self._study.wide_run(
                    claim.arm, claim.setting, claim.seed, self._data[claim.arm.dataset]
                ),
            )
        except BrokenProcessPool as error:  # a worker was killed a moment ago
            failed: Future[Outcome] = Future()
            failed.set_exception(error)
            return failed

    def _settle(self, claim: Claim, future: Future[Outcome]) -> None:
        error = future.exception()
        if isinstance(error, WriteError | KeyboardInterrupt):
            self._ledger.give_back(claim)
            raise error  # a full disk would fail every run, Ctrl-C is told to all
        if isinstance(error, BrokenProcessPool):
            self._ledger.lose(claim, _KILLED)
            return
        if error is not None:
            # Whatever it is, the other arms go on; the report names it.
            self._ledger.fail(claim, f"{type(error).__name__}: {error}")
            return
        outcome = future.result()
        if outcome.valid is not None:
            self._ledger.complete(claim, outcome.valid, outcome.validations, outcome.points)
        elif outcome.reason is None:
            self._ledger.prune(claim, outcome.validations)
        else:
            self._ledger.fail(claim, outcome.reason)
        done = sum(trial.state.name != "RUNNING" for trial in self._ledger.trials(claim.arm))
        self._finished[claim.arm.name] = done

    def _show(self) -> None:
        self._report("training runs", sum(self._finished.values()), self._total)
