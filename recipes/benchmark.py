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
from importlib import import_module

from hfssl.cli.command import HELP, command


# By the first word of the command line: flags, what measures, flags of the data. Others are methods for images.
SPEECH = ("speech.SpeechBenchmark", "speech.run_speech_benchmark", "audio.data.AudioDataArguments")
PAIRS = ("pairs.PairsBenchmark", "pairs.run_pairs_benchmark", "multimodal.data.PairDataArguments")
MEASURES = {
    "mlm": ("mlm.MlmBenchmark", "mlm.run_mlm_benchmark", "text.data.TextDataArguments"),
    "wav2vec2": SPEECH,
    "hubert": SPEECH,
    "clip": PAIRS,
    "siglip": PAIRS,
    "views": ("views.ViewsBenchmark", "views.run_views_benchmark"),
    "gpu": ("gpu.GpuBenchmark", "gpu.run_gpu_benchmark"),
    "scale": ("scale.ScaleBenchmark", "scale.run_scale_benchmark"),
}
IMAGES = ("vision.VisionBenchmark", "vision.run_vision_benchmark", "image.data.ImageDataArguments")
DEFAULTS = {"mlm": {"vocab_size": 30_528}}
OF_A_METHOD = (SPEECH, PAIRS, IMAGES)  # these are told which


def load(name):
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


@command
def main():
    from hfssl import RecipeParser, methods
    from hfssl.benchmarks.base import json_line

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the other processes and the temporary files go too
    method, *flags = sys.argv[1:] or [""]
    if method.startswith("-"):
        method, flags = "", sys.argv[1:]
    kind = MEASURES.get(method, IMAGES)
    of_flags, measure, *of_data = kind
    parser = RecipeParser(
        load(f"hfssl.benchmarks.{of_flags}"), *(load(f"hfssl.cli.{name}") for name in of_data), description=__doc__,
        usage=f"%(prog)s {method or 'METHOD'} [--flag VALUE ...]", defaults=DEFAULTS.get(method),
    )  # fmt: skip
    records = {name: model_class.method for name, model_class in methods.METHODS.items()}
    measured = [name for name, record in records.items() if record.views is not None and record.benchmark.against]
    if kind is IMAGES and method not in measured and not HELP & set(flags):
        names = ", ".join([*MEASURES, *measured])
        parser.error(f"say first which method to measure ({names}), got {method or 'none'!r}.")
    settings, *data = parser.parse(flags)
    told = [method] if kind in OF_A_METHOD else []
    text, *reports = load(f"hfssl.benchmarks.{measure}")(*told, settings, *data)
    print(text)
    if settings.json:
        for report in reports:
            print(json_line(report))


if __name__ == "__main__":
    main()
