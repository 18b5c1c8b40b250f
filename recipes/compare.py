"""Methods compared: the same images, encoder, weights to start from, steps and probes; other libraries' sides too.

python recipes/compare.py                                                   SimCLR and DINO on the embedded letters
python recipes/compare.py --dataset my_labelled_images/ --methods simclr,byol,dino --steps 500
python recipes/compare.py --dataset uoft-cs/cifar10 --methods simclr,dino --seeds 0,1 --against lightly
python recipes/compare.py --dataset my_labelled_images/ --cell dino,hfssl,1     one training, by hand
python recipes/compare.py --dataset my_labelled_images/ --table             only the table of what is there

A cell is one training (method, side, seed) in a process of its own. It is measured as it goes, with the clock stopped,
and written when it has finished; the same command goes on with those that are missing, and --methods may name more.
Several cells can run at once, on cores of their own (--cell, --cpu_threads). Labels are for the probes only.
<output_dir>/<method>-<side>-<seed>/ is a stock encoder for recipes/probe.py and recipes/finetune.py; comparison.md and
comparison.png are the table and the curves, comparison.html puts cells side by side as recipes/report.py does runs.
What is equal and what is not: hfssl/benchmarks/comparison/plan.py. Measured results: recipes/README.md.
"""

import signal
import sys

from hfssl.cli.command import command


@command
def main():
    from hfssl import RecipeParser
    from hfssl.benchmarks.comparison.plan import Comparison
    from hfssl.benchmarks.comparison.run import run_comparison

    (arguments,) = RecipeParser(Comparison, description=__doc__).parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the process of the cell goes too
    print(run_comparison(arguments))


if __name__ == "__main__":
    main()
