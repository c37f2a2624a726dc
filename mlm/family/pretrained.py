"""What the models of the family do besides computing: load, save, resize, prune, count."""

import copy
import warnings
from collections.abc import Iterable, Mapping
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mlm.family import options, resizing, saving
from mlm.family.base import FamilyModel
from mlm.family.folder import model_weights
from mlm.model.initial import initialise
from mlm.weights.load import Match, check_encoder, check_shapes, full_shapes, load_parameters, match
from mlm.weights.source import Weights
from parallel.groups import Group, group_rank

NEW = ("pooler.", "crossattention.", "distance_embedding.")  # of an encoder, yet may be missing
SHOWN = 4  # names in a warning


class Pretrained(FamilyModel):
    """A model of the family; with a `group`, every rank of it makes the same calls."""

    supports_gradient_checkpointing = True
    # What transformers, accelerate and peft read: the layers that are wrapped whole, and names that
    # a saved state lacks since they are tied to others.
    _no_split_modules = ("Embeddings", "EncoderLayer")
    all_tied_weights_keys: Mapping[str, str] = MappingProxyType({})

    def finish(self, seed: int | None) -> None:
        """Prunes the heads that the config names, then gives the initial weights."""
        if self.base_model is self:
            for layer, heads in sorted(self.config.pruned_heads.items()):
                self._layer(layer).attention.prune_heads(set(heads))
        super().finish(seed)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: Any = None,
        group: Group = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        ignore_mismatched_sizes: bool = False,
        attention: str | None = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        seed: int | None = None,
        output_loading_info: bool = False,
        **config_changes: Any,
    ) -> Any:
        """The model in a folder: a Hugging Face one, a run's or a checkpoint's; to evaluate.

        config: in place of the folder's, with `config_changes` in either (`num_labels=3`)
        group: the tensor-parallel ranks that hold it together; each reads its slices and no more
        dtype: of the parameters; None: fp32; "auto": the stored one (`torch_dtype` is the same)
        attention: as of the class; `attn_implementation` (eager, sdpa) is transformers' word
        device_map: the one device to put it on; "auto": the GPU, where there is one
        ignore_mismatched_sizes: weights of another shape are initialised again in place of an error
        seed: of weights that the folder lacks; None: from torch's generator
        output_loading_info: gives `(model, info)`, info with the names of those weights

        A warning reports what the folder lacks, and what it has besides this model's weights.
        Raises ValueError for a folder that is damaged or of another model, and for an option that
        is unsupported.
        """
        path = Path(pretrained_model_name_or_path)
        changes = {k: v for k, v in config_changes.items() if k not in options.WITHOUT_EFFECT}
        further = {name: changes.pop(name) for name in _arguments(cls) & changes.keys()}
        chosen = cls._chosen_config(path, config, changes)
        weights = model_weights(path)
        grown = config is not None or "num_hidden_layers" in changes
        number_type = options.chosen_dtype(dtype or torch_dtype, chosen.extra, weights)
        attention = attention or options.attention_kernel(attn_implementation)
        device = options.chosen_device(device_map)
        with torch.device("meta"):
            made: Any = cls  # a class with a head, or the bare one
            model = made(chosen, group=group, seed=0, attention=attention, **further)
        matched = model._load(weights, number_type, device, seed, ignore_mismatched_sizes, grown)
        if group_rank(group) == 0:
            _warn(cls.__name__, weights, matched)
        if not output_loading_info:
            return model
        return model, {
            "missing_keys": matched.missing,
            "unexpected_keys": matched.unused,
            "mismatched_keys": list(matched.mismatched),
            "error_msgs": [],
        }

    @classmethod
    def _chosen_config(cls, path: Path, config: Any, changes: Mapping[str, Any]) -> Any:
        if config is None or isinstance(config, str | Path):
            return cls.config_class.from_pretrained(config or path, **changes)
        if not isinstance(config, cls.config_class):
            raise ValueError(
                f"config is of the type {type(config).__name__}; give a {cls.config_class.__name__}"
                f" or a folder, or leave it out"
            )
        chosen = copy.deepcopy(config)
        chosen.update(changes)
        return chosen

    def _load(
        self,
        weights: Weights,
        dtype: torch.dtype,
        device: torch.device,
        seed: int | None,
        ignore_mismatched_sizes: bool,
        grown: bool,
    ) -> Match:
        """Fills a model on the meta device; grown: layers beyond the folder's are new."""
        bare = self.base_model is self
        expected = full_shapes(self)
        matched = match(expected, weights, bare=bare)
        if not ignore_mismatched_sizes:
            check_shapes(matched, expected, weights)
        layers = range(len(self.base_model.encoder.layer))
        there = " ".join(matched.stored)
        beyond = [f"layer.{n}." for n in layers if grown and f"encoder.layer.{n}." not in there]
        check_encoder(matched, weights, (*NEW, *beyond))

        def initial(module: nn.Module, name: str) -> nn.Module:
            prefix = self.base_model_prefix if bare else ""
            return initialise(module, prefix, self.config.shape(), self.drawn_seed(seed))

        load_parameters(
            self,
            weights,
            matched.stored,
            initial=initial,
            dtype=dtype,
            device=device,
        )
        self.tie_weights()
        self.eval()
        return matched

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        **unsupported: Any,
    ) -> None:
        """Writes `config.json` and `model.safetensors`, or shards of it with their index.

        Every rank of the group calls it and the first one writes, a whole tensor in memory at a
        time. is_main_process: whether this group writes at all, where several hold the same model.
        state_dict: whole tensors by name in place of the model's own, as FSDP gathers them.
        A new folder is there whole or not at all; in one that holds files the new ones take their
        places when all are written. Raises ValueError on every rank where that fails.
        """
        changeless = {"safe_serialization": True, "push_to_hub": False}  # as it is done anyway
        given = {k: v for k, v in unsupported.items() if changeless.get(k) != v}
        options.refuse("save_pretrained", given)
        if state_dict is not None and self.group is not None:
            raise ValueError(
                "state_dict is given with a model that is split by `group`, which gathers its own "
                "weights; leave it out"
            )
        config = copy.deepcopy(self.config)
        config.architectures = [type(self).__name__]
        named = str(self.dtype).removeprefix("torch.")
        config.extra |= {"dtype": named, "torch_dtype": named}  # the latter for transformers 4
        config.to_dict()  # what cannot be written raises here, on every rank
        size = options.shard_bytes(max_shard_size)
        if is_main_process:
            tied = self.all_tied_weights_keys
            given = {k: v for k, v in (state_dict or {}).items() if k not in tied} or None
            saving.save(self, Path(save_directory), config, size, given)

    @property
    def base_model(self) -> Any:
        """The model without its head."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def get_input_embeddings(self) -> Any:
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Puts a table of the same shape in place of the word embeddings; raises ValueError."""
        old, new = self.get_input_embeddings().weight, value.weight
        if old.shape != new.shape:
            raise ValueError(
                f"the new embeddings have the shape {tuple(new.shape)} and the old ones "
                f"{tuple(old.shape)}; use resize_token_embeddings to change their number"
            )
        self.base_model.embeddings.word_embeddings = value
        self.tie_weights()

    def set_output_embeddings(self, value: Any) -> None:
        """Takes the weight of a decoder, which is the word embeddings', too, and its bias where it
        has one; raises ValueError."""
        old = self.get_output_embeddings()
        if old is None or old.weight.shape != value.weight.shape:
            shape = "none" if old is None else tuple(old.weight.shape)
            raise ValueError(
                f"the new decoder has the shape {tuple(value.weight.shape)} and the old one "
                f"{shape}; give one that fits {type(self).__name__}"
            )
        self.get_input_embeddings().weight = value.weight
        if getattr(value, "bias", None) is not None:
            head: Any = self.lm_head
            head.bias = value.bias
        self.tie_weights()

    def get_output_embeddings(self) -> Any:
        """The decoder of a language model's head, its weight that of the word embeddings."""
        head = getattr(self, "lm_head", None)
        return None if head is None else head.decoder

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Cuts the word embeddings (and the decoder's bias) at the end, or adds rows there: the
        mean of the old ones, or N(0, initializer_range^2) without `mean_resizing`; biases of 0.

        new_num_tokens: None: as many as now; pad_to_multiple_of: rounds that up. The number is
        kept in `config.vocab_size`. Returns the embeddings. Raises ValueError.
        """
        if new_num_tokens is not None or pad_to_multiple_of is not None:
            size = resizing.new_size(self.config, self.group, new_num_tokens, pad_to_multiple_of)
            seed = None if mean_resizing else self.drawn_seed(None)
            resizing.resize(self, size, seed)
        return self.get_input_embeddings()

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Takes attention heads out for good: layer -> heads, by their numbers in the whole model.

        They are kept in `config.pruned_heads`. Raises ValueError.
        """
        known = self.config.num_attention_heads
        wanted = {int(layer): set(map(int, heads)) for layer, heads in heads_to_prune.items()}
        for layer, heads in wanted.items():
            self._layer(layer)
            for head in heads - set(range(known)):
                raise ValueError(
                    f"head {head} of layer {layer} is not one of the {known} heads, which count "
                    f"from 0; choose one of them"
                )
            self._layer(layer).attention.check_pruning(heads)
        for layer, heads in wanted.items():
            self._layer(layer).attention.prune_heads(heads)
            before = self.config.pruned_heads.get(layer, [])
            self.config.pruned_heads[layer] = sorted(heads | set(before))

    def _layer(self, number: int) -> Any:
        layers = self.base_model.encoder.layer
        if not 0 <= number < len(layers):
            raise ValueError(
                f"layer {number} is not one of the {len(layers)} layers, which count from 0; "
                f"choose one of them"
            )
        return layers[number]

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Keeps only each layer's input for the backward pass, and runs the layer again there."""
        for name, value in (gradient_checkpointing_kwargs or {}).items():
            if name != "use_reentrant" or value:
                raise ValueError(
                    f"{name}={value!r} is unsupported for gradient checkpointing, which is not "
                    f"reentrant here; leave it out"
                )
        self.base_model.gradient_checkpointing = True

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """transformers' newer name of `gradient_checkpointing_enable`; each layer is kept so, and
        none is moved off its device."""
        for name, value, only in (
            ("every_n_layers", every_n_layers, 1),
            ("offload", offload, False),
        ):
            if value != only:
                raise ValueError(
                    f"{name}={value!r} is unsupported for gradient checkpointing; leave it out"
                )
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def activation_checkpointing_disable(self) -> None:
        self.gradient_checkpointing_disable()

    @property
    def is_activation_checkpointing(self) -> bool:
        return self.is_gradient_checkpointing

    def gradient_checkpointing_disable(self) -> None:
        self.base_model.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.base_model.gradient_checkpointing

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Parameters of the whole model, those of all ranks; a tied one counts once."""
        shapes = full_shapes(self)
        return sum(
            torch.Size(shapes[name]).numel()
            for name, parameter in self.named_parameters()
            if (parameter.requires_grad or not only_trainable)
            and not (exclude_embeddings and "_embeddings.weight" in name)
        )


def _arguments(cls: type[Pretrained]) -> set[str]:
    """What a class takes besides what all do, such as `add_pooling_layer`."""
    everyones = {"self", "config", "group", "seed", "attention", "options"}
    return set(signature(cls.__init__).parameters) - everyones


def _warn(model: str, weights: Weights, matched: Match) -> None:
    new = [*matched.missing, *matched.mismatched]
    parts = []
    if new:
        parts.append(f"has no {_listed(new)} for {model}, which must be trained before it is used")
    if matched.unused:
        parts.append(f"has {_listed(matched.unused)}, which {model} does not use")
    if parts:
        warnings.warn(f"{weights.origin} {', and '.join(parts)}", stacklevel=3)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
