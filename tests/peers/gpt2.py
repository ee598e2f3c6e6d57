"""The weights of a GPT-2 of transformers as parameters of gptjax's Transformer."""

import jax.numpy as jnp
import numpy as np

from gptjax.model.config import ModelConfig


def gpt2_config(config) -> ModelConfig:
    """gptjax's switches for GPT-2's block, in float64."""
    return ModelConfig(
        vocab_size=config.vocab_size,
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        max_length=config.n_positions,
        positions="learned",
        norm="layer",
        norm_eps=config.layer_norm_epsilon,
        activation="gelu",
        bias=True,
        dtype="float64",
    )


def trunk(model, gradients: bool = False) -> dict:
    """Parameters (or gradients) of a GPT2Model as those of `gptjax.model.transformer.Transformer`."""
    config = model.config
    heads = (config.n_head, config.n_embd // config.n_head)
    named = dict(model.named_parameters())

    def leaf(name):
        return (named[name].grad if gradients else named[name]).detach().numpy()

    def stacked(name):
        return np.stack([leaf(f"h.{layer}.{name}") for layer in range(config.n_layer)])

    def norm(name, read):
        return {"scale_D": read(f"{name}.weight"), "bias_D": read(f"{name}.bias")}

    qkv_L = [np.split(stacked(f"attn.c_attn.{kind}"), 3, axis=-1) for kind in ("weight", "bias")]
    (wq, wk, wv), (bq, bk, bv) = ([x.reshape(*x.shape[:-1], *heads) for x in parts] for parts in qkv_L)
    out = stacked("attn.c_proj.weight")
    tree = {
        "embedding_VD": leaf("wte.weight"),
        "position_TD": leaf("wpe.weight"),
        "blocks": {
            "attention_norm": norm("ln_1", stacked),
            "attention": {
                "wq_DNH": wq, "wk_DKH": wk, "wv_DKH": wv, "bq_NH": bq, "bk_KH": bk, "bv_KH": bv,
                "wo_NHD": out.reshape(out.shape[0], *heads, out.shape[-1]),
                "bo_D": stacked("attn.c_proj.bias"),
            },
            "mlp_norm": norm("ln_2", stacked),
            "mlp": {
                "w_in_DF": stacked("mlp.c_fc.weight"),
                "b_in_F": stacked("mlp.c_fc.bias"),
                "w_out_FD": stacked("mlp.c_proj.weight"),
                "b_out_D": stacked("mlp.c_proj.bias"),
            },
        },
        "final_norm": norm("ln_f", leaf),
    }  # fmt: skip
    return _arrays(tree)


def scalar(model, gradients: bool = False) -> dict:
    """Likewise of a GPT2ForSequenceClassification with one label; its head has no bias."""
    head = (model.score.weight.grad if gradients else model.score.weight).detach().numpy()[0]
    return {"trunk": trunk(model.transformer, gradients), "head_D": jnp.asarray(head), "bias_1": jnp.zeros(1)}


def _arrays(tree):
    return {name: _arrays(value) if isinstance(value, dict) else jnp.asarray(value) for name, value in tree.items()}
