"""Make bottlenecks.safetensors: what the `adapters` package computes with series and parallel bottlenecks.

The package needs an older version of transformers than the lab, so run this in a separate environment:

    pip install torch==2.13.0 adapters==1.3.0 transformers==4.57.6
    python tests/adapters/golden/make_bottlenecks.py

It prints eight times that no adapter is active; this is the package's `add_adapter`, before it activates one.

For two random models, the file has the weights and logits of the base and, for each case, the weights of the adapter
and the logits. `tests/adapters/test_golden_bottlenecks.py` compares them with the lab.

With x the input of a sublayer, y its output and r the residual stream around it, these models being pre-norm
(x = norm(r), and r + y is passed on), a bottleneck b(z) = s (f(z W_down + b_down) W_up + b_up) is placed as follows:

- `DoubleSeqBnConfig` (Houlsby), and `SeqBnConfig` with `original_ln_before=False`: r + y + b(y), the lab's series.
- `SeqBnConfig` by default (Pfeiffer): r + y + b(r + y). Left out: no adapter of the lab reads r + y and changes y.
- `ParBnConfig` on the package's own Llama and GPT-2: r + y + b(r). Left out: the lab reads x, as the code of Hu et al.
  does. An `AdapterModelInterface` can set the package's input (`layer_pre_ffn`, `layer_pre_self_attn`); with the
  modules that read x, the result is r + y + b(x), the lab's parallel.
"""

import json
from importlib.metadata import version
from pathlib import Path

import adapters
import torch
from adapters import AdapterModelInterface, BnConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

PLACE = Path(__file__).with_name("bottlenecks.safetensors")
SPREAD = 0.2

MODELS = {
    "llama": {
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"intermediate_size": 64, "vocab_size": 128, "max_position_embeddings": 64},
    },
    "gpt2": {
        **{"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "vocab_size": 128, "n_positions": 64},
        **{"bos_token_id": 1, "eos_token_id": 2},
    },
}
CASES: dict[str, BnConfig] = {
    "series-mlp": SeqBnConfig(original_ln_before=False, reduction_factor=4, non_linearity="tanh", scaling=0.5),
    "series-both": DoubleSeqBnConfig(reduction_factor=4),
    "parallel-mlp": ParBnConfig(reduction_factor=4),
    "parallel-both": ParBnConfig(reduction_factor=4, mh_adapter=True, non_linearity="gelu", scaling="learned"),
}
FIELDS = ("is_parallel", "mh_adapter", "output_adapter", "non_linearity", "scaling")
TENSORS = {"adapter_down.0": "down", "adapter_up": "up"}

_COMMON = {"adapter_methods": ["bottleneck"], "layer_cross_attn": None}
INTERFACES = {
    "llama": AdapterModelInterface(
        **_COMMON,
        **{"model_embeddings": "embed_tokens", "model_layers": "layers", "layer_self_attn": "self_attn"},
        **{"attn_q_proj": "q_proj", "attn_k_proj": "k_proj", "attn_v_proj": "v_proj", "attn_o_proj": "o_proj"},
        **{"layer_intermediate_proj": "mlp.up_proj", "layer_output_proj": "mlp.down_proj"},
        **{"layer_pre_self_attn": "self_attn.q_proj", "layer_pre_ffn": "mlp"},
    ),
    "gpt2": AdapterModelInterface(
        **_COMMON,
        **{"model_embeddings": "wte", "model_layers": "h", "layer_self_attn": "attn"},
        **{"attn_qkv_proj": "c_attn", "attn_o_proj": "c_proj"},
        **{"layer_intermediate_proj": "mlp.c_fc", "layer_output_proj": "mlp.c_proj"},
        **{"layer_pre_self_attn": "attn.c_attn", "layer_pre_ffn": "mlp"},
    ),
}


def base(family):
    """Return a random but fixed model in which no weight has a special value."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **MODELS[family]))
    shake(model.parameters())
    return model.eval()


def shake(parameters):
    """Add noise, so that no norm, bias or up-projection is the identity or zero."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape) * SPREAD)


def logits(model, ids):
    """Return the logits: (rows, length, vocabulary)."""
    with torch.no_grad():
        return model(input_ids=ids).logits.contiguous()


def case(family, config, ids):
    """Return the adapter tensors and the logits of one model with one adapter, by name."""
    model = base(family)
    adapters.init(model, interface=INTERFACES[family] if config.is_parallel else None)
    model.add_adapter("golden", config=config, set_active=True)
    found = {}
    for layer, modules in model.get_adapter("golden").items():
        for location, module in modules.items():
            shake(module.parameters())
            place = {"mh_adapter": "attn", "output_adapter": "mlp"}[location]
            for name, tensor in module.state_dict().items():
                owner, _, leaf = name.rpartition(".")
                own = f"{TENSORS[owner]}.{leaf}" if owner else {"scaling": "scale"}[leaf]
                found[f"{layer}/{place}/{own}"] = tensor if owner else tensor.reshape(())
    return found | {"logits": logits(model.eval(), ids)}


def main():
    """Write the file."""
    ids = torch.randint(3, 128, (2, 6), generator=torch.Generator().manual_seed(1))
    tensors = {"input_ids": ids}
    for family in MODELS:
        model = base(family)
        tensors |= {f"{family}/base/{name}": p.detach() for name, p in model.named_parameters()}
        tensors[f"{family}/base-logits"] = logits(model, ids)
        for name, config in CASES.items():
            tensors |= {f"{family}/{name}/{key}": tensor for key, tensor in case(family, config, ids).items()}
    metadata = {
        "models": MODELS,
        "cases": {name: {field: getattr(config, field) for field in FIELDS} for name, config in CASES.items()},
        "made_with": {package: version(package) for package in ("adapters", "transformers", "torch")},
    }
    # One entry, as safetensors writes several in any order: the file is then reproducible.
    save_file(tensors, PLACE, metadata={"golden": json.dumps(metadata)})
    print(f"{PLACE.name}: {len(tensors)} tensors, {PLACE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
