"""The picture of the losses of a run: what is seen in it, and what shares an axis."""

import pytest

from hfssl.report.curves import history_figure


HISTORY = [
    {"step": 0, "eval_loss": 3.0}, {"step": 10, "loss": 2.5}, {"step": 20, "loss": 2.0}, {"step": 20, "eval_loss": 2.2},
]  # fmt: skip


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_one_logged_point_is_seen():
    """A line from a point to itself is none, so it has a marker."""
    [axes] = history_figure(HISTORY[:2]).axes
    for line in axes.lines:
        assert len(line.get_xdata()) == 1 and line.get_marker() == "o"
    [axes] = history_figure(HISTORY).axes
    assert {name: line.get_marker() for name, line in lines(axes).items()} == {"training": "None", "held out": "o"}


@pytest.mark.parametrize("contrasted, shared", [(None, True), ((64, 64), True), ((256, 64), False)])
def test_losses_of_other_numbers_of_images_share_no_axis(contrasted, shared):
    figure = history_figure(HISTORY, contrasted)
    assert [list(lines(axes)) for axes in figure.axes] == (
        [["training (256 images at once)"], ["held out (64 images at once)"]]
        if not shared
        else [["training", "held out"]] if contrasted is None
        else [["training (64 images at once)", "held out (64 images at once)"]]
    )  # fmt: skip
    for axes in figure.axes:
        assert axes.get_xlabel() == "step" and axes.get_ylabel() == "loss" and axes.get_legend() is not None
    assert len({tuple(axes.get_xlim()) for axes in figure.axes}) == 1
