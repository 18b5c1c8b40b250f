"""Send a finished result to the Hugging Face Hub: the model, its figures, its card with its pictures, nothing else.

    python recipes/push.py outputs/simclr                                         as <you>/simclr
    python recipes/push.py outputs/simclr --repo_id org/name --private true
    python recipes/push.py outputs/finetune-mae --repo_id you/what-it-tells       the classifier of finetune.py

Log in once with `hf auth login`, with a token that may write. After pre-training the encoder lies at the root of the
repository, where plain transformers finds it, and the whole method in pretraining/; after fine-tuning the classifier.
Pictures and examples in the card show some of the held-out samples: `--private true` keeps them to you.
What the Hub has already is not sent again: the same command goes on where an upload was cut, and sends what has
changed since, such as figures of a later probe (`recipes/probe.py --update_card true`). What may leave this machine,
and what stands in the way, is hfssl/training/hub.py.
"""

import sys
from dataclasses import dataclass

from hfssl.cli.command import command
from hfssl.commands import first_named


@dataclass
class Push:
    r"""
    > Push

    Args:
        folder (`str`):
            Result folder of pre-training or of fine-tuning. It may stand first, without the name of the flag.
        repo_id (`str`, *optional*):
            Repository of the Hub, such as org/name. Left out: the one that the run was to push to, else one of yours
            that is called like the folder.
        revision (`str`, *optional*):
            Branch of the repository to push to; its main one when left out.
        private (`bool`, *optional*, defaults to `False`):
            Make the repository private.
        overwrite (`bool`, *optional*, defaults to `False`):
            Take the place of something else that the repository holds; its history keeps that.
    """

    folder: str
    repo_id: str | None = None
    revision: str | None = None
    private: bool = False
    overwrite: bool = False


@command
def main():
    from huggingface_hub.utils import enable_progress_bars

    from hfssl import RecipeParser
    from hfssl.training.hub import push_result

    (recipe,) = RecipeParser(Push, description=__doc__).parse(first_named("folder"))
    if sys.stderr.isatty():
        enable_progress_bars()  # gigabytes take their time
    pushed = push_result(
        recipe.folder, recipe.repo_id, revision=recipe.revision, private=recipe.private or None,
        overwrite=recipe.overwrite,
    )  # fmt: skip
    print(f"{pushed.url}: {pushed.sent} files sent, {pushed.there} were there already.")


if __name__ == "__main__":
    main()
