"""Tensors before a stack of layers and after it, by the names that networks have."""

import pytest

from weightspace.checkpoints.metadata import TensorInfo
from weightspace.merging.slices.boundaries import Boundaries

#: Network: stack, what lies before its layers, what lies after them.
NETWORKS = {
    "llama": ("model.layers", "model.embed_tokens.weight model.rotary_emb.inv_freq", "model.norm.weight lm_head.bias"),
    "gpt2": ("transformer.h", "transformer.wte.weight transformer.wpe.weight", "transformer.ln_f.bias lm_head.bias"),
    "neox": ("gpt_neox.layers", "gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.weight embed_out.weight"),
    "bloom": ("h", "word_embeddings.weight word_embeddings_layernorm.weight", "ln_f.weight"),
    "opt": (
        "model.decoder.layers",
        "model.decoder.embed_tokens.weight model.decoder.embed_positions.weight model.decoder.project_in.weight",
        "model.decoder.final_layer_norm.weight model.decoder.project_out.weight",
    ),
    "mamba": ("backbone.layers", "backbone.embeddings.weight", "backbone.norm_f.weight lm_head.weight"),
    "rwkv": ("blocks", "emb.weight", "ln_out.weight head.weight"),
    "chatglm": (
        "transformer.encoder.layers",
        "transformer.embedding.word_embeddings.weight transformer.rotary_pos_emb.inv_freq",
        "transformer.encoder.final_layernorm.weight transformer.output_layer.weight",
    ),
    "phi": ("transformer.h", "transformer.embd.wte.weight", "lm_head.ln.weight lm_head.linear.weight"),
    "original llama": ("layers", "tok_embeddings.weight rope.freqs", "norm.weight output.weight"),
    "bert": (
        "bert.encoder.layer",
        "bert.embeddings.word_embeddings.weight bert.embeddings.LayerNorm.weight bert.embeddings.position_ids",
        "bert.pooler.dense.weight cls.predictions.transform.LayerNorm.weight cls.seq_relationship.weight",
    ),
    "distilbert": (
        "distilbert.transformer.layer",
        "distilbert.embeddings.LayerNorm.weight",
        "pre_classifier.weight vocab_transform.weight vocab_layer_norm.weight vocab_projector.bias qa_outputs.weight",
    ),
    "electra": ("encoder.layer", "embeddings_project.weight", "discriminator_predictions.dense.weight"),
    "deberta": ("encoder.layer", "encoder.rel_embeddings.weight encoder.LayerNorm.weight", "classifier.weight"),
    "esm": ("esm.encoder.layer", "esm.embeddings.word_embeddings.weight", "esm.encoder.emb_layer_norm_after.weight"),
    "modernbert": (
        "model.layers",
        "model.embeddings.tok_embeddings.weight model.embeddings.norm.weight",
        "model.final_norm.weight head.dense.weight head.norm.weight decoder.bias",
    ),
    "reward": ("model.layers", "model.embed_tokens.weight", "score.weight v_head.summary.bias value.weight"),
    "timm vit": (
        "blocks",
        "cls_token reg_token pos_embed patch_embed.proj.weight patch_embed.norm.weight norm_pre.weight",
        "norm.weight fc_norm.weight head.weight attn_pool.q.weight",
    ),
    "hf vit": ("vit.encoder.layer", "vit.embeddings.cls_token", "vit.layernorm.weight vit.pooler.dense.weight"),
    "open_clip visual": (
        "visual.transformer.resblocks",
        "visual.conv1.weight visual.class_embedding visual.positional_embedding visual.ln_pre.weight",
        "visual.ln_post.weight visual.proj transformer.resblocks.0.ln_1.weight token_embedding.weight logit_scale",
    ),
    "open_clip text": (
        "transformer.resblocks",
        "token_embedding.weight positional_embedding attn_mask visual.conv1.weight visual.proj",
        "ln_final.weight text_projection logit_scale",
    ),
    "clip": (
        "text_model.encoder.layers",
        "text_model.embeddings.token_embedding.weight vision_model.post_layernorm.weight visual_projection.weight",
        "text_model.final_layer_norm.weight text_projection.weight logit_scale",
    ),
    "siglip vision": (
        "vision_model.encoder.layers",
        "vision_model.embeddings.patch_embedding.weight vision_model.pre_layrnorm.weight",
        "vision_model.post_layernorm.weight vision_model.head.probe logit_bias",
    ),
    "llava": (
        "language_model.model.layers",
        "vision_tower.vision_model.encoder.layers.0.x vision_tower.vision_model.post_layernorm.weight "
        "multi_modal_projector.linear_1.weight image_newline language_model.model.embed_tokens.weight",
        "language_model.model.norm.weight language_model.lm_head.weight",
    ),
    "llava's vision": (
        "vision_tower.vision_model.encoder.layers",
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.post_layernorm.weight multi_modal_projector.linear_1.bias language_model.norm.bias",
    ),
    "omni": (
        "thinker.model.layers",
        "thinker.audio_tower.conv1.weight thinker.visual.merger.mlp.0.weight thinker.model.embed_tokens.weight",
        "thinker.model.norm.weight talker.model.layers.0.x talker.model.norm.weight code2wav.conv.weight",
    ),
    "whisper's encoder": (
        "model.encoder.layers",
        "model.encoder.conv1.weight model.encoder.embed_positions.weight",
        "model.encoder.layer_norm.weight model.decoder.embed_tokens.weight model.decoder.layers.0.x proj_out.weight",
    ),
    "whisper's decoder": (
        "model.decoder.layers",
        "model.encoder.conv1.weight model.encoder.layer_norm.weight model.decoder.embed_positions.weight",
        "model.decoder.layer_norm.weight proj_out.weight",
    ),
    "t5's decoder": (
        "decoder.block",
        "shared.weight encoder.block.0.x encoder.final_layer_norm.weight",
        "decoder.final_layer_norm.weight lm_head.weight",
    ),
    "wav2vec2": (
        "wav2vec2.encoder.layers",
        "wav2vec2.masked_spec_embed wav2vec2.feature_extractor.conv_layers.0.conv.weight "
        "wav2vec2.feature_projection.layer_norm.weight wav2vec2.encoder.pos_conv_embed.conv.bias",
        "wav2vec2.encoder.layer_norm.weight wav2vec2.adapter.proj.weight lm_head.weight project_q.weight",
    ),
    "hubert": ("hubert.encoder.layers", "hubert.feature_projection.projection.bias", "projector.bias classifier.bias"),
    "dit": ("blocks", "x_embedder.proj.weight t_embedder.mlp.0.weight pos_embed", "final_layer.linear.weight"),
    "flux": ("double_blocks", "img_in.weight txt_in.weight time_in.in_layer.weight", "final_layer.linear.weight"),
    "diffusers": ("transformer_blocks", "proj_in.weight conv_in.weight", "norm_out.linear.weight proj_out.weight"),
    "x-transformers": (
        "attn_layers.layers",
        "token_emb.emb.weight pos_emb.emb.weight",
        "attn_layers.final_norm.g to_logits.weight",
    ),
    "sequential": ("1.layers", "0.weight 0.layers.norm.weight", "2.weight 3.linear.weight"),
    "tutorial": ("transformer_encoder.layers", "encoder.weight pos_encoder.pe", "decoder.weight decoder.bias"),
    "gemma3n": (
        "layers",
        "embed_tokens_per_layer.weight per_layer_projection_norm.weight altup_projections.0.weight",
        "altup_unembed_projections.0.weight",
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_tensors_before_the_layers_are_distinguished_from_those_after(network: str) -> None:
    stack, before, after = NETWORKS[network]
    inside = {f"{stack}.{layer}.weight": layer for layer in range(3)}
    outside = [*before.split(), *after.split()]
    tensors = {name: TensorInfo("F32", (2,)) for name in sorted([*inside, *outside])}
    boundaries = Boundaries(stack, tensors, inside)
    assert [name for name in outside if boundaries.is_before(name)] == before.split()


def test_the_norm_before_the_layers_of_wav2vec2_is_recognised_by_its_configuration() -> None:
    inside = {f"encoder.layers.{layer}.weight": layer for layer in range(2)}
    tensors = {name: TensorInfo("F32", (2,)) for name in (*inside, "encoder.layer_norm.weight", "norm.weight")}
    boundaries = Boundaries("encoder.layers", tensors, inside, early_norm=True)
    assert boundaries.is_before("encoder.layer_norm.weight")
    assert not boundaries.is_before("norm.weight")


def test_the_order_of_a_file_decides_where_names_do_not() -> None:
    inside = {f"blocks.{layer}.weight": layer for layer in range(2)}
    order = ["zeta.weight", *inside, "alpha.weight"]
    boundaries = Boundaries("blocks", {name: TensorInfo("F32", (2,)) for name in order}, inside)
    assert boundaries.is_before("zeta.weight")
    assert not boundaries.is_before("alpha.weight")


def test_the_order_of_a_sorted_file_decides_nothing() -> None:
    """Safetensors files are sorted by dtype and name: what no name tells lies before the layers."""
    inside = {f"blocks.{layer}.weight": layer for layer in range(2)}
    tensors = {"zeta.weight": TensorInfo("F32", (2,))}
    tensors |= {name: TensorInfo("F16", (2,)) for name in ("alpha.weight", *inside, "gamma.weight")}
    boundaries = Boundaries("blocks", tensors, inside)
    assert all(boundaries.is_before(name) for name in ("alpha.weight", "gamma.weight", "zeta.weight"))
