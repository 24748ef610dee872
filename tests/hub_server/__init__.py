"""A local Hub that the real clients of huggingface_hub and datasets talk to; `python -m tests.hub_server` runs it.

`Hub` starts it for tests, in a process of its own, since some of the faults that tests can order kill it.
"""

from tests.hub_server.hub import Hub

__all__ = ["Hub"]
