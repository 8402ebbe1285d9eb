from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vgg16_xray.report import drawings
from vgg16_xray.rundir import RunDir

COMMITTED = Path(__file__).parents[2] / "docs" / "figures"


def words(svg: str) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_the_committed_drawing_is_what_the_code_draws(name: str) -> None:
    again = "draw it anew: python -m vgg16_xray.report.drawings docs/figures"
    assert (COMMITTED / name).read_text("utf-8") == drawings.DRAWINGS[name](), again


def test_every_file_of_a_run_directory_is_in_the_drawing_of_the_steps() -> None:
    files = {name for name, value in vars(RunDir).items() if isinstance(value, property)}
    assert {lane.file for lane in drawings.LANES} == files
    drawn = words(drawings.six_steps())
    assert all(drawings.name_of(file) in drawn for file in files)


def test_the_steps_stand_in_the_order_of_the_files_flow() -> None:
    order = [column.key for column in drawings.COLUMNS]
    for lane in drawings.LANES:
        first = min(order.index(writer) for writer in lane.writers)
        assert all(order.index(reader) > first for reader in lane.readers), lane.file


def test_vgg16_is_drawn_with_pools_after_2_2_3_3_and_3_convolutions() -> None:
    drawn = words(drawings.vgg16())
    blocks = [match[1] for word in drawn if (match := re.match(r"(\d) × conv", word))]
    assert blocks == ["2", "2", "3", "3", "3"]
    for word in ("224 × 224 × 64", "14 × 14 × 512", "pool → 7 × 7", "38,720", "7,079,424", "linear", "gap", "vgg"):
        assert word in drawn
    assert any("14,714,688" in word for word in drawn)
    assert any("138,357,544" in word for word in drawn)


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_drawing_stands_on_a_ground_of_its_own_and_says_in_words_what_it_shows(name: str) -> None:
    root = ElementTree.fromstring(drawings.DRAWINGS[name]())
    title, description, ground = list(root)[:3]
    assert title.text
    assert len(description.text or "") > 100
    assert ground.get("fill") == drawings.GROUND
    assert float(ground.get("width", "0")) >= float(root.get("width", "inf")) - 1


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vgg16_xray.report.drawings", str(tmp_path / "figures")]
    subprocess.run(command, check=True, capture_output=True)
    assert {file.name for file in (tmp_path / "figures").iterdir()} == set(drawings.DRAWINGS)
