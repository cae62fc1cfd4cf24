"""Tasks for transformers that only the analyses need: a tiny CLIP with both towers, and encoders of glosses.

``clip-fashion`` trains image tower, text tower and joint space together: the logits of an image are its similarities to
the texts of the classes. ``clip-fashion-ln-pre`` has CLIP's usual norm before the image tower's first block, which the
other one leaves out. ``glosses-post-norm`` has BERT's architecture and names the lexicographer's file (person, animal,
act, …) of a noun of WordNet from its gloss; ``glosses-pre-norm`` differs only in where its norms are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import torch
from recipe import BuiltInTask
from torch import Tensor, nn

import weightspace as ws
from weightspace.clip import tokens
from weightspace.labels.wordnet import read_wordnet, wordnet_folder
from weightspace.tasks import ClassificationTask, Examples, Split, TrainConfig
from weightspace.zoo.fashion import fashion_examples, fashion_folder
from weightspace.zoo.fashion_clip import CLASS_NAMES
from weightspace.zoo.glosses import llama_glosses
from weightspace.zoo.language_task import LanguageTask

#: The texts of a class.
TEMPLATES = ("a photo of a {}.", "a picture of a {}.")
#: A model of open_clip, whose tokenizer is used.
_TOKENIZER = "ViT-B-32"
_WORDS, _LENGTH, _FILES = 4_000, 16, 26
#: The number of the first lexicographer's file of nouns.
_FIRST_FILE = 3
#: Glosses of each of the splits test and validation.
_HELD_OUT = 4_000


class Clip(nn.Module):
    """Logits of images: the similarities of their features to the mean features of the texts of each class.

    Args:
        ln_pre: whether a norm writes into the stream of the image tower.
    """

    def __init__(self, *, ln_pre: bool) -> None:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

        super().__init__()
        texts = class_texts()
        self.model = CLIP(
            embed_dim=64,
            vision_cfg=CLIPVisionCfg(
                image_size=28, patch_size=7, width=64, layers=2, head_width=16, mlp_ratio=2, no_ln_pre=not ln_pre
            ),
            text_cfg=CLIPTextCfg(
                context_length=texts.shape[-1], vocab_size=int(texts.max()) + 1, width=64, heads=4, layers=2,
                mlp_ratio=2,
            ),
        )  # fmt: skip
        self.register_buffer("texts", texts, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` of grey images ``(n, 1, 28, 28)``."""
        features = nn.functional.normalize(self.model.encode_image(images.expand(-1, 3, -1, -1)), dim=-1)
        texts = self.get_buffer("texts")
        each = nn.functional.normalize(self.model.encode_text(texts.flatten(0, 1)), dim=-1)
        classes = nn.functional.normalize(each.unflatten(0, texts.shape[:2]).mean(1), dim=-1)
        return self.model.logit_scale.exp() * features @ classes.T


@lru_cache(maxsize=1)
def class_texts() -> Tensor:
    """Return the tokens of each class in each template, int64 ``(classes, templates, length)``.

    They are numbered anew, in their order, so that the text tower has no embeddings of tokens that never occur.
    """
    texts = [template.replace("{}", name) for name in CLASS_NAMES for template in TEMPLATES]
    found = tokens(_TOKENIZER, texts)
    found = found[:, : int(found.ne(0).sum(1).max())]  # the tokenizer pads with zeros
    _, numbers = found.unique(return_inverse=True)
    return numbers.view(len(CLASS_NAMES), len(TEMPLATES), -1)


class Encoder(nn.Module):
    """Logits of texts: embedded words and positions, a norm as in BERT, layers, the mean over positions, linear head.

    Args:
        norm_first: whether each layer normalises what attention and MLP read; otherwise, as in BERT, their sums with
            the stream. Then the stream has no norm at its beginning, and one at its end.
    """

    def __init__(self, *, norm_first: bool, width: int = 64, depth: int = 2, heads: int = 4, hidden: int = 128) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, width)
        self.positions = nn.Parameter(0.02 * torch.randn(_LENGTH, width))
        self.norm = nn.LayerNorm(width)
        self.norm_first = norm_first
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, _FILES)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, words: Tensor) -> Tensor:
        """Return logits ``(n, files)`` of words ``(n, length)``."""
        stream = self.words(words) + self.positions
        if not self.norm_first:
            stream = self.norm(stream)
        for layer in self.layers:
            stream = layer(stream)
        if self.norm_first:
            stream = self.norm(stream)
        return self.head(stream.mean(dim=1))


