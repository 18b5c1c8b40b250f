"""Two encoders that were trained together: do images find the name of their class, and captions their image?

    accelerate launch recipes/zero_shot.py --model outputs/clip --dataset characters --label_column color
    accelerate launch recipes/zero_shot.py --model openai/clip-vit-base-patch32 --dataset uoft-cs/cifar10
    accelerate launch recipes/zero_shot.py --model outputs/clip --dataset birds/ --classes names.txt
    accelerate launch recipes/zero_shot.py --model outputs/clip --pairs my_captioned_images/

Any stock model of images and texts: CLIP, SigLIP, VisionTextDualEncoder. With --dataset labelled images are given the
class whose name, in the mean over all templates, is nearest; with --pairs retrieval is measured both ways, and drawn.
The same encoders with new weights stand beside. What measures is hfssl/evaluation/multimodal/.
"""

from dataclasses import dataclass
from pathlib import Path

from hfssl.cli.command import command


@dataclass
class ZeroShot:
    r"""
    > Zero-shot

    Args:
        model (`str`):
            Folder or Hub id of the two encoders, with tokenizer and image processor.
        tokenizer (`str`, *optional*):
            Folder or Hub id of their tokenizer, where it does not lie beside them.
        classes (`str`, *optional*):
            File with what the classes are called: a name a line in their order, or a JSON object from class to name or
            names. Left out, they are called as in the data.
        templates (`str`, *optional*):
            File with sentences, one a line, {} where a name stands. Left out: a photo of a {}, and of
            the embedded characters the name alone.
        batch_size (`int`, *optional*, defaults to `64`):
            Images or texts a forward pass.
        output_dir (`str`, *optional*):
            Where results and pictures go; outputs/zero_shot-<name of the model> when left out.
    """

    model: str
    tokenizer: str | None = None
    classes: str | None = None
    templates: str | None = None
    batch_size: int = 64
    output_dir: str | None = None


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.multimodal.zero_shot import ZeroShotDataArguments, measure_retrieval, random_pair
    from hfssl.data.text.tokenizer import load_tokenizer
    from hfssl.evaluation.multimodal.embedders import StockPair
    from hfssl.evaluation.multimodal.prompts import read_prompts
    from hfssl.evaluation.multimodal.zero_shot import ZeroShotEvaluator, zero_shot
    from hfssl.evaluation.probes import warn_of_seen
    from hfssl.evaluation.results import format_table, write_results
    from hfssl.machine import compute_device, use_all_cores
    from hfssl.report.page import report_safely

    recipe, data = RecipeParser(ZeroShot, ZeroShotDataArguments, description=__doc__).parse()
    use_all_cores()
    output_dir = Path(recipe.output_dir or f"outputs/zero_shot-{Path(recipe.model).resolve().name}")
    tokenizer = load_tokenizer(recipe.tokenizer or recipe.model)
    pair = StockPair(recipe.model, tokenizer, batch_size=recipe.batch_size, device=compute_device())
    untrained, results = random_pair(pair), []
    if data.dataset is not None:
        labelled = data.labelled()
        warn_of_seen(recipe.model, labelled.samples, f"images of {labelled.name}", "--split")
        prompts = read_prompts(labelled.class_names, recipe.classes, recipe.templates, data.dataset)
        evaluator = ZeroShotEvaluator(labelled, prompts, split=data.split_of(data.dataset))
        scores, beside = (zero_shot(each, labelled, evaluator.prompts) for each in (pair, untrained))
        results += evaluator.results(scores, recipe.model, random_init=beside)
    if data.pairs is not None:
        results += measure_retrieval(pair, untrained, data, output_dir / "assets")
        print(f"Pictures in {output_dir}/assets: captions.png, images.png, similarity.png")
    write_results(output_dir / "results.json", results)
    report_safely(output_dir)
    print("\n" + format_table(results))


if __name__ == "__main__":
    main()
