"""A contender of `tests/test_benchmark.py`. A module of its own, since a spawned process imports it by its name."""

import os
import time

import torch


def sleeper(pace, settings):
    """A contender that writes down when it works."""
    pace.data_is_readable()
    for step in range(pace.num_steps):
        if settings.get("fails_at") == step:
            raise settings["error"]
        if settings.get("dies_at") == step:
            os._exit(9)
        begin = time.monotonic()
        time.sleep(settings["seconds"])
        with open(settings["log"], "a") as log:
            log.write(f"{begin} {time.monotonic()} {settings['mark']}\n")
        pace.fetched(0.0, torch.tensor(90), 100)
        pace.stepped(torch.tensor(float(step)))
    return 6.0
