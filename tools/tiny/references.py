"""The references that the tiny models are measured against: transformers for Qwen2.5-VL, ../reference/deepseek_vl2.py
for DeepSeek-VL2. of(folder, dtype) gives one behind a common face."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import torch


def of(folder, dtype):
    kind = json.loads((Path(folder) / "config.json").read_text())["model_type"]
    return {"qwen2_5_vl": Qwen, "deepseek_vl_v2": DeepSeek}[kind](folder, dtype)


class Qwen:
    """transformers' model and processor (with Pillow's resize) behind one call."""

    family = "qwen2.5-vl"

    def __init__(self, folder, dtype):
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.processor = AutoProcessor.from_pretrained(folder)
        self.processor.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    def inputs(self, chat, images=(), video=None, fps=None, generate=False):
        text = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)
        arguments = {}
        if video:
            n = len(video)
            meta = {"total_num_frames": n, "fps": fps, "frames_indices": list(range(n)), "duration": n / fps}
            arguments = {
                "videos": [np.stack([np.asarray(f.convert("RGB")) for f in video])],
                "video_metadata": [meta],
                "do_sample_frames": False,
                "cap_pixels_per_frame": False,
            }
        elif images:
            arguments = {"images": [image.convert("RGB") for image in images]}
        return self.processor(text=[text], return_tensors="pt", **arguments)

    @torch.no_grad()
    def answer(self, prompt, images=(), video=None, fps=None, history=()):
        media = [{"type": "video"}] if video else [{"type": "image"}] * len(images)
        chat = []
        for turn in history:
            chat += [
                {"role": "user", "content": media + [{"type": "text", "text": turn["prompt"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": turn["answer"]}]},
            ]
            media = []
        chat.append({"role": "user", "content": media + [{"type": "text", "text": prompt}]})
        inputs = self.inputs(chat, images, video, fps, generate=True)
        out = self.model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(out, skip_special_tokens=True)

    @torch.no_grad()
    def logits(self, sample, ids):
        """Logits of every token of a whole conversation, whose ids must be these. Clips are resized here by Pillow, since
        transformers resizes frames with torchvision (one grey level apart)."""
        from qwen2_5_vl import preprocess
        from qwen2_5_vl.checkpoint import MAX_PIXELS, MIN_PIXELS

        # The chat template writes a default system turn where there is none.
        chat = [{"role": "system", "content": sample["system"]}]
        for content, answer in sample["turns"]:
            parts = [{"type": p} if p in ("image", "video") else {"type": "text", "text": p} for p in content]
            chat += [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ]
        if sample["video"]:
            frames = [preprocess.resize(frame, (MIN_PIXELS, MAX_PIXELS)) for frame in sample["images"]]
            inputs = self.inputs(chat, (), frames, sample["fps"])
        else:
            inputs = self.inputs(chat, sample["images"])
        assert inputs["input_ids"][0].tolist() == ids, "prompt ids differ"
        return self.model(**inputs).logits[0]


class DeepSeek:
    """The plain reference of DeepSeek-VL2; pictures are handed over as they are, in place of paths."""

    family = "deepseek-vl2"

    def __init__(self, folder, dtype):
        file = Path(__file__).resolve().parents[1] / "reference" / "deepseek_vl2.py"
        spec = spec_from_file_location("deepseek_vl2_reference", file)  # a package of ours has the file's name
        self.code = code = module_from_spec(spec)
        spec.loader.exec_module(code)
        self.processor, self.model = code.Processor(folder), code.Model.load(folder, dtype)

    def prepare(self, messages):
        return self.processor.prepare(messages, load=lambda image: image.convert("RGB"))

    @torch.no_grad()
    def answer(self, prompt, images=(), video=None, fps=None, history=()):
        media, messages = [{"type": "image", "path": image} for image in images], []
        for turn in history:
            messages += [
                {"role": "user", "content": media + [{"type": "text", "text": turn["prompt"]}]},
                {"role": "assistant", "content": turn["answer"]},
            ]
            media = []
        messages.append({"role": "user", "content": media + [{"type": "text", "text": prompt}]})
        ids, media = self.prepare(messages)
        tokens, _ = self.model.generate(ids, media, self.processor.image_id, 96)
        text = self.processor.decode(tokens, skip_special=False)
        return text.removesuffix("<｜end▁of▁sentence｜>")

    @torch.no_grad()
    def logits(self, sample, ids):
        """Logits of every token of a whole conversation, whose ids must begin with those of the reference's prompt."""
        images, messages = iter(sample["images"]), []
        if sample["system"] is not None:
            messages.append({"role": "system", "content": sample["system"]})
        for k, (content, answer) in enumerate(sample["turns"]):
            if k:
                messages.append({"role": "assistant", "content": sample["turns"][k - 1][1]})
            image = lambda: {"type": "image", "path": next(images)}
            parts = [image() if p == "image" else {"type": "text", "text": p} for p in content]
            messages.append({"role": "user", "content": parts})
        prompt, media = self.prepare(messages)
        assert prompt == ids[: len(prompt)], "prompt ids differ"
        x, config = self.model.embed(ids, media, self.processor.image_id), self.model.config.language
        for i in range(config["num_hidden_layers"]):
            x, _ = self.model.layer(i, x, torch.arange(len(ids)))
        x = self.code.rms_norm(x, self.model.w["language.model.norm.weight"], config["rms_norm_eps"])
        return x @ self.model.w["language.lm_head.weight"].T
