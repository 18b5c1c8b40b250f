"""Speed, measured against another library: both work in turn, on the same data.

python recipes/benchmark.py mlm --against transformers                          embedded corpus, BERT-small
python recipes/benchmark.py mlm --dataset my_texts/ --precision fp32 --json     the last line is JSON
python recipes/benchmark.py mlm --defaults                                      each side at its default precision
python recipes/benchmark.py mlm --dataset sentences.parquet --line_by_line      their mode for short texts
python recipes/benchmark.py mlm --encoder modernbert-small                      also with its own sparse_prediction
python recipes/benchmark.py mlm --against none                                  our trainer beside a bare loop
python recipes/benchmark.py simclr --against lightly --dataset my_images/       embedded letters when left out
python recipes/benchmark.py mae --against transformers --encoder vit-tiny-patch4 --json
python recipes/benchmark.py byol --against lightly --precision fp32
python recipes/benchmark.py dino --against lightly --defaults                   2 large and 6 small crops
python recipes/benchmark.py views --against lightly                             SimCLR's and DINO's views, no training
python recipes/benchmark.py views --jpeg --methods simclr --sizes 224 --json    with decoding; a line of JSON for each
python recipes/benchmark.py gpu --json                                          one GPU, 7 rows, about 5 minutes
python recipes/benchmark.py scale --gpus 1 8 64                                 FLOPs and messages, worked out on a CPU

Where there is training, each side runs its full path, data included, in a process of its own; no two run at the same
time. What is compared, and what cannot be, stands below the table. Measured results: recipes/README.md.
"""

import signal
import sys
from functools import partial

import hfssl
from hfssl.errors import explained


def mlm():
    from hfssl.benchmarks.mlm import MlmBenchmark, run_mlm_benchmark
    from hfssl.cli.text.data import TextDataArguments

    return run_mlm_benchmark, (MlmBenchmark, TextDataArguments), {"vocab_size": 30_528}


def views():
    from hfssl.benchmarks.views import ViewsBenchmark, run_views_benchmark

    return run_views_benchmark, (ViewsBenchmark,), {}


def gpu():
    from hfssl.benchmarks.gpu import GpuBenchmark, run_gpu_benchmark

    return run_gpu_benchmark, (GpuBenchmark,), {}


def scale():
    from hfssl.benchmarks.scale import ScaleBenchmark, run_scale_benchmark

    return run_scale_benchmark, (ScaleBenchmark,), {}


def vision(method):
    from hfssl.benchmarks.vision import VisionBenchmark, run_vision_benchmark
    from hfssl.cli.image.data import ImageDataArguments

    return partial(run_vision_benchmark, method), (VisionBenchmark, ImageDataArguments), {}


# Each gives what measures, the classes of its flags, and defaults that differ from theirs.
METHODS = {"mlm": mlm, "views": views, "gpu": gpu, "scale": scale}
METHODS |= {
    name: partial(vision, name)
    for name, model_class in hfssl.methods.METHODS.items()
    if model_class.method.views is not None and model_class.method.benchmark.against
}


@explained
def main():
    from hfssl import RecipeParser
    from hfssl.benchmarks.base import json_line

    method, *flags = sys.argv[1:] or [""]
    if method.startswith("-"):
        method, flags = "", sys.argv[1:]
    run, classes, defaults = METHODS.get(method, mlm)()
    usage = f"%(prog)s {method or '{' + ','.join(METHODS) + '}'} [--flag VALUE ...]"
    parser = RecipeParser(*classes, description=__doc__, usage=usage, defaults=defaults)
    if method not in METHODS and not {"-h", "--help", "--help-all", "--help_all"} & set(flags):
        parser.error(f"say first which method to measure ({', '.join(METHODS)}), got {method or 'none'!r}.")
    parsed = parser.parse(flags)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the other processes and the temporary files go too
    text, *reports = run(*parsed)
    print(text)
    if parsed[0].json:
        for report in reports:
            print(json_line(report))


if __name__ == "__main__":
    main()
