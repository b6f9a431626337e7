"""Servers of llama.cpp's RPC on this machine, as `alora-gguf rpc-server` runs them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class RpcServer:
    """One server, which ends with the block it was started for."""

    port: int = 0
    process: subprocess.Popen[str] = field(init=False)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, at the port that it had if it was started before."""
        command = ["-m", "alora_gguf", "rpc-server", "--port", str(self.port), "--threads", "1"]
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Serving at 127.0.0.1:"), (line, self.process.communicate())
        self.port = int(line.partition(".1:")[2].partition(".")[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def rpc_servers(n: int) -> Iterator[list[RpcServer]]:
    servers = [RpcServer() for _ in range(n)]
    try:
        for each in servers:
            each.start()
        yield servers
    finally:
        for each in servers:
            if hasattr(each, "process"):
                each.kill()
