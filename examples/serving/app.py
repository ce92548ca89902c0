"""Scores over HTTP: what `mlet export` wrote, behind FastAPI and ONNX Runtime, without mlet.

    MODEL=model.onnx uvicorn --app-dir examples/serving app:app --port 8080

POST /score takes the graph's inputs by name, rows as lists, and gives a probability for each row;
GET /model says what they are. `load.py` beside this file puts the server under load.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,  # null is NaN
    "tensor(int64)": np.int64,
}

options = onnxruntime.SessionOptions()
# Requests are answered side by side: each by one thread.
options.intra_op_num_threads = 1
options.log_severity_level = 4  # what is wrong with a request is said to who sent it
session = onnxruntime.InferenceSession(
    os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
)
about: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["mlet"])
inputs = {given.name: given for given in session.get_inputs()}
app = FastAPI(title="click probabilities")


class Rows(BaseModel):
    """The inputs of the graph by name: a list of B rows each, of V values for those of bags."""

    inputs: dict[str, list[Any]]


def _array(values: list[Any], kind: str, shape: list[Any]) -> np.ndarray:
    """The rows of one input; of texts, null is nothing, and a number is what it is called."""
    if kind != "tensor(string)":
        return np.asarray(values, _TYPES[kind]).reshape([len(values), *shape[1:]])
    are_bags = len(shape) > 1
    rows = values if are_bags else [[one] for one in values]
    filled = np.full((len(rows), max(map(len, rows), default=0)), "", object)
    for place, row in enumerate(rows):
        if not isinstance(row, list):
            raise TypeError(f"{row!r} is no list")
        filled[place, : len(row)] = ["" if one is None else str(one) for one in row]
    return filled if are_bags else filled[:, 0]


@app.get("/model")
def model() -> dict[str, Any]:
    """What the model takes, and how many categories each field has."""
    shapes = {name: [given.type, *given.shape] for name, given in inputs.items()}
    return {"shapes": shapes, **about}


@app.post("/score")
def score(rows: Rows) -> dict[str, list[float]]:
    """A probability for each row."""
    if rows.inputs.keys() != inputs.keys():
        raise HTTPException(422, f"inputs are {', '.join(inputs)}; got {', '.join(rows.inputs)}")
    try:
        given = {
            name: _array(rows.inputs[name], one.type, one.shape) for name, one in inputs.items()
        }
        (probabilities,) = session.run(None, given)
    except (TypeError, ValueError) as error:
        raise HTTPException(422, f"inputs are no such arrays: {error}") from None
    except Exception as error:  # ONNX Runtime's own have no common class
        raise HTTPException(422, f"the model refuses the rows: {error}") from None
    return {"probability": probabilities.tolist()}
