"""The optimiser, its learning rate, and the device and precision it runs on."""

import math

import torch
from torch import nn

from adrec.errors import ConfigError
from adrec.models.layers import FieldEncoder
from adrec.training.config import TrainConfig


def build_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), a group each for matrices, embeddings and the rest.

    Tables of positions and gaps count as matrices.
    """
    tables = {id(m.table.weight) for m in model.modules() if isinstance(m, FieldEncoder)}
    named = list(model.parameters())
    embeddings = [p for p in named if id(p) in tables]
    matrices = [p for p in named if p.ndim > 1 and id(p) not in tables]
    others = [p for p in named if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {
                "params": embeddings,
                "weight_decay": config.embedding_decay,
                "share": config.embedding_rate,
            },
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        fused=True,
    )


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then one cosine for each restart and the first (Loshchilov & Hutter 2017)."""
    warmup = round(config.warmup_share * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    place = (step - warmup) / max(1, steps - warmup) * (config.restarts + 1)
    cosine = 0.5 * (1 + math.cos(math.pi * (place % 1.0)))
    return config.learning_rate * (config.final_share + (1 - config.final_share) * cosine)


def choose_device(device: str) -> torch.device:
    """The device to train on.

    Raises:
        ConfigError: torch does not know it or the machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{device}' is not usable here: {error}") from error
    return torch.device(device)


def choose_bf16(precision: str, device: torch.device) -> bool:
    """Whether to multiply in bf16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return has_native_bf16()


def has_native_bf16() -> bool:
    """Whether this processor multiplies bf16 natively: AVX-512 BF16, AMX, or an ARM that has it."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
