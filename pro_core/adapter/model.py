"""The preference adapter: a prompt in, weights on the simplex out (Eq 8).

An encoder reads the rendered prompt, its token states are averaged, and a small head gives K logits; softmax over
the objectives makes them weights. ArmoRM calls this a gating network. An adapter has several such heads, each fitted to
its own bootstrap of the prompts; their spread is the weights' uncertainty. A prompt unlike the training prompts gets
their average weights (:mod:`pro_core.adapter.familiarity`). The encoder is any Hugging Face encoder, frozen or trained;
a frozen one is named in the config, not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy.special import stdtrit
from torch import nn
from torch.nn import functional as F

from pro_core.adapter.encoder import PromptEncoder
from pro_core.adapter.familiarity import Familiarity
from pro_core.adapter.heads import Heads
from pro_core.data.objectives import Prompt, check_objective_names
from pro_core.system.storage import (
    StorageError,
    first_line,
    library_versions,
    local_folder,
    read_config,
    write_config,
    write_tensors,
)

FORMAT = "pro-adapter-2"
ONE_HEAD = "pro-adapter"
"""The first format, which is still read: one head, no average weights."""
CONFIDENCE = 0.9


class UncertainWeights(NamedTuple):
    """Weights of B prompts and how sure they are, in the order of the adapter's objectives; NumPy float32.

    Attributes:
        weights: (B, K), rows sum to 1: ``known`` * the members' mean + (1 - ``known``) * the average weights.
        lower, upper: (B, K), the 90% interval mean -/+ t s around the members' mean, cut to [0, 1]: how far another
            sample of training prompts could move it. s is the members' standard deviation, t Student's 95% point for
            M - 1 degrees of freedom. As ``known`` falls, it becomes the range of the middle 90% of training prompts,
            so a strange prompt's interval is wide. NaN for an adapter with one member.
        known: (B,), 1 for a prompt like the training prompts, 0 for one unlike them (see
            :class:`pro_core.adapter.familiarity.Familiarity`). NaN where the adapter does not know its training
            prompts; the weights are then the members' mean.
    """

    weights: NDArray[np.float32]
    lower: NDArray[np.float32]
    upper: NDArray[np.float32]
    known: NDArray[np.float32]


class PreferenceAdapter(nn.Module):
    """g_phi: prompts to weights (B, K).

    Args:
        encoder: reads the prompts; ``FacebookAI/xlm-roberta-base`` in the paper. A frozen one may serve several
            adapters.
        objective_names: the panel's, in its order.
        hidden: width of the head's hidden layer; 0 for a linear head.
        members: number of heads; their mean is the prediction, their spread its uncertainty.
        train_encoder: whether the encoder is trained too (then it is saved with the heads).
        training: what :attr:`training_record` holds.

    Attributes:
        familiarity: what the training prompts were like; None until fitted.
        average: (3, K), over the training prompts: mean weights, and the ends of their middle 90%; None until fitted.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        objective_names: Sequence[str],
        hidden: int = 128,
        members: int = 1,
        train_encoder: bool = False,
        training: dict[str, Any] | None = None,
    ):
        if members < 1:
            raise ValueError(f"got {members} members, expected at least 1")
        super().__init__()
        self.encoder = encoder
        self.objective_names = check_objective_names(objective_names)
        self.hidden, self.train_encoder = hidden, train_encoder
        self.training_record = training or {}
        self.encoder.requires_grad_(train_encoder)
        self.heads = Heads(encoder.width, hidden, len(self.objective_names), members)
        self.familiarity: Familiarity | None = None
        self.average: NDArray[np.float32] | None = None

    def forward(self, **tokens) -> torch.Tensor:
        """Logits (B, M, K) of a tokenized batch; softmax over the objectives makes them each member's weights."""
        return self.heads(self.encoder(**tokens))

    def predict(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Weights (B, K), rows sum to 1, in the order of ``objective_names``; no floors applied.

        Raises:
            ValueError: a single string instead of a list, or an empty prompt.
        """
        return self.predict_with_uncertainty(prompts).weights

    def predict_with_uncertainty(self, prompts: Sequence[Prompt]) -> UncertainWeights:
        """The same weights, with an interval and how far each prompt is known. Raises as :meth:`predict`."""
        if isinstance(prompts, str):
            raise ValueError("expected a list of prompts, got a single text")
        return self.weigh(self.encoder.encode(prompts))

    def weigh(self, features: torch.Tensor) -> UncertainWeights:
        """:meth:`predict_with_uncertainty` from features (B, (L + 1) D + 1) of :meth:`PromptEncoder.encode`."""
        members = self.member_weights(features)  # (B, M, K)
        M = members.shape[1]
        weights, known = members.mean(axis=1), np.full(len(members), np.nan, np.float32)
        half = np.full_like(weights, np.nan)
        if M > 1:
            half = stdtrit(M - 1, (1 + CONFIDENCE) / 2) * members.std(axis=1, ddof=1)
        lower, upper = np.clip(weights - half, 0, 1), np.clip(weights + half, 0, 1)
        if self.familiarity is not None and self.average is not None:
            known = self.familiarity.known(self._last_and_low(features))
            mean, low, high = self.average
            share, rest = known[:, None], 1 - known[:, None]
            weights, lower, upper = (
                share * weights + rest * mean,
                share * lower + rest * low,
                share * upper + rest * high,
            )
        return UncertainWeights(weights, lower.astype(np.float32), upper.astype(np.float32), known)

    @torch.inference_mode()
    def member_weights(self, features: torch.Tensor) -> NDArray[np.float32]:
        """Each member's own weights (B, M, K)."""
        training = self.training
        self.eval()
        pooled = features[:, : self.encoder.width].to(next(self.parameters()).device)
        weights = F.softmax(self.heads(pooled).float(), dim=-1)  # over objectives
        self.train(training)
        return weights.cpu().numpy()

    def _last_and_low(self, features: torch.Tensor) -> NDArray[np.float32]:
        """(B, 2D + 1) for :class:`Familiarity`: the last layer, the lower one and the number of tokens."""
        return features[:, self.encoder.width - self.encoder.model.config.hidden_size :].numpy()

    def describe_training(
        self, features_PE: torch.Tensor, fold_P: Sequence[int], weight_P: NDArray | None = None
    ) -> None:
        """Record what the training prompts were like, and their average weights.

        Args:
            features_PE: (P, (L + 1) D + 1), of :meth:`PromptEncoder.encode`. fold_P: see :meth:`Familiarity.fit`.
            weight_P: how much each prompt counts in the average; equally when not given.
        """
        self.familiarity = Familiarity.fit(self._last_and_low(features_PE), fold_P)
        weights = self.member_weights(features_PE).mean(axis=1)
        quantiles = np.quantile(weights, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        mean = np.average(weights, axis=0, weights=weight_P)
        self.average = np.vstack([mean[None], quantiles]).astype(np.float32)

    def check_panel(self, panel) -> None:
        """Raise a ValueError unless ``panel`` has this adapter's objectives in this order."""
        if tuple(panel.objective_names) != self.objective_names:
            raise ValueError(
                f"the adapter was trained for {list(self.objective_names)}, this panel has "
                f"{list(panel.objective_names)}: use the adapter and the panel that belong together"
            )

    # ------------------------------------------------------------ disk

    def save_pretrained(self, path: str | Path) -> None:
        """Write ``adapter.json``, ``model.safetensors`` (the heads) and, when it was trained, ``encoder/``."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"heads.{k}": v.detach().cpu() for k, v in self.heads.state_dict().items()}
        if self.familiarity is not None:
            arrays = self.familiarity.arrays()
            tensors |= {f"familiarity.{k}": torch.as_tensor(v) for k, v in arrays.items()}
        if self.average is not None:
            tensors["average"] = torch.as_tensor(self.average)
        whole = {k: v.contiguous() for k, v in tensors.items()}
        write_tensors(folder / "model.safetensors", whole)
        if self.train_encoder:
            self.encoder.model.save_pretrained(folder / "encoder")
            self.encoder.tokenizer.save_pretrained(folder / "encoder")
        write_config(
            folder,
            "adapter.json",
            {
                "format": FORMAT,
                "objective_names": list(self.objective_names),
                "encoder": self.encoder.encoder_id,
                "hidden": self.hidden,
                "max_length": self.encoder.max_length,
                "train_encoder": self.train_encoder,
                "members": len(self.heads),
                "layers": self.encoder.layers,
                "training": self.training_record,
                "versions": library_versions(),
            },
        )

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path) -> PreferenceAdapter:
        """Load an adapter from a local folder or a hub id. Nothing remote is executed.

        Raises:
            StorageError: missing or truncated files, or tensors of other shapes than the config says.
        """
        folder = local_folder(path_or_id)
        config = read_config(folder, "adapter.json", FORMAT, ONE_HEAD)
        try:
            if config["format"] == ONE_HEAD:
                config |= {"members": 1, "layers": 1}
            encoder = PromptEncoder(
                config["encoder"],
                config["max_length"],
                config["layers"],
                folder / "encoder" if config["train_encoder"] else None,
            )
            adapter = cls(
                encoder,
                config["objective_names"],
                config["hidden"],
                config["members"],
                config["train_encoder"],
                config.get("training"),
            )
            tensors = load_file(folder / "model.safetensors")
            if config["format"] == ONE_HEAD:
                tensors = {f"heads.0.{k}": v for k, v in tensors.items()}
            adapter.heads.load_state_dict(_under("heads.", tensors))
            arrays = {k: v.numpy() for k, v in _under("familiarity.", tensors).items()}
            if arrays:
                adapter.familiarity = Familiarity(**arrays)
            if "average" in tensors:
                adapter.average = tensors["average"].numpy()
        except KeyError as error:
            raise StorageError(
                f"{folder / 'adapter.json'}: the setting {error} is missing"
            ) from None
        except (SafetensorError, FileNotFoundError, RuntimeError, TypeError) as error:
            raise StorageError(
                f"{folder / 'model.safetensors'}: missing, truncated or of another shape "
                f"({first_line(error)})"
            ) from None
        return adapter.eval()


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
