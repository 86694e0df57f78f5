"""What every section of a recipe is."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Section", "Waiver"]


class Section(BaseModel):
    """Base of all sections: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Waiver(Section):
    """Something that is allowed by name, with the reason that goes into the record."""

    name: str
    reason: str
