"""One command for new data: from a folder without labels, and some labels, to what pre-training is worth on them.

accelerate launch recipes/pretrain.py                                   embedded letters, minutes on a laptop
accelerate launch recipes/pretrain.py --dataset my_data/ --labelled my_labels/ --budget_minutes 120
accelerate launch recipes/pretrain.py --dataset my_data/                ends in features, duplicates and clusters
accelerate launch recipes/pretrain.py --dataset my_data/ --labelled my_data/ --method dino --encoder vit-small-patch16
accelerate launch recipes/pretrain.py --dataset reviews.csv --labelled reviews.csv --label_column stars

It finds out what the data are (images, texts, recordings, images with captions), draws what a method sees of them,
chooses a method and says why, pre-trains on everything, probes the encoder while it trains and after it, fine-tunes
it, and trains the same architecture from scratch on 1, 10 and 100 % of the labels. A page for a browser puts it side
by side, and a line says up to how many labels pre-training pays. Each step is a command of another recipe, and is
shown. The same command again goes on where it was stopped. What was chosen, the commands and how far they are stand in
<output_dir>/plan.json.
"""

from hfssl.cli.command import command


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.pretrain import PretrainArguments, Pretraining
    from hfssl.cli.steps import Steps
    from hfssl.report.page import report_safely

    (asked,) = RecipeParser(PretrainArguments, description=__doc__).parse()
    whole = Pretraining(asked)
    print(whole.intro(), flush=True)
    steps = Steps(whole.folder, whole.about)
    steps.plan(*whole.steps())
    for step in whole.steps():
        steps.run(step)
    outcome = whole.outcome()
    steps.add(outcome=outcome)
    page = report_safely(whole.folder)
    print("\n" + "\n".join(outcome.values()) + f"\n\nThe record of all steps: {steps.path}")
    if page is not None:
        print(f"The report of the whole: {page}")


if __name__ == "__main__":
    main()
