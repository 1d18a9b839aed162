from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from swinv2_train.cli.data import main
from swinv2_train.cli.data_display import rounded
from swinv2_train.cli.values import size
from swinv2_train.data import remarks
from tests.data.annotated import annotation, coco, write_coco, write_images
from tests.data.label_maps import labels, names_file, png, write_pairs
from tests.data.samples import jpeg, write_folder, write_shards, write_tar
from tests.filmed import make_filmed_shard


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    remarks.taken()  # those of other tests in this process
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


@pytest.mark.parametrize("arguments", [["--help"], ["pack", "--help"], ["inspect", "--help"], ["bench", "--help"]])
def test_help_names_every_option_and_imports_nothing_slow(arguments: list[str]) -> None:
    code = (
        "import sys, swinv2_train.cli.data as data\n"
        "try: data.main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'PIL', 'rich', 'fsspec'} & set(sys.modules), 'slow imports'"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    wanted = {
        "--help": ["pack", "inspect", "bench"],
        "pack": [
            "--max-size",
            "--eval-share",
            "--overwrite",
            "broken.jsonl",
            "--labels",
            "--classes-file",
            "--tile",
            "--coco",
            "--voc",
        ],
        "inspect": ["--sheet", "--samples", "--labels"],
        "bench": ["--resolution", "--least-area", "--scaled"],
    }[arguments[0]]
    assert all(word in result.stdout for word in [*wanted, "exit status: 0 all is well"])


def test_pack_then_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "src", 20)
    code, out, err = run(
        capsys, "pack", source, tmp_path / "out", "--max-count", 6, "--workers", 0, "--split", "photos"
    )
    assert code == 0
    assert "4 shards in" in out
    assert "photos: 20 of 20" in err
    code, out, err = run(
        capsys, "inspect", tmp_path / "out", "--workers", 0, "--sheet", tmp_path / "s.png", "--samples", 5
    )
    assert code == 0
    assert "samples           20" in out
    assert f"5 samples drawn in {tmp_path / 's.png'}" in out
    assert (tmp_path / "s.png").stat().st_size > 1000
    code, out, _ = run(capsys, "pack", source, tmp_path / "out", "--max-count", 6, "--workers", 0, "--split", "photos")
    assert code == 0
    assert "4 shards in" in out
    assert "4 of them finished before" in out


def test_broken_images_give_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "src", 4)
    (source / "cats" / "cut.jpg").write_bytes(jpeg(1)[:500])
    code, _, err = run(capsys, "pack", source, tmp_path / "out", "--workers", 0)
    assert code == 1
    assert f"1 image is broken and was skipped: see {tmp_path / 'out' / 'broken.jsonl'}" in err
    write_shards(tmp_path / "foreign", [5], broken=[2])
    code, out, _ = run(capsys, "inspect", tmp_path / "foreign", "--workers", 0)
    assert code == 1
    assert "broken: part-000000.tar/img00002: jpeg: " in out


def test_what_is_not_taken_is_printed_by_both_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("a.cls", b"0"), ("b.cls", b"1"), ("._a.jpg", b"x")]
    tar = write_tar(tmp_path / "unsorted.tar", members)
    labels = [("a.jpg", jpeg(0)), ("a.cls", b"cat"), ("b.jpg", jpeg(1)), ("b.cls", b"1"), ("c.jpg", jpeg(2))]
    for arguments in (["inspect"], ["pack"]):
        out = [tmp_path / f"out-{arguments[0]}"] if arguments == ["pack"] else []
        code, shown, err = run(capsys, *arguments, tar, *out, "--workers", 0)
        text = shown if arguments == ["inspect"] else err
        assert code == 1
        assert "not read: 2 members: the other members of its key are elsewhere in the tar" in text
        assert "not read: 1 member: hidden files, such as the ._ files of macOS, are not read" in text
        assert text.count("elsewhere in the tar") == 1
        other = write_tar(tmp_path / f"labels-{arguments[0]}.tar", labels)
        out = [tmp_path / f"out-labels-{arguments[0]}"] if arguments == ["pack"] else []
        for _ in range(2):  # the second time, from finished shards
            code, shown, err = run(capsys, *arguments, other, *out, "--workers", 0)
            assert code == 1
            assert "1 labels cannot be used" in shown + err
            assert re.search("1 (sample|image)s?(, while| have no label, while) others have one", shown + err)
            assert f"label: {'' if arguments == ['inspect'] else str(tmp_path) + '/'}{other.name}/a: " in shown + err
    assert "no label: 1 sample, while others have one" in run(capsys, "inspect", other, "--workers", 0)[1]
    assert "labels            1 of 3 samples, numbers 1 to 1" in run(capsys, "inspect", other, "--workers", 0)[1]


