"""Biases of a text encoder: which of two sentences it finds likelier, and what its embeddings associate with what.

    python recipes/bias.py outputs/mlm --dataset crows_pairs.csv
    python recipes/bias.py outputs/mlm --dataset crows_pairs/ weat_seat/ --update_card true
    python recipes/bias.py outputs/mlm-2 --dataset my_pairs.csv --beside google-bert/bert-base-uncased

Files of pairs have the columns of CrowS-Pairs (sent_more, the more stereotypical sentence, sent_less, and bias_type
where it is known), files of associations those of WEAT and SEAT (name, and the lists targ1_examples, targ2_examples,
attr1_examples and attr2_examples); what a file is, its columns say. Pairs need the head that predicts tokens: the
result folder of mlm.py or clm.py has it, and so has a checkpoint of a masked or causal language model. Beside stand
the same architecture with random weights, and other encoders, such as the checkpoint that was continued. Ends with
tables, sentences on what they show and what not, results.json and report.html. The protocols stand in
hfssl/evaluation/text/bias.py and associations.py; for labelled data of any kind see probe.py --group_column.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hfssl.cli.command import command
from hfssl.commands import first_named


@dataclass
class Bias:
    r"""
    > Bias

    Args:
        encoder (`str`):
            Folder or Hub id of the encoder with its tokenizer, or a checkpoint of a run. It may stand first, without
            the name of the flag.
        dataset (`list[str]`):
            Files, folders or Hub ids of pairs of sentences, of association tests, or of both.
        dataset_config (`str`, *optional*):
            Configuration of a Hub id that has several.
        split (`str`, *optional*, defaults to `"auto"`):
            Split of each. auto takes test, validation or train, the first that is there.
        beside (`list[str]`, *optional*):
            Other encoders, in a column each: folders, Hub ids, or checkpoints of runs.
        pooling (`str`, *optional*):
            Of embeddings: mean, cls or last. Left out: the one that each encoder was trained with, else mean.
        random_seeds (`int`, *optional*, defaults to `3`):
            How many encoders of the same architecture with random weights stand beside.
        batch_size (`int`, *optional*, defaults to `256`):
            Rows a forward pass; of pairs, tokens that are scored in one.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not; auto takes bf16 where the hardware computes in it.
        update_card (`bool`, *optional*, defaults to `False`):
            Write what was found into the card, the results and the report of the encoder's own folder as well.
        output_dir (`str`, *optional*):
            Where results go; outputs/bias-<name of the encoder> when left out.
    """

    encoder: str
    dataset: list[str]
    dataset_config: str | None = None
    split: str = "auto"
    beside: list[str] | None = None
    pooling: str | None = None
    random_seeds: int = 3
    batch_size: int = 256
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    update_card: bool = False
    output_dir: str | None = None


@command
def main():
    from hfssl import RecipeParser
    from hfssl.data.text.bias_tests import open_bias_tests
    from hfssl.evaluation.encoder_folder import stock_folder, weights_digest
    from hfssl.evaluation.probes import columns_of
    from hfssl.evaluation.results import read_json, write_results
    from hfssl.evaluation.text.bias import bias_report, check_text_encoder, measure_bias
    from hfssl.machine import process_state, use_all_cores
    from hfssl.report.card import add_to_card, card_of
    from hfssl.report.page import report_safely
    from hfssl.report.record import RUN

    parser = RecipeParser(Bias, description=__doc__)
    (recipe,) = parser.parse(first_named("encoder"))
    if not process_state().is_main_process:
        return  # it is too little work to share
    use_all_cores()
    if recipe.update_card:
        card_of(recipe.encoder)  # it is there, before the work
    weights = weights_digest(recipe.encoder) if recipe.update_card else None  # those that are measured
    output_dir = Path(recipe.output_dir or f"outputs/bias-{Path(recipe.encoder).resolve().name}")
    came_in = read_json(Path(recipe.encoder) / RUN, default={}).get("base_model")
    if came_in and not recipe.beside:
        print(f"It was continued from {came_in}: `--beside` puts beside it what came in.")
    encoder = stock_folder(recipe.encoder)
    check_text_encoder(encoder)
    results = measure_bias(
        encoder, [open_bias_tests(dataset, recipe.split, recipe.dataset_config) for dataset in recipe.dataset],
        beside={column: stock_folder(other) for column, other in columns_of(recipe.beside or ()).items()},
        pooling=recipe.pooling, random_seeds=recipe.random_seeds, batch_size=recipe.batch_size,
        precision=recipe.precision, name=recipe.encoder, command=parser.command_line(),
    )  # fmt: skip
    write_results(output_dir / "results.json", results)
    print("\n" + bias_report(results))
    if (page := report_safely(output_dir)) is not None:
        print(f"\nReport: {page}")
    if recipe.update_card:
        print(f"What was found is in {add_to_card(recipe.encoder, results, weights)} as well")
        report_safely(recipe.encoder)


if __name__ == "__main__":
    main()
