"""A network of many ranks inside one process, which counts messages."""

from __future__ import annotations

import queue
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from swinv2_train.launch.doubling import Channel, add_up


@dataclass
class Wire(Channel):
    """The connections of one rank to all others."""

    rank: int
    boxes: dict[tuple[int, int], queue.SimpleQueue]
    """By sender and receiver: the messages between them, with the length of the chain of messages before each."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each message that this rank sent."""
    chain: int = 0
    """Length of the longest chain of messages, one after the other, that this rank has waited for."""

    def send(self, peer: int, values: torch.Tensor) -> Done:
        self.sizes.append(values.nbytes)
        self.boxes[self.rank, peer].put((values.clone(), self.chain + 1))
        return Done()

    def receive(self, peer: int, values: torch.Tensor) -> Arrival:
        return Arrival(self, self.boxes[peer, self.rank], values)


class Done:
    def wait(self) -> None:
        pass


@dataclass
class Arrival:
    wire: Wire
    box: queue.SimpleQueue
    values: torch.Tensor

    def wait(self) -> None:
        content, chain = self.box.get(timeout=60)
        self.wire.chain = max(self.wire.chain, chain)
        self.values.copy_(content)


def added_up(parts: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[Wire]]:
    """Add up one tensor per rank; return the sum that each rank has, and its connections."""
    boxes: dict[tuple[int, int], queue.SimpleQueue] = defaultdict(queue.SimpleQueue)
    wires = [Wire(rank, boxes) for rank in range(len(parts))]
    with ThreadPoolExecutor(len(parts)) as pool:  # a thread per rank, because each waits for others
        futures = [
            pool.submit(add_up, part, wire.rank, len(parts), wire) for part, wire in zip(parts, wires, strict=True)
        ]
        return [future.result(120) for future in futures], wires
