"""PPO on weighted rewards, as both papers train: a value head, GAE and clipped updates (arXiv 1707.06347, 1506.02438).

TRL has dropped its PPO, so this is our own loop on accelerate. The reward of a token is -beta (log pi - log pi_ref);
the last token of a completion adds sum_k w_k(x) z_k (Eq 5). The value head is linear on the policy's last hidden states
and sends no gradient into them, so there is no second model. With a LoRA, the reference is the same model without it.
If several processes train every parameter, policy, reference and optimizer are sharded over them
(:mod:`pro_core.policies.rl.sharding`).

Every batch of completions has its own seed and checkpoints lie between batches, so a killed run goes on to the same
parameters.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig

from pro_core.generation.chat import whole_text
from pro_core.generation.decoding import end_tokens
from pro_core.policies.rl.ppo_loss import advantages_by_gae, ppo_loss, whitened
from pro_core.policies.rl.recipe import PpoSettings
from pro_core.policies.rl.run import Run, explained
from pro_core.policies.rl.sharding import gathered, load_share, own_share, share_out, whole_state
from pro_core.policies.sft import load_to_train, save_policy
from pro_core.policies.stages import POLICY, stage
from pro_core.runs.recipes import ConfigError
from pro_core.runs.training import (
    StopSignal,
    cast_for_training,
    last_whole_checkpoint,
    optimizer_for,
    whole_checkpoint,
)
from pro_core.system.artefacts import Artefact
from pro_core.system.processes import main_process, wait_for_all
from pro_core.system.storage import content_hash, write_config

Batch = dict[str, torch.Tensor]


@dataclass
class Completions:
    """N completions of one batch, each of at most T tokens.

    Attributes:
        rows: (N,) of the task's prompts. ``texts``: as they are scored.
        ids: (N, L) prompts, padded on the left, and completions. ``attention``: (N, L) 1 for what is read.
        mask: (N, T) 1 for the tokens of a completion, up to the one that ends it. ``ended``: (N,) whether there is one.
    """

    rows: list[int]
    texts: list[str]
    ids: torch.Tensor
    attention: torch.Tensor
    mask: torch.Tensor
    ended: torch.Tensor


def ppo_policy(run: Run) -> list[Artefact]:
    """PPO: one stage."""

    def make(folder: Path) -> dict[str, Any]:
        run.announce(folder)
        with explained(folder / "work"):
            loop = PpoLoop(run, folder / "work")
            log = loop.train()
            loop.save(folder / "checkpoint")
        return run.record(folder, log)

    return [stage(run.output / "policies", run.key, POLICY, make)]


class ValuePolicy(nn.Module):
    """A language model with a value for the state before each token."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.value = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.value.weight)

    def generate(self, **settings: Any) -> torch.Tensor:
        """As transformers' method; through the policy, so that shares are gathered."""
        return self.model.generate(**settings)

    def forward(self, ids: torch.Tensor, attention: torch.Tensor, T: int, temperature: float):
        """Log-probabilities, values and entropies (N, T) of the last T tokens of ids (N, L), padded on the left."""
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        output = self.model(
            input_ids=ids,
            attention_mask=attention,
            position_ids=positions,
            output_hidden_states=True,
            logits_to_keep=T + 1,
        )
        log = (output.logits[:, :-1].float() / temperature).log_softmax(-1)
        logp = log.gather(-1, ids[:, -T:, None])[..., 0]
        states = output.hidden_states[-1][:, -T - 1 : -1].detach().float()
        return logp, self.value(states)[..., 0], -(log.exp() * log).sum(-1)


