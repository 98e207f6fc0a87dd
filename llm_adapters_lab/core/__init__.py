"""Put an adapter into any model, take it out again, merge it, save it."""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "adapter": "Adapter ModelAdapter ParameterAdapter Place World",
        "adapter_config": "AdapterConfig",
        "registry": "register_adapter get_adapter all_adapters",
        "anatomy": "Anatomy",
        "sites": "Site",
        "injection": "inject Injection injections",
        "merging": "merge",
        "baking": "bake",
        "blending": "blend",
        "composition": "stack mix compose merge_mix",
        "rules": "Rule Stack Mix Average Route Parallel Split",
        "saving": "save_adapter load_adapter save_merged",
        "vocabulary": "add_tokens",
        "peft_format": "to_peft from_peft",
        "call_context": "CallContext context_of grouped",
        "modifiers.base": "Modifier modified",
        "modifiers.configs": "SparseConfig SplitConfig QuantizeConfig",
        "modifiers.masks": "masks",
        ".": "weights placement",
    },
)
