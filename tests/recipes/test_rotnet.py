"""`recipes/rotnet.py` as a command."""

import pytest
from image_recipes import check_result, run, stopped_and_continued


def test_from_images_to_a_stock_encoder(tmp_path):
    done = run("rotnet", tmp_path)
    assert done.poll() == 0, done.stderr
    assert ", chance 1.3863" in done.stdout
    check_result(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_stopped_and_continued_it_is_the_same_run(tmp_path, number):
    stopped_and_continued("rotnet", tmp_path, number=number, gradient_accumulation_steps=2)
