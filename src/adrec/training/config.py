"""How one model is trained: passes, steps, rates, sampling, device."""

from typing import Literal

from pydantic import Field

from adrec.schema import Strict


class TrainConfig(Strict):
    """How one model is trained."""

    epochs: int = Field(default=3, ge=1)
    """Most passes over the training period. Learning rates are planned for so many."""
    stop_after: int | None = Field(default=None, ge=1)
    """Passes after which training ends all the same."""
    patience: int = Field(default=1, ge=1)
    """Training stops once this many epochs in a row have not raised the validation metric."""
    batch_rows: int = Field(default=2048, ge=1)
    """Impressions a batch, before negatives are left out."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added before a step of the optimiser."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Highest learning rate of AdamW."""
    embedding_rate: float = Field(default=1.0, gt=0.0)
    """Learning rate of the embeddings of fields, as a share of the others'."""
    weight_decay: float = Field(default=1e-2, ge=0.0)
    """Decoupled decay of matrices and of the tables of positions and gaps. Biases and norms have
    none; the embeddings of fields have `embedding_decay`."""
    embedding_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled decay of the embeddings of fields."""
    warmup_share: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of all steps over which the learning rate rises from 0."""
    restarts: int = Field(default=0, ge=0)
    """Times the cosine starts again (Loshchilov & Hutter 2017)."""
    final_share: float = Field(default=0.02, ge=0.0, le=1.0)
    """Learning rate at the end of each cosine, as a share of the highest."""
    clip_norm: float = Field(default=1.0, gt=0.0)
    """Largest norm of all gradients together."""
    negative_rate: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of impressions without a click (the first task) that are kept, drawn anew each epoch.
    Calibration corrects the click for it; in the other tasks' losses those kept weigh more."""
    positive_weight: float = Field(default=1.0, gt=0.0)
    """Weight of a positive of a binary task in the loss, in retrieval's of a click in the pointwise
    one. The ranker's calibration corrects for it."""
    new_user_share: float = Field(default=0.3, ge=0.0, le=1.0)
    """Share of requests that are made to look like a new user's; see `forget_users`."""
    new_ad_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of candidates that are made to look like new ads; see `forget_ads`."""
    valid_requests: int = Field(default=20_000, ge=1)
    """Requests of the validation period that are scored after each epoch, evenly spread."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """auto takes bf16 where the processor multiplies it natively."""
    device: str = "auto"
    """auto takes a GPU where torch has one; else `cpu`, `cuda`, `cuda:1`."""
    workers: int = Field(default=0, ge=0)
    """Processes that prepare batches ahead; 0 prepares them in the training process."""
    checkpoint_every_s: float = Field(default=60.0, gt=0.0)
    """Seconds between checkpoints within an epoch."""
    seed: int = Field(default=0, ge=0)
    """Fixes initial weights, order, sampling and dropout."""