def test_objects_from_packing_to_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, content = write_images(tmp_path), coco()
    content["annotations"] += [annotation(200 + n, 101, bbox=[2, 2, 0.5, 4]) for n in range(4)]
    content["annotations"].append(annotation(300, 102, bbox=[25, 3, 10, 8]))
    out = tmp_path / "out"
    command = ["pack", images, out, f"coco={write_coco(tmp_path, content)}", "--workers", 0]
    code, stdout, err = run(capsys, *command)
    assert code == 1
    assert "category 0, dog         3 objects in 3 images" in stdout
    first = ", ".join(f"{images}/a/1.jpg: annotation {number}" for number in (200, 201, 202))
    assert f"dropped: the box is less than 1 pixel wide or high: 4 objects, {first}, ...\n" in err
    assert f"changed: the box leaves the image, so it is cut at the border: 1 object, {images}/a/2.jpg" in err
    assert f"some objects were dropped: see {out}/objects.jsonl" in err
    code, stdout, err = run(capsys, "inspect", out, "--sheet", tmp_path / "sheet.png", "--workers", 0)
    assert (code, "not read" in stdout) == (0, False)
    assert "6 of 6 samples have objects, or state that they have none" in stdout
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_label_maps_from_packing_to_the_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ADE20K's convention, a bad label map, both spellings of options, and packing again, where 0 is a class."""
    images, maps = write_pairs(tmp_path, 4)
    for path in sorted((maps / "a").iterdir()):
        path.write_bytes(png(labels(int(path.stem)) + 1))
    names, out = names_file(tmp_path), tmp_path / "out"
    command = ["pack", images, out, "--labels", maps, f"classes_file={names}", "--zero-is-ignore", "--workers", 0]
    code, shown, err = run(capsys, *command)
    assert (code, "warning" in err) == (0, False)
    assert re.search(r"label maps +3,072 pixels$", shown, re.MULTILINE)
    assert "without a class" not in shown
    assert re.search(r"class 2, town +\d\d\.\d\d% of the labeled pixels, in 4 samples", shown)
    code, shown, _ = run(capsys, "inspect", out, "--workers", 0, "--sheet", tmp_path / "s.png")
    assert code == 0
    assert re.search(r"labels +4 of 4 samples have a label map", shown)
    assert re.search(r"class 1, land +\d", shown)
    code, _, err = run(capsys, "pack", out, tmp_path / "again", "--labels", "seg.png", *command[5:])
    assert (code, err.count("\n")) == (2, 1)
    assert "are packed already, with 255 for pixels without a class: omit --labels and its options" in err
    (maps / "a" / "2.png").write_bytes(png(labels(2) + 2))
    code, _, err = run(capsys, *command, "--overwrite")
    assert code == 1
    assert f"skipped: {images}/a/2.png: its label map {maps}/a/2.png: value 4 (" in err
    assert "1 image was skipped: see" in err
    code, shown, err = run(capsys, *command, "--overwrite", "--tile", 20)
    assert code == 1
    assert re.search(r"samples +14$", shown, re.MULTILINE)
    assert re.search(r"skipped: .*/2.png, tile a/2_y0000._x00012 and 1 more: its label map .*/2.png: value 4 ", err)
    assert "2 tiles were skipped: see" in err


def test_label_maps_of_others_show_the_assumed_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = labels(0).copy()
    stored[:3] = 9
    tar = write_tar(tmp_path / "s.tar", [("0.jpg", jpeg(0)), ("0.mask.png", png(stored))])
    command = ["inspect", tar, "--labels", "mask.png", "--workers", 0, "--cache-dir", tmp_path / "cache"]
    code, shown, _ = run(capsys, *command)
    assert code == 0
    assert re.search(r"value without a class +255, assumed for label maps of 8 bits; --ignore VALUE sets", shown)
    code, shown, _ = run(capsys, *command, "--ignore", 9, "--sheet", tmp_path / "s.png")
    assert code == 0
    assert "assumed" not in shown
    assert re.search(r"12.50% of them without a class \(9\)", shown)
    code, _, err = run(capsys, "inspect", tar, "--ignore", 9, "--workers", 0)
    assert (code, err.count("\n")) == (2, 2)
    assert "--ignore 9 is for label maps: add --labels MEMBER, such as --labels mask.png" in err


