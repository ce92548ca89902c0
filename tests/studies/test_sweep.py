"""A whole study through the command line: results, interruption, failures, dry runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mlet.data import PreparedDataset
from mlet.errors import RunError
from mlet.export import load_collapsed
from mlet.metrics import resampled_scores, score
from mlet.studies import StudyConfig, sweep
from mlet.studies.categories import frequency_curves
from mlet.studies.ledger import Ledger
from mlet.studies.runs import read_test_scores
from mlet.training.predict import predict

ROOT = Path(__file__).parents[2]
TRIALS, SEEDS = 3, 2


def values(data: Path, **changes: object) -> dict[str, object]:
    return {
        "datasets": {"clicks": {"prepared": str(data)}},
        "models": {"dlrm": {"bottom_mlp": [8], "top_mlp": [8]}},
        "optimizers": ["adagrad"],
        "dims": [2, 4],
        "inner_dims": [8],
        "peers": {"hashing": {"compression": {"name": "hashing"}}, "int4": {"precision": "int4"}},
        "seeds": SEEDS,
        "tuning": {"trials": TRIALS},
        "training": {"epochs": 1, "batch_size": 128},
        "resamples": 40,
        **changes,
    }


@pytest.fixture(scope="module")
def finished(small_data: Path, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "study.yaml").write_text(yaml.safe_dump(values(small_data)))
    command = [warm / "mlet", "sweep", "study.yaml", "--out", "out", "--jobs", "2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Against SLT of the same dimension" in done.stdout
    assert "report: out/report.html" in done.stdout
    return folder / "out"


@pytest.mark.slow
def test_every_number_is_that_of_the_models_that_are_kept(finished: Path, small_data: Path) -> None:
    found = json.loads((finished / "study.json").read_text())
    (panel,) = found["panels"]
    assert len(panel["arms"]) == 2 * 4
    assert found["failures"] == []
    columns = PreparedDataset(small_data).split("test")
    for arm in panel["arms"]:
        assert arm["tuning"]["tried"] == TRIALS
        precision = "int4" if arm["method"] == "int4" else "float32"
        # What differs from single-layer training in serving alone uses its runs.
        trained = "slt" if precision == "int4" else arm["method"]
        folder = finished / "runs" / "clicks" / "dlrm" / "adagrad" / f"{trained}-d{arm['dim']}"
        kept = sorted(folder.glob("*/model.safetensors"))
        assert len(kept) == SEEDS
        assert {path.parent for path in kept} == {path.parent for path in folder.glob("*/test.npz")}
        assert len(list(folder.iterdir())) == TRIALS + SEEDS - 1, "one final run was a trial"
        best = max(
            json.loads(path.read_text())["valid"]["auc"]
            for path in folder.glob("*-seed0/summary.json")
        )
        assert arm["runs"][0]["valid_auc"] == best, "the chosen setting is the best on validation"
        for run, path in zip(arm["runs"], kept, strict=True):
            model, _, _ = load_collapsed(path)
            p = predict(model.collapse(precision), columns).astype(np.float32)
            stored = read_test_scores(path.parent, precision)
            assert stored.predictions.tolist() == p.tolist()
            assert run["test"]["auc"] == pytest.approx(score(columns.labels["label"], p).auc)
            draws = resampled_scores(columns.labels["label"], p, samples=40)
            np.testing.assert_array_equal(stored.resamples, draws)
        mean = np.mean([run["test"]["auc"] for run in arm["runs"]])
        assert arm["test"]["auc"]["mean"] == pytest.approx(mean)
    served = {(arm["method"], arm["dim"]): arm["model_bytes"] for arm in panel["arms"]}
    for dim in (2, 4):
        assert served["mlet-k8", dim] == served["slt", dim]
        assert served["hashing", dim] < served["slt", dim]
    assert served["int4", 4] < served["slt", 4]


@pytest.mark.slow
def test_the_report_is_one_page_with_all_that_was_found(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    for text in ("Reductions", "Gain over SLT, by d and k",
                 "Gain against category frequency", "Quality of single categories",
                 "bytes that are served", "quality and cost", "Tuning", "Settings"):  # fmt: skip
        assert text in page
    assert re.findall(r"(?:src|href)=\"(?!#)", page) == []
    assert re.findall(r"url\((?!#)", page) == []
    assert page.count("<svg") == 5
    tables = (finished / "tables.md").read_text()
    assert "## clicks · dlrm · adagrad" in tables
    assert tables.count("| hashing |") == 2 + 1
    assert sorted(path.name for path in (finished / "figures").iterdir()) == [
        "clicks-adagrad-by-count.svg", "clicks-adagrad-categories.svg",
        "clicks-adagrad-curves.svg", "clicks-adagrad-gains.svg", "clicks-adagrad-pareto-dlrm.svg",
    ]  # fmt: skip


def numbers(folder: Path) -> list[object]:
    """What a study found, without times."""
    arms = json.loads((folder / "study.json").read_text())["panels"][0]["arms"]
    return [(a["method"], a["dim"], a["tuning"], a["test"], a["slices"]) for a in arms]


def children(process: int | str) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def workers_of(process: int) -> list[str]:
    """The processes that train are forks of one of the study's children."""
    return [worker for child in children(process) for worker in children(child)]


