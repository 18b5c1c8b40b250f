"""What the state of an [`~hfssl.data.stream.ExactStream`] in a checkpoint has to have in common with the stream."""

from collections.abc import Mapping, Sequence
from typing import Any

from .sources import DataError


# Version of `ExactStream.state_dict`: 2 has lanes.
STATE_VERSION = 2
# How `batch_cost` makes batches of the rows of a block: 2 makes the fewest.
BATCHING = 2

_LAYOUT_WORDS = {
    "data": "the data set has changed since, and other data have other samples. Start a run in another --output_dir",
    "shares": "the shares of the mixture differ. Use the same --dataset",
    "seed": "the seed differs. Use the same --seed",
    "excluded": "what is held out or measured on differs. Use the same flags about held-out data and probes",
    "batch_cost": "the size of the batches differs. Use the same --batch_tokens or --batch_seconds",
    "batching": "this version puts other rows together in a batch. Start a run in another --output_dir",
}


def checked_state(states: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first of the states that the processes of a run left.

    Args:
        states (`Sequence[Mapping[str, Any]]`):
            One a process, in any order.
        layout (`Mapping[str, Any]`):
            What has to be the same, by names of `_LAYOUT_WORDS`, as the stream has it that goes on.

    Raises:
        DataError: if there is none, or one was made with other data, with settings that give other batches, or by a
        version of hfssl without lanes.
    """
    if not states:
        raise DataError(
            "This stream cannot go on: the checkpoint holds no state of a stream. Start a run in another "
            "`--output_dir`."
        )
    for state in states:
        if state.get("version") != STATE_VERSION:
            raise DataError(
                "This stream cannot go on from the checkpoint: its state is one of another version of hfssl "
                f"({state.get('version', 1)}, this one reads {STATE_VERSION}). Continue with the version that "
                "wrote it, or start a run in another `--output_dir`."
            )
    then = states[0]
    for name, now in layout.items():
        if then["layout"].get(name) != now:
            raise DataError(
                f"This stream cannot go on from the checkpoint: {_LAYOUT_WORDS[name]} "
                f"({then['layout'].get(name)} then, {now} now)."
            )
    return then
