"""A model as lists of models show it. Knows no API: each list takes of it what its API names."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ModelFacts"]


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """One model that is served, or lies on the disk."""

    name: str  # that clients ask for
    size_bytes: int  # of its file or files
    digest: str  # that tells its contents apart, in hexadecimal; empty where that is unknown
    modified: float  # seconds since 1970
    family: str  # its architecture, as its header has it: "llama", "gemma3"
    parameters: int  # how many
    quantization: str  # "Q4_K_M"
    context: int  # tokens that it is served with; that it was trained with where it is not served
    format: str = "gguf"
    capabilities: tuple[str, ...] = ("completion",)  # Ollama's: "tools", "thinking", "insert", "embedding"
    template: str = ""  # its chat template
    license: str = ""
    header: tuple[tuple[str, str | int | float | bool | None], ...] = ()  # its header's values, without lists
    loaded_bytes: int = 0  # that it takes in all memory; 0: it is not loaded
    vram_bytes: int = 0  # of these, on devices

    @property
    def parameter_size(self) -> str:
        """As model cards have it: "270M", "8.0B"."""
        for unit, count in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
            if self.parameters >= count:
                size = self.parameters / count
                return f"{size:.1f}{unit}" if unit == "B" or size < 10 else f"{size:.0f}{unit}"
        return str(self.parameters)