def alive(process: str) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_an_interrupted_study_ends_like_an_uninterrupted_one(
    finished: Path, small_data: Path, mlet_command: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values(small_data)))
    command = [mlet_command, "sweep", "study.yaml", "--out", "out", "--jobs", "2"]
    for sign in (signal.SIGKILL, signal.SIGINT):
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        before = len(list((tmp_path / "out" / "runs").rglob("summary.json")))
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "out" / "runs").rglob("summary.json"))) < before + 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        workers = workers_of(process.pid)
        assert workers
        workers += children(process.pid)
        process.send_signal(sign)
        process.wait(60)
        while any(map(alive, workers)):
            assert time.monotonic() < deadline, "a worker outlives the study"
            time.sleep(0.05)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert numbers(tmp_path / "out") == numbers(finished)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing(
    finished: Path, small_data: Path, mlet_command: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values(small_data)))
    command = [mlet_command, "sweep", "study.yaml", "--out", "out", "--jobs", "2"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out" / "runs").rglob("summary.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)
    assert process.wait(280) == 0, (tmp_path / "log").read_text()
    assert numbers(tmp_path / "out") == numbers(finished)


@pytest.mark.slow
def test_two_processes_share_a_study(
    finished: Path, small_data: Path, mlet_command: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values(small_data)))
    command = [mlet_command, "sweep", "study.yaml", "--out", "out", "--jobs", "1"]
    both = [
        subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        out, errors = process.communicate(timeout=280)
        assert process.returncode == 0, out + errors
    assert numbers(tmp_path / "out") == numbers(finished)
    config = StudyConfig.parse(values(small_data), "study")
    ledger = Ledger(config, f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    trials = [trial for arm in config.arms() for trial in ledger.trials(arm)]
    owners = {trial.user_attrs["owner"].split(":")[1] for trial in trials}
    assert owners == {str(process.pid) for process in both}, "each did its share"
    assert len(trials) == (len(config.arms()) - 2) * (TRIALS + SEEDS), "and nothing was done twice"


def test_it_is_said_that_others_train_what_is_left(small_data: Path, tmp_path: Path) -> None:
    class Waits(Exception):
        """Instead of waiting until somebody trains it."""

    def report(what: str, done: int, total: int | None) -> None:
        if "other processes' runs" in what:
            raise Waits

    study = values(small_data, dims=[2], inner_dims=[], peers={}, tuning={"trials": 1}, seeds=1)
    config = StudyConfig.parse(study, "study")
    ledger = Ledger(config, f"sqlite:///{tmp_path / 'study.db'}")
    assert ledger.claim(config.arms()[0]) is not None
    with pytest.raises(Waits):
        sweep(config, tmp_path, report=report)
    assert len(sweep(config, tmp_path, take_over=True).panels[0].arms) == 1


@pytest.mark.slow
def test_a_study_may_grow_and_shrink_but_not_change(small_data: Path, tmp_path: Path) -> None:
    small = values(small_data, dims=[2], peers={}, tuning={"trials": 1})
    config = StudyConfig.parse(small, "study")
    devices = ("cpu", "cpu:0")
    before = sweep(config, tmp_path, jobs=2, devices=devices)
    runs = sorted((tmp_path / "runs").rglob("config.yaml"))
    assert len(runs) == 2 * SEEDS, "the one trial of each arm is a final run"
    used = {yaml.safe_load(run.read_text())["training"]["device"] for run in runs}
    assert used == set(devices)
    stamps = [run.stat().st_mtime_ns for run in runs]
    fewer = sweep(StudyConfig.parse({**small, "seeds": 1}, "study"), tmp_path)
    assert [len(arm.runs) for arm in fewer.panels[0].arms] == [1, 1]
    grown = sweep(StudyConfig.parse({**small, "inner_dims": [8, 16]}, "study"), tmp_path)
    assert [run.stat().st_mtime_ns for run in runs] == stamps
    old, new = before.panels[0], grown.panels[0]
    assert [arm.runs for arm in new.arms][:2] == [arm.runs for arm in old.arms]
    assert len(new.arms) == 3
    other = {**small, "models": {"dlrm": {"bottom_mlp": [9], "top_mlp": [8]}}}
    with pytest.raises(RunError, match=r"has other 'models\.dlrm' settings; choose another --out"):
        sweep(StudyConfig.parse(other, "study"), tmp_path)


@pytest.mark.slow
def test_slices_and_categories_against_a_loop(finished: Path, small_data: Path) -> None:
    (panel,) = sweep(StudyConfig.parse(values(small_data), "study"), finished).panels
    data = PreparedDataset(small_data)
    columns, rarest = data.split("test"), data.rarest_counts("test")
    labels = np.asarray(columns.labels["label"])
    for arm in panel.arms:
        assert arm.slices.shape == (SEEDS, len(panel.slices), 2)
        p = read_test_scores(arm.predictions[1], arm.method.precision).predictions
        for place, part in enumerate(panel.slices):
            low, *high = (int(text.replace(",", "")) for text in part.name.split("-"))
            rows = (rarest >= low) & (rarest <= (high or [low])[0])
            expected = score(labels[rows], p[rows])
            assert arm.slices[1, place].tolist() == [expected.auc, expected.logloss]
    slt, mlet = frequency_curves(panel, 2)
    assert (slt.field, slt.label, mlet.label) == ("C1", "single-layer (SLT)", "MLET, k = 8")
    ids, counts = np.asarray(columns.ids[0]), data.training_counts["C1"]
    (arm,) = (arm for arm in panel.mlet if arm.arm.dim == 2)
    groups: dict[str, list[float]] = {name: [] for name in mlet.counts}
    for category in np.unique(ids):
        rows = ids == category
        losses = [
            score(labels[rows], read_test_scores(path).predictions[rows]).logloss
            for path in arm.predictions
        ]
        name = next(n for n in groups if holds(n, int(counts[category])))
        groups[name].append(float(np.mean(losses)))
    assert mlet.losses == pytest.approx([np.mean(groups[name]) for name in mlet.counts])


def holds(name: str, count: int) -> bool:
    """Whether a count is in a range as ``3``, ``4–7`` or ``1,024+``."""
    ends = [int(end) for end in name.replace(",", "").rstrip("+").split("-")]
    return ends[0] <= count and (name.endswith("+") or count <= ends[-1])


@pytest.mark.slow
def test_one_arm_that_cannot_be_trained_does_not_sink_the_study(
    small_data: Path, tmp_path: Path
) -> None:
    diverges = {
        "hot": {
            "tables": {"name": "sgd", "learning_rate": 1e30},
            "dense": {"name": "sgd", "learning_rate": 1e30},
        }
    }
    peers = {"too-narrow": {"compression": {"name": "low_rank", "rank": 3}}}
    config = StudyConfig.parse(values(small_data, optimizers=diverges, dims=[2], peers={}), "study")
    result = sweep(config, tmp_path / "hot")
    assert result.panels == ()
    assert [failure.arm.method.name for failure in result.failures] == ["slt", "mlet-k8"]
    assert all("lower optimizer.tables.learning_rate" in f.reasons[0] for f in result.failures)
    config = StudyConfig.parse(values(small_data, dims=[2], inner_dims=[], peers=peers), "study")
    result = sweep(config, tmp_path / "narrow")
    assert [arm.method.name for arm in result.panels[0].arms] == ["slt"]
    assert "rank 3 is above the embedding dimension 2" in result.failures[0].reasons[0]


def test_a_folder_of_another_study_is_refused(mlet, small_data: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "out").mkdir()
    other = StudyConfig.parse(values(small_data, tuning={"trials": 5}), "study")
    (tmp_path / "out" / "study.yaml").write_text(other.to_yaml())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values(small_data)))
    done = mlet("sweep", "study.yaml", "--out", "out", code=2)
    assert "has other 'tuning' settings; choose another --out" in done.stderr
    assert mlet("sweep", "nothing.yaml", code=2).stderr == (
        "error: nothing.yaml: No such file or directory\n"
    )


@pytest.mark.slow
def test_the_authors_study_runs_on_the_criteo_sample(mlet, criteo_sample: Path) -> None:  # type: ignore[no-untyped-def]
    done = mlet(
        "sweep", ROOT / "studies" / "criteo-kaggle.yaml", "--out", "out",
        "--set", f"datasets.criteo-kaggle.files=[{criteo_sample}]", "--set", "dims=[2]",
        "--set", "inner_dims=[16]", "--set", "seeds=1", "--set", "tuning.trials=1",
    )  # fmt: skip
    assert "mlet-k16" in done.stdout
    assert re.search(r"reading\W+(\d+)/\1 ", done.stderr), "what is done is shown as done"
