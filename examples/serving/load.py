"""Put a server of `app.py` under load: a bounded number of requests, by some clients at once.

python examples/serving/load.py http://127.0.0.1:8080 --requests 500 --rows 8 --clients 4
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import numpy as np


def main() -> None:
    """Wait for the server, send random rows, print how long answers took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=500, help="in all")
    parser.add_argument("--rows", type=int, default=8, help="of a request")
    parser.add_argument("--clients", type=int, default=4, help="at once")
    asked = parser.parse_args()
    address = urlsplit(asked.url).netloc
    about = _when_ready(address)
    body = json.dumps({"inputs": _random_rows(about, asked.rows)})
    shares = np.linspace(0, asked.requests, asked.clients + 1).astype(int)
    counts = [int(stop - start) for start, stop in pairwise(shares)]
    began = time.perf_counter()
    with ThreadPoolExecutor(asked.clients) as clients:
        parts = list(clients.map(lambda count: _send(address, body, count, asked.rows), counts))
    seconds = time.perf_counter() - began
    times = 1e3 * np.concatenate(parts)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    print(
        f"{len(times)} requests of {asked.rows} rows by {asked.clients} clients: p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, {len(times) * asked.rows / seconds:,.0f} rows/s"
    )


def _when_ready(address: str, patience: float = 60.0) -> dict[str, Any]:
    """What the server says of its model, once it answers."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with suppress(OSError):
            return _ask(HTTPConnection(address, timeout=10), "GET", "/model")
        time.sleep(0.2)
    raise SystemExit(f"no server answers at {address}")


def _random_rows(about: dict[str, Any], rows: int) -> dict[str, list[Any]]:
    draw = np.random.default_rng(0)
    given: dict[str, list[Any]] = {}
    for name, (kind, *shape) in about["shapes"].items():
        field, _, part = name.partition(".")
        if kind == "tensor(string)":  # of raw graphs
            given[name] = (
                draw.integers(0, 1_000, (rows, *[2] * len(shape[1:]))).astype(str).tolist()
            )
        elif name == "ids":
            sizes = [about["categories"][one] for one in about["ids"]]
            given[name] = draw.integers(0, sizes, (rows, len(sizes))).tolist()
        elif part == "lengths":
            given[name] = [2] * rows
        elif part == "values":
            given[name] = draw.integers(0, about["categories"][field], 2 * rows).tolist()
        else:
            assert kind in ("tensor(float)", "tensor(double)"), name
            given[name] = draw.normal(size=(rows, *shape[1:])).tolist()
    return given


def _send(address: str, body: str, count: int, rows: int) -> np.ndarray:
    """Seconds that each of some requests took."""
    connection, times = HTTPConnection(address, timeout=60), []
    for _ in range(count):
        began = time.perf_counter()
        answer = _ask(connection, "POST", "/score", body)
        times.append(time.perf_counter() - began)
        if len(answer["probability"]) != rows:
            raise SystemExit(f"{rows} rows were sent, and {len(answer['probability'])} scores came")
    return np.array(times)


def _ask(connection: HTTPConnection, how: str, what: str, body: str | None = None) -> Any:
    connection.request(how, what, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status != 200:
        raise SystemExit(f"{what}: {answer.status} {text}")
    return json.loads(text)


if __name__ == "__main__":
    main()
