"""deepseek_vl2.py against other people's code on random weights of small shapes, in float32, weight for weight:

    python tools/reference/check_deepseek_vl2.py [TIMM]

    transformers 5.17: DeepseekV2 and DeepseekV3 whole (latent attention, both routers, experts), Llama's attention,
    SigLIP's vision model without its head; torch's unfold; torchvision's transforms; the tokenizer's own reading of
    special tokens in the published template. TIMM is a folder where timm lives (pip install --no-deps --target TIMM
    timm): its SigLIP of the published width, with tanh GELU as the published code sets it.

Prints the largest difference of each relative to the largest value; fails above 2e-5. transformers rotates interleaved
pairs in place where the published code separates them first: scores are the same, since query and key are permuted
alike. Its routers know the whole group-limited rule, which one group makes void.
"""

import io
import os
import sys
import tempfile

import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

import make_random_deepseek_vl2 as maker
from deepseek_vl2 import Config, Model, Processor, Weights, arrange, mha, patches_of, projector, route, vision

TOLERANCE = 2e-5
failed = False


def report(name, ours, theirs, tolerance=TOLERANCE):
    global failed
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    failed = failed or not error <= tolerance
    print(f"{name:60} {error:.1e}" + ("" if error <= tolerance else "  ABOVE TOLERANCE"))


def require(name, good):
    global failed
    failed = failed or not good
    print(f"{name:60} {'equal' if good else 'DIFFERENT'}")


def random_model(size, seed, **changes):
    """Of float32 values, the language model changed."""
    settings = maker.config(size)
    settings["language_config"].update(changes)
    fill, tensors = maker.spread_filler(seed), {}
    for name, shape in maker.tensors(settings, pool=False):
        out = io.BytesIO()
        fill(out, name, shape)
        tensors[name] = torch.frombuffer(bytearray(out.getvalue()), dtype=torch.bfloat16).reshape(shape).float()
    return Model(Config(settings), tensors)


def loaded(module, state):
    """Strict but for tables that are computed."""
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and all("inv_freq" in m or "position_ids" in m for m in missing), (missing, unexpected)
    return module.float().eval()


def language_state(model):
    """Names of transformers 5: experts are stacked, gate above up."""
    state, experts = {}, {}
    for name, value in model.w.tensors.items():
        if not name.startswith("language."):
            continue
        name = name.removeprefix("language.")
        if ".experts." in name:
            layer, rest = name.split(".experts.")
            expert, kind, _ = rest.split(".")
            experts.setdefault(layer, {})[int(expert), kind] = value
        else:
            state[name] = value
    for layer, found in experts.items():
        count = 1 + max(e for e, _ in found)
        state[layer + ".experts.gate_up_proj"] = torch.stack(
            [torch.cat([found[e, "gate_proj"], found[e, "up_proj"]]) for e in range(count)]
        )
        state[layer + ".experts.down_proj"] = torch.stack([found[e, "down_proj"] for e in range(count)])
    return state


def all_logits(model, ids):
    """Of every position, from runs over every prefix's last row with one cache: chunks of unequal length."""
    x, caches, rows = model.embed(ids, [], -1), None, []
    for i in range(len(ids)):
        logits, caches = model.forward(x[i : i + 1], caches)
        rows.append(logits)
    return torch.cat(rows)


def check_language(label, size, config_class, model_class, **changes):
    for seed in range(3):
        model = random_model(size, seed, **changes)
        text = {
            k: v
            for k, v in model.config.language.items()
            if k not in ("use_mla", "model_type", "torch_dtype", "rope_theta", "rope_scaling")
        }
        theirs = loaded(
            model_class(
                config_class(
                    **text, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attn_implementation="eager"
                )
            ),
            language_state(model),
        )
        ids = torch.randint(3, text["vocab_size"], (40,), generator=torch.Generator().manual_seed(seed)).tolist()
        out = theirs(torch.tensor([ids]), output_hidden_states=True)
        taps = {}
        logits, _ = model.forward(model.embed(ids, [], -1), tap=taps.__setitem__)
        name = f"{label}, seed {seed}:"
        for i in range(text["num_hidden_layers"] - 1):
            report(f"{name} layer {i}", taps[f"text.layer.{i}"], out.hidden_states[i + 1][0])
        report(f"{name} logits", logits, out.logits[0, -1:])
        report(f"{name} logits token by token", all_logits(model, ids), out.logits[0])


def check_router():
    model = random_model("noaux", 5)
    x, config = torch.randn(500, 48), model.config.language
    w = model.w.under("language.model.layers.1.mlp.")
    chosen, _ = route(x, w, config)
    unbiased, _ = route(x, w, {**config, "topk_method": "greedy"})
    changed = (chosen.sort(-1).values != unbiased.sort(-1).values).any(-1).float().mean().item()
    require(f"the correction bias changes the choice ({changed:.0%} of tokens)", changed > 0.1)


