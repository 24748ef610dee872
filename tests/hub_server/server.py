"""HTTP, and the faults that tests order."""

import math
import os
import re
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, get_args

from tests.hub_server.messages import Answer, Problem, Region, Request
from tests.hub_server.routes import dispatch
from tests.hub_server.storage import Store

# What is asked of the Hub isn't done: it is out of service; it wants to be left alone for some seconds; the token may
# not do it; it has an error; there is no such thing; it closes the connection; its process dies while the client sends.
Refusal = Literal["unavailable", "rate limit", "forbidden", "error", "gone", "drop", "kill"]
STATUS = {"unavailable": 503, "rate limit": 429, "forbidden": 403, "error": 500, "gone": 404}
# It is done, but slowly, or the answer is lost; or it is a file that ends in its middle or has a wrong bit there.
Effect = Literal["slow", "lose"]
Damage = Literal["slow", "lose", "truncate", "corrupt"]
Kind = Literal[Refusal, Damage]
ORDERS = "/faults"


@dataclass
class Fault:
    method: str
    pattern: str
    kind: Kind
    times: float
    seconds: float


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, port: int):
        super().__init__(("127.0.0.1", port), Handler)
        self.store = Store(folder)
        self.faults: list[Fault] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, method: str, target: str, kinds: object) -> Fault | None:
        """The first ordered fault of these kinds that such a request meets, which counts as one time."""
        with self.store.lock:
            for fault in self.faults:
                fits = fault.method == method and fault.kind in get_args(kinds) and re.search(fault.pattern, target)
                if fits and fault.times:
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that hung up is none of our business
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def respond(self) -> None:
        if self.path == ORDERS:
            return self.order()
        fault = self.server.fault(self.command, self.path, Refusal)
        kind = fault.kind if fault else None
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        body = self.read()
        if kind == "drop":
            self.close_connection = True
            return self.log_request("dropped")
        try:
            if fault:
                header = {"Retry_After": f"{fault.seconds:.0f}"} if kind == "rate limit" else {}
                raise Problem(STATUS[str(kind)], f"The test ordered this: {kind}", **header)
            answer = dispatch(Request(self.command, self.path, self.headers, body, self.server.store))
        except Problem as problem:
            answer = problem.answer
        except Exception:
            traceback.print_exc()
            answer = Problem(500, "The local Hub has an error").answer
        return self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond  # noqa: N815

    def read(self) -> bytes:
        """The request's body, always whole, so that the connection can be used again."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while piece := self.rfile.read(int(self.rfile.readline(), 16)):
            pieces.append(piece)
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def send(self, answer: Answer) -> None:
        file = isinstance(answer.body, Region) and self.command == "GET"
        fault = self.server.fault(self.command, self.path, Damage if file else Effect)
        kind = fault.kind if fault else None
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        if kind == "lose":
            self.close_connection = True
            return self.log_request("lost")
        self.send_response(answer.status)
        for name, value in (answer.headers | {"Content-Length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        sent, middle = 0, len(answer.body) // 2 if kind in ("truncate", "corrupt") else -1
        for piece in answer.pieces():
            at = middle - sent
            sent += len(piece)
            if 0 <= at < len(piece):
                piece = piece[:at] + (bytes([piece[at] ^ 1]) + piece[at + 1 :] if kind == "corrupt" else b"")
            self.wfile.write(piece)
            if kind == "truncate" and sent > middle:
                self.close_connection = True
                break
        return None

    def order(self) -> None:
        """POST orders a fault, DELETE ends all of them."""
        request = Request(self.command, self.path, self.headers, self.read(), self.server.store)
        with self.server.store.lock:
            if self.command == "POST":
                self.server.faults.append(Fault(**{"times": math.inf} | request.json))
            else:
                self.server.faults.clear()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """One line of each request, for people and for tests that count them."""
        if self.path != ORDERS:
            print(self.command, self.path, getattr(code, "value", code), file=sys.stderr, flush=True)