class PpoLoop:
    """The training of one run, its checkpoints in ``work``; ``iterations`` updates on each batch of completions.

    Attributes:
        settings: the clips and weights of the loss.
        policy: the model with its value head. ``reference``: a frozen copy; None with a LoRA.
        shared: whether parameters are sharded over the processes.
        log: one entry per update.
    """

    def __init__(self, run: Run, work: Path):
        self.run, self.recipe, self.task, self.work = run, run.recipe, run.task, work
        recipe = run.recipe
        run.check_shares()
        self.settings = PpoSettings.model_validate(recipe.trainer)
        cuda = torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda else "no")
        torch.manual_seed(run.seed)
        model, self.tokenizer = load_to_train(recipe.model, None, recipe.lora, recipe.max_length)
        lora = run.fresh_lora()
        model = get_peft_model(model, lora) if lora else model
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        self.policy = ValuePolicy(cast_for_training(model))
        self.reference = None if lora else copy.deepcopy(self.policy).eval().requires_grad_(False)
        self.shared = lora is None and self.accelerator.num_processes > 1
        self.ends = torch.tensor(sorted(end_tokens(model, self.tokenizer)))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # else the ratio of a policy to itself would not be 1
        if self.shared and self.reference is not None:
            share_out(self.policy)
            share_out(self.reference)
        elif self.reference is not None:
            self.reference.to(self.accelerator.device)
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        optimizer = optimizer_for([{"params": self.parameters, "lr": recipe.learning_rate}], 0.01)
        self.wrapped = self.policy if self.shared else self.accelerator.prepare(self.policy)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.log: list[dict[str, Any]] = []

    def train(self) -> list[dict[str, Any]]:
        """Take all remaining steps; returns the log of every update."""
        recipe = self.recipe
        step = self._resume()
        with StopSignal() as stop:
            while step < recipe.steps:
                metrics, batch = self._roll_out(step // recipe.iterations)
                for _ in range(recipe.iterations):
                    step += 1
                    entry = {"step": step, **metrics, **self._update(batch)}
                    metrics = {}
                    self.log.append(entry)
                    self._say(entry)
                self.run.keep(step, self.work.parent, self.save)
                told, last = stop.came(), step == recipe.steps
                if not last and (told or step % recipe.checkpoint_every == 0):
                    self._save(step)
                if told and not last:
                    stop.leave(step)
        return self.log

    # ------------------------------------------------------------ a batch

    @torch.no_grad()
    def _roll_out(self, number: int) -> tuple[dict[str, float], Batch]:
        """The metrics of a batch of completions, and the batch with its advantages."""
        written = self._write(number)
        totals, metrics = self._rewards(written)
        T = written.mask.shape[1]
        logp, values, _ = self._forward(self.policy, written.ids, written.attention, T)
        log_ratio = (logp - self._reference_logp(written.ids, written.attention, T)) * written.mask
        rewards = -self.recipe.kl * log_ratio
        last = written.mask.sum(-1).long() - 1
        rewards[torch.arange(len(rewards)), last] += totals.nan_to_num()
        # A completion without a reward teaches nothing.
        used = written.mask * totals.isfinite()[:, None]
        advantages = advantages_by_gae(rewards, values, written.mask, self.settings.lam)
        batch = {
            **{"ids": written.ids, "attention": written.attention, "logp": logp, "values": values},
            **{"mask": used, "returns": advantages + values},
            "advantages": whitened(advantages, used, self.accelerator.reduce),
        }
        metrics |= {
            "kl": log_ratio.sum(-1).mean().item(),
            "completions/mean_length": written.mask.sum(-1).mean().item(),
            "completions/clipped_ratio": (~written.ended).float().mean().item(),
        }
        scored = totals[totals.isfinite()]
        if len(scored):
            metrics["reward"] = scored.mean().item()
        return self._over_processes(metrics), batch

    def _write(self, number: int) -> Completions:
        """This process's completions of the ``number``-th batch, under a seed of their own."""
        recipe, task, device = self.recipe, self.task, self.accelerator.device
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        P, G = recipe.prompts_per_step, recipe.generations
        rows = [(number * P + p) % len(task.reads) for p in range(rank, P, world) for _ in range(G)]
        torch.manual_seed(int(content_hash([self.run.seed, number, rank])[:8], 16))
        self.policy.eval()
        prompts = [task.reader.ids(task.reads[row]) for row in rows]
        padded = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(device)
        sampling = GenerationConfig(
            max_new_tokens=recipe.max_new_tokens,
            do_sample=True,
            temperature=recipe.sampling_temperature,
            top_p=recipe.top_p,
            top_k=0,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.ends.tolist(),
        )
        with gathered(self.policy):
            ids = self.policy.generate(**padded, generation_config=sampling)
        completions = ids[:, padded["input_ids"].shape[1] :]
        end = torch.isin(completions, self.ends.to(device)).long()
        mask = (
            end.cumsum(-1) - end == 0
        ).float()  # everything up to the first end token, and that token
        texts = [
            whole_text(self.tokenizer, row[keep.bool()].tolist())
            for row, keep in zip(completions, mask, strict=True)
        ]
        attention = torch.cat([padded["attention_mask"], mask.long()], dim=1)
        return Completions(rows, texts, ids, attention, mask, end.sum(-1) > 0)

    def _rewards(self, written: Completions) -> tuple[torch.Tensor, dict[str, float]]:
        """The reward of each completion, NaN where it has none, and their metrics."""
        logged: dict[str, float] = {}
        rewards = self.task.reward([], written.texts, written.rows, log_metric=logged.__setitem__)
        totals = [np.nan if reward is None else reward for reward in rewards]
        return torch.tensor(totals, device=self.accelerator.device), logged

    def _over_processes(self, metrics: dict[str, float]) -> dict[str, float]:
        """The mean over those processes that have a figure, as TRL's trainers log."""
        collected: dict[str, list[float]] = {}
        for of_one in gather_object([metrics]):
            for name, value in of_one.items():
                collected.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in collected.items()}

    def _forward(self, module: Any, ids: torch.Tensor, attention: torch.Tensor, T: int):
        rows = self.recipe.rows_per_device or len(ids)
        parts = []
        for i in range(0, len(ids), rows):
            with self.accelerator.autocast():
                chunk = slice(i, i + rows)
                temperature = self.recipe.sampling_temperature
                parts.append(module(ids[chunk], attention[chunk], T, temperature))
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def _reference_logp(self, ids: torch.Tensor, attention: torch.Tensor, T: int) -> torch.Tensor:
        if self.reference is not None:
            return self._forward(self.reference, ids, attention, T)[0]
        with self.policy.model.disable_adapter():
            return self._forward(self.policy, ids, attention, T)[0]

    def _update(self, batch: Batch) -> dict[str, float]:
        """One step of the optimizer on all of the batch."""
        self.policy.train()
        N, T = batch["mask"].shape
        rows = self.recipe.rows_per_device or N
        # Gradients are averaged over processes: divided by the mean token count, every token weighs the same.
        tokens = self.accelerator.reduce(batch["mask"].sum(), "mean").clamp(min=1e-3)
        total = 0.0
        for i in range(0, N, rows):
            part = {name: tensor[i : i + rows] for name, tensor in batch.items()}
            with self.accelerator.autocast():
                logp, values, entropy = self.wrapped(
                    part["ids"], part["attention"], T, self.recipe.sampling_temperature
                )
            loss = ppo_loss(part, logp, values, entropy, tokens, self.settings)
            self.accelerator.backward(loss)
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self._over_processes({"loss": total, "grad_norm": float(norm)})

    def _say(self, entry: dict[str, Any]) -> None:
        if main_process():
            names = ("reward", "kl", "loss")
            shown = ", ".join(f"{name} {entry[name]:.3f}" for name in names if name in entry)
            print(f"step {entry['step']}/{self.recipe.steps} {shown}", flush=True)

    # ------------------------------------------------------------ checkpoints

    def save(self, folder: Path) -> None:
        """The trained policy, without its value head."""
        trained = SimpleNamespace(
            accelerator=self.accelerator,
            model=self.policy.model,
            processing_class=self.tokenizer,
        )
        state = whole_state(self.policy) if self.shared else None
        save_policy(trained, folder, self.task.config, self.recipe.lora is None, state)

    def _save(self, step: int) -> None:
        """Save the trained parameters and the optimizer: one file each, or one per process's share."""
        folder = self.work / f"checkpoint-{step}"
        with whole_checkpoint(folder):
            if main_process():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                state = {"global_step": step, "log": self.log, "shares": self._shares}
                write_config(folder, "trainer_state.json", state)
            wait_for_all()
            if self.shared or main_process():
                named = self.policy.named_parameters()
                trained = {n: own_share(p.detach()).cpu() for n, p in named if p.requires_grad}
                tensors = {n: p.contiguous() for n, p in trained.items()}
                save_file(tensors, folder / f"trained{self._share}.safetensors")
                torch.save(
                    own_share(self.optimizer.state_dict()), folder / f"optimizer{self._share}.pt"
                )
        if main_process():
            earlier = [int(p.name.rpartition("-")[2]) for p in self.work.glob("checkpoint-*")]
            for old in sorted(earlier)[:-2]:  # two are kept, should the newest be damaged
                shutil.rmtree(self.work / f"checkpoint-{old}", ignore_errors=True)
        wait_for_all()

    @property
    def _shares(self) -> int:
        return self.accelerator.num_processes if self.shared else 1

    @property
    def _share(self) -> str:
        """The part of a file's name that says which share it holds."""
        return f"-{self.accelerator.process_index}" if self.shared else ""

    def _resume(self) -> int:
        """The step to go on from.

        Raises:
            ConfigError: the checkpoint was saved by another number of processes.
        """
        last = last_whole_checkpoint(self.work)
        if last is None:
            return 0
        state = json.loads((last / "trainer_state.json").read_text())
        shares = state.get(
            "shares", 1
        )  # a checkpoint of before parameters were shared out has none
        if shares != self._shares:
            raise ConfigError(
                f"{last}: got {self._shares} processes, expected the {shares} that saved its shares"
            )
        saved = load_file(last / f"trained{self._share}.safetensors")
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                if name in saved:
                    own_share(parameter).copy_(saved[name])
        optimizer = torch.load(last / f"optimizer{self._share}.pt", weights_only=True)
        load_share(self.optimizer, optimizer)
        self.log = state["log"]
        return state["global_step"]
