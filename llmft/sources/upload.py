"""Models on their way to the hub: ``--push_to_hub``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.errors as hf
from huggingface_hub import HfApi, constants

from llmft.errors import EnvironmentFault, brief
from llmft.sources.hub import check_id, unreachable

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, as who may write there"


def require_repo(name: str, private: bool | None) -> str:
    """Return the id of a model's repository on the hub; make it where it is missing.

    Raises:
        ConfigError: the name is none.
        EnvironmentFault: the hub does not answer, or does not allow it.
    """
    check_id(name, "hub_model_id")
    if miss := unreachable():
        raise EnvironmentFault(f"push_to_hub: {miss.reason}", hint=miss.remedy)
    with _faults(f"push_to_hub: {name} cannot be written"):
        made = HfApi().create_repo(name, private=private, exist_ok=True)
    return made.repo_id


def upload(folder: Path, repo: str, revision: str | None) -> str:
    """Upload the files of a model as one commit; return the address of its page.

    Raises EnvironmentFault; the folder stays as it is.
    """
    again = f"the model is in {folder}; `hf upload {repo} {folder}` tries again"
    with _faults(f"push_to_hub: {repo} did not take the model", again):
        HfApi().upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message="Trained with llmft",
        )
    return f"{constants.ENDPOINT}/{repo}"


@contextmanager
def _faults(what: str, hint: str = "") -> Iterator[None]:
    """Turn what the hub says into an EnvironmentFault that begins with ``what``."""
    try:
        yield
    except hf.HfHubHTTPError as error:
        status = error.response.status_code
        said = f"{what}: {constants.ENDPOINT} answered {status}"
        denied = _LOG_IN if status in (401, 403) else ""
        both = "; ".join(filter(None, (denied, hint)))
        raise EnvironmentFault(said, hint=both) from error
    except (hf.LocalTokenNotFoundError, OSError) as error:
        raise EnvironmentFault(f"{what}: {brief(error)}", hint=hint) from error
