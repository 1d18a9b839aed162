"""Sums of a few numbers over all ranks by recursive doubling: latency and messages grow with log2 of the ranks.

In turn k, a rank exchanges its sum so far with the rank whose number differs in bit k (Thakur, Rabenseifner, and Gropp,
"Optimization of Collective Communication Operations in MPICH", 2005, section 4.5). Ranks beyond the largest power of
two give their numbers to a partner first and get the result from it at the end. gloo's own all-reduce is a ring: its
numbers take 2 (n - 1) messages, one after the other.

Both ranks of an exchange add the same two numbers, so every rank has bitwise the same sum, and the order of the
additions depends only on the number of ranks. With several ranks per host in consecutive order, the first turns stay
on the host.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist


class Role(enum.Enum):
    """Part of a rank in one turn."""

    EXCHANGE = enum.auto()
    """Send the sum so far and add the other rank's."""
    GIVE = enum.auto()
    """Send the sum so far."""
    ADD = enum.auto()
    """Add the other rank's numbers."""
    TAKE = enum.auto()
    """Receive the result."""

    @property
    def sends(self) -> bool:
        return self in (Role.EXCHANGE, Role.GIVE)

    @property
    def receives(self) -> bool:
        return self is not Role.GIVE


@dataclass(frozen=True)
class Turn:
    """One turn of a rank with one other rank."""

    peer: int
    role: Role


class Message(Protocol):
    """A message under way."""

    def wait(self) -> object:
        """Wait until it has arrived, or until its memory may be reused."""


class Channel(Protocol):
    """Messages between this rank and the others. Those between two ranks keep their order."""

    def send(self, peer: int, values: torch.Tensor) -> Message:
        """Begin to send a tensor, which must not change until the message is done."""

    def receive(self, peer: int, values: torch.Tensor) -> Message:
        """Begin to receive into a tensor."""


@dataclass(frozen=True)
class GlooChannel:
    """Point-to-point messages of a gloo group of all ranks; those with another tag are separate."""

    group: dist.ProcessGroup
    tag: int

    def send(self, peer: int, values: torch.Tensor) -> Message:
        return dist.isend(values, dst=peer, group=self.group, tag=self.tag)  # type: ignore[return-value]

    def receive(self, peer: int, values: torch.Tensor) -> Message:
        return dist.irecv(values, src=peer, group=self.group, tag=self.tag)  # type: ignore[return-value]


def turns(rank: int, world_size: int) -> list[Turn]:
    """Return the turns of a rank; it sends at most ceil(log2(world_size)) messages in them."""
    doublings = world_size.bit_length() - 1
    core = 1 << doublings
    if rank >= core:
        return [Turn(rank - core, Role.GIVE), Turn(rank - core, Role.TAKE)]
    own = [Turn(rank ^ (1 << bit), Role.EXCHANGE) for bit in range(doublings)]
    if rank + core < world_size:
        return [Turn(rank + core, Role.ADD), *own, Turn(rank + core, Role.GIVE)]
    return own


def add_up(values: torch.Tensor, rank: int, world_size: int, channel: Channel) -> torch.Tensor:
    """Return a small tensor summed over all ranks. A collective.

    Raises:
        RuntimeError: from the channel, if another rank is gone.
    """
    plan = turns(rank, world_size)
    # A message is sent only when its receiver is ready for it, so be ready for all of them from the beginning.
    inbox = {}
    for turn in plan:
        if turn.role.receives:
            received = torch.empty_like(values)
            inbox[turn.peer] = (received, channel.receive(turn.peer, received))
    total, sent = values, []
    for turn in plan:
        if turn.role.sends:
            sent.append(channel.send(turn.peer, total))
        if turn.role.receives:
            received, message = inbox[turn.peer]
            message.wait()
            total = received if turn.role is Role.TAKE else total + received
    for message in sent:
        message.wait()
    return total
