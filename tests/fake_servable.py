"""A servable without TensorFlow, for tests of what stands around it: it answers y = x / 2 + 2, slowly or not at all where it is told to."""
import asyncio
import time
from types import SimpleNamespace

import numpy as np

from mlnb.serving.codes import Refusal
from mlnb.serving.loaded import Signature, Tensor
from mlnb.serving.messages import SignatureDefMap

SLOW, BROKEN = 1000.0, -1000.0   # an input up to 10 above SLOW waits for x - SLOW seconds; BROKEN raises what a bug raises


class FakeServable:
    """Has two signatures: x -> y, and serialized examples -> scores."""

    def __init__(self, version):
        floats, texts = Tensor("x:0", "DT_FLOAT", (-1,)), Tensor("e:0", "DT_STRING", (-1,))
        self.version, self.closed = version, False
        self.signatures = {"serving_default": Signature({"x": floats}, {"y": floats}, "tensorflow/serving/predict", {}),
                           "classify": Signature({"inputs": texts}, {"scores": Tensor("s:0", "DT_FLOAT", (-1, 1))}, "tensorflow/serving/classify", {})}

    def check(self, signature, aliases, door="grpc"):
        if signature not in self.signatures: raise Refusal("FAILED_PRECONDITION", f'Serving signature key "{signature}" not found.')
        if set(aliases) != set(self.signatures[signature].inputs): raise Refusal("INVALID_ARGUMENT", "input size does not match signature")

    async def answer(self, signature, feeds, outputs=None, deadline=None):
        if self.closed: raise RuntimeError("asked after it was closed")
        if signature == "classify": return {"scores": np.full((np.size(feeds["inputs"]), 1), 0.5, np.float32)}
        x = np.asarray(feeds["x"], np.float32)
        if x.size and SLOW < float(x.max()) < SLOW + 10: await self.wait(float(x.max()) - SLOW, deadline)
        if x.size and float(x.min()) == BROKEN: raise ValueError("secret details")
        return {"y": x / 2 + self.version}

    async def wait(self, seconds, deadline):
        left = seconds if deadline is None else deadline - time.monotonic()
        await asyncio.sleep(min(seconds, left))
        if left < seconds: raise Refusal("DEADLINE_EXCEEDED", "too slow")

    def signature_def_map(self): return SignatureDefMap().SerializeToString()

    def close(self): self.closed = True


def fake_loader(options, metrics):
    """Instead of `mlnb.serving.process.loader`."""
    def load(model, version, folder):
        time.sleep(0.01)
        return FakeServable(version)
    return load


def fake_model(folder, *versions):
    """Folders that the manager takes for versions."""
    for version in versions: (folder / str(version)).mkdir(parents=True)
    return SimpleNamespace(folder=folder, versions=versions)
