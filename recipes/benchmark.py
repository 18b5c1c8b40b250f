"""Speed of pre-training, measured against another library: both train in turn, on the same corpus and tokenizer.

python recipes/benchmark.py mlm --against transformers                          embedded corpus, BERT-small
python recipes/benchmark.py mlm --dataset my_texts/ --precision fp32 --json     the last line is JSON
python recipes/benchmark.py mlm --defaults                                      each side at its default precision
python recipes/benchmark.py mlm --dataset sentences.parquet --line_by_line      their mode for short texts
python recipes/benchmark.py mlm --encoder modernbert-small                      also with its own sparse_prediction
python recipes/benchmark.py mlm --against none                                  our trainer beside a bare loop

Each side runs its full path, data included, in a process of its own; no two run at the same time. What is compared,
and what cannot be, stands below the table. Measured results: recipes/README.md.
"""

import signal
import sys

from hfssl.errors import explained


METHODS = ("mlm",)


@explained
def main():
    from hfssl import RecipeParser
    from hfssl.benchmark import json_line
    from hfssl.benchmark_mlm import MlmBenchmark, run_mlm_benchmark
    from hfssl.data.text_data import TextDataArguments

    parser = RecipeParser(
        MlmBenchmark,
        TextDataArguments,
        description=__doc__,
        usage="%(prog)s mlm [--against transformers] [--flag VALUE ...]",
        defaults={"vocab_size": 30_528},
    )
    method, *flags = sys.argv[1:] or [""]
    if method.startswith("-"):
        method, flags = "", sys.argv[1:]
    if method not in METHODS and not {"-h", "--help", "--help-all", "--help_all"} & set(flags):
        parser.error(f"say first which method to measure ({', '.join(METHODS)}), got {method or 'none'!r}.")
    arguments, data = parser.parse(flags)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the other processes and the temporary files go too
    text, report = run_mlm_benchmark(arguments, data)
    print(text)
    if arguments.json:
        print(json_line(report))


if __name__ == "__main__":
    main()
