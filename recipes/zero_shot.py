"""Two encoders that were trained together: do images find the name of their class, and captions their image?

    accelerate launch recipes/zero_shot.py --model outputs/clip --dataset characters --label_column color
    accelerate launch recipes/zero_shot.py --model openai/clip-vit-base-patch32 --dataset uoft-cs/cifar10
    accelerate launch recipes/zero_shot.py --model outputs/clip --dataset birds/ --classes names.txt
    accelerate launch recipes/zero_shot.py --model outputs/clip --pairs my_captioned_images/

Any stock model of images and texts: CLIP, SigLIP, VisionTextDualEncoder. With --dataset labelled images are given the
class whose name, in the mean over all templates, is nearest; with --pairs retrieval is measured both ways, and drawn.
The same encoders with new weights stand beside. What measures is hfssl/evaluation/multimodal/.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.multimodal.zero_shot import ZeroShot, ZeroShotDataArguments, measure_retrieval, random_pair
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
        results += measure_retrieval(pair, untrained, data, recipe.folder / "assets")
        print(f"Pictures in {recipe.folder}/assets: captions.png, images.png, similarity.png")
    write_results(recipe.folder / "results.json", results)
    report_safely(recipe.folder)
    print("\n" + format_table(results))


if __name__ == "__main__":
    main()