def check_mha():
    for kv_heads in (4, 2):
        model = random_model("mha", kv_heads, num_attention_heads=4, num_key_value_heads=kv_heads)
        w = model.w.under("language.model.layers.1.self_attn.")
        config = LlamaConfig(
            hidden_size=48,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            head_dim=12,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            attn_implementation="eager",
        )
        attention = LlamaAttention(config, 0)
        loaded(attention, {f"{n}_proj.weight": w[f"{n}_proj.weight"] for n in "qkvo"})
        x, positions = torch.randn(300, 48), torch.arange(300)
        mask = torch.full((300, 300), float("-inf")).triu(1)[None, None]
        theirs, _ = attention(x[None], LlamaRotaryEmbedding(config)(x, positions[None]), mask)
        ours, cache = mha(x[:200], w, model.config.language, positions[:200], None)
        more, _ = mha(x[200:], w, model.config.language, positions[200:], cache)
        report(f"llama attention, {kv_heads} key heads", torch.cat([ours, more]), theirs[0])


def check_vision():
    model = random_model("mha", 7)
    eyes, w = model.config.vision, model.w.under("vision.")
    width = eyes["width"]
    config = SiglipVisionConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=33,
        patch_size=10,
        intermediate_size=int(width * eyes["mlp_ratio"]),
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        attn_implementation="eager",
        vision_use_head=False,
    )
    state = {
        "embeddings.patch_embedding.weight": w["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": w["patch_embed.proj.bias"],
        "embeddings.position_embedding.weight": w["pos_embed"][0],
        "post_layernorm.weight": w["norm.weight"],
        "post_layernorm.bias": w["norm.bias"],
    }
    for i in range(2):
        for kind in ("weight", "bias"):
            get = lambda name: w[f"blocks.{i}.{name}.{kind}"]
            put = lambda name, value: state.__setitem__(f"encoder.layers.{i}.{name}.{kind}", value)
            for n, part in zip("qkv", get("attn.qkv").chunk(3)):
                put(f"self_attn.{n}_proj", part)
            put("self_attn.out_proj", get("attn.proj"))
            put("layer_norm1", get("norm1"))
            put("layer_norm2", get("norm2"))
            put("mlp.fc1", get("mlp.fc1"))
            put("mlp.fc2", get("mlp.fc2"))
    theirs = loaded(SiglipVisionModel(config), state)
    tiles, taps = torch.randn(4, 3, 33, 33), {}
    ours = vision(tiles, w, eyes, taps.__setitem__)
    report("siglip of transformers", ours, theirs(tiles).last_hidden_state)
    weight, bias = w["patch_embed.proj.weight"].flatten(1), w["patch_embed.proj.bias"]
    report("patches times the kernel", F.linear(taps["vision.patches"], weight, bias), taps["vision.patch_embed"])

    for side in (3, 4, 27):
        x = torch.randn(2, side * side, width)
        even = F.pad(x.reshape(2, side, side, width), (0, 0, 0, side % 2, 0, side % 2)).permute(0, 3, 1, 2)
        folded = F.unfold(even, 2, stride=2).mT
        p = model.w.under("projector.")
        theirs = p.linear(F.gelu(p.linear(folded, "layers.0")), "layers.2")
        report(f"projector by unfold, side {side}", projector(x, p, model.config.projector), theirs)


def check_arrange():
    """Against the definition, token by token."""
    side, (nw, nh) = 3, (4, 2)
    x, newline, separator = torch.randn(1 + nw * nh, side * side, 5), torch.randn(5), torch.randn(5)
    rows = []
    for r in range(side):
        rows += [x[0, r * side + c] for c in range(side)] + [newline]
    rows.append(separator)
    for r in range(side * nh):
        for c in range(side * nw):
            rows.append(x[1 + r // side * nw + c // side, r % side * side + c % side])
        rows.append(newline)
    require("order of a picture's tokens", torch.equal(arrange(x, (nw, nh), newline, separator), torch.stack(rows)))


def check_timm(folder):
    sys.path.insert(0, folder)
    from functools import partial
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(
        img_size=384,
        patch_size=14,
        embed_dim=1152,
        depth=3,
        num_heads=16,
        mlp_ratio=3.7362,
        class_token=False,
        global_pool="map",
        num_classes=0,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        act_layer=partial(torch.nn.GELU, approximate="tanh"),
    ).eval()
    settings = maker.config("tiny")
    settings["vision_config"]["layers"] = 3
    names = {n: s for n, s in maker.tensors(settings, pool=True) if n.startswith("vision.")}
    state = {"vision." + n: v.data for n, v in theirs.named_parameters()}
    require("names and shapes of timm's so400m tower, 3 blocks", {n: tuple(v.shape) for n, v in state.items()} == names)
    generator = torch.Generator().manual_seed(0)
    for n, v in state.items():
        v.copy_(
            torch.randn(v.shape, generator=generator) * (0.1 if v.ndim == 1 else v[0].numel() ** -0.5)
            + (1 if n.endswith("weight") and v.ndim == 1 else 0)
        )
    tiles = torch.randn(1, 3, 384, 384, generator=generator)
    ours = vision(tiles, Weights(state, "vision."), Config(settings).vision)
    report("siglip of timm, published width", ours, theirs.forward_features(tiles))


def check_processor():
    with tempfile.TemporaryDirectory() as folder:
        for size in ("mha", "noaux"):
            sys.argv = ["maker", os.path.join(folder, size), "--size", size]
            maker.main()
        both = [Processor(os.path.join(folder, size)) for size in ("mha", "noaux")]
    ours = both[0]
    require(
        "tokens appended in order get the ids of those written",
        all(p.id(t) == 311 + i for p in both for i, t in enumerate(maker.APPENDED)),
    )
    picture = Image.effect_noise((77, 50), 90).convert("RGB")
    views, _ = ours.views(picture, True)
    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    require(
        "pixels of torchvision's transforms",
        torch.equal(ours.normalized(views), torch.stack([pipeline(Image.fromarray(v)) for v in views])),
    )
    require(
        "order of patches",
        torch.equal(
            patches_of(ours.normalized(views), 10)[1, 5].reshape(3, 10, 10), ours.normalized(views)[1, :, 10:20, 20:30]
        ),
    )

    def published(turns):
        """The template with the tokenizer's own reading of special tokens, in pieces around <image>."""
        ids = [ours.bos]
        for role, words in turns:
            words = words.strip()
            if role == "user":
                words = f"<|User|>: {words}\n\n<|Assistant|>:"
            for i, piece in enumerate(words.split("<image>")):
                ids += [ours.image_id] * (13 if i else 0)
                ids += ours.tokenizer.encode(piece, add_special_tokens=False).ids
            ids += [ours.eos] if role == "assistant" else []
        return ids

    image, text = {"type": "image"}, lambda t: {"type": "text", "text": t}
    cases = [
        ([("user", " Hello, where is\tthis? 1234 ")], [("user", [text(" Hello, where is\tthis? 1234 ")])]),
        ([("user", "<image>\nWhat?")], [("user", [image, text("What?")])]),
        ([("user", "<image>\nWhat?")], [("user", [image, text("\nWhat?")])]),
        ([("user", "<image>\n<image>\n")], [("user", [image, image])]),
        ([("user", "See <image>\n<image>\n then.\n")], [("user", [text("See "), image, image, text(" then.\n")])]),
        (
            [
                ("system", " Be kind. "),
                ("user", "<|grounding|>Find <|ref|>it<|/ref|> \n"),
                ("assistant", " <|det|>[[1]]<|/det|> "),
                ("user", "<image>\nAnd?"),
            ],
            [
                ("system", " Be kind. "),
                ("user", [text("<|grounding|>Find <|ref|>it<|/ref|> \n")]),
                ("assistant", [text(" <|det|>[[1]]<|/det|> ")]),
                ("user", [image, text("And?")]),
            ],
        ),
        ([("user", "\u3000\u4f60\u597d\u00e9 \x85")], [("user", "\u3000\u4f60\u597d\u00e9 \x85")]),
    ]
    good = True
    for turns, messages in cases:
        ids = ours.prompt_ids([{"role": r, "content": c} for r, c in messages], [13] * 9)
        good = good and ids == published(turns)
    require(f"prompt ids of the published template, {len(cases)} prompts", good)
    typed = ours.prompt_ids([{"role": "user", "content": "<image><|User|>" + maker.EOS}], [])
    require(
        "special tokens typed by a user stay text",
        ours.image_id not in typed
        and ours.eos not in typed
        and typed.count(ours.id("<|User|>")) == 1
        and "<image><|User|>" + maker.EOS in ours.decode(typed),
    )


@torch.no_grad()
def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    torch.manual_seed(0)
    check_language("deepseek_v2", "noaux", DeepseekV2Config, DeepseekV2ForCausalLM, **maker.SOFTMAX)
    check_language(
        "deepseek_v2 of other widths",
        "noaux",
        DeepseekV2Config,
        DeepseekV2ForCausalLM,
        **maker.SOFTMAX,
        kv_lora_rank=40,
        v_head_dim=20,
    )
    check_language("deepseek_v3", "noaux", DeepseekV3Config, DeepseekV3ForCausalLM)
    check_language(
        "deepseek_v3 with one expert",
        "noaux",
        DeepseekV3Config,
        DeepseekV3ForCausalLM,
        norm_topk_prob=False,
        num_experts_per_tok=1,
    )
    check_router()
    check_mha()
    check_vision()
    check_arrange()
    check_processor()
    if folder:
        check_timm(folder)
    sys.exit(failed)


if __name__ == "__main__":
    main()
