"""Tiny quantised checkpoints, as their libraries write them; those of GPTQ and AWQ packed here.

What gptqmodel needs to quantise (calibration, a compiler) is more than a test needs to read its files, and packed here
they hold codes that are known.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from llm_adapters_lab.models.blueprint import Blueprint

GROUP = 32
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which of eight columns stands in which four bits of a word, lowest first."""


def write(kind: str, folder: Path) -> dict[str, torch.Tensor]:
    """Write a checkpoint, and return what its projections stand for, as (d_out, d_in), where that is known."""
    plain = model()
    Blueprint("nano").tokenizer.save_pretrained(folder)
    method, _, scheme = kind.partition(":")
    if method == "compressed-tensors":
        _compressed(plain, scheme, folder)
    elif method == "torchao":
        _torchao(plain, scheme, folder)
    else:
        return _packed(plain, method, folder)
    return {}


def model() -> Any:
    """Return a random model with a bias in attention, and with the words of `nano`."""
    words = len(Blueprint("nano").tokenizer)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=words, attention_bias=True, max_position_embeddings=256, **shape, **ids)
        made = AutoModelForCausalLM.from_config(config).eval()
        for name, p in made.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(p, std=0.02)
    return made


def _packed(plain: Any, method: str, folder: Path) -> dict[str, torch.Tensor]:
    plain.save_pretrained(folder)
    tensors, known = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        path, weight = name.removesuffix(".weight"), tensors.pop(name)
        codes, zeros, scales = _rounded(weight.T)
        rows = torch.arange(len(codes)) // GROUP
        known[path] = ((codes - zeros[rows]).half() * scales[rows]).T.float()
        if method == "gptq":
            parts = {"qweight": _words(codes.T).T, "qzeros": _words(zeros - 1), "g_idx": rows.int()}
        else:
            parts = {"qweight": _words(codes, AWQ_ORDER), "qzeros": _words(zeros, AWQ_ORDER)}
        tensors |= {f"{path}.{part}": t.contiguous() for part, t in {**parts, "scales": scales}.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    own: dict[str, Any] = {"desc_act": False, "sym": False} if method == "gptq" else {"version": "gemm"}
    own |= {"zero_point": True} if method == "awq" else {}
    described = {"quant_method": method, "bits": 4, "group_size": GROUP, **own}
    describe(folder, described)
    return known


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes (d_in, d_out), and zeros and scales (groups, d_out), of a weight (d_in, d_out)."""
    grouped = weight.reshape(-1, GROUP, weight.shape[1])
    low, high = grouped.amin(1), grouped.amax(1)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(1, 15).int()
    codes = (grouped / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 15).int()
    return codes.reshape(weight.shape), zeros, scales


def _words(codes: torch.Tensor, order: list[int] | None = None) -> torch.Tensor:
    """Pack eight neighbours of a row into one word."""
    eights = codes.reshape(len(codes), -1, 8)[..., order or list(range(8))].long()
    words = (eights << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def describe(folder: Path, quantization: dict[str, Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"quantization_config": quantization}
    path.write_text(json.dumps(config), encoding="utf-8")


def _compressed(plain: Any, scheme: str, folder: Path) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams

    how = preset_name_to_scheme(scheme, ["Linear"])
    if how.weights.group_size:
        how.weights.group_size = GROUP
    config = QuantizationConfig(config_groups={"all": how}, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(plain, config)
    for module in plain.modules():
        if hasattr(module, "weight_scale"):
            weight = module.weight.data
            groups = weight.reshape(len(weight), -1, how.weights.group_size or weight.shape[1])
            scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), how.weights)
            module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
    compressor = ModelCompressor.from_pretrained_model(plain)
    compressor.compress_model(plain)
    plain.save_pretrained(folder)
    compressor.update_config(folder)


def _torchao(plain: Any, scheme: str, folder: Path) -> None:
    from torchao import quantization
    from transformers import TorchAoConfig

    plain.save_pretrained(folder)
    how = TorchAoConfig(getattr(quantization, scheme)())
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=how).save_pretrained(folder)
