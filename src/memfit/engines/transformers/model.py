"""A checkpoint in transformers: loaded tensor by tensor, with all of its KV cache, and passes through it."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from memfit.engines.channel import Aborted, OverBudgetError
from memfit.engines.threads import Threads
from memfit.engines.transformers.kv_cache import planned_cache, with_cache
from memfit.engines.transformers.offloading import Placeholder, StreamedLayers, layers_as_stored
from memfit.engines.transformers.packing import packed_config
from memfit.engines.transformers.reading import DTYPES, LazyTensor, LazyWeight, lazy_tensors
from memfit.engines.transformers.sequences import Sequences
from memfit.errors import EngineError, MemfitError, ModelError, readable
from memfit.hardware.direct_file import StreamError
from memfit.headers.hf_config import read_config
from memfit.headers.hf_shapes import weights_of
from memfit.headers.safetensors import Checkpoint, SafetensorsTensor, find_weights
from memfit.memory.library_pages import map_libraries_whole
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.process_memory import process_status

__all__ = ["CheckpointModel", "explained", "find_tokenizer"]


class CheckpointModel:
    """One loaded checkpoint."""

    def __init__(
        self,
        config: TransformersConfig,
        *,
        limit_bytes: int | None,
        on_progress: Callable[[float], None],
        offload_folder: str | None,
    ) -> None:
        """Load the weights; nothing is computed yet.

        Raises:
            OverBudgetError: going on would exceed the limit.
            ModelError: files are damaged, or config and weights disagree.
            EngineError: transformers refuses the model.
        """
        self.threads = Threads(config.threads, torch.set_num_threads)
        torch.set_num_threads(config.threads)
        for index, limit in enumerate(config.gpu_limits):
            whole = torch.cuda.get_device_properties(index).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), index)
        if config.gpus:
            torch.cuda.set_device(0)  # setting a limit makes its GPU the current one
        torch.set_grad_enabled(False)
        self.config = config
        self._stopped = threading.Event()
        self._limit_bytes = limit_bytes
        with explained(f"transformers cannot load {config.folder}"):
            hf_config = transformers.AutoConfig.from_pretrained(
                config.folder, trust_remote_code=config.trust_remote_code
            )
            text = hf_config.get_text_config()
            if getattr(text, "sliding_window", None) == 0:
                text.sliding_window = None  # 0 says that there is none, and some models mask all with it
            self.tokenizer = find_tokenizer(config.folder, trust_remote_code=config.trust_remote_code)
            self.model = self._load(hf_config, on_progress, offload_folder)
            self.generation_config = self.model.generation_config
            if (config.folder / "generation_config.json").is_file():
                self.generation_config = transformers.GenerationConfig.from_pretrained(config.folder)
        self.sequences: Sequences | None = None  # where several are planned
        if config.parallel == 1:
            self.cache = planned_cache(hf_config, context=config.context, ubatch=config.ubatch)
        else:
            self.sequences = Sequences(
                self.model,
                hf_config,
                sequences=config.parallel,
                tokens=config.sequence_tokens,
                ubatch=config.ubatch,
            )
            self.cache = self.sequences.cache
        self.cached: list[int] = []  # the cache's tokens, in order; of several sequences the first one's
        for module in self.model.modules():
            if type(module).__name__ in (self.model._no_split_modules or ()):
                module.register_forward_pre_hook(self._stop_here)
        self.model.register_forward_pre_hook(lambda *_: self.threads.look())
        self.model.register_forward_hook(lambda *_: self.threads.done())

    # -- loading ---------------------------------------------------------------------------------

    def _load(self, hf_config: Any, on_progress: Callable[[float], None], offload_folder: str | None) -> Any:
        config = self.config
        checkpoint = find_weights(config.folder / "config.json")
        if checkpoint is None:
            raise ModelError(f"there are no safetensors in {config.folder}")
        checkpoint = weights_of(read_config(config.folder / "config.json"), checkpoint)
        if hasattr(hf_config, "quantization_config"):
            del hf_config.quantization_config  # it is read here, not by transformers
        quantization, dtype = _quantization(config), getattr(torch, config.precision.dtype)
        if config.precision.is_stored:
            quantization = packed_config(checkpoint.tensors)
        indexes = {f"gpu{number}": index for index, number in enumerate(config.gpus)}  # torch's
        device_map = {module: indexes.get(place, place) for module, place in config.device_map}
        model_class, layers = _model_class(hf_config, config), config.streamed_layers
        as_stored = layers_as_stored(layers, checkpoint, lambda: model_class(hf_config)) if layers else set()
        device_map |= dict.fromkeys(as_stored, "cpu")
        model, found = model_class.from_pretrained(
            None,
            config=hf_config,
            state_dict=self._tensors(checkpoint, as_stored, on_progress),
            dtype=dtype,
            quantization_config=quantization,
            device_map=device_map,
            offload_folder=offload_folder if "disk" in device_map.values() else None,
            output_loading_info=True,
        )
        missing = sorted(found["missing_keys"]) + sorted(str(one[0]) for one in found["mismatched_keys"])
        if missing:
            raise ModelError(
                f"config.json and the weights of {config.folder} disagree: {len(missing)} tensors are "
                f"missing or of another shape, {missing[0]} among them"
            )
        if layers:
            assert offload_folder is not None, "the parent gives one where layers stay on the disk"
            StreamedLayers(
                model,
                layers,
                checkpoint,
                folder=Path(offload_folder),
                ring_bytes=config.ring_bytes,
                device=torch.device("cuda" if config.gpus else "cpu"),
                stopped=self._stopped.is_set,
            )
        # For decoding on a GPU it would take copies of the experts that each token chooses.
        model._optimize_model_for_decode = contextlib.nullcontext
        return model.eval()

    def _tensors(
        self, checkpoint: Checkpoint, left_there: set[str], on_progress: Callable[[float], None]
    ) -> Mapping[str, LazyTensor | LazyWeight | Placeholder]:
        """All tensors by name; of the modules that are `left_there` none is read."""
        dtype = getattr(torch, self.config.precision.dtype)
        placeholders = {
            one.name: Placeholder(one, dtype if DTYPES[one.type].is_floating_point else DTYPES[one.type])
            for one in checkpoint.tensors
            if any(one.name.startswith(f"{module}.") for module in left_there)
        }
        read = [one for one in checkpoint.tensors if one.name not in placeholders]
        before, keeps_packed = self._before_each(read, on_progress), self.config.precision.is_stored
        return {**lazy_tensors(checkpoint, before, dtype=dtype, keeps_packed=keeps_packed), **placeholders}

    def _before_each(
        self, tensors: Sequence[SafetensorsTensor], on_progress: Callable[[float], None]
    ) -> Callable[[SafetensorsTensor], None]:
        whole = sum(one.size_bytes for one in tensors) or 1
        done = 0

        def before(tensor: SafetensorsTensor) -> None:
            nonlocal done
            if not done:  # libraries are loaded, weights are not
                map_libraries_whole()
            if self._limit_bytes is not None:
                needs = process_status().resident_bytes + tensor.size_bytes
                if needs > self._limit_bytes:
                    raise OverBudgetError(needs)
            on_progress(done / whole)
            done += tensor.size_bytes

        return before

    @torch.inference_mode()
    def warm_up(self) -> None:
        """A first pass: after it, memory stays. bitsandbytes packs weights anew, the KV cache is taken."""
        for tokens in ([0, 0], [0]):  # a prompt, then a token: the kernels of both
            self.decode(tokens)
        self.forget()

    # -- passes ----------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int]) -> None:
        """Compute tokens behind those in the cache, a ubatch at a time.

        Raises:
            Aborted: it was cancelled.
            EngineError: the disk or the engine failed.
        """
        size = self.config.ubatch
        for start in range(0, len(tokens), size):
            self._pass(tokens[start : start + size], logits=1)

    def logits(self, tokens: Sequence[int]) -> Any:
        """Compute at most a ubatch of tokens behind those in the cache; their logits, float32 [tokens,
        vocabulary] in numpy. Errors as in `decode`."""
        found = self._pass(tokens, logits=len(tokens)).logits
        return found[0].float().cpu().numpy()

    def compute(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        parts: Sequence[tuple[int, int]],
        *,
        outputs: Sequence[int],
    ) -> torch.Tensor:
        """One pass of several sequences, `parts` of them with how many of the tokens are theirs. Logits of
        the tokens at `outputs`, [outputs, vocabulary]. Errors as in `decode`."""
        assert self.sequences is not None, "one sequence is planned"
        self.sequences.parts = parts
        device, cache = self.model.device, with_cache(self.model, self.cache)
        with explained("the engine failed"):
            found = self.model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=True,
                logits_to_keep=torch.tensor(outputs, dtype=torch.long, device=device),
                **cache,
            )
        rows: torch.Tensor = found.logits[0]
        return rows

    def _pass(self, tokens: Sequence[int], *, logits: int) -> Any:
        if self.sequences is not None:
            self.sequences.parts = [(0, len(tokens))]
        ids, cache = torch.tensor([tokens], device=self.model.device), with_cache(self.model, self.cache)
        try:
            with explained("the engine failed"):
                found = self.model(input_ids=ids, use_cache=True, logits_to_keep=logits, **cache)
        except Aborted:
            if self.sequences is None:
                self.settle(self.cached)
            else:
                self.sequences.cut(0, len(self.cached))
            raise
        self.cached += tokens
        return found

    def keep(self, tokens: Sequence[int]) -> int:
        """Leave in the cache what `tokens` begins with; returns how many those are. The last token is always
        to be computed again: its logits are wanted."""
        shared = 0
        for ours, theirs in zip(self.cached, tokens[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        if shared < len(self.cached):
            try:
                self.cache.crop(shared - len(self.cached))
            except (RuntimeError, ValueError, NotImplementedError):  # a window has moved on
                shared = 0
        if not shared:
            self.forget()
        self.cached = self.cached[:shared]
        return shared

    def settle(self, tokens: Sequence[int]) -> None:
        """The cache holds a beginning of `tokens`. Layers that a cancelled pass left ahead of others go back;
        where a window has moved on, nothing is kept."""
        held = min(layer.get_seq_length() for layer in self.cache.layers)
        try:
            for layer in self.cache.layers:
                if ahead := layer.get_seq_length() - held:
                    layer.crop(-ahead)
        except (RuntimeError, ValueError, NotImplementedError):
            self.forget()
            return
        self.cached = list(tokens[:held])

    def forget(self) -> None:
        self.cache.reset()
        self.cached = []

    def abort(self) -> None:
        """End the running pass early; safe from another thread."""
        self._stopped.set()

    def clear_abort(self) -> None:
        self._stopped.clear()

    @property
    def is_aborted(self) -> bool:
        return self._stopped.is_set()

    def _stop_here(self, *_: object) -> None:
        if self._stopped.is_set():
            self.threads.done()
            raise Aborted

    # -- facts -----------------------------------------------------------------------------------

    @property
    def vocabulary_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def bytes_by_dtype(self) -> dict[str, int]:
        """All tensors that the model holds in memory: parameters, quantization state, buffers."""
        sums: dict[str, int] = {}
        for dtype, size in self._held():
            sums[dtype] = sums.get(dtype, 0) + size
        return sums

    def tensors_by_dtype(self) -> dict[str, int]:
        """How many those are."""
        return dict(Counter(dtype for dtype, _ in self._held()))

    def _held(self) -> list[tuple[str, int]]:
        """Of each tensor its type and bytes."""
        found: dict[tuple[str, int], tuple[str, int]] = {}

        def add(value: object) -> None:
            if isinstance(value, torch.Tensor):
                if value.device.type != "meta":
                    place = str(value.device), value.data_ptr()
                    known = found.get(place, ("", 0))[1]
                    found[place] = (str(value.dtype).removeprefix("torch."), max(known, value.nbytes))
            elif hasattr(value, "absmax"):  # bitsandbytes' QuantState, which may hold another
                for inner in vars(value).values():
                    add(inner)

        for parameter in self.model.parameters():
            add(parameter.data)
            for extra in vars(parameter).values():
                add(extra)
        for buffer in self.model.buffers():
            add(buffer)
        for module in self.model.modules():  # where INT8's scales lie after the first pass
            add(getattr(getattr(module, "state", None), "SCB", None))
        return list(found.values())

    def wait(self) -> None:
        """For what GPUs have not computed yet."""
        for index in range(len(self.config.gpus)):
            torch.cuda.synchronize(index)

    def gpu_bytes(self) -> list[int]:
        """What torch's allocator has taken at most, by GPU."""
        return [torch.cuda.max_memory_reserved(index) for index in range(len(self.config.gpus))]

    def reported_bytes(self) -> int:
        """What transformers itself says: without the quantization state."""
        return int(self.model.get_memory_footprint())


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Errors of the libraries as memfit's own."""
    try:
        yield
    except (MemfitError, Aborted, OverBudgetError):
        raise
    except StreamError as error:
        raise EngineError(str(error)) from None
    except Exception as error:  # libraries raise what they like
        text = f"{type(error).__name__}: {error}".strip()
        raise EngineError(f"{what}: {readable(text, most=600)}") from error


def _model_class(hf_config: Any, config: TransformersConfig) -> Any:
    remote = getattr(hf_config, "auto_map", {}).get("AutoModelForCausalLM")
    if remote and config.trust_remote_code:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(remote, str(config.folder))
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(hf_config) not in known:
        raise ModelError(
            f"transformers {transformers.__version__} has no language model of type {hf_config.model_type}"
        )
    return known[type(hf_config)]


def _quantization(config: TransformersConfig) -> Any:
    if config.precision.bits == 8:
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if config.precision.bits == 4:
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.load_in,
            bnb_4bit_use_double_quant=config.double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return None


def find_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    """None where the folder has none: token numbers can be computed with, texts cannot."""
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        return None
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
