"""The page under many clients: whether each answer is right or a clear refusal, how long they wait, and memory.

    python benchmarks/app_clients.py --model DIR [--clients 50] [--seconds 120]

Starts app.py in a process of its own. Each client, with a session of its own, asks for images of one of ten seeds,
again and again, now and then for more than is allowed, and compares what it gets with what the pipeline makes.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
from gradio_client import Client
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError
from PIL import Image

from snowmelt.app.model import Model, Settings

ROOT = Path(__file__).resolve().parent.parent
SEEDS, IMAGES, STEPS = 10, 2, 5
TOO_MANY = 10_000
"""Steps that one call in twenty asks for."""
SLOWEST = 120
"""Seconds after which an answer counts as lost."""


def expected(name: str) -> list[list[np.ndarray]]:
    """What the pipeline makes of each seed."""
    model = Model(name)
    settings = {"num_images": IMAGES, "num_inference_steps": STEPS, "height": model.height, "width": model.width}
    return [
        [np.asarray(image) for image in model.sample(Settings(seed=seed, **settings), lambda _: None).images]
        for seed in range(SEEDS)
    ]


def ask(client: Client, seed: int, right: list[np.ndarray], too_many: bool) -> str:
    """One call, and what came of it."""
    steps = TOO_MANY if too_many else STEPS
    job = client.submit(num_images=IMAGES, num_inference_steps=steps, seed=seed, api_name="/sample")
    try:
        gallery = job.result(timeout=SLOWEST)[0]
    except QueueError:
        return "refused: the queue is full"
    except AppError as error:
        return "refused: too many steps" if "num_inference_steps: must be" in str(error) else f"failed: {error}"
    except TimeoutError:
        return "lost"
    images = [np.asarray(Image.open(one["image"])) for one in gallery]
    return "right" if not too_many and np.array_equal(images, right) else "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()

    right = expected(arguments.model)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": f"{folder}/server"}
        app = subprocess.Popen([sys.executable, ROOT / "app.py", "--model", arguments.model], env=environment)
        try:
            measure(f"http://127.0.0.1:{port}", psutil.Process(app.pid), right, arguments, folder)
        finally:
            app.terminate()


def measure(
    url: str, process: psutil.Process, right: list[list[np.ndarray]], arguments: argparse.Namespace, folder: str
) -> None:
    """Run the clients and print the table."""
    clients = []
    while len(clients) < arguments.clients:
        options = {"download_files": f"{folder}/{len(clients)}", "httpx_kwargs": {"timeout": SLOWEST}}
        try:
            clients.append(Client(url, verbose=False, **options))
        except (httpx.TransportError, ValueError):  # until the page is there
            time.sleep(1)
    outcomes: list[tuple[str, float]] = []
    start = time.monotonic()
    end = start + arguments.seconds

    def visit(number: int) -> None:
        turn = 0
        while time.monotonic() < end:
            seed, asked = (number + turn) % SEEDS, time.monotonic()
            outcome = ask(clients[number], seed, right[seed], (number + turn) % 20 == 19)
            outcomes.append((outcome, time.monotonic() - asked))
            turn += 1
            if outcome.startswith("refused"):
                time.sleep(1)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(arguments.clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append((time.monotonic() - start, process.memory_info().rss / 1e6))
        time.sleep(arguments.seconds / 12)
    counts = Counter(outcome for outcome, _ in outcomes)
    print(f"{arguments.clients} clients, {arguments.seconds:.0f} s, {len(outcomes)} calls\n")
    print("| answer | calls |\n|---|---|")
    for outcome, count in counts.most_common():
        print(f"| {outcome} | {count} |")
    waits = sorted(seconds for outcome, seconds in outcomes if outcome == "right")
    if waits:
        shown = f"median {statistics.median(waits):.1f} s, 95 % within {waits[int(0.95 * (len(waits) - 1))]:.1f} s"
        print(f"\nwaits of right answers: {shown}, longest {waits[-1]:.1f} s")
    print("memory of the server, MB: " + ", ".join(f"{value:.0f} ({at:.0f} s)" for at, value in memory))


if __name__ == "__main__":
    main()
