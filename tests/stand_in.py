"""A model server that only pretends: TensorFlow Serving's flags and addresses, an answer that says who gave it, and faults planted by version.

`MLNB_STAND_IN` holds JSON: {"7": {"errors": 0.3, "slow": 0.02, "wrong": 0.5, "refuses": 1.0, "dies_after": 100, "never_ready": true}, "grpc": true}.
Without "grpc" its gRPC port is only kept free of others, which saves half of the start.
"""
import asyncio
import json
import os
import random
import re
import socket
import sys
from pathlib import Path

import uvicorn

FLAGS = dict(word[2:].split("=", 1) if "=" in word else (word[2:], "") for word in sys.argv[1:] if word.startswith("--"))
CONFIG = Path(FLAGS["model_config_file"]).read_text()
MODEL = re.search(r'name: "(.*?)"', CONFIG)[1]
VERSION = re.search(r"versions: (\d+)", CONFIG)[1]
PLANTED = json.loads(os.environ.get("MLNB_STAND_IN", "{}"))
FAULTS = PLANTED.get(VERSION, {})
RANDOM, seen = random.Random(0), [0]


def answer(body: bytes) -> tuple[int, dict]:
    """The sum of each row, and the version; or what was planted."""
    seen[0] += 1
    if seen[0] > FAULTS.get("dies_after", 1e9): os._exit(9)
    if RANDOM.random() < FAULTS.get("errors", 0): return 500, {"error": "planted"}
    if RANDOM.random() < FAULTS.get("refuses", 0): return 400, {"error": "planted: unknown input"}
    wrong = RANDOM.random() < FAULTS.get("wrong", 0)
    rows = json.loads(body)["instances"]
    said = [sum(r) + wrong if isinstance(r, list) else 1.0 - r["x"] if wrong else r["x"] for r in rows]
    return 200, {"predictions": said, "version": int(VERSION)}


async def app(scope, receive, send):
    """REST."""
    if scope["type"] != "http": return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"): break
    if scope["method"] == "POST":
        code, document = answer(body)
        await asyncio.sleep(FAULTS.get("slow", 0))
    else:
        state = "LOADING" if FAULTS.get("never_ready") else "AVAILABLE"
        code, document = 200, {"model_version_status": [{"version": VERSION, "state": state, "status": {"error_code": "OK", "error_message": ""}}]}
    headers = [(b"content-type", b"application/json"), (b"x-request-id", dict(scope["headers"]).get(b"x-request-id", b""))]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(document).encode()})


async def open_grpc() -> tuple[object, int]:
    """Every method answers with the version; faults are UNAVAILABLE."""
    import grpc

    class Echo(grpc.GenericRpcHandler):
        def service(self, call):
            async def handle(request, context):
                if RANDOM.random() < FAULTS.get("errors", 0): await context.abort(grpc.StatusCode.UNAVAILABLE, "planted")
                await asyncio.sleep(FAULTS.get("slow", 0))
                return VERSION.encode()
            return grpc.unary_unary_rpc_method_handler(handle)

    door = grpc.aio.server()
    door.add_generic_rpc_handlers((Echo(),))
    port = door.add_insecure_port("127.0.0.1:0")
    await door.start()
    return door, port


async def keep_port() -> tuple[object, int]:
    """A port that nobody else gets."""
    kept = socket.socket()
    kept.bind(("127.0.0.1", 0))
    return kept, kept.getsockname()[1]


async def main():
    """Listen on free ports and say which."""
    door, grpc_port = await (open_grpc if PLANTED.get("grpc") else keep_port)()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", access_log=False, timeout_graceful_shutdown=2))
    task = asyncio.create_task(server.serve())
    while not server.started: await asyncio.sleep(0.01)
    print(json.dumps({"rest": server.servers[0].sockets[0].getsockname()[1], "grpc": grpc_port, "pid": os.getpid()}), flush=True)
    await task
    del door


if __name__ == "__main__":
    if "fails_to_start" in FAULTS: sys.exit("planted: this version does not load")
    asyncio.run(main())
