"""Files on the Hugging Face hub, each with a card; `huggingface_hub` does the talking.

The address comes from ``HF_ENDPOINT``, the token from ``HF_TOKEN`` or the login that ``hf auth login`` keeps: none is
ever an argument here, nor in a message.
"""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from persona_lens.errors import ApiError, InvalidArgumentError

_LIBRARY = "persona-lens"
_CARD = "README.md"
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Card:
    """What a repository's page says of the file in it.

    Args:
        title: The page's head.
        summary: A sentence.
        rows: Names and values of the table.
        call: The class whose ``from_hub`` reads the file.
        tags: By which the hub finds it, beside the library's.
        base_model: The model that it belongs to, as it was loaded; named to the hub if that is a name of the hub's.
        provenance: Where it comes from.
    """

    title: str
    summary: str
    rows: Mapping[str, object]
    call: str
    tags: Sequence[str] = ()
    base_model: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def render(self, repo_id: str) -> str:
        """Return the page as Markdown, in which texts from elsewhere are nothing but text."""
        head = {"library_name": _LIBRARY, "tags": [_LIBRARY, *self.tags]}
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.base_model):
            head["base_model"] = self.base_model
        rows = [f"| {escape(name)} | {escape(str(value))} |" for name, value in self.rows.items()]
        # Neither JSON's nor a checked name's lines can be a fence: line ends inside their texts are escaped.
        provenance = json.dumps(dict(self.provenance), indent=1, ensure_ascii=True, default=str)
        lines = [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in head.items()),  # JSON is YAML
            "---",
            "",
            f"# {escape(self.title)}",
            "",
            escape(self.summary),
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "## Load it",
            "",
            "```python",
            "import persona_lens as pl",
            "",
            f"found = pl.{self.call}.from_hub({json.dumps(repo_id)})  # revision=... for one commit",
            "```",
        ]
        if self.provenance:
            lines += ["", "## Provenance", "", "```json", provenance, "```"]
        return "\n".join([*lines, ""])


def escape(text: str) -> str:
    r"""Return a text that Markdown and HTML show as it is, in one line.

    Example:
        >>> print(escape("a|b <i>*c*</i>"))
        a\|b &lt;i&gt;\*c\*&lt;/i&gt;
    """
    return re.sub(r"([\\`*_{}\[\]()#+!|~:-])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def push_file(repo_id: str, name: str, content: bytes, card: Card, *, private: bool | None = None) -> str:
    """Write a file and its card into a repository of the hub, in one commit; the repository is made if missing.

    Args:
        repo_id: ``owner/name``, or a name alone, which is put under the owner of the token.
        name: The file's name there.
        content: Its bytes.
        card: What its page says.
        private: Whether a repository that is made is closed to others; None leaves that to the hub.

    Returns:
        The commit's hash.

    Raises:
        InvalidArgumentError: No name that a repository can have.
        ApiError: The hub is out of reach, or refused.
    """
    check_repository(repo_id)
    from huggingface_hub import CommitOperationAdd, HfApi

    try:
        api = HfApi(library_name=_LIBRARY, library_version=version(_LIBRARY))
        whole = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        files = {name: content, _CARD: card.render(whole).encode()}
        operations = [CommitOperationAdd(path, data) for path, data in files.items()]
        return api.create_commit(whole, operations, commit_message=f"{name} by {_LIBRARY} {version(_LIBRARY)}").oid
    except Exception as error:  # of whichever HTTP library it uses
        raise _refused("repo_id", "name a repository of the hub that may be written", repo_id, error) from error


def push_saved(
    repo_id: str, name: str, save: Callable[[Path], object], card: Card, *, private: bool | None = None
) -> str:
    """Do as :func:`push_file` with the file that an object's ``save`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / name)
        content = (Path(folder) / name).read_bytes()
    return push_file(repo_id, name, content, card, private=private)


def fetch_file(repo_id: str, name: str, revision: str | None = None) -> Path:
    """Return a file of a repository of the hub, from the cache if it is there.

    Args:
        repo_id: ``owner/name``.
        name: The file's name there.
        revision: A branch, a tag or a commit's hash; None takes the newest.

    Raises:
        InvalidArgumentError: No name that a repository can have, or an empty revision.
        ApiError: The hub is out of reach and the file not in the cache, or there is no such file.
    """
    check_repository(repo_id)
    if revision is not None and not revision.strip():
        raise InvalidArgumentError.of("revision", "be a branch, a tag or a commit's hash", revision)
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name=_LIBRARY, library_version=version(_LIBRARY))
        found = api.hf_hub_download(repo_id, name, revision=revision, local_files_only=not reach(api.endpoint))
    except Exception as error:  # of whichever HTTP library it uses
        where = f"{repo_id} at {revision}" if revision else repo_id
        raise _refused("repo_id", f"name a repository of the hub with the file {name}", where, error) from error
    return Path(found)


def reach(endpoint: str) -> bool:
    """Ask once whether the hub answers at all: its client asks six times for each file, and waits in between.

    Out of reach, or told to stay offline, what it downloaded before still loads.

    Args:
        endpoint: Its address.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(endpoint, timeout=_TIMEOUT_SECONDS)
    except Exception:  # of whichever HTTP library it uses
        return False
    return True


def check_repository(repo_id: str) -> None:
    """Refuse what no repository can be called, before anything is asked.

    Raises:
        InvalidArgumentError: Likewise.
    """
    if not re.fullmatch(r"(?:[\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95}", repo_id, re.ASCII) or ".." in repo_id:
        rule = "be 'owner/name', of letters, digits, '-', '_' and '.'"
        raise InvalidArgumentError.of("repo_id", rule, repo_id)


def _refused(parameter: str, rule: str, got: str, error: Exception) -> ApiError:
    """Return the one error for all that can go wrong; of the HTTP library's message no more than what happened."""
    from huggingface_hub.errors import EntryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = type(error).__name__
    if status in (401, 403):
        why = f"The hub refused ({status}). Log in with `hf auth login`, or set HF_TOKEN to a token that may do this."
    elif status == 404:
        why = f"The hub knows none ({kind}), or it is closed to you."
    elif status is not None:
        why = f"The hub answered {status} ({kind}). Try again later."
    elif isinstance(error, (OSError, EntryNotFoundError)) or "http" in type(error).__module__:
        why = f"The hub is out of reach ({kind}): is there a network, and is HF_HUB_OFFLINE unset?"
    else:
        why = f"The exchange with the hub broke off: {kind}."
    return ApiError(f"`{parameter}` must {rule}. Got {got!r}. {why}")
