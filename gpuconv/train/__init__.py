"""Training: the `Trainer`, callbacks, checkpoints that survive a kill, the history of a run."""

from gpuconv.train import checkpoint as checkpoint
from gpuconv.train.callbacks import (
    Callback as Callback,
    CSVLogger as CSVLogger,
    CurvePlot as CurvePlot,
    EarlyStopping as EarlyStopping,
    ModelCheckpoint as ModelCheckpoint,
    TerminateOnNaN as TerminateOnNaN,
)
from gpuconv.train.history import History as History
from gpuconv.train.trainer import Trainer as Trainer
