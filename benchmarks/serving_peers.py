"""The other side of bench_serving: `python serving_peers.py export|fastapi|concrete|limit FOLDER`.

`export` makes the model: FOLDER then holds `model.keras`, `export`, the same as version 1 below `plain` and, with an
ONNX twin, below `twin`, and `rows.json`. `fastapi` and `concrete` are what people write instead of a model server, on
uvicorn; they answer `POST /v1/models/m:predict` with rows, as `mlnb serve` does, and print their port. `limit` asks the
model without a server: for each line "SIZE SECONDS" on standard input it prints one line of JSON.
"""

import json
import shutil
import socket
import sys
import time
from pathlib import Path

NUMBERS = [f"number_{i}" for i in range(5)]
WORDS = {"plan": list("abcde"), "region": [f"r{i}" for i in range(30)]}


def small_model():
    """Seven columns, two of them texts with a vocabulary, one hidden layer."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input((1,), name=name) for name in NUMBERS}
    inputs |= {name: keras.Input((1,), dtype="string", name=name) for name in WORDS}
    parts = [inputs[name] for name in NUMBERS]
    for name, levels in WORDS.items():
        parts.append(keras.layers.StringLookup(vocabulary=levels, output_mode="one_hot")(inputs[name]))
    hidden = keras.layers.Dense(32, activation="relu")(keras.layers.Concatenate()(parts))
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(hidden))


def export(folder: Path) -> None:
    """Make everything, and print whether there is a twin."""
    import numpy as np
    import pandas as pd
    import tensorflow as tf

    from mlnb.data.schemas import describe_table
    from mlnb.serving.export import export_model

    draw, count, model = np.random.default_rng(0), 256, small_model()
    rows = {name: draw.normal(size=count).round(3).astype("float32") for name in NUMBERS}
    rows |= {name: draw.choice(levels, count).astype(object) for name, levels in WORDS.items()}
    export_model(model, describe_table(pd.DataFrame(rows)), folder / "export", rows, classes=["no", "yes"])
    model.save(folder / "model.keras")
    feeds = {name: tf.constant(rows[name].reshape(-1, 1).tolist()) for name in rows}
    found = []
    for i, score in enumerate(model(feeds).numpy()[:, 0].tolist()):
        row = {name: rows[name][i] if name in WORDS else float(rows[name][i]) for name in rows}
        found.append({"body": json.dumps({"instances": [row]}), "score": score})
    (folder / "rows.json").write_text(json.dumps(found))
    for name in ("twin", "plain"): shutil.copytree(folder / "export", folder / name / "1")
    try:
        from mlnb.serving.twins import add_twins

        (made,) = add_twins(folder / "twin" / "1", rows, ("onnx",))
        print("twin" if made.accepted else made.reason)
    except ImportError as e: print(e)


def fastapi_app(folder: Path):
    """The first thing one finds: FastAPI, pydantic and `model.predict`."""
    import keras
    import numpy as np
    import tensorflow as tf
    from fastapi import FastAPI
    from pydantic import BaseModel

    app, model = FastAPI(), keras.saving.load_model(folder / "model.keras")

    class Rows(BaseModel):
        instances: list[dict]

    @app.post("/v1/models/m:predict")
    def predict(rows: Rows):
        def column(name):
            values = [[row[name]] for row in rows.instances]
            return tf.constant(values) if isinstance(values[0][0], str) else np.array(values, "float32")

        scores = model.predict({name: column(name) for name in rows.instances[0]}, verbose=0)
        return {"predictions": scores.tolist()}

    return app


def concrete_app(folder: Path):
    """What a careful person writes: ASGI without a framework, orjson, and the ConcreteFunction for each request."""
    import orjson
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / "export"))
    function = loaded.signatures["serving_default"]
    kinds = {name: spec.dtype for name, spec in function.structured_input_signature[1].items()}

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        rows = orjson.loads(body)["instances"]
        feeds = {name: tf.constant([[row[name]] for row in rows], kind) for name, kind in kinds.items()}
        data = orjson.dumps({"predictions": function(**feeds)["scores"].numpy().tolist()})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    app.keep = loaded
    return app


def serve(app) -> None:
    """On any free port, which is printed."""
    import uvicorn

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="off", log_level="error", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def limit(folder: Path) -> None:
    """What the model does when nobody has to be understood or answered: one row, or 64, again and again."""
    import numpy as np

    from mlnb.serving.servable import load_servable

    servable = load_servable(folder / "twin" / "1")
    given = [json.loads(row["body"])["instances"][0] for row in json.loads((folder / "rows.json").read_text())]

    def feeds(rows):
        texts = {name: np.array([[row[name].encode()] for row in rows], object) for name in WORDS}
        return texts | {name: np.array([[row[name]] for row in rows], "float32") for name in NUMBERS}

    singles, block = [feeds([row]) for row in given], feeds(given[:64])
    print("ready", flush=True)
    for line in sys.stdin:
        size, seconds = int(line.split()[0]), float(line.split()[1])
        times, began = [], time.perf_counter()
        while (now := time.perf_counter()) < began + seconds:
            servable.run("serving_default", block if size > 1 else singles[len(times) % len(singles)])
            times.append(time.perf_counter() - now)
        took, times = time.perf_counter() - began, sorted(times)
        found = {"rps": len(times) * size / took, "p50_ms": times[len(times) // 2] * 1e3}
        print(json.dumps(found | {"p99_ms": times[int(len(times) * 0.99)] * 1e3}), flush=True)


if __name__ == "__main__":
    kind, folder = sys.argv[1], Path(sys.argv[2])
    if kind == "export": export(folder)
    elif kind == "limit": limit(folder)
    else: serve({"fastapi": fastapi_app, "concrete": concrete_app}[kind](folder))
