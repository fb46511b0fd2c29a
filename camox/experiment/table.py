"""What all tables of an experiment have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Table(BaseModel):
    """A frozen TOML table that knows all of its keys.

    Types are taken strictly: an integer may stand for a float, but nothing else is converted. The docstring
    under a key becomes its description in the JSON schema.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def plain(self) -> dict[str, Any]:
        """Return the table as plain dictionaries, tuples and scalars, without the keys that are None."""
        return self.model_dump(exclude_none=True)
