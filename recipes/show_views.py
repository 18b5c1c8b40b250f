"""What a method's views look like: a contact sheet of some images and what the model would see of them.

python recipes/show_views.py --method dino                              embedded images
python recipes/show_views.py --method simclr --dataset my_photos/ --image_size 224
python recipes/show_views.py --method byol --dataset my_photos/ --jitter 0.2 0.2 0.1 0 --crop_scale 0.4 1

Look before you train: what the views change, the encoder learns to ignore. If a hue, an orientation or a small part
is what tells your classes apart, the views must leave it alone.
"""

from dataclasses import dataclass

from hfssl.errors import UserError, explained
from hfssl.methods import METHODS


@dataclass
class ShowViews:
    r"""
    Args:
        method (`str`, *optional*, defaults to `"simclr"`):
            Whose views: simclr, moco, byol, dino, mae …
        num_images (`int`, *optional*, defaults to `6`):
            Rows of the sheet.
        output (`str`, *optional*):
            The picture, outputs/views_<method>.png when left out.
        seed (`int`, *optional*, defaults to `0`):
            Another one shows other images and other views.
    """

    method: str = "simclr"
    num_images: int = 6
    output: str | None = None
    seed: int = 0

    def __post_init__(self):
        with_views = [name for name, method in METHODS.items() if method.method.views is not None]
        if self.method not in with_views:
            raise UserError(f"`--method` is one of {', '.join(with_views)}, got {self.method!r}.")
        if not 1 <= self.num_images <= 100:
            raise UserError(f"`--num_images` is from 1 to 100, got {self.num_images}.")
        self.output = self.output or f"outputs/views_{self.method}.png"


@explained
def main():
    from hfssl import RecipeParser
    from hfssl.cli.image.data import ImageData, ImageDataArguments
    from hfssl.data.image.contact_sheet import contact_sheet, pick_images
    from hfssl.data.image.views import ViewArguments, Views

    recipe, data_args, view_args = RecipeParser(
        ShowViews, ImageDataArguments, ViewArguments, description=__doc__
    ).parse()
    data = ImageData(data_args)
    mean_std = data.channel_mean_std() if view_args.normalization == "dataset" else None
    views = Views(
        METHODS[recipe.method].method.views, view_args, is_grey=data.is_grey, mean_std=mean_std,
        value_range=data.value_range,
    )  # fmt: skip
    shown = contact_sheet(pick_images(data.source, recipe.num_images, recipe.seed), views, recipe.output, recipe.seed)
    print(f"{views.description}\n{shown} images: {recipe.output}")


if __name__ == "__main__":
    main()
