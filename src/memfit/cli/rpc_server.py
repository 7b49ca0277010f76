"""`memfit rpc-server`: serve this machine's device to others over llama.cpp's RPC, within a memory budget."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict

import click

from memfit.cli.json_output import json_option, write_json
from memfit.cli.options import verbose_option

__all__ = ["command"]


@click.command("rpc-server")
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to listen at (IPv4)."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=50052,
    show_default=True,
    metavar="PORT",
    help="Port to listen at; 0 is any free one.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Most memory to hold, overhead included: 8GiB, 90% of what is free.  [what is free, less a reserve]",
)
@click.option(
    "--threads", type=click.IntRange(1, 512), metavar="N", help="Threads to compute with.  [physical cores]"
)
@json_option
@verbose_option
def command(
    host: str, port: int, memory: str | None, threads: int | None, as_json: bool, verbose: bool
) -> None:
    """Serve this machine's device over RPC, to one client at a time, until Ctrl-C.

    Clients run llama.cpp of the same version: memfit with --rpc HOST:PORT, or llama.cpp's own programs.
    Whoever reaches the port may use the machine: there is no password and no encryption.
    """
    from memfit.engines.llamacpp.rpc_supervisor import RpcSupervisor
    from memfit.units import format_bytes

    def say(text: str) -> None:
        click.echo(f"memfit rpc-server: {text}", err=True)

    # Through the context manager, which ends the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with RpcSupervisor(host=host, port=port, memory=memory, threads=threads, verbose=verbose) as supervisor:
        if not supervisor.is_local:
            say(
                f"{host} can be reached from other machines, and llama.cpp's RPC has no password and no "
                "encryption: whoever reaches it may use and crash this server, and llama.cpp itself calls "
                "it insecure. Listen at 127.0.0.1 and let others in through a tunnel, such as ssh -L"
            )
        info = supervisor.start()
        if as_json:
            write_json({**asdict(info), "pid": os.getpid()}, indent=None)
        else:
            click.echo(
                f"memfit rpc-server: lending {info.device}, {format_bytes(info.memory_bytes)}, "
                f"at {info.host}:{info.port}"
            )
        sys.stdout.flush()
        supervisor.supervise(say)
