"""A repository of the Hub that results go to: made, listed, and what stands in the way in a sentence."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commands import flag_words
from ..errors import UserError, first_line


if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


class Repository:
    r"""
    A repository of the Hub that a result goes to.

    Args:
        repo_id (`str`):
            Its name. Without a namespace it is one of who is logged in.
        token (`str`, *optional*):
            That of the login when left out.
        private (`bool`, *optional*):
            Whether it is to be private.
        revision (`str`, *optional*):
            Branch to push to.
        flag (`str`, *optional*, defaults to `"--repo_id"`):
            By which flag the user names it, for messages.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        flag: str = "--repo_id",
    ):
        from huggingface_hub import HfApi

        self.repo_id, self.private, self.revision, self.flag = repo_id, private, revision, flag
        self.api: HfApi = HfApi(token=token)

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{self.repo_id}"

    def command(self, folder: Path, overwrite: bool = False) -> str:
        """What pushes a result here later."""
        flags = {
            "repo_id": self.repo_id, "revision": self.revision, "private": self.private or None,
            "overwrite": overwrite or None,
        }  # fmt: skip
        return shlex.join(["python", "recipes/push.py", str(folder), *flag_words(flags)])

    def prepare(self) -> None:
        """Make the repository, where there is none, and make sure that it can be written to.

        Raises:
            UserError: if it cannot.
        """
        from huggingface_hub import CommitOperationAdd

        with self.explained():
            self.repo_id = self.api.create_repo(self.repo_id, private=self.private, exist_ok=True).repo_id
            if self.private and not self.api.model_info(self.repo_id).private:
                raise UserError(
                    f"{self.repo_id} is public, and is to be private. Make it so at {self.url}/settings, or choose "
                    f"another `{self.flag}`."
                )
            # a repository of others is found as well: whether one may write to it, only writing says
            self.api.preupload_lfs_files(
                self.repo_id, [CommitOperationAdd("README.md", b"-")], revision=self.revision, free_memory=False
            )

    def files(self) -> "dict[str, RepoFile]":
        """What it holds, by path."""
        from huggingface_hub.hf_api import RepoFile

        with self.explained():
            found = self.api.list_repo_tree(self.repo_id, recursive=True, revision=self.revision)
            return {each.path: each for each in found if isinstance(each, RepoFile)}

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Let what the Hub or the way to it refuses be a sentence that says what to do."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # the client's own, those of its transport, those of the machine
            raise UserError(f"Cannot push to {self.repo_id}: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
        from huggingface_hub.utils import httpx

        chain = [error]
        while chain[-1].__cause__ is not None:  # an upload that failed says so in an error of its own
            chain.append(chain[-1].__cause__)

        def of(*kinds: type) -> Any:
            return next((each for each in chain if isinstance(each, kinds)), None)

        if (found := of(HFValidationError)) is not None:
            return f"`{self.flag} {self.repo_id}` is no name of a repository ({first_line(found)})."
        if of(OfflineModeIsEnabled) is not None:
            return "the Hub is not asked because HF_HUB_OFFLINE is set. Unset it."
        if of(RevisionNotFoundError) is not None:
            return f"it has no branch {self.revision!r}. Make it at {self.url}/tree/main, or name another."
        found = of(HfHubHTTPError)
        status = None if found is None or found.response is None else found.response.status_code
        if status == 401 or (found is None and of(RepositoryNotFoundError) is not None):
            return self._no_token()
        if status == 403:
            return self._forbidden(found)
        if status == 404:
            return f"the Hub has no such repository, or it is one that this token may not see. Look at {self.url}."
        if status in (409, 412):
            return f"something else was pushed at the same time (the Hub answered {status}). Try again."
        if status == 429:
            return "the Hub was asked too often (it answered 429). Wait some minutes, then try again."
        if status is not None and status >= 500:
            return f"the Hub has trouble of its own (it answered {status}). Try again later."
        if status is not None:
            return f"the Hub answered {status} ({_message(found)})."
        if of(httpx.HTTPError, ConnectionError, TimeoutError) is not None:
            return f"the Hub cannot be reached ({type(chain[-1]).__name__}). Try again with a connection."
        return f"{type(error).__name__}: {first_line(error)}."

    def _no_token(self) -> str:
        from huggingface_hub import get_token

        log_in = "log in with `hf auth login`, or set HF_TOKEN"
        tokens = f"{self.api.endpoint}/settings/tokens"
        if not (self.api.token or get_token()):
            return f"nobody is logged in here (it answered 401). Make a token that may write at {tokens} and {log_in}."
        return f"the token is not, or no longer, valid (it answered 401). Make another at {tokens} and {log_in}."

    def _forbidden(self, error: Any) -> str:
        try:
            me = self.api.whoami()
            name, role = me["name"], me.get("auth", {}).get("accessToken", {}).get("role")
        except Exception:
            return f"the Hub answered 403 ({_message(error)}). Log in with `hf auth login` and a token that may write."
        if role == "read":
            return (
                f"the token of {name} may only read (the Hub answered 403). Make one that may write at "
                f"{self.api.endpoint}/settings/tokens and log in with `hf auth login`, or set HF_TOKEN."
            )
        own = [name, *(each["name"] for each in me.get("orgs", []))]
        namespace, _, rest = self.repo_id.rpartition("/")
        if namespace and namespace not in own:
            return (
                f"{name} may not write to {namespace} (the Hub answered 403). Pass "
                f"`{self.flag} {own[0]}/{rest}`{', or one of ' + ', '.join(own[1:]) if own[1:] else ''}, or ask "
                f"{namespace} for the right to write."
            )
        return (
            f"the Hub answered 403 ({_message(error)}). If the token of {name} is fine-grained, give it the right to "
            f"write to {self.repo_id} at {self.api.endpoint}/settings/tokens."
        )


def _message(error: Any) -> str:
    said = getattr(error, "server_message", None) or first_line(error)
    return said.splitlines()[0][:200].rstrip(".")
