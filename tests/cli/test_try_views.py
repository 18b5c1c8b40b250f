"""`--views auto`: what is tried, and what is taken."""

import json

import numpy as np
import pytest
from image_recipes import run as run_image_recipe
from image_recipes import the_error
from PIL import Image

from hfssl.cli.image.try_views import Variant, _short, choose_variants, variants_of
from hfssl.data.image.views import ViewArguments, Views
from hfssl.methods.vision.mae import MaeForPreTraining
from hfssl.methods.vision.simclr import SimclrForPreTraining
from hfssl.training.arguments import SSLTrainingArguments


def words_of(method, given=frozenset(), is_grey=False, **arguments):
    views = Views(method.method.views, ViewArguments(image_size=32, **arguments), is_grey=is_grey, patch_size=4)
    return [variant.words for variant in variants_of(views, set(given))]


def test_only_what_changes_the_views_is_tried():
    assert words_of(SimclrForPreTraining) == ["colours kept", "all grey", "larger crops", "nothing mirrored"]
    assert words_of(SimclrForPreTraining, is_grey=True) == ["larger crops", "nothing mirrored"]
    assert words_of(SimclrForPreTraining, {"jitter"}) == ["larger crops", "nothing mirrored"]
    assert words_of(SimclrForPreTraining, flip_probability=0.0, crop_scale=(0.5, 1.0))[2:] == []
    assert "colours kept" not in words_of(MaeForPreTraining)  # it changes none


def test_of_a_kind_the_best_is_taken_if_it_is_better_for_certain():
    variants = [
        Variant("colours", "kept", {"a": 1}),
        Variant("colours", "grey", {"a": 2}),
        Variant("crops", "large", {"b": 1}),
    ]

    def taken(usual, *others, num_test=1000, **together):
        of_words = dict(zip(("kept", "grey", "large"), others, strict=True)) | together
        chosen, figures = choose_variants(variants, lambda v: of_words[v.words] if v else usual, num_test)
        assert figures == {"as usual": usual, **of_words}
        return [each.words for each in chosen]

    assert taken(0.5, 0.6, 0.7, 0.51) == ["grey"]
    assert taken(0.5, 0.7, 0.6, 0.6, **{"kept and large": 0.7}) == ["kept", "large"]
    assert taken(0.5, 0.6, 0.6, 0.7, **{"kept and large": 0.69}) == ["large"]  # too much at once
    assert taken(0.5, 0.6, 0.4, 0.4, num_test=20) == []


def test_short_runs_are_a_tenth_within_limits(tmp_path):
    def steps(num_samples=3000, num_held_out=0, **length):
        args = SSLTrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=30, report_to="none", use_cpu=True, **length
        )
        return _short(args, num_samples, num_held_out).max_steps

    assert [steps(max_steps=n) for n in (20, 400, 1000, 10_000)] == [20, 50, 100, 300]
    assert [steps(epochs=n) for n in (0.1, 10)] == [10, 100]  # passes of 100 steps
    # as many as the run itself has: what is held out is no part of a pass
    assert steps(epochs=10, num_held_out=300) == 90
    assert (
        _short(SSLTrainingArguments(output_dir=str(tmp_path), budget_minutes=5, use_cpu=True), 9, 0).budget_minutes
        == 0.5
    )


@pytest.mark.slow
def test_a_run_takes_what_it_chose_and_goes_on_with_it(tmp_path):
    """Classes that are colours: views that keep them are better."""
    data = tmp_path / "data"
    for c, color in enumerate([(200, 40, 40), (40, 200, 40), (40, 40, 200), (120, 120, 40)]):
        (data / f"class {c}").mkdir(parents=True)
        for i in range(40):
            noise = np.random.default_rng((c, i)).integers(-40, 40, (12, 12, 3))
            Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(
                data / f"class {c}" / f"{i}.png"
            )
    settings = {"dataset": data, "probe_dataset": data, "views": "auto", "save_steps": 2, "learning_rate": 1e-3}
    done = run_image_recipe("simclr", tmp_path, max_steps=4, **settings)
    assert done.poll() == 0, done.stderr
    chosen = json.loads((tmp_path / "out" / "views.json").read_text())
    assert list(chosen["figures"])[:5] == ["as usual", "colours kept", "all grey", "larger crops", "nothing mirrored"]
    assert all(0 <= value <= 1 for value in chosen["figures"].values())
    [said] = [line for line in done.stderr.splitlines() if line.strip().startswith("Views: ")]
    assert f"as usual {chosen['figures']['as usual']:.3f}" in said
    again = run_image_recipe("simclr", tmp_path, max_steps=6, **settings)
    assert again.poll() == 0, again.stderr
    assert "Continuing from" in again.stderr and "to choose views" not in again.stderr
    assert done.stderr.count("Fitted to short runs") == 1  # of all runs that were made
    # another value of a flag is another choice; a run that goes on keeps what it has
    assert chosen["settings"]["given"]["learning_rate"] == 1e-3 and "output_dir" not in chosen["settings"]["given"]
    assert "learning_rate was" in the_error(
        run_image_recipe("simclr", tmp_path, max_steps=6, **settings | {"learning_rate": 2e-3})
    )
    plain = {name: value for name, value in settings.items() if name != "views"}
    assert run_image_recipe("simclr", tmp_path / "plain", max_steps=2, **plain).poll() == 0
    without = the_error(run_image_recipe("simclr", tmp_path / "plain", max_steps=6, **settings))
    assert "began without it. Leave it out" in without
    assert "by labels, and there are none" in the_error(run_image_recipe("simclr", tmp_path / "none", views="auto"))
