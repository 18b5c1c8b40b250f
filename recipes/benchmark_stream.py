"""How long streams behave: memory, rate and time to resume over millions of rows, without training.

python recipes/benchmark_stream.py --rows 10_000_000 --kinds parquet,jsonl,files --workers 0,1,4

Rows are made up (5 to 12 words of a fixed list), written once to --folder as one parquet, one jsonl and 1,000 jsonl
files. Each goes through source, exact stream (tokenised, masked, packed to 128 tokens) and collator; a line each says
the rate and the resident memory (main process and workers) over ten parts of the rows, and the time from an empty
process to the first batch at row 10,000 and at the last row. Run it on a quiet machine.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from hfssl.cli.command import command


@dataclass
class StreamBenchmark:
    r"""
    > Streams

    Args:
        rows (`int`, *optional*, defaults to `10000000`):
            Rows to read.
        kinds (`str`, *optional*, defaults to `"parquet,jsonl,files"`):
            Sources to measure.
        workers (`str`, *optional*, defaults to `"0,1,4"`):
            Numbers of worker processes to measure.
        rows_with_more (`int`, *optional*):
            Rows to read with all but the first of them. Left out, as many. Resumes are from the states of the first.
        folder (`str`, *optional*, defaults to `"outputs/benchmark_stream"`):
            Where the rows lie.
    """

    rows: int = 10_000_000
    kinds: str = "parquet,jsonl,files"
    workers: str = "0,1,4"
    rows_with_more: int | None = None
    folder: str = "outputs/benchmark_stream"


@command
def main():
    from hfssl import RecipeParser
    from hfssl.benchmarks.stream import first_batch_seconds, make_rows, read_rows

    (args,) = RecipeParser(StreamBenchmark, description=__doc__).parse()
    folder = Path(args.folder)
    make_rows(folder, args.rows)
    for kind in args.kinds.split(","):
        path = str(folder / {"parquet": "rows.parquet", "jsonl": "rows.jsonl", "files": "files"}[kind])
        states = {}
        for workers in map(int, args.workers.split(",")):
            begin = time.perf_counter()
            rows = args.rows if not states else args.rows_with_more or args.rows
            parts, reached = read_rows(path, rows, workers)
            states = states or reached  # a state continues with any number of workers
            seconds = time.perf_counter() - begin
            rates = [part["rows_per_s"] for part in parts]
            memory = [part["memory_mb"] for part in parts]
            resume = {name: round(first_batch_seconds(path, workers, state), 2) for name, state in states.items()}
            print(
                json.dumps(
                    {
                        "source": kind, "workers": workers, "rows": rows, "seconds": round(seconds, 1),
                        "rows_per_s": [round(rate) for rate in rates], "memory_mb": [round(m) for m in memory],
                        "resume_seconds": resume, "waste": round(parts[-1]["waste"], 4),
                    }
                ),
                flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