def test_files_of_other_types_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_folder(tmp_path / "src", 4)
    (source / "notes.txt").write_text("x")
    code, _, err = run(capsys, "pack", source, tmp_path / "out", "--workers", 0)
    assert code == 0
    assert f"warning: {source}: files that are not read as images: 1 .txt" in err
    write_shards(source, [2])
    code, out, err = run(capsys, "pack", source, tmp_path / "out", "--workers", 0)
    assert code == 1
    assert "samples           4" in out
    assert "1 .tar, 1 .txt" in err
    assert f"to pack shards, name them with a pattern such as '{source}/*.tar'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required"),
        (["pack"], "SRC (or source=) is missing: a folder"),
        (["pack", "{tmp}/none", "{tmp}/out"], "{tmp}/none does not exist"),
        (["pack", "{tmp}", "{tmp}/out", "--workers", "0"], "{tmp} holds no images"),
        (["pack", "{tmp}", "{tmp}/out", "--max-size", "0"], "--max-size 0: must be above 0"),
        (["pack", "{tmp}", "{tmp}/out", "--max-size", "12XB"], "--max-size 12XB: is not a size"),
        (["pack", "{tmp}", "{tmp}/out", "--max-count", "0"], "--max-count 0: must be an integer of at least 1"),
        (["pack", "{tmp}", "{tmp}/out", "--quality", "101"], "--quality 101: must be an integer from 1 to 100"),
        (["pack", "{tmp}", "{tmp}/out", "--resize", "x"], "--resize x: must be an integer of at least 1"),
        (["pack", "{tmp}", "{tmp}/out", "--eval-share", "1"], "must be between 0 and 1"),
        (["pack", "{tmp}", "{tmp}/out", "eval_share=a"], "eval_share=a: must be a number"),
        (["pack", "{tmp}", "{tmp}/out", "--split", "a/b"], "cannot be the start of a file name"),
        (["pack", "{tmp}", "{tmp}/out", "--split", "eval", "--eval-share", "0.1"], "would write the same shards"),
        (
            ["pack", "{tmp}", "{tmp}/out", "--labels", "{tmp}"],
            "--labels needs the names of the classes: add --classes-",
        ),
        (["pack", "{tmp}", "{tmp}/out", "--ignore", "255"], "--ignore is for label maps: add --labels LABELS"),
        (["pack", "{tmp}", "{tmp}/out", "zero_is_ignore=true"], "--zero-is-ignore is for label maps"),
        (["pack", "{tmp}", "{tmp}/out", "--colours", "{tmp}/t.csv"], "--colors is for label maps"),
        (["pack", "{tmp}", "{tmp}/out", "--ignore", "70000"], "--ignore 70000: must be an integer from 0 to 65535"),
        (["pack", "{tmp}", "{tmp}/out", "--coco", "a", "--voc", "b"], "--coco and --voc both name objects: use one"),
        (["pack", "{tmp}", "{tmp}/out", "--voc", "b", "--classes"], "--voc for each object: use one of the two"),
        (["pack", "{tmp}", "{tmp}/out", "--overlap", "8"], "--overlap is that of tiles: add --tile PIXELS"),
        (
            ["pack", "{tmp}", "{tmp}/out", "--tile", "64", "--overlap", "40"],
            "--overlap 40 must be at most half of --tile",
        ),
        (["pack", "{tmp}", "{tmp}/out", "--tile", "64", "--resize", "32"], "--tile keeps the size of pixels"),
        (["inspect", "{tmp}"], "{tmp} is a directory without shards"),
        (["inspect", "{tmp}/x.tar"], "{tmp}/x.tar does not exist"),
        (["inspect", "{tmp}/x.tar", "--cache-gib", "-1"], "--cache-gib -1: must be a number above 0"),
        (["inspect", "shards={tmp}/x.tar"], "{tmp}/x.tar does not exist"),
        (["pack", "out={tmp}/out", "{tmp}/none"], "{tmp}/none does not exist"),
        (["pack", "{tmp}", "{tmp}/out", "thing"], "unrecognized arguments: thing"),
        (["inspect", "{tmp}/x.tar", "sheat=a.png"], "sheat=a.png: unknown option; did you mean sheet?"),
        (["nonsense"], "nonsense is not a command of swinv2-"),
    ],
)
def test_usage_errors_are_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = run(capsys, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 2
    assert out == ""
    assert message.format(tmp=tmp_path) in err
    assert err.count("\n") == 1


def test_sizes_are_read_in_both_kinds_of_units() -> None:
    assert [size(text) for text in ("1000", "64MiB", "1.5kB", "2G", "1 GiB")] == [
        1000,
        64 << 20,
        1500,
        2 * 10**9,
        1 << 30,
    ]


def test_an_interrupt_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import swinv2_train.data.pack as module

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "pack", interrupt)
    code, _, err = run(capsys, "pack", write_folder(tmp_path / "src", 1), tmp_path / "out", "--workers", 0)
    assert code == 130
    loading, sentence = err.splitlines()
    assert loading == "swinv2-data: loading the decoders for 1 image ..."
    assert "interrupted" in sentence


