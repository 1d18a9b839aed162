"""Frame-exact decoding: frame numbers are read back from the pixels, whatever the container and its times."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from swinv2_train.data.errors import BrokenSample
from swinv2_train.data.raw_sample import RawSample
from swinv2_train.data.sample import Sample
from swinv2_train.data.video import Video, check_frames, iterate_frames, probe, read_frames
from swinv2_train.data.video_facts import VideoFacts
from tests.data.samples import encoded
from tests.data.videos import muxed, numbered, read_number, read_numbers, remuxed, sound_only, streams, turned, video

GAPS = [i * 512 + i // 7 * 1000 + 5000 for i in range(40)]
SHARED = [10 * i - 7 * (i in (12, 25)) for i in range(40)]
"""In milliseconds, two keyframes have the time of a neighbor: 12 that of the frame before, 24 that of the one after."""
OPEN_265 = "log-level=none:open-gop=1:keyint=8:min-keyint=8:bframes=2:pools=1"
KINDS: dict[str, Callable[[], bytes]] = {
    "mp4": lambda: video(40),
    "mov": lambda: video(40, "mov"),
    "mkv": lambda: video(40, "mkv"),
    "webm": lambda: video(40, "webm"),
    "avi": lambda: video(40, "avi"),
    "gaps in mp4": lambda: video(40, pts=GAPS),
    "gaps in mkv": lambda: video(40, "mkv", pts=GAPS),
    "gaps in webm": lambda: video(40, "webm", pts=GAPS),
    "gaps in avi": lambda: video(40, "avi", pts=[i + i // 7 * 3 for i in range(40)], bframes=0),
    "sound": lambda: video(40, audio=0.5),
    "sound in webm": lambda: video(40, "webm", audio=0.5),
    "fragments": lambda: video(40, muxer={"movflags": "frag_keyframe+empty_moov"}),
    "no index": lambda: video(40, "mkv", muxer={"live": "1"}),
    "open groups": lambda: video(40, "mkv", gop=8, options={"x264-params": "open-gop=1"}),
    "open groups in HEVC": lambda: video(40, codec="libx265", gop=8, options={"x265-params": OPEN_265}),
    "10 bits": lambda: video(40, codec="libx265", pix_fmt="yuv420p10le"),
    "gradual refreshes": lambda: video(
        40, "mkv", gop=8, bframes=0, options={"x264-params": "intra-refresh=1:keyint=8"}
    ),
    "odd size": lambda: video(40, size=(49, 67), pix_fmt="yuv444p"),
    "VP8": lambda: video(40, "webm", codec="libvpx"),
    "reordered avi": lambda: video(40, "avi", codec="libx264"),
    "transport stream": lambda: video(40, "mpegts", codec="libx264"),
    "times begin again": lambda: video(20, "mpegts", codec="libx264") + video(range(20, 40), "mpegts", codec="libx264"),
    "rate of 1000": lambda: video(40, rate=1000, time_base=120000),
    "equal times": lambda: video(40, "mkv", time_base=1_000_000, pts=range(40), bframes=0),
    "some equal times": lambda: video(40, "mkv", time_base=10_000, pts=SHARED),
    "size changes": lambda: remuxed([video(20, "webm"), video(range(20, 40), "webm", size=(96, 128))]),
    "frames are JPEGs": lambda: muxed([encoded(numbered(i), quality=90) for i in range(40)], "mjpeg", (48, 64)),
    "frames are PNGs": lambda: muxed(
        [encoded(numbered(i), "PNG") for i in range(40)], "png", (48, 64), container="mov"
    ),
    "turned by 90": lambda: video(40, rotation=90, size=(48, 80)),
    "turned by 180": lambda: video(40, rotation=180, size=(48, 80)),
    "turned by 270": lambda: video(40, rotation=270, size=(48, 80)),
}
COUNTED = ("reordered avi", "times begin again", "equal times")


@pytest.mark.parametrize("kind", KINDS)
def test_any_frames_are_those_with_their_numbers(kind: str) -> None:
    data = KINDS[kind]()
    facts = probe(data)
    assert facts.frames == 40
    assert facts.counted == (kind in COUNTED)
    assert VideoFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    clip = read_frames(data, facts, range(40))
    assert clip.shape == (3, 40, *facts.size)
    assert clip.dtype == torch.uint8
    assert read_numbers(clip) == list(range(40))
    check_frames(data, facts)
    rng = random.Random(kind)
    for numbers in ([39], [0], [11], [13, 12, 39, 12], [rng.randrange(40) for _ in range(3)], range(5, 40, 9)):
        # Bitwise the same as in a decoding of all frames: frames that are skipped change nothing.
        assert torch.equal(read_frames(data, facts, numbers), clip[:, list(numbers)])


def test_facts_are_times_keyframes_and_sizes() -> None:
    facts = probe(video(40, pts=[500 + 512 * i for i in range(40)], rotation=90, size=(48, 80)))
    assert (facts.size, facts.rotation, facts.codec, facts.container) == ((80, 48), 90, "h264", "mp4")
    assert facts.times[:3] == pytest.approx([0, 1 / 30, 2 / 30])
    assert facts.seconds == pytest.approx(40 / 30)
    assert facts.fps == pytest.approx(30)
    assert [facts.keyframe(number) for number in (0, 11, 12, 39)] == [0, 0, 12, 36]
    assert len(json.dumps(facts.to_json())) < 300
    gaps = probe(video(40, "mkv", pts=GAPS))
    times = np.array(GAPS) / 15360
    assert gaps.times == pytest.approx(times - times[0], abs=1e-3)  # Matroska has milliseconds
    assert probe(video(1)).seconds == 0.033333
    assert probe(video(2, "webm", codec="libsvtav1", size=(64, 64), options={"preset": "12"})).codec == "av1", (
        "not its decoder"
    )


def edited(data: bytes, skipped: int, milliseconds: int) -> bytes:
    """An mp4 file whose edit list begins later, in units of its time base, and ends earlier."""
    place = data.index(b"elst") + 12
    _, start, rate = struct.unpack(">Iii", data[place : place + 12])
    return data[:place] + struct.pack(">Iii", milliseconds, start + skipped, rate) + data[place + 12 :]


def test_an_edit_list_selects_frames() -> None:
    data = edited(video(24, gop=8), 10 * 512, 300)
    facts = probe(data)
    assert facts.frames == 9
    assert read_numbers(read_frames(data, facts, range(9))) == list(range(10, 19))
    assert read_numbers(read_frames(data, facts, [7, 2])) == [17, 12]
    negative = video(16, pts=[512 * i - 2048 for i in range(16)], muxer={"avoid_negative_ts": "disabled"})
    assert read_numbers(Video.of(negative).frames(range(12))) == list(range(4, 16))


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("transposed", [False, True])
def test_mirrored_videos_are_upright(flips: tuple[bool, bool], transposed: bool) -> None:
    """All eight orientations of a display matrix, by applying it to the corners of the frame."""
    stored = numbered(5, 48, 80)
    stored = stored[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    stored = np.ascontiguousarray(stored.swapaxes(0, 1) if transposed else stored)
    x, y = (-1 if flips[0] else 1), (-1 if flips[1] else 1)
    matrix = (0, y, x, 0) if transposed else (x, 0, 0, y)
    data = turned(video([stored], size=stored.shape[:2]), matrix=matrix)
    facts = probe(data)
    assert facts.size == (48, 80)
    assert read_number(read_frames(data, facts, [0])[:, 0]) == 5


def test_the_default_stream_is_read_and_cover_art_is_not() -> None:
    two = [([0, 1, 2], (48, 64)), ([7, 8, 9], (96, 128))]
    for container in ("matroska", "mp4"):
        first, second = (Video.of(streams(two, container, default=number)) for number in (0, 1))
        assert (first.size, read_numbers(first.frames([0, 2]))) == ((48, 64), [0, 2])
        assert (second.size, read_numbers(second.frames([0, 2]))) == ((96, 128), [7, 9])
    cover = encoded(numbered(3), "PNG")
    assert read_numbers(Video.of(streams([([4, 5], (48, 64))], "mp4", cover=cover)).frames([0, 1])) == [4, 5]
    with pytest.raises(BrokenSample, match=r"^it has no video stream, only a cover picture$"):
        probe(streams([], "mp4", cover=cover))


def flat(luma: int, blue: int, red: int, space: int | None, color_range: int | None) -> bytes:
    """A video of one color, losslessly, as it is declared."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.options = 32, 32, "yuv420p", {"qp": "0"}
        frame = av.VideoFrame(32, 32, "yuv420p")
        for plane, value in zip(frame.planes, (luma, blue, red), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        for target in (stream.codec_context, frame):
            if space is not None:
                target.colorspace = space
            if color_range is not None:
                target.color_range = color_range
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("space", [None, 1, 5, 9])
@pytest.mark.parametrize("full", [None, False, True])
def test_colors_follow_the_declared_matrix_and_range(space: int | None, full: bool | None) -> None:
    """The definitions of BT.601 (5, and without a declaration), BT.709 (1), and BT.2020 (9)."""
    data = flat(120, 110, 160, space, None if full is None else 1 + full)
    kr, kb = {None: (0.299, 0.114), 5: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}[space]
    luma, blue, red = (120, -18, 32) if full else ((120 - 16) * 255 / 219, -18 * 255 / 224, 32 * 255 / 224)
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    found = read_frames(data, probe(data), [0])[:, 0].double().mean(dim=(1, 2))
    assert found.tolist() == pytest.approx([r, g, b], abs=2.5)


def test_transparent_frames_are_on_white_and_gray_ones_have_three_channels() -> None:
    pixels = np.dstack([numbered(9), np.full((48, 64), 255, np.uint8)])
    pixels[:24, :, 3] = 0
    data = muxed([encoded(pixels, "PNG")], "png", (48, 64), container="mov", pix_fmt="rgba")
    image = read_frames(data, probe(data), [0])[:, 0]
    assert (image[:, :24] == 255).all()
    assert torch.equal(image[:, 24:], torch.from_numpy(numbered(9)[24:]).movedim(2, 0))
    gray = muxed([encoded(numbered(9)[..., :1], "PNG")], "png", (48, 64), container="mov", pix_fmt="gray")
    image = read_frames(gray, probe(gray), [0])[:, 0]
    assert torch.equal(image, torch.from_numpy(numbered(9)[..., 0]).expand(3, -1, -1))


def cut_start(data: bytes) -> bytes:
    return data[200:]


def cut_middle(data: bytes) -> bytes:
    return data[: len(data) // 3] + data[len(data) // 2 :]


def cut_end(data: bytes) -> bytes:
    return data[:-40]


UNKNOWN = "it is not a video of a known format, or its beginning is missing or damaged"
ENCRYPTION = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
BROKEN = {
    "empty": (lambda: b"", "it is empty"),
    "zeros": (lambda: bytes(5000), "it begins with zeros, not with the header of a video"),
    "noise": (lambda: random.Random(1).randbytes(5000), UNKNOWN),
    "text in UTF-8": (lambda: "Größe: 7 µm\n".encode() * 500, "it is text, not a video"),
    "joined": (lambda: video(4) + video(4), "it is several videos, one after another: FFmpeg shows the first one"),
    "text": (lambda: b"<!DOCTYPE html><html>" * 20, "it is text, not a video"),
    "playlist": (lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n", "it is text, not a video"),
    "image": (lambda: encoded(numbered(1)), "it is an image (jpeg), not a video"),
    "archive": (lambda: b"PK\x03\x04" + bytes(900), "it is a zip archive, not a video"),
    "sound": (sound_only, "it has no video stream, only audio"),
    "encrypted": (lambda: video(20, muxer=ENCRYPTION), "it is encrypted"),
    "codec": (lambda: video(20).replace(b"avc1", b"zzzz"), "its codec is unknown to FFmpeg"),
    "no frames": (lambda: edited(video(20), 512 * 500, 300), "it has no frames"),
    "mp4 start": (lambda: cut_start(video(40)), UNKNOWN),
    "mp4 middle": (lambda: cut_middle(video(40)), "its index (moov) is missing or damaged"),
    "mp4 end": (lambda: cut_end(video(40)), r"it is cut off: it has [\d,]+ of [\d,]+ bytes"),
    "fast end": (lambda: cut_end(video(40, muxer={"movflags": "faststart"})), r"it is cut off: it has .* bytes"),
    "mkv start": (lambda: cut_start(video(40, "mkv")), UNKNOWN),
    "mkv middle": (lambda: cut_middle(video(40, "mkv")), r"it is cut off: it has .* bytes"),
    "mkv end": (lambda: cut_end(video(40, "mkv")), r"it is cut off: it has .* bytes"),
    "avi start": (lambda: cut_start(video(40, "avi")), UNKNOWN),
    "avi end": (lambda: cut_end(video(40, "avi")), r"it is cut off: it has .* bytes"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_unusable_files_have_a_reason(kind: str) -> None:
    make, reason = BROKEN[kind]
    with pytest.raises(BrokenSample, match=f"^{reason if '.*' in reason or '+' in reason else ''}") as found:
        probe(make())
    if ".*" not in reason and "+" not in reason:
        assert found.value.reason == reason


def damaged(data: bytes, start: float, end: float) -> bytes:
    """A file with a part of its frames overwritten; positions are fractions of the data in an mp4 file."""
    first = data.index(b"mdat") + 4
    size = data.index(b"moov") - first
    place, stop = first + int(start * size), first + int(end * size)
    return data[:place] + bytes(255 - byte for byte in data[place:stop]) + data[stop:]


@pytest.mark.parametrize("group", [0, 1, 2])
def test_only_the_frames_from_the_last_keyframe_on_are_decoded(group: int) -> None:
    """Damage in one of three groups of frames, each with a third of the bytes, is not noticed in the others."""
    data = video([np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8) for i in range(36)])
    facts = probe(data)
    clip = read_frames(data, facts, range(36))
    bad = damaged(data, group / 3 + 0.15, group / 3 + 0.2)
    for key in {0, 12, 24} - {12 * group}:
        numbers = range(key, key + 12, 3)
        assert torch.equal(read_frames(bad, facts, numbers), clip[:, list(numbers)])
    # A frame that depends on a damaged one is not returned as if it were right.
    for wanted in ([12 * group + 11], range(36)):
        with pytest.raises(BrokenSample, match="damaged"):
            read_frames(bad, facts, wanted)
    with pytest.raises(BrokenSample, match="damaged"):
        check_frames(bad, facts)


def test_a_matroska_file_that_ends_before_it_declares_is_damaged() -> None:
    data = video(60, "webm")
    assert b"00:00:02.0" in data
    with pytest.raises(BrokenSample, match=r"^it is damaged: it declares 9\.0 s, but ends after 2\.0 s$"):
        probe(data.replace(b"00:00:02.0", b"00:00:09.0"))


def test_frames_above_the_limit_are_not_decoded() -> None:
    data = video(4)
    reason = "64 x 48 is above the limit of 3,000 pixels"
    with pytest.raises(BrokenSample, match=reason):
        probe(data, max_pixels=3000)
    facts = probe(data)
    with pytest.raises(BrokenSample, match=reason):
        read_frames(data, facts, [0], max_pixels=3000)
    grows = remuxed([video(4, "webm"), video(4, "webm", size=(96, 128))])
    assert read_frames(grows, probe(grows), [3], max_pixels=4000).shape == (3, 1, 48, 64)
    with pytest.raises(BrokenSample, match=r"above the limit|damaged"):
        read_frames(grows, probe(grows), [7], max_pixels=4000)


def test_facts_of_another_video_are_noticed() -> None:
    with pytest.raises(BrokenSample, match="frame 50 of 60 is missing or damaged"):
        read_frames(video(30), probe(video(60)), [50])
    with pytest.raises(BrokenSample, match="frame 3 of 60 is missing or damaged"):
        read_frames(video(60, "webm"), probe(video(60)), [3])
    for number in (-1, 60):
        with pytest.raises(IndexError, match=f"frame {number} of a video with 60 frames"):
            read_frames(video(60), probe(video(60)), [number])


def test_frames_come_one_by_one_and_are_changed_before_they_are_stacked() -> None:
    data = video(30)
    facts = probe(data)
    frames = iterate_frames(data, facts, range(0, 30, 7))
    assert [(number, read_number(image)) for number, image in frames] == [(n, n) for n in range(0, 30, 7)]
    small = Video(data, facts).frames([3, 9, 3], lambda image: image[:, ::2, ::2].float())
    assert small.shape == (3, 3, 24, 32)
    assert small.dtype == torch.float32
    assert read_numbers(small) == [3, 9, 3]
    assert [number for number, _ in Video(data, facts).each([4, 5])] == [4, 5]


def test_a_path_is_read_like_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video(20))
    assert probe(path) == probe(path.read_bytes())
    assert read_numbers(Video.of(path).frames([7, 19])) == [7, 19]


def test_samples_decode_their_video_with_its_facts_or_without() -> None:
    data = video(30)
    stored = json.dumps(probe(data).to_json()).encode()
    for members in ({"video": data, "frames.json": stored}, {"video": data}):
        sample = Sample(RawSample("a", "mp4", members, "video"), declared=("video", "frames.json"))
        assert sample.video.size == (48, 64)
        assert read_numbers(sample.video.frames([2, 29])) == [2, 29]
        assert sample.video is sample.video
    with pytest.raises(LookupError, match=r"frames\.json is used but not declared"):
        _ = Sample(RawSample("a", "mp4", {"video": data}, "video"), declared=("video",)).video
    wrong = {"video": data, "frames.json": stored.replace(b'"width": 64', b'"width": 0')}
    with pytest.raises(BrokenSample, match=r"^frames\.json: its width is 0$"):
        _ = Sample(RawSample("a", "mp4", wrong, "video")).video
    with pytest.raises(BrokenSample, match="it has no member video"):
        _ = Sample(RawSample("a", "jpg", {"image": b""})).video


@pytest.fixture(scope="module")
def content() -> dict[str, object]:
    return probe(video(30)).to_json()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pts": [[29, 0, 512, 1]]}, "its pts are not the times of its frames"),
        ({"frames": 0, "pts": []}, "its pts are not the times"),
        ({"keyframes": [[1, 1, 0, 1]]}, "its keyframes are not numbers of its frames, from 0"),
        ({"keyframes": [[2, 0, 30, 1]]}, "its keyframes are not numbers of its frames, from 0"),
        ({"height": "48"}, "its height is '48'"),
        ({"time_base": [1, 0]}, r"its time_base is \[1, 0\], not two positive integers"),
        ({"seconds": -1}, "its seconds are -1"),
        ({"orientation": 9}, "its orientation is not a number from 1 to 8"),
        ({"counted": 1}, "counted is not true or false"),
        ({"codec": None}, "its codec or container is not a text"),
    ],
)
def test_other_facts_are_refused(content: dict[str, object], change: dict[str, object], reason: str) -> None:
    with pytest.raises(BrokenSample, match=reason):
        VideoFacts.from_json(content | change)
    with pytest.raises(BrokenSample, match="it is not a JSON object"):
        VideoFacts.from_json([])
