"""Speed, measured against another library: both work in turn, on the same data.

python recipes/benchmark.py mlm --against transformers                          embedded corpus, BERT-small
python recipes/benchmark.py mlm --dataset my_texts/ --precision fp32 --json     the last line is JSON
python recipes/benchmark.py mlm --dataset sentences.parquet --line_by_line      their mode for short texts
python recipes/benchmark.py simclr --against lightly --dataset my_images/       embedded letters when left out
python recipes/benchmark.py dino --against lightly --defaults                   each side at its default precision
python recipes/benchmark.py dinov2 --against none --by_crop                     what joining crops saves
python recipes/benchmark.py mae --against transformers --encoder vit-tiny-patch4
python recipes/benchmark.py hubert --against torchaudio --batch_seconds 64      or wav2vec2 --against transformers
python recipes/benchmark.py clip --against open_clip                            or transformers; so siglip
python recipes/benchmark.py clip --contrastive_batch_size 1024                  gradient cache against all at once
python recipes/benchmark.py views --jpeg --methods simclr --sizes 224           views alone, with decoding
python recipes/benchmark.py gpu --json                                          one GPU, up to 11 rows in 5 minutes
python recipes/benchmark.py scale --gpus 1 8 64                                 FLOPs and messages, worked out on a CPU

The first word is what to measure, and each has flags of its own: benchmark.py mlm --help. Where there is training,
each side runs its full path, data included, in a process of its own; no two run at the same time. With --against none
our trainer stands beside a bare loop. What is compared, and what cannot be, stands below the table. Measured results:
recipes/README.md.
"""

import signal
import sys
from functools import partial

from hfssl import RecipeParser
from hfssl.cli.command import command


USAGE = "%(prog)s WHAT [--flag VALUE ...]"


# The functions are called like the words that they are for. This one is for all methods for images.
def vision(word):
    from hfssl.benchmarks.vision import VisionBenchmark, run_vision_benchmark
    from hfssl.cli.image.data import ImageDataArguments

    parser = RecipeParser(VisionBenchmark, ImageDataArguments, description=__doc__, usage=USAGE)
    return parser, partial(run_vision_benchmark, word)


def mlm(word):
    from hfssl.benchmarks.mlm import MlmBenchmark, run_mlm_benchmark
    from hfssl.cli.text.data import TextDataArguments

    defaults = {"vocab_size": 30_528}
    parser = RecipeParser(MlmBenchmark, TextDataArguments, description=__doc__, usage=USAGE, defaults=defaults)
    return parser, run_mlm_benchmark


def wav2vec2_or_hubert(word):
    from hfssl.benchmarks.speech import SpeechBenchmark, run_speech_benchmark
    from hfssl.cli.audio.data import AudioDataArguments

    parser = RecipeParser(SpeechBenchmark, AudioDataArguments, description=__doc__, usage=USAGE)
    return parser, partial(run_speech_benchmark, word)


def clip_or_siglip(word):
    from hfssl.benchmarks.pairs import PairsBenchmark, run_pairs_benchmark
    from hfssl.cli.multimodal.data import PairDataArguments

    parser = RecipeParser(PairsBenchmark, PairDataArguments, description=__doc__, usage=USAGE)
    return parser, partial(run_pairs_benchmark, word)


def views(word):
    from hfssl.benchmarks.views import ViewsBenchmark, run_views_benchmark

    return RecipeParser(ViewsBenchmark, description=__doc__, usage=USAGE), run_views_benchmark


def gpu(word):
    from hfssl.benchmarks.gpu import GpuBenchmark, run_gpu_benchmark

    return RecipeParser(GpuBenchmark, description=__doc__, usage=USAGE), run_gpu_benchmark


def scale(word):
    from hfssl.benchmarks.scale import ScaleBenchmark, run_scale_benchmark

    return RecipeParser(ScaleBenchmark, description=__doc__, usage=USAGE), run_scale_benchmark


@command
def main():
    from hfssl.benchmarks.arguments import measured_by
    from hfssl.benchmarks.base import json_line

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the other processes and the temporary files go too
    word, *flags = sys.argv[1:] or [""]
    benchmark = measured_by(word, vision, mlm, wav2vec2_or_hubert, views, clip_or_siglip, gpu, scale)
    parser, run = benchmark(word)
    settings, *data = parser.parse(flags)
    text, *reports = run(settings, *data)
    print("\n".join([text, *(map(json_line, reports) if settings.json else ())]))


if __name__ == "__main__":
    main()
