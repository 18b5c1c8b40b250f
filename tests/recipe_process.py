"""Runs recipes as real processes, without paying for the imports each time.

A server process imports what the recipes import and then forks: each run is a process of its own, with its own pid,
files and exit status, that can be killed like any other and begins after a few milliseconds instead of many seconds.
It is itself a fork of one that has imported everything but hfssl, whose processes show what works without it.
What `accelerate launch` and `torchrun` themselves do is tested with the real commands.
"""

import ast
import atexit
import gc
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TextIO


ROOT = Path(__file__).parents[1]
# As `conftest.py` made it. A server starts in the first test that asks for it, which may have changed its own.
ENVIRONMENT = dict(os.environ)
TINY_ENCODER = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip

# Pictures without anything in them.
BLANK = """
from matplotlib.figure import Figure
from PIL import Image
def savefig(self, target, **options):
    if hasattr(target, "write"):
        target.write('<svg viewBox="0 0 1 1"></svg>')
    else:
        Image.new("L", (8, 8)).save(target)
Figure.savefig = savefig
"""


class Run:
    """One process of a recipe, or one for each rank."""

    def __init__(self, server: "RecipeServer", pids: list[int], folder: Path):
        self.server, self.pids, self.folder = server, pids, folder
        self.codes: dict[int, int] = {}

    def poll(self) -> int | None:
        """Exit status: that of the first rank that failed, 0 when all ended well, `None` while one is running."""
        for pid in self.pids:
            if pid not in self.codes:
                code = self.server.ask({"poll": pid})
                if code is not None:
                    self.codes[pid] = code
        if len(self.codes) < len(self.pids):
            return None
        return next((code for code in self.codes.values() if code), 0)

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"Still running after {timeout} s:\n{self.stdout}\n{self.stderr}")
            time.sleep(0.02)
        return code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to each process, not to their workers."""
        for pid in self.pids:
            if pid not in self.codes:
                os.kill(pid, number)

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()


class RecipeServer:
    """Starts recipes. The environment is that of the server: what libraries read when they are imported is fixed.

    Args:
        questions, answers (`TextIO`):
            To and from the process that forks.
    """

    def __init__(self, questions: TextIO, answers: TextIO):
        self.questions, self.answers = questions, answers

    def ask(self, question: dict):
        self.questions.write(json.dumps(question) + "\n")
        self.questions.flush()
        return json.loads(self.answers.readline())

    def start(
        self, folder: Path, *flags, script: str = "recipes/mlm.py", ranks: int = 1, before: str = "", drawn: bool = True,
        **environment,
    ) -> Run:  # fmt: skip
        """Start a recipe; `folder` gets stdout and stderr. `before` is Python that the process executes first.

        To draw is half of the time of a small run: it is left out by `drawn=False`, where nobody looks at pictures.
        """
        before += "" if drawn else BLANK
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("stdout", "stderr"):
            (folder / name).write_text("")
        port = _free_port()
        pids = []
        for rank in range(ranks):
            env = {name: str(value) for name, value in environment.items()}
            if ranks > 1:
                env |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                }  # fmt: skip
            argv = [script, *map(str, flags)]
            pids.append(self.ask({"argv": argv, "env": env, "folder": str(folder), "before": before}))
        return Run(self, pids, folder)

    def run(self, folder: Path, *flags, timeout: float = 300, **options) -> Run:
        """Start a recipe and wait for its end. `run.poll()` is its exit status."""
        run = self.start(folder, *flags, **options)
        run.wait(timeout)
        return run


@cache
def stock_server() -> RecipeServer:
    """A server whose processes have never heard of hfssl, for what has to work with plain transformers."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        cwd=ROOT,
        # one thread: two of them on cores that others use as well wait for each other most of the time
        env=ENVIRONMENT | {"PYTHONPATH": first_of_path(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def close() -> None:
        process.stdin.close()
        process.wait(20)

    atexit.register(close)
    return RecipeServer(process.stdin, process.stdout)


@cache
def recipe_server() -> RecipeServer:
    """A server whose processes have hfssl imported already. It is a fork of the other: what both need is imported once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(300)
        stock_server().ask({"serve": listener.getsockname()[1]})
        connection = listener.accept()[0]
    connection.settimeout(None)
    return RecipeServer(connection.makefile("w"), connection.makefile("r"))


def first_of_path(folder: Path) -> str:
    """A PYTHONPATH with this folder before those that there are."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def printed_elsewhere(folder: Path, code: str, *arguments, server: RecipeServer | None = None) -> str:
    """What some Python prints in another process; `folder` gets the script."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    run = (server or recipe_server()).run(folder / "log", *arguments, script=str(script))
    assert run.poll() == 0, run.stderr
    return run.stdout


def printed_without_hfssl(folder: Path, code: str, *arguments) -> str:
    """What some Python prints in a process that has never heard of hfssl; `folder` gets the script."""
    return printed_elsewhere(folder, code, *arguments, server=stock_server())


def waiting_at(step: int, file: Path) -> str:
    """Python by which a run says "waiting" before a step, and goes on once there is a file."""
    return f"""
import pathlib, time
from hfssl.training.callbacks import StopOnSignal
def on_step_begin(self, args, state, control, **kwargs):
    if state.global_step == {step}:
        print("waiting", flush=True)
        while not pathlib.Path({str(file)!r}).exists():
            time.sleep(0.01)
StopOnSignal.on_step_begin = on_step_begin
"""


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def import_what_recipes_import() -> None:
    """Import what stands in an import of any recipe, wherever it stands, so that no run pays for it."""
    for path in sorted((ROOT / "recipes").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "hfssl":
                module = import_module(node.module)
                for alias in node.names:
                    getattr(module, alias.name)  # some load on first use


def _serve(questions: TextIO, answers: TextIO) -> dict | None:
    """Answer questions until there are none left (`None`); in a forked child return what it has to do."""
    for line in questions:
        question = json.loads(line)
        if "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return question
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return None


def _serve_with_hfssl(port: int) -> dict | None:
    connection = socket.create_connection(("127.0.0.1", port))
    import_what_recipes_import()
    for report in ("card", "page"):  # their templates are compiled once in a process
        import_module(f"hfssl.report.{report}")._template()
    gc.freeze()
    return _serve(connection.makefile("r"), connection.makefile("w"))


def _run(job: dict) -> None:
    os.setpgid(0, 0)
    # a shell lets what it starts in the background ignore Ctrl-C, and so would the recipe
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, target, mode in (
        ("/dev/null", 0, os.O_RDONLY),
        (f"{job['folder']}/stdout", 1, os.O_WRONLY | os.O_APPEND),
        (f"{job['folder']}/stderr", 2, os.O_WRONLY | os.O_APPEND),
    ):
        file = os.open(name, mode)
        os.dup2(file, target)
        os.close(file)
    os.environ.update(job["env"])
    sys.argv = job["argv"]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    code = 0
    try:
        exec(job["before"], {})
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # what an interpreter does at its end, less the seconds that it takes to free what this one has imported
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def warm_up() -> None:
    """Do once what every run would do for the first time: fonts, the table of older names of weights, late imports."""
    import sklearn.datasets
    import sklearn.manifold  # noqa: F401
    from matplotlib import pyplot
    from transformers import BertConfig, BertModel

    figure, axes = pyplot.subplots()
    axes.plot([1.0, 2.0], label="x")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png")
    pyplot.close(figure)
    with tempfile.TemporaryDirectory() as folder:
        model = BertModel(BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
        model.save_pretrained(folder)
        BertModel.from_pretrained(folder)


if __name__ == "__main__":
    import transformers.models.bert.modeling_bert
    import transformers.models.modernbert.modeling_modernbert  # noqa: F401

    warm_up()
    gc.freeze()
    job = _serve(sys.stdin, sys.stdout)
    if job is not None and "serve" in job:
        job = _serve_with_hfssl(job["serve"])
    if job is None:  # the tests are over
        os._exit(0)
    _run(job)
