"""Run the local Hub in the foreground, for a person; `Hub` runs it for tests."""

import argparse
import contextlib
import shlex
from pathlib import Path

from tests.hub_server.hub import client_environment
from tests.hub_server.server import Server


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.hub_server", description="A local Hub to try publishing with.")
    parser.add_argument("--port", type=int, default=8899, help="0 takes any that is free (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("out/hub"), help="what it keeps (default: %(default)s)")
    arguments = parser.parse_args()
    server = Server(arguments.folder.resolve(), arguments.port)
    print(server.endpoint)  # the first line is what `Hub` waits for
    print(f"\nA Hub of its own, which keeps everything in {arguments.folder}; Ctrl-C ends it. Its tokens:\n")
    for user, role in (("alice", "write"), ("alice", "read"), ("bob", "write")):
        print(f"  {user:6} {role:6} {server.store.token(user, role)}")
    print("\nPaste this into another shell, and its programs use this Hub as alice:\n")
    token = server.store.token("alice", "write")
    for name, value in client_environment(server.endpoint, token, server.store.state.parent / "client").items():
        print(f"  export {name}={shlex.quote(value)}")
    print(flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
