"""The embedded stack: every server Contrafact needs, as child processes, from pip-installed binaries.

    async with Stack(folder) as stack:
        channel = grpc.aio.insecure_channel(stack.api_address)

or, where there is no event loop, ``with running_stack(folder) as stack:``.
"""

from servers.local.process import StackError
from servers.local.running import running_stack
from servers.local.stack import BACKENDS, STORES, Stack

__all__ = ["BACKENDS", "STORES", "Stack", "StackError", "running_stack"]
