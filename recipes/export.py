"""An encoder for where there is no transformers: a program of torch.export, or ONNX.

    python recipes/export.py outputs/simclr
    python recipes/export.py outputs/mlm --format onnx
    python recipes/export.py outputs/clip/image --output_dir image-tower
    python recipes/export.py facebook/dinov2-small --pooling cls+mean

What is written takes batches of any size, and texts and recordings of any length (those of a batch all the same one;
texts are padded, with a mask). It gives what the encoder gives, `last_hidden_state`, and one vector a sample,
`feature`, pooled as the encoder was trained. It is loaded again and compared with the encoder at other sizes; what
differs too much is not kept. Beside it lie the encoder's own processor, and export.json: inputs, how they are made of
samples, the largest difference, and how long one sample takes. ONNX needs `pip install "hfssl[export]"`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfssl.cli.command import command


@dataclass
class Export:
    r"""
    > Export

    Args:
        encoder (`str`):
            Folder or Hub id of the encoder, with its tokenizer, image processor or feature extractor; or a checkpoint
            of a run. It may stand first, without the name of the flag.
        format (`str`, *optional*, defaults to `"torch_export"`):
            torch_export (encoder.pt2, which `torch.export.load` reads) or onnx (encoder.onnx).
        pooling (`str`, *optional*):
            How one vector is made of the outputs. Images: cls, mean, cls+mean or last4; texts: mean, cls or last;
            recordings: mean, or cls of an AST. Left out: the one that the encoder was trained with, where its folder
            says so, else what fits it.
        output_dir (`str`, *optional*):
            Where it goes; outputs/export-<name of the encoder> when left out.
    """

    encoder: str
    format: Literal["torch_export", "onnx"] = "torch_export"
    pooling: str | None = None
    output_dir: str | None = None


@command
def main():
    from hfssl import RecipeParser
    from hfssl.evaluation.graph import export_encoder
    from hfssl.machine import use_all_cores

    words = sys.argv[1:]
    named = words if not words or words[0].startswith("-") else ["--encoder", *words]
    (recipe,) = RecipeParser(Export, description=__doc__).parse(named)
    use_all_cores()
    output_dir = recipe.output_dir or f"outputs/export-{Path(recipe.encoder).resolve().name}"
    print(export_encoder(recipe.encoder, recipe.format, output_dir, recipe.pooling).summary())


if __name__ == "__main__":
    main()
