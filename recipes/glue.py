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

from dataclasses import dataclass, field
from pathlib import Path

from hfssl.cli.command import command


@dataclass
class GlueRecipe:
    encoder: str = field(metadata={"help": "Folder or Hub id of the encoder, with its tokenizer; or a checkpoint."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Where results.json goes; outputs/glue-<name of the encoder> when left out."}
    )


@command
def main():
    from hfssl import RecipeParser
    from hfssl.evaluation import format_table
    from hfssl.evaluation.encoder_folder import stock_folder
    from hfssl.evaluation.glue import GlueEvaluator
    from hfssl.machine import process_state
    from hfssl.report.page import report_safely

    parser = RecipeParser(GlueRecipe, GlueEvaluator, description=__doc__)
    recipe, evaluator = parser.parse()
    output_dir = recipe.output_dir or f"outputs/glue-{Path(recipe.encoder).resolve().name}"
    results = evaluator(
        stock_folder(recipe.encoder), output_dir=output_dir, command=parser.command_line(), name=recipe.encoder
    )
    echo = process_state().print
    echo(f"\n{recipe.encoder}, {evaluator.description} (last epoch, validation split)\n")
    echo(format_table(results))
    if len(evaluator.tasks) > 1:
        echo(f"\nMean over {len(evaluator.tasks)} tasks: {evaluator.score(results):.3f}")
    page = report_safely(output_dir)
    echo(f"\nWritten to {output_dir}/results.json" + (f", with a report: {page}" if page else ""))
    if evaluator.save_model:
        echo(f"Classifiers (seed 0): {', '.join(f'{output_dir}/model/{task}' for task in evaluator.tasks)}")


if __name__ == "__main__":
    main()
