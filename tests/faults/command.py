"""The command `swinv2-train`, whose ranks have faults planted in them."""

from __future__ import annotations

from swinv2_train.launch import launcher
from tests.faults import rank
from tests.faults.patches import Faults


def main() -> None:
    if Faults.from_environment().world_size == 1:  # it runs inside the command
        return rank.main()
    from swinv2_train.cli.train import main as train

    launcher.RANK_MODULE = "tests.faults.rank"
    return train()


if __name__ == "__main__":
    main()
