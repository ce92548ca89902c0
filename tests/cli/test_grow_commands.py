"""``prepare --extend`` and ``train --from`` on the command line."""

from __future__ import annotations

import random
import re
import sys
import warnings
from pathlib import Path

import pytest

from mlet.cli import main
from mlet.reading import read_sealed
from mlet.settings import load_yaml

SMALL = "--epochs 1 --set training.threads=1"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the rows of two days and their schema."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    for day in range(2):
        rows = [f"{row % 2},u{draw.randrange(90) + 30 * day},i{row % 7}" for row in range(600)]
        (tmp_path / f"{day}.csv").write_text("\n".join(["click,user,item", *rows]) + "\n")
    (tmp_path / "s.yaml").write_text("label: click\ncategorical: [user, item]\n")
    return tmp_path


def test_day_after_day(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mlet(line: str, code: int = 0) -> str:
        """Run a command in this process; what it printed, on one line."""
        monkeypatch.setattr(sys, "argv", ["mlet", *line.split()])
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # shown, where tests would take them for errors
            with pytest.raises(SystemExit) as exit_:
                main()
        printed = capsys.readouterr()
        assert (exit_.value.code or 0) == code, printed
        return " ".join((printed.out + printed.err).split())

    mlet("prepare table 0.csv --schema s.yaml --out d0 --min-count 2")
    told = mlet("prepare table 1.csv --schema s.yaml --out d1 --extend d0")
    assert re.search(
        r"extends d0: (\d+) new categories \(user \1\); counts are of 960 training", told
    )
    wrong = mlet("prepare table 1.csv --schema s.yaml --out d2 --extend d0 --min-count 3", 2)
    assert "minimum count of field 'user' is 2 in d0, 3 here" in wrong
    mlet(f"train d0 --out r0 --dim 2 --inner-dim 8 --set training.keep_state=true {SMALL}")
    assert "it extends that one: go on" in mlet("evaluate r0 --data d1", 2)
    mlet("train d1 --from r0 --out r1 --lr 0.3 --set grow.noise=0.5")
    settings = load_yaml(here / "r1" / "config.yaml")
    assert settings["grow"] == {"run": str(here / "r0"), "noise": 0.5, "states": True}
    assert settings["optimizer"]["tables"]["learning_rate"] == 0.3
    before = load_yaml(here / "r0" / "config.yaml")
    assert settings["model"] == before["model"]
    assert settings["training"] == before["training"]
    assert read_sealed(here / "r1" / "grown.json", Exception, "")["states"] is True  # type: ignore[arg-type]
    mlet("evaluate r1")
    # As YAML, and from a collapsed file, whose settings are the preset's.
    (here / "run.yaml").write_text("grow: {run: r0/model.safetensors}\n")
    told = mlet(f"train d1 --config run.yaml --out r2 {SMALL}")
    assert "optimizer states start anew: a collapsed file holds none" in told
    assert "two layers, k = 64: user" in told
    assert load_yaml(here / "r2" / "config.yaml")["model"]["dim"] == 2
    for line, error in (
        ("train d1 --from r0 --out x --dim 4", "another model.dim (2 then, 4 now)"),
        ("train d1 --from r0 --out x --preset plain", "takes its settings from the run"),
        ("train d1 --resume r1 --from r0", "--resume RUN takes everything from the run"),
        ("train d1 --from nothing --out x", "nothing: no such file"),
        ("train d0 --from r1 --out x", "d0 does not extend the data set of"),
    ):
        assert error in mlet(line, 2), line
    assert not (here / "x").exists()
