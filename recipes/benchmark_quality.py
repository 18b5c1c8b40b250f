"""Quality, measured against another library: the same images, encoder, weights to start from, steps and probes.

python recipes/benchmark_quality.py                                             embedded letters, minutes
python recipes/benchmark_quality.py --dataset uoft-cs/cifar10 --methods simclr,dino --seeds 0,1
python recipes/benchmark_quality.py --dataset my_labelled_images/ --methods moco,byol,mae --against none
python recipes/benchmark_quality.py --dataset my_labelled_images/ --cell dino,lightly,1     one training, by hand
python recipes/benchmark_quality.py --dataset my_labelled_images/ --table       only the table of what is there

A cell is one training (method, side, seed) in a process of its own. It is measured after each pass, with the clock
stopped, and written when it has finished; the same command goes on with those that are missing. Several cells can run
at once, on cores of their own (--cell, --cpu_threads). <output_dir>/<method>-<side>-<seed>/ is a stock encoder for
recipes/probe.py and recipes/finetune.py; quality.md and quality.png are the table and the curves. How the two sides
are made equal: hfssl/benchmarks/quality/plan.py. Measured results: recipes/README.md.
"""

import signal
import sys

from hfssl.cli.command import command


@command
def main():
    from hfssl import RecipeParser
    from hfssl.benchmarks.quality.plan import QualityBenchmark
    from hfssl.benchmarks.quality.run import run_quality_benchmark

    (arguments,) = RecipeParser(QualityBenchmark, description=__doc__).parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the process of the cell goes too
    print(run_quality_benchmark(arguments))


if __name__ == "__main__":
    main()
