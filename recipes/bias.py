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

from hfssl.cli.command import command
from hfssl.commands import first_named


@command
def main():
    from hfssl import RecipeParser
    from hfssl.cli.measuring import Bias
    from hfssl.data.text.bias_tests import open_bias_tests
    from hfssl.evaluation.results import write_results
    from hfssl.evaluation.text.bias import bias_report, check_text_encoder, measure_bias
    from hfssl.machine import process_state, use_all_cores

    parser = RecipeParser(Bias, description=__doc__)
    (recipe,) = parser.parse(first_named("encoder"))
    if not process_state().is_main_process:
        return  # it is too little work to share
    use_all_cores()
    print(recipe.hint(), end="")
    encoder = recipe.open()
    check_text_encoder(encoder)
    results = measure_bias(
        encoder, [open_bias_tests(dataset, recipe.split, recipe.dataset_config) for dataset in recipe.dataset],
        beside=recipe.open_beside(), pooling=recipe.pooling, random_seeds=recipe.random_seeds,
        batch_size=recipe.batch_size, precision=recipe.precision, name=recipe.encoder, command=parser.command_line(),
    )  # fmt: skip
    write_results(recipe.folder / "results.json", results)
    print("\n" + bias_report(results))
    recipe.finish(results)


if __name__ == "__main__":
    main()
