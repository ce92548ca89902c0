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

_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}

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
            name: np.asarray(rows.inputs[name], _TYPES[one.type]).reshape(
                [len(rows.inputs[name]), *one.shape[1:]]
            )
            for name, one in inputs.items()
        }
        (probabilities,) = session.run(None, given)
    except (TypeError, ValueError) as error:
        raise HTTPException(422, f"inputs are no such arrays: {error}") from None
    except Exception as error:  # ONNX Runtime's own have no common class
        raise HTTPException(422, f"the model refuses the rows: {error}") from None
    return {"probability": probabilities.tolist()}
