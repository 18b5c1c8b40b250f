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
python recipes/benchmark.py dino --against lightly --defaults                   2 large and 6 small crops; so swav
python recipes/benchmark.py dinov2 --against none --by_crop                     what joining crops saves
python recipes/benchmark.py wav2vec2 --against transformers                      seconds of sound a second
python recipes/benchmark.py hubert --against torchaudio --dataset my_recordings/ --batch_seconds 64
python recipes/benchmark.py clip --against transformers                          pairs, embedded characters; so siglip
python recipes/benchmark.py clip --contrastive_batch_size 1024                   gradient cache against all at once
python recipes/benchmark.py clip --against open_clip                             where it is installed
python recipes/benchmark.py views --against lightly                             SimCLR's and DINO's views, no training
python recipes/benchmark.py views --jpeg --methods simclr --sizes 224 --json    with decoding; a line of JSON for each
python recipes/benchmark.py gpu --json                                          one GPU, up to 11 rows in 5 minutes
python recipes/benchmark.py scale --gpus 1 8 64                                 FLOPs and messages, worked out on a CPU

Where there is training, each side runs its full path, data included, in a process of its own; no two run at the same
time. What is compared, and what cannot be, stands below the table. Measured results: recipes/README.md.
"""

import signal
import sys

from hfssl.cli.command import command


# These names are the first word of the command line; any other is that of a method for images.
def vision(method, flags):
    from hfssl import RecipeParser, methods
    from hfssl.benchmarks.vision import VisionBenchmark, run_vision_benchmark
    from hfssl.cli.command import HELP
    from hfssl.cli.image.data import ImageDataArguments

    usage = "%(prog)s METHOD [--flag VALUE ...]"
    parser = RecipeParser(VisionBenchmark, ImageDataArguments, description=__doc__, usage=usage)
    records = {name: model_class.method for name, model_class in methods.METHODS.items()}
    measured = [name for name, record in records.items() if record.views is not None and record.benchmark.against]
    if method not in measured and not HELP & set(flags):
        names = ", ".join(["mlm", "wav2vec2", "hubert", "views", "clip", "siglip", "gpu", "scale", *measured])
        parser.error(f"say first which method to measure ({names}), got {method or 'none'!r}.")
    settings, data = parser.parse(flags)
    return settings.json, run_vision_benchmark(method, settings, data)


def mlm(method, flags):
    from hfssl import RecipeParser
    from hfssl.benchmarks.mlm import MlmBenchmark, run_mlm_benchmark
    from hfssl.cli.text.data import TextDataArguments

    usage = "%(prog)s mlm [--flag VALUE ...]"
    defaults = {"vocab_size": 30_528}
    parser = RecipeParser(MlmBenchmark, TextDataArguments, description=__doc__, usage=usage, defaults=defaults)
    settings, data = parser.parse(flags)
    return settings.json, run_mlm_benchmark(settings, data)


def wav2vec2_or_hubert(method, flags):
    from hfssl import RecipeParser
    from hfssl.benchmarks.speech import SpeechBenchmark, run_speech_benchmark
    from hfssl.cli.audio.data import AudioDataArguments

    usage = "%(prog)s wav2vec2|hubert [--flag VALUE ...]"
    settings, data = RecipeParser(SpeechBenchmark, AudioDataArguments, description=__doc__, usage=usage).parse(flags)
    return settings.json, run_speech_benchmark(method, settings, data)


def clip_or_siglip(method, flags):
    from hfssl import RecipeParser
    from hfssl.benchmarks.pairs import PairsBenchmark, run_pairs_benchmark
    from hfssl.cli.multimodal.data import PairDataArguments

    usage = "%(prog)s clip|siglip [--flag VALUE ...]"
    settings, data = RecipeParser(PairsBenchmark, PairDataArguments, description=__doc__, usage=usage).parse(flags)
    return settings.json, run_pairs_benchmark(method, settings, data)


def views(method, flags):
    from hfssl import RecipeParser
    from hfssl.benchmarks.views import ViewsBenchmark, run_views_benchmark

    usage = "%(prog)s views [--flag VALUE ...]"
    (settings,) = RecipeParser(ViewsBenchmark, description=__doc__, usage=usage).parse(flags)
    return settings.json, run_views_benchmark(settings)


def gpu(method, flags):
    from hfssl import RecipeParser
    from hfssl.benchmarks.gpu import GpuBenchmark, run_gpu_benchmark

    usage = "%(prog)s gpu [--flag VALUE ...]"
    (settings,) = RecipeParser(GpuBenchmark, description=__doc__, usage=usage).parse(flags)
    return settings.json, run_gpu_benchmark(settings)


def scale(method, flags):
    from hfssl import RecipeParser
    from hfssl.benchmarks.scale import ScaleBenchmark, run_scale_benchmark

    usage = "%(prog)s scale [--flag VALUE ...]"
    (settings,) = RecipeParser(ScaleBenchmark, description=__doc__, usage=usage).parse(flags)
    return settings.json, run_scale_benchmark(settings)


@command
def main():
    from hfssl.benchmarks.base import json_line

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the other processes and the temporary files go too
    method, *flags = sys.argv[1:] or [""]
    if method.startswith("-"):
        method, flags = "", sys.argv[1:]
    others = {
        "mlm": mlm,
        "wav2vec2": wav2vec2_or_hubert,
        "hubert": wav2vec2_or_hubert,
        "clip": clip_or_siglip,
        "siglip": clip_or_siglip,
        "views": views,
        "gpu": gpu,
        "scale": scale,
    }
    measure = others.get(method, vision)
    with_json, (text, *reports) = measure(method, flags)
    print(text)
    if with_json:
        for report in reports:
            print(json_line(report))


if __name__ == "__main__":
    main()
