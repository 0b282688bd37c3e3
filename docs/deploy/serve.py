"""A server for one exported folder, without PyTorch: bytes of a picture in, classes out.

    spvit-deploy export tuned --format onnx --with-preprocessing -o engine
    python serve.py engine
    curl --data-binary @photo.jpg http://localhost:8080/

It needs numpy, Pillow, and onnxruntime or openvino. `GET /health` answers once the model is open.
"""

from __future__ import annotations

import argparse
import io
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Array = NDArray[Any]
Run = Callable[[Array], Array]
LARGEST = 32 * 2**20


def open_onnx(folder: Path, _: str) -> Run:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    return lambda pictures: session.run(None, {"images": pictures})[0]


def open_openvino(folder: Path, precision: str) -> Run:
    """OpenVINO on the CPU, in the precision that the model was exported for."""
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", hint)
    request = compiled.create_infer_request()
    return lambda pictures: request.infer({0: pictures})[0]


class Model:
    """An exported folder, open."""

    def __init__(self, folder: Path) -> None:
        record = json.loads((folder / "export.json").read_text())
        (self.input,) = record["inputs"]
        if self.input["dtype"] != "uint8":
            raise SystemExit(f"{folder}: export it with --with-preprocessing.")
        openers = {"onnx": open_onnx, "openvino": open_openvino}
        if record["format"] not in openers:
            raise SystemExit(f"{folder} is {record['format']}; this serves {', '.join(openers)}.")
        self.classes = record["class_names"]
        self.run = openers[record["format"]](folder, record["precision"])

    def answer(self, content: bytes) -> dict[str, Any]:
        """The five likeliest classes of a picture as its file holds it."""
        with Image.open(io.BytesIO(content)) as image:
            mode = "L" if self.input["shape"][3] == 1 else "RGB"
            picture = np.asarray(ImageOps.exif_transpose(image).convert(mode))
        start = time.perf_counter()
        scores = self.run(picture.reshape(1, *picture.shape[:2], -1))[0].astype(np.float64)
        milliseconds = 1000 * (time.perf_counter() - start)
        chances = np.exp(scores - scores.max())
        chances /= chances.sum()
        best = np.argsort(-chances)[:5].tolist()
        classes = [
            {"index": i, "label": self.classes[i] if self.classes else None, "score": chances[i]}
            for i in best
        ]
        return {"classes": classes, "milliseconds": milliseconds}


class Handler(BaseHTTPRequestHandler):
    """Pictures by POST, `/health` by GET."""

    model: Model
    # One picture computes at a time, on all threads of the runtime.
    turn = threading.Lock()

    def do_GET(self) -> None:
        """Whether it is there."""
        self._say(200 if self.path == "/health" else 404, {"status": "ready"})

    def do_POST(self) -> None:
        """Classes of a picture."""
        length = int(self.headers.get("Content-Length", 0))
        if not 0 < length <= LARGEST:
            self._say(413, {"error": f"Send a picture of at most {LARGEST} bytes."})
            return
        try:
            content = self.rfile.read(length)
            with self.turn:
                self._say(200, self.model.answer(content))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            self._say(400, {"error": f"It is no picture that can be read: {error}"})

    def _say(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(description="Serve an exported folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--host", default="0.0.0.0")
    asked = parser.parse_args()
    Handler.model = Model(asked.folder)
    server = ThreadingHTTPServer((asked.host, asked.port), Handler)
    print(f"listening on port {server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
