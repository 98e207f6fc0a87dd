"""Look inside a model: record activations, measure weights, ablate adapters."""

from llm_adapters_lab._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        ".": "ablations activation_metrics dataset_activity heads interventions probes routing units weight_metrics",
        "recorder": "Recorder",
        "interventions": "zero replace add scale_adapter",
        "weight_metrics": "changes weight_change norms spectra spectrum "
        "stable_rank effective_rank overlap layer_of by_layer",
        "activation_metrics": "contribution activity cosine cka virtual_attention",
        "probes": "both streams layer_similarity logit_lens token_loss mean_loss bottleneck_units virtual_shares",
        "units": "readers unit_tokens",
        "group_parts": "GroupEmbeddings group_blocks group_embeddings group_names group_weights",
        "heads": "HeadChange head_changes",
        "dataset_activity": "ActivityMoments",
        "members": "member_weights member_names",
        "token_choice": "tokens_run",
        "routing": "ExpertLoad expert_loads has_experts",
        "ablations": "ablation interpolation without",
    },
)
