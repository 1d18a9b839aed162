"""One rank with faults planted in it: `swinv2_train.cli.train` after the patches that the environment asks for."""

from __future__ import annotations

from tests.faults.patches import Faults, Rank


def main() -> None:
    Rank(Faults.from_environment()).apply()
    from swinv2_train.cli.train import main as train

    train()


if __name__ == "__main__":
    main()
