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

from hfssl.cli.command import command
from hfssl.commands import first_named


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.measuring import Export
    from hfssl.evaluation.graph import export_encoder
    from hfssl.machine import use_all_cores

    (recipe,) = RecipeParser(Export, description=__doc__).parse(first_named("encoder"))
    use_all_cores()
    print(export_encoder(recipe.encoder, recipe.format, recipe.folder, recipe.pooling).summary())


if __name__ == "__main__":
    main()
