"""The sections of an experiment file that say what a trial is: data, model or objective, and the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from objectives.base import DataSpec, Scalar
from search.experiment.dimensions import MAX_NUMBER, ScalarValue
from search.experiment.settings import Settings

MAX_TRIALS = 100_000
MAX_EPOCHS = 100_000
MAX_DIMENSIONS = 64
MAX_IMAGES = 100_000_000

Text = Annotated[str, Field(min_length=1, max_length=256)]
Options = Annotated[dict[Text, ScalarValue], Field(max_length=MAX_DIMENSIONS)]


class DataSettings(Settings):
    """Which images all trials see."""

    name: Text
    """The dataset: digits, mnist, fashion_mnist, kmnist, cifar10, cifar100, svhn or image_folder."""
    root: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Folder with the data; relative to this file. Null: the user's cache folder."""
    download: bool = False
    """Whether missing data may be downloaded into `root`."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training images held out to judge trials, stratified by class."""
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side in pixels to which images are resized; needed for `image_folder`."""
    limit: Annotated[int, Field(ge=2, le=MAX_IMAGES)] | None = None
    """Use only so many of the training images, stratified by class; null: all."""

    def data_spec(self) -> DataSpec:
        """As `objectives` takes it."""
        return DataSpec(
            name=self.name,
            root=None if self.root is None else Path(self.root),
            download=self.download,
            validation=self.validation,
            image_size=self.image_size,
            limit=self.limit,
        )


class ModelSettings(BaseModel):
    """Which network, with its options beside its name; those that vary belong in `space`."""

    model_config = ConfigDict(
        frozen=True, extra="allow", strict=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )
    __pydantic_extra__: dict[str, ScalarValue] = Field(init=False)

    name: Text = "cnn"
    """`cnn`, `resnet`, or `module:factory` of your own (see `allow_imports`)."""

    @property
    def options(self) -> dict[str, Scalar]:
        """The options that the file gives."""
        return dict(self.__pydantic_extra__)


class ObjectiveSettings(Settings):
    """A function of the user's own that takes the place of data and model."""

    function: Text
    """`module:function`, called with a trial's values; see `objectives.plugin` and `allow_imports`."""
    direction: Literal["minimize", "maximize"]
    """Whether small or large values of `metric` are good."""
    worst: Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
    """What a trial gets whose value is not finite, or beyond this: nothing is worse."""


class Budget(Settings):
    """What one study may spend; each method × replicate is one study."""

    trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] = 50
    """Trials per study."""
    epochs: Annotated[int, Field(ge=1, le=MAX_TRIALS * MAX_EPOCHS)] | None = None
    """Epochs per study after which no new trial begins; null: no limit."""
