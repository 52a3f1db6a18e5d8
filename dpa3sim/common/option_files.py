"""Files of options: ``--config FILE``, and the configuration in a run directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpa3sim.common.errors import InputError
from dpa3sim.common.files import usual_recursion

# Such files have a few lines.
_MAX_BYTES, _MAX_LEVELS = 1 << 16, 8


def read_options(path: Path) -> dict[str, Any]:
    """Read names and values from a YAML file, without checking whether a command has these options.

    Raises:
        InputError: it cannot be read, or contains something else.
    """
    import yaml

    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise InputError(f"{path}: is too large for a file of options")
        text = content.decode("utf-8-sig")
        with usual_recursion():
            _check_events(path, yaml.parse(text))
            data = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except InputError:
        raise
    # YAML allows numbers and dates that Python does not.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: must contain options, one 'name: value' per line")
    return {str(key): value for key, value in data.items()}


def _check_events(path: Path, events: Iterable[Any]) -> None:
    """Raise InputError for YAML that takes forever, or that makes its reader fail unexpectedly.

    These are deep nesting, many aliases of one text, and tags that do not fit their values.
    """
    import yaml

    level = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{path}: aliases (*name) are not supported")
        if getattr(event, "tag", None) is not None:
            raise InputError(f"{path}: tags (!name) are not supported")
        level += isinstance(event, yaml.CollectionStartEvent)
        level -= isinstance(event, yaml.CollectionEndEvent)
        if level > _MAX_LEVELS:
            raise InputError(f"{path}: must contain options, one 'name: value' per line")
