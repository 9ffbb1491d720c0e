"""Several processes of one training, each a fork, with the variables that torchrun and docs/train.md's script set."""

import os
import socket
from pathlib import Path

from accelerate.state import AcceleratorState
from forks import Fork, command


def start_ranks(count: int, arguments: list[str], folder: Path) -> list[Fork]:
    """Start ``count`` processes of a command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def become(rank: int) -> None:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ.update(own | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        AcceleratorState._reset_state(reset_partial_state=True)  # of a training in the parent

    return [command(arguments, folder, lambda rank=rank: become(rank)) for rank in range(count)]  # type: ignore[misc]


def run_ranks(count: int, arguments: list[str], folder: Path) -> None:
    """Run ``count`` processes of a command to their end."""
    ranks = start_ranks(count, arguments, folder)
    try:
        assert [rank.wait() for rank in ranks] == [0] * count, "\n".join(rank.said() for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