@lru_cache(maxsize=1)
def gloss_words(folder: Path) -> Mapping[Split, Examples]:
    """Return the first words of glosses, int64 ``(n, 16)``, and the lexicographer's files of their synsets, 0 … 25.

    Words are numbered by their frequency in the training split, from 2; 0 is the end of a gloss, 1 any other word.
    """
    glosses = read_wordnet(folder).glosses
    order = torch.randperm(len(glosses), generator=torch.Generator().manual_seed(0))
    texts = [re.findall(r"[a-z]+", glosses[place].lower()) for place in order.tolist()]
    known = Counter(word for text in texts[2 * _HELD_OUT :] for word in text)
    numbers = {word: number for number, (word, _) in enumerate(known.most_common(_WORDS - 2), start=2)}
    inputs = torch.tensor([_numbered(text, numbers) for text in texts])
    labels = torch.tensor(_files(folder))[order]
    parts = {
        "test": slice(None, _HELD_OUT),
        "validation": slice(_HELD_OUT, 2 * _HELD_OUT),
        "train": slice(2 * _HELD_OUT, None),
    }
    return {split: Examples(inputs[part], labels[part]) for split, part in parts.items()}  # type: ignore[misc]


def _numbered(text: Sequence[str], numbers: Mapping[str, int]) -> list[int]:
    """Return the numbers of the first words of a text, and zeros after its end."""
    found = [numbers.get(word, 1) for word in text[:_LENGTH]]
    return found + [0] * (_LENGTH - len(found))


def _files(folder: Path) -> list[int]:
    """Return the number of the lexicographer's file of every noun synset, the first one 0."""
    lines = (folder / "data.noun").read_text(encoding="latin-1").splitlines()
    return [int(line.split(" ", 2)[1]) - _FIRST_FILE for line in lines if not line.startswith(" ")]


def clip_fashion(*, ln_pre: bool) -> ClassificationTask:
    """Return the task of a tiny CLIP trained from scratch on Fashion-MNIST and two texts of each class."""
    return ClassificationTask(
        name="clip-fashion-ln-pre" if ln_pre else "clip-fashion",
        build=partial(Clip, ln_pre=ln_pre),
        load=partial(fashion_examples, fashion_folder()),
        batch_size=128,
        recipe=TrainConfig(epochs=2, learning_rate=1e-3, cooldown=True),
    )


def glosses(*, norm_first: bool) -> ClassificationTask:
    """Return the task of naming the lexicographer's file of a noun from its gloss."""
    return ClassificationTask(
        name="glosses-pre-norm" if norm_first else "glosses-post-norm",
        build=partial(Encoder, norm_first=norm_first),
        load=partial(gloss_words, wordnet_folder()),
        batch_size=128,
        recipe=TrainConfig(epochs=2, learning_rate=1e-3, cooldown=True),
    )


def llama_of_width(width: int) -> LanguageTask:
    """Return the task ``llama-glosses`` for Llamas of another width."""
    return replace(llama_glosses(width=width), name=f"llama-glosses-{width}")


#: Task of Llamas -> width of the residual stream.
LLAMA_WIDTHS: Mapping[str, int] = {
    "llama-glosses-48": 48,
    "llama-glosses": 96,
    "llama-glosses-192": 192,
    "llama-glosses-384": 384,
}
#: Name -> task that the library does not have.
FURTHER: Mapping[str, Callable[[], BuiltInTask]] = {
    "clip-fashion": partial(clip_fashion, ln_pre=False),
    "clip-fashion-ln-pre": partial(clip_fashion, ln_pre=True),
    "glosses-pre-norm": partial(glosses, norm_first=True),
    "glosses-post-norm": partial(glosses, norm_first=False),
    **{name: partial(llama_of_width, width) for name, width in LLAMA_WIDTHS.items() if name != "llama-glosses"},
}
#: The tasks that results are kept of.
TASKS = ("vit-fashion", "clip-fashion", "clip-fashion-ln-pre", "glosses-post-norm", "llama-glosses")


def task_of(name: str) -> BuiltInTask:
    """Return a task of ``FURTHER``, or a built-in one."""
    return FURTHER[name]() if name in FURTHER else cast(BuiltInTask, ws.load_task(name))
