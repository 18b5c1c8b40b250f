"""GLUE: how well does an encoder fine-tune, beside the same architecture from random initialisation?

    accelerate launch recipes/glue.py --encoder outputs/mlm --task sst2
    accelerate launch recipes/glue.py --encoder outputs/mlm --task cola,mrpc,rte --seeds 5
    accelerate launch recipes/glue.py --encoder outputs/mlm --task sst2 --max_train_samples 5000 --learning_rate 1e-4
    accelerate launch recipes/glue.py --encoder answerdotai/ModernBERT-base --task all

The data come from the Hub (nyu-mll/glue) or from a folder of the same layout (--dataset). Ends with a table, with
results.json, and in model/<task>/ with the classifier of seed 0, which any pipeline of transformers loads. The score
is that of the last epoch on the validation split: nothing is chosen by looking at it. The same command goes on where
an interrupted run stopped. The protocol stands in hfssl/evaluation/glue.py.
"""

from hfssl.cli.command import command
from hfssl.commands import first_named


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.measuring import Glue
    from hfssl.evaluation import format_table
    from hfssl.evaluation.glue import GlueEvaluator
    from hfssl.machine import process_state
    from hfssl.report.page import report_safely

    parser = RecipeParser(Glue, GlueEvaluator, description=__doc__)
    recipe, evaluator = parser.parse(first_named("encoder"))
    results = evaluator(recipe.open(), output_dir=recipe.folder, command=parser.command_line(), name=recipe.encoder)
    echo = process_state().print
    echo(f"\n{recipe.encoder}, {evaluator.description} (last epoch, validation split)\n")
    echo(format_table(results))
    if len(evaluator.tasks) > 1:
        echo(f"\nMean over {len(evaluator.tasks)} tasks: {evaluator.score(results):.3f}")
    page = report_safely(recipe.folder)
    echo(f"\nWritten to {recipe.folder}/results.json" + (f", with a report: {page}" if page else ""))
    if evaluator.save_model:
        echo(f"Classifiers (seed 0): {', '.join(f'{recipe.folder}/model/{task}' for task in evaluator.tasks)}")


if __name__ == "__main__":
    main()
