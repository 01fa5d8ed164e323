"""A load generator of its own process: `python load.py rest|grpc PORT CLIENTS SECONDS FILE` prints one JSON line.

Raw sockets on an event loop, because a client library costs more than the server that is measured. FILE has what is
asked and what must come back: [{"body": "...", "score": 0.25}, ...]. Every answer must have status 200 and its score;
one that has not ends the measurement with an error.
"""

import asyncio
import json
import re
import sys
import time
from pathlib import Path

LENGTH = re.compile(rb"(?i)content-length: *(\d+)")
SCORE = re.compile(rb"-?\d+\.\d+(?:[eE][-+]?\d+)?")


def check(score: float, expected: float, answer: bytes) -> None:
    """A fast wrong answer is worth nothing."""
    if abs(score - expected) > 1e-4: raise SystemExit(f"a wrong answer: {answer[:200]!r}, expected {expected}")


class Client(asyncio.Protocol):
    """One client with one connection: the next question when the answer is there."""

    def __init__(self, until: float, first: int, requests: list, times: list[float]) -> None:
        self.until, self.number, self.requests, self.times = until, first, requests, times
        self.done, self.data = asyncio.get_running_loop().create_future(), b""

    def connection_made(self, transport) -> None:
        """Begin."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the next question, or end."""
        self.began = time.perf_counter()
        if self.began >= self.until: return self.transport.close()
        self.message, self.score = self.requests[self.number % len(self.requests)]
        self.number += 1
        return self.transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        """Take in the answer, check it, go on."""
        self.data += data
        end = self.data.find(b"\r\n\r\n") + 4
        if end < 4 or len(self.data) < end + int(LENGTH.search(self.data)[1]): return None
        self.times.append(time.perf_counter() - self.began)
        try:
            if b" 200 " not in self.data[:16]: raise SystemExit(f"refused: {self.data[:300]!r}")
            check(float(SCORE.search(self.data, end)[0]), self.score, self.data)
        except SystemExit as e: return self.done.set_exception(e)
        self.data = b""
        return self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        """Say so, when it was not ours to end."""
        if self.done.done(): return
        early = error or time.perf_counter() < self.until
        if early: self.done.set_exception(SystemExit(f"the connection broke: {error}"))
        else: self.done.set_result(None)


async def ask_rest(port: int, until: float, first: int, requests: list, times: list[float]) -> None:
    """One client until its time is over."""
    made = Client(until, first, requests, times)
    await asyncio.get_running_loop().create_connection(lambda: made, "127.0.0.1", port)
    await made.done


async def ask_grpc(channel, until: float, first: int, requests: list, times: list[float]) -> None:
    """One client of a channel that several share; the questions are bytes already, the answers are parsed."""
    from mlnb.serving.messages import SERVICES

    answer = SERVICES["tensorflow.serving.PredictionService"]["Predict"][1]
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict", None, answer.FromString)
    number = first
    while time.perf_counter() < until:
        message, score = requests[number % len(requests)]
        began = time.perf_counter()
        found = await predict(message)
        times.append(time.perf_counter() - began)
        check(found.outputs["scores"].float_val[0], score, b"over gRPC")
        number += 1


def rest_messages(rows: list[dict], port: int) -> list[tuple[bytes, float]]:
    """HTTP requests, headers included."""
    head = f"POST /v1/models/m:predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    lengths = [len(row["body"]) for row in rows]
    return [(f"{head}Content-Length: {size}\r\n\r\n{row['body']}".encode(), row["score"])
            for size, row in zip(lengths, rows, strict=True)]


def grpc_messages(rows: list[dict]) -> list[tuple[bytes, float]]:
    """Serialized PredictRequests."""
    import numpy as np

    from mlnb.serving.messages import SERVICES
    from mlnb.serving.tensors import to_tensor

    def tensor(value):
        text = isinstance(value, str)
        return to_tensor(np.array([[value.encode()]], object) if text else np.array([[value]], "float32"))

    question, found = SERVICES["tensorflow.serving.PredictionService"]["Predict"][0], []
    for row in rows:
        (values,) = json.loads(row["body"])["instances"]
        message = question(model_spec={"name": "m"}, inputs={name: tensor(value) for name, value in values.items()})
        found.append((message.SerializeToString(), row["score"]))
    return found


async def generate(door: str, port: int, clients: int, seconds: float, rows: list[dict]) -> dict:
    """Load for so many seconds."""
    times: list[float] = []
    if door == "rest":
        requests, began = rest_messages(rows, port), time.perf_counter()
        until = began + seconds
        await asyncio.gather(*(ask_rest(port, until, 7 * i, requests, times) for i in range(clients)))
    else:
        from grpc import aio

        requests = grpc_messages(rows)
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.channel_ready()
            began = time.perf_counter()
            until = began + seconds
            await asyncio.gather(*(ask_grpc(channel, until, 7 * i, requests, times) for i in range(clients)))
    took, times = time.perf_counter() - began, sorted(times)
    found = {"rps": len(times) / took, "p50_ms": times[len(times) // 2] * 1e3}
    return found | {"p99_ms": times[int(len(times) * 0.99)] * 1e3}


if __name__ == "__main__":
    import uvloop

    door, port, clients, seconds, file = sys.argv[1:]
    rows = json.loads(Path(file).read_text())
    print(json.dumps(uvloop.run(generate(door, int(port), int(clients), float(seconds), rows))))
