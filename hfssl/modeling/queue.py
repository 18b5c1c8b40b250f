"""A queue of embeddings of earlier batches: negatives of MoCo, neighbours of NNCLR."""

import torch
import torch.nn.functional as F
from transformers import initialization as init

from .progress import StepsMixin


class QueueMixin(StepsMixin):
    """Embeddings of earlier images, in front of [`SSLPreTrainedModel`] among the bases of a method.

    In `__init__`, call [`build_queue`] before `self.post_init()`; in `forward`, [`enqueue`] what it is to hold from
    the next step on. It is a buffer of the model, so it is saved; it is the same in all processes if what it is given
    is.
    """

    queue: torch.Tensor
    queue_position: torch.Tensor

    def build_queue(self, size: int, dim: int) -> None:
        """Room for `size` embeddings of `dim` numbers, none where `size` is 0."""
        self._enqueued: list[torch.Tensor] = []
        if size:
            self.register_buffer("queue", torch.empty(size, dim))
            self.register_buffer("queue_position", torch.zeros((), dtype=torch.long))
            # the same in all processes, and DDP would send it around before every forward
            self._ddp_params_and_buffers_to_ignore = ["queue"]

    @property
    def has_queue(self) -> bool:
        """Whether there is room in it."""
        return "queue" in self._buffers

    @torch.compiler.disable  # what waits has another length in each accumulation step: all would be compiled again
    def enqueue(self, embeddings: torch.Tensor) -> None:
        """Have embeddings `(n, dim)`, of all processes, enter after the optimizer step, while the model trains.

        Raises:
            UserError: if there was a step since, of which the model was not told: nothing would ever enter.
        """
        if not self.has_queue:
            return
        self.require_advanced()
        if self.training and torch.is_grad_enabled():
            self._enqueued.append(embeddings.detach())

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        if self.has_queue:
            init.normal_(self.queue)  # directions at random, as in the reference codes

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        """Take in what is new. [`~hfssl.training.callbacks.MethodCallback`] calls it."""
        super().after_optimizer_step(progress)
        if self._enqueued:
            # after the step, so that no image meets itself; the newest where there are more than places
            new = F.normalize(torch.cat(self._enqueued).to(self.queue.dtype), dim=-1)[-len(self.queue) :]
            places = self.queue_position + torch.arange(len(new), device=new.device)
            self.queue.index_copy_(0, places % len(self.queue), new)
            self.queue_position.add_(len(new)).remainder_(len(self.queue))
            self._enqueued.clear()