def test_bench_reports_every_stage_and_the_gpus_that_it_feeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shard,) = write_shards(tmp_path, [24])
    code, out, err = run(capsys, "bench", shard, "--samples", 20, "--batch", 8, "--resolution", 64)
    assert (code, err) == (0, "swinv2-data: loading the decoders for 24 samples ...\n")
    assert "JPEG decoder  " in out
    assert "20 images, " in out
    rates = {name: float(rate.replace(",", "")) for name, rate in re.findall(r"^(\w+) +([\d,]+)", out, re.MULTILINE)}
    assert list(rates)[1:5] == ["read", "decode", "augment", "collate"]
    assert 1 / rates["all"] == pytest.approx(sum(1 / rates[name] for name in list(rates)[1:5]), rel=0.02)
    assert re.search(r"^swinv2_base +[\d.e+]+ \(14,\d{3}\) ", out, re.MULTILINE), out
    assert "not a measurement: SimMIM at 35% of its peak in bf16" in out


def test_bench_warns_of_a_tar_that_is_cut_off_and_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shard,) = write_shards(tmp_path, [6])
    Path(shard).write_bytes(Path(shard).read_bytes()[: Path(shard).stat().st_size // 2])
    code, out, err = run(capsys, "bench", shard, "--resolution", 16)
    assert code == 0
    assert f"warning: {shard} is cut off (" in err
    assert "complete samples are used" in err
    numbers = [number.replace(",", "").strip("0.") for number in re.findall(r"[\d,.]*\d,\d+", out)]
    assert numbers
    assert all(len(number) <= 3 for number in numbers), out
    assert [rounded(value) for value in (123456, 1234.5, 99.96, 1.2345)] == ["123,000", "1,230", "100", "1.23"]


def test_bench_leaves_out_broken_samples_and_names_wrong_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shard,) = write_shards(tmp_path, [6], broken=[2, 5])
    code, out, err = run(capsys, "bench", shard, "--resolution", 16, "--entire")
    assert code == 1
    assert "torchvision, entire images: --entire" in out
    assert "4 images, " in out
    assert err.splitlines()[1:] == ["2 broken samples were left out: see swinv2-data inspect"]
    (shard,) = write_shards(tmp_path / "all", [2], broken=[0, 1])
    code, _, err = run(capsys, "bench", shard)
    assert code == 2
    assert "none of the samples can be used" in err
    code, _, err = run(capsys, "bench", shard, "--entire", "--scaled")
    assert code == 2
    assert "--scaled has no effect with --entire" in err
    assert run(capsys, "bench", shard, "--least-area", "1.5")[0] == 2


def test_bench_measures_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_filmed_shard(tmp_path / "clips.tar", 3, 0)
    code, out, _ = run(capsys, "bench", tmp_path / "clips.tar", "--frames", 4, "--resolution", 32, "--batch", 2)
    assert code == 0
    assert "4 frames at stride 2" in out
    assert "3 clips, " in out
    assert "clips/s, core" in out
    assert "JPEG" not in out
    code, _, err = run(capsys, "bench", tmp_path / "clips.tar")
    assert code == 2
    assert "video" in err
    for options, message in (
        (["--frame-stride", 2], "--frame-stride is for clips: add --frames N"),
        (["--frames", 4, "--entire"], "--entire is for images, and --frames measures videos"),
    ):
        code, _, err = run(capsys, "bench", tmp_path / "clips.tar", *options)
        assert (code, message in err) == (2, True)
