"""Whether Weights & Biases is online, offline or disabled. Asks no network."""

import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from camox.errors import ExperimentError

WandbMode = Literal["auto", "online", "offline", "disabled"]

# wandb's own names for its modes, the two old ones included.
_ENVIRONMENT_MODES: dict[str, WandbMode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def resolve_mode(asked: WandbMode, warn: Callable[[str], None]) -> WandbMode:
    """The mode to use: "auto" is online where a key is found, and WANDB_MODE and `wandb offline` win over all but
    "disabled".

    Raises ExperimentError where wandb is asked for and cannot be imported, and for an unknown WANDB_MODE.
    """
    if asked == "disabled":
        return "disabled"
    variable = os.environ.get("WANDB_MODE", "").lower()
    if variable and variable not in _ENVIRONMENT_MODES:
        known = ", ".join(sorted(set(_ENVIRONMENT_MODES.values())))
        raise ExperimentError(f"environment variable WANDB_MODE={variable!r}: must be one of {known}")
    if variable and _ENVIRONMENT_MODES[variable] == "disabled":
        return "disabled"
    try:
        import wandb
    except ImportError as error:
        if asked == "auto":
            warn(f"wandb cannot be imported ({error}): this run is logged to metrics.jsonl alone")
            return "disabled"
        raise ExperimentError(
            f'[tracking] wandb="{asked}", but wandb cannot be imported ({error}).\n'
            'Install it with `pip install wandb`, or set tracking.wandb="disabled".'
        ) from error
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    # wandb's settings hold what `wandb offline` or `wandb disabled` wrote; "online" is also their default.
    declared = _ENVIRONMENT_MODES[variable or settings.mode]
    if declared != "online" or variable:
        return declared
    if asked != "auto":
        return asked
    default_url = wandb.Settings.model_fields["base_url"].default
    hosts = {urlsplit(settings.base_url).netloc}
    if settings.base_url == default_url:
        hosts.add("api.wandb.ai")  # the key of wandb's own server, under the name `wandb login` has long used
    return "online" if _has_key(settings.api_key, hosts) else "offline"


def _has_key(api_key: str | None, hosts: set[str]) -> bool:
    """Whether wandb would find credentials: its settings (environment included) or netrc."""
    if api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    candidates = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    for path in (Path(candidate).expanduser() for candidate in candidates if candidate):
        if not path.is_file():
            continue
        try:
            logins = netrc.netrc(str(path))
        except (netrc.NetrcParseError, OSError):
            continue  # wandb itself says what is wrong with the file and goes on without it
        if any((login := logins.authenticators(host)) and login[2] for host in hosts):
            return True
    return False
