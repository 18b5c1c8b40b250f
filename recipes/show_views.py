"""What a method's views look like: a contact sheet of the first images of a run and what the model sees of them.

python recipes/show_views.py --method dino                              embedded images
python recipes/show_views.py --method simclr --dataset my_photos/ --image_size 224
python recipes/show_views.py --method byol --dataset my_photos/ --jitter 0.2 0.2 0.1 0 --crop_scale 0.4 1
python recipes/show_views.py --method mae --dataset my_photos/ --encoder vit-small-patch16 --mask_ratio 0.6
python recipes/show_views.py --method hubert --dataset my_recordings/   with a page to listen to
python recipes/show_views.py --method simclr --modality audio --dataset my_recordings/

All flags of the method's recipe are taken (python recipes/dino.py --help), also those of a --config: shown is what the
run with the same flags sees in its first step, to the pixel. With another --seed it sees other images and other views.
Of recordings some from all over the data are shown, with the spans that a method would hide.

Look before you train: what the views change, the encoder learns to ignore. If a hue, an orientation or a small part
is what tells your classes apart, the views must leave it alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from hfssl.cli.command import command
from hfssl.errors import UserError


@dataclass
class ShowViews:
    r"""
    > Views

    Args:
        method (`str`, *optional*, defaults to `"simclr"`):
            Whose views: the name of a recipe for images, such as simclr, moco, byol, dino, lejepa or mae, or for
            sound, such as hubert, wav2vec2 or best_rq.
        num_images (`int`, *optional*, defaults to `6`):
            Rows of the sheet.
        output (`str`, *optional*):
            The picture, outputs/views_<method>.png when left out.
    """

    method: str = "simclr"
    num_images: int = 6
    output: str | None = None

    def __post_init__(self):
        if not 1 <= self.num_images <= 100:
            raise UserError(f"`--num_images` is from 1 to 100, got {self.num_images}.")


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.sheet import recipe_of, sheet_of
    from hfssl.data.modality import modalities, modality

    method, recipe = recipe_of(sys.argv[1:], Path(__file__).parent)
    parser = RecipeParser(ShowViews, description=__doc__, as_in=recipe)
    settings, *flags = parser.parse()
    if recipe.stem != settings.method:  # a yaml said so, and the flags are those of another recipe
        raise UserError(f"A yaml cannot choose the method here: pass `--method {settings.method}`.")
    output = settings.output or f"outputs/views_{settings.method}.png"
    encoder = next(each for each in flags if hasattr(each, "encoder"))
    name = getattr(encoder, "modality", method.method.modality)
    shown, words = sheet_of(name)(method, *flags, given=parser.given, output=output, number=settings.num_images)
    # pairs have two modalities, and are none themselves
    samples = modality(name).samples if name in modalities() else "pairs"
    print(f"{words}\n{shown} {samples}: {output}")


if __name__ == "__main__":
    main()
